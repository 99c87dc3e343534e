"""Files behind a URL, through fsspec: what cannot be had is named, what may yet come is tried again.

`file://` URLs are paths of this machine and never come here. A URL with a password is refused, and none is
ever shown: not a user's name either, nor what follows a question mark, where signed URLs have their key.
"""

import errno
import hashlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.storage.files import sha256_of
from shards.storage.secrets import holds_password, holds_secret, redact

TRIES = 4
# Doubled after each try: 7 seconds in all, as long as a store takes that asks its callers to slow down.
PAUSE_S = 1.0
LOCAL = "file://"
WEB = ("http://", "https://")
REFUSED = (401, 403)
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# Of the disk that is written to: no fault of the store's, and no better a second later.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What drivers raise of their own has no common class, and not every driver is installed.
DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
_LEAVE_OUT = (
    "leave it out, and give credentials the way the store's own tools take them "
    "(environment, credentials file)"
)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


def is_remote(place: str | Path) -> bool:
    """Return whether a place is a URL of something other than this machine's files."""
    return "://" in str(place) and not str(place).startswith(LOCAL)


def local_path(place: str | Path) -> Path:
    """Return the path that a place of this machine is, given as one or as a `file://` URL."""
    return Path(str(place).removeprefix(LOCAL))


def absolute(place: str | Path) -> str:
    """Return a place that means the same in every working directory."""
    return str(place) if is_remote(place) else str(local_path(place).resolve())


def shown(place: str | Path) -> str:
    """Return a path or URL for messages and reports: without user, password and signature."""
    return _without_secrets(str(place)) if is_remote(place) else str(place)


def check_url(place: str | Path) -> None:
    """Raise BadInput if a URL carries a password, a token or a signature: it would be kept with the run."""
    if is_remote(place) and holds_secret(str(place)):
        raise BadInput(f"{shown(place)}: is given with a password, token or signature; {_LEAVE_OUT}")


def read_file(place: str | Path) -> bytes:
    """Return the content of a file at a path or URL; a URL raises as `persistently` does."""
    return persistently(place, _cat) if is_remote(place) else local_path(place).read_bytes()


def hash_file(place: str | Path) -> str:
    """Return the SHA-256 of a file at a path or URL, hex; errors as `read_file`."""
    return hashlib.sha256(read_file(place)).hexdigest() if is_remote(place) else sha256_of(local_path(place))


def read_url(url: str) -> bytes:
    """Return the content of a file; raises as `download` does."""
    return _there(url, _cat)


def download(url: str, target: Path) -> None:
    """Write the content of a file to a path.

    Raises:
        BadInput: there is no such file, no access to it, or no driver for such URLs.
        OSError: it could not be had in TRIES tries; a later one may succeed.
    """
    _there(url, lambda files, path: files.get_file(path, str(target)))


def persistently(url: str | Path, action: Callable[[Any, str], Any]) -> Any:
    """Return what `action(file system, path)` does for a URL, tried again where that may help.

    Raises:
        BadInput: a password, no driver, no credentials, or no such kind of URL.
        FileNotFoundError, PermissionError and their like: as the driver raises them.
        OSError: the disk is full, or it failed TRIES times; a later one may succeed.
    """
    # One file may be fetched by a signed URL; a run keeps its URLs, and check_url refuses those.
    if holds_password(str(url)):
        raise BadInput(f"{shown(url)}: is given with a password; {_LEAVE_OUT}")
    for tried in range(1, TRIES + 1):
        try:
            return action(*_reach(url))
        except (OSError, ImportError, ValueError, *_driver_errors()) as error:
            if isinstance(error, (*ABSENT, BadInput)) or getattr(error, "errno", None) in DISK_ERRORS:
                raise
            reason = _remedy(error)
            if reason is not None:
                raise BadInput(f"{shown(url)}: {reason}") from None
            if tried == TRIES:
                raise OSError(
                    errno.EIO, f"cannot be reached, tried {TRIES} times ({_short(error)})", shown(url)
                ) from None
        time.sleep(PAUSE_S * 2 ** (tried - 1))


def _there(url: str, action: Callable[[Any, str], Any]) -> Any:
    try:
        return persistently(url, action)
    except PermissionError as error:
        raise BadInput(f"{shown(url)}: {_no_access(error)}") from None
    except ABSENT:
        raise BadInput(f"{shown(url)}: is not there; correct the URL") from None


def _cat(files: Any, path: str) -> bytes:
    return files.cat_file(path)


def _reach(url: str | Path) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # only for URLs: local paths do without

    return url_to_fs(str(url))


def _driver_errors() -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[name], kinds) for name, kinds in DRIVER_ERRORS.items() if name in sys.modules]
    return tuple(getattr(module, kind) for module, kinds in loaded for kind in kinds)


def _remedy(error: BaseException) -> str | None:
    """Return what is wrong and what to do, or None where another try may help."""
    status = getattr(error, "status", getattr(error, "code", None))
    if status in REFUSED or type(error).__name__ in NO_CREDENTIALS:
        return _no_access(error)
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed ({_short(error)}); install it"
    if isinstance(error, ValueError):
        return f"is no URL that can be read ({_short(error)}); correct it"
    return None


def _no_access(error: BaseException) -> str:
    return f"may not be read ({_short(error)}); check the credentials for it on this machine"


def _short(error: BaseException) -> str:
    # Drivers name the whole URL.
    return _without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__


def _without_secrets(text: str) -> str:
    return re.sub(r"(://[^\s?]*)\?[^\s'\")]*", r"\1", re.sub(r"://[^/\s]*@", "://", redact(text)))
