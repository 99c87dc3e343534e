"""Where images come from and shards go: a local folder, or an object store that fsspec reaches by its URL."""

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput
from shards.files import only_writer, sha256_of, whole_or_absent, write_atomic


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or one that all machines share.

    Attributes:
        place: as the user wrote it, for messages.
        path: absolute, since a worker may stand elsewhere.
    """

    place: str
    path: Path

    def __str__(self) -> str:
        return self.place

    def name_of(self, name: str) -> str:
        """Return what messages call a file of the folder."""
        return str(Path(self.place, name))

    def exists(self) -> bool:
        """Return whether there is such a folder."""
        return self.path.is_dir()

    def make(self) -> None:
        """Make the folder where there is none."""
        self.path.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes, -1 where there is none."""
        try:
            return os.stat(os.path.join(self.path, name)).st_size
        except (OSError, ValueError):
            return -1

    def sizes(self, names: Iterable[str]) -> Iterator[int]:
        """Yield the size of each file."""
        return map(self.size, names)

    def open(self, name: str) -> IO[bytes]:
        """Return a file to read and seek in."""
        return open(self.path / name, "rb")

    def read(self, name: str) -> bytes:
        """Return the content of a regular file; a pipe under its name would never end."""
        # A pipe is opened too, at once; strings, since a Path takes longer than the file.
        with open(os.path.join(self.path, name), "rb", buffering=0, opener=_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, "no regular file", self.name_of(name))
            return stream.readall()

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it either does not change or holds all of `content`."""
        write_atomic(self.path / name, content)

    def making(self, name: str) -> AbstractContextManager[Path]:
        """Yield a path to write, and flush, in the body; without an error it is the file afterwards."""
        return whole_or_absent(self.path / name)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Return whether a file is there to the last byte."""
        return self.size(name) == size and sha256_of(self.path / name) == sha256

    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out during the body; BadInput if there is one."""
        return only_writer(self.path)


@dataclass(frozen=True)
class RemoteFolder:
    """A prefix of an object store. An object appears there when it is complete, or not at all.

    Credentials and endpoints come from the environment, as fsspec's driver of the store reads them. Such
    stores have no lock: that only one command writes there is the user's to see to.
    """

    url: str

    def __str__(self) -> str:
        return shown(self.url)

    def name_of(self, name: str) -> str:
        """Return what messages call an object, without a password that the URL may hold."""
        return f"{shown(self.url).rstrip('/')}/{name}"

    def exists(self) -> bool:
        """Return whether anything lies under the prefix."""
        system, root = _reach(self.url)
        system.invalidate_cache()
        return system.isdir(root)

    def make(self) -> None:
        """Do what the store needs before objects lie under the prefix: nothing, for most."""
        system, root = _reach(self.url)
        system.makedirs(root, exist_ok=True)

    def has(self, name: str) -> bool:
        """Return whether there is such an object."""
        return self.size(name) >= 0

    def size(self, name: str) -> int:
        """Return the size of an object in bytes, -1 where there is none."""
        system, path = self._find(name)
        system.invalidate_cache()
        try:
            return system.info(path)["size"] if system.isfile(path) else -1
        except FileNotFoundError:
            return -1

    def sizes(self, names: Iterable[str]) -> Iterator[int]:
        """Yield the size of each object, by one listing: a request for each would take hours."""
        system, root = _reach(self.url)
        system.invalidate_cache()
        found = {path: entry["size"] for path, entry in system.find(root, detail=True).items()}
        return (found.get(f"{root.rstrip('/')}/{name}", -1) for name in names)

    def open(self, name: str) -> Any:
        """Return a file to read and seek in."""
        system, path = self._find(name)
        return system.open(path, "rb")

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        system, path = self._find(name)
        return system.cat_file(path)

    def write(self, name: str, content: bytes) -> None:
        """Write an object in one go."""
        system, path = self._find(name)
        with naming(self.name_of(name)):
            system.pipe_file(path, content)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yield a local path to write in the body; without an error it is uploaded afterwards."""
        system, path = self._find(name)
        with tempfile.TemporaryDirectory(prefix="mrrcnn-") as folder, naming(self.name_of(name)):
            yield Path(folder, name)
            system.put_file(str(Path(folder, name)), path)

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        system, path = self._find(name)
        if self.has(name):
            system.rm_file(path)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Return whether an object has its size: the store answers for the bytes, and reading them costs."""
        return self.size(name) == size

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing: an object store has no locks."""
        return nullcontext()

    def _find(self, name: str) -> tuple[Any, str]:
        system, root = _reach(self.url)
        return system, f"{root.rstrip('/')}/{name}"


Folder = LocalFolder | RemoteFolder


def folder_at(place: str | Path) -> Folder:
    """Return the folder at a path or URL; `file://` is local.

    Raises:
        BadInput: fsspec knows no such URL, or lacks the driver for it.
    """
    if is_remote(place):
        _reach(str(place))
        return RemoteFolder(str(place))
    path = str(place).removeprefix("file://")
    return LocalFolder(str(Path(path)), Path(os.path.abspath(path)))


def is_remote(place: str | Path) -> bool:
    """Return whether a place is a URL of something other than this machine's files."""
    return "://" in str(place) and not str(place).startswith("file://")


def read_file(place: str | Path) -> bytes:
    """Return the content of a file at a path or URL."""
    if is_remote(place):
        system, path = _reach(str(place))
        return system.cat_file(path)
    return Path(str(place).removeprefix("file://")).read_bytes()


def hash_file(place: str | Path) -> str:
    """Return the SHA-256 of a file at a path or URL, hex."""
    if is_remote(place):
        return hashlib.sha256(read_file(place)).hexdigest()
    return sha256_of(Path(str(place).removeprefix("file://")))


def shown(place: str | Path) -> str:
    """Return a path or URL for messages and reports: without user and password."""
    return re.sub(r"://[^/@]*@", "://", str(place)) if is_remote(place) else str(place)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let an OSError of the body name the file: a failing store or a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), name) from error


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _reach(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # only for URLs: local paths do without

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{shown(url)}: cannot be reached ({reason}); install its fsspec driver") from None
