"""Files behind a URL, through fsspec: what cannot be had is named, what may yet come is tried again."""

import errno
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import BadInput

TRIES = 4
# Doubled after each try: 7 seconds in all, as long as a store takes that asks its callers to slow down.
PAUSE_S = 1.0
REFUSED = (401, 403)
# Of the disk that is written to: no fault of the store's, and no better a second later.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What drivers raise of their own has no common class, and not every driver is installed.
DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL rather than a path."""
    return "://" in str(place)


def absolute(place: str | Path) -> str:
    """Return a place that means the same in every working directory."""
    return str(place) if is_url(place) else str(Path(place).resolve())


def check_url(url: str) -> None:
    """Raise BadInput if a URL carries a password: it would be kept with the run and shown in messages."""
    if re.search(r"://[^/]*:[^/]*@", url):
        shown = re.sub(r"://[^/]*@", "://", url)
        raise BadInput(
            f"{shown}: is given with a password; leave it out, and give credentials the way the store's own "
            "tools take them (environment, credentials file)"
        )


def read_url(url: str) -> bytes:
    """Return the content of a file; raises as `download` does."""
    return _persistently(url, lambda files, path: files.cat_file(path))


def download(url: str, target: Path) -> None:
    """Write the content of a file to a path.

    Raises:
        BadInput: there is no such file, no access to it, or no driver for such URLs.
        OSError: it could not be had in TRIES tries; a later one may succeed.
    """
    _persistently(url, lambda files, path: files.get_file(path, str(target)))


def _persistently(url: str, action: Callable[[Any, str], Any]) -> Any:
    from fsspec.core import url_to_fs

    for tried in range(1, TRIES + 1):
        try:
            return action(*url_to_fs(url))
        except (OSError, ImportError, ValueError, *_driver_errors()) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise
            reason = _remedy(error)
            if reason is not None:
                raise BadInput(f"{url}: {reason}") from None
            if tried == TRIES:
                raise OSError(
                    errno.EIO, f"cannot be fetched, tried {TRIES} times ({_short(error)})", url
                ) from None
        time.sleep(PAUSE_S * 2 ** (tried - 1))


def _driver_errors() -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[name], kinds) for name, kinds in DRIVER_ERRORS.items() if name in sys.modules]
    return tuple(getattr(module, kind) for module, kinds in loaded for kind in kinds)


def _remedy(error: BaseException) -> str | None:
    """Return what is wrong and what to do, or None where another try may help."""
    status = getattr(error, "status", getattr(error, "code", None))
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return "is not there; correct the URL"
    if isinstance(error, PermissionError) or status in REFUSED or type(error).__name__ in NO_CREDENTIALS:
        return f"may not be read ({_short(error)}); check the credentials for it on this machine"
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed ({_short(error)})"
    if isinstance(error, ValueError):
        return f"is no URL that can be read ({_short(error)}); correct it"
    return None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
