"""Where images come from and shards go: a local folder, or an object store that fsspec reaches by its URL."""

import errno
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from shards.storage.files import only_writer, sha256_of, whole_or_absent, write_atomic
from shards.storage.remote import WEB, is_remote, local_path, persistently, read_file, shown

# Of errors that drivers raise without a number.
NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}


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

    def names(self) -> list[str]:
        """Return the names of all that lies in the folder itself."""
        return os.listdir(self.path)

    def changed_since(self, names: Iterable[str], folder: "LocalFolder", mark: str) -> bool:
        """Return whether a file was written to or put there since the time of another folder's file."""
        since = os.stat(folder.path / mark).st_mtime_ns
        return any(self._changed_ns(name) > since for name in names)

    def _changed_ns(self, name: str) -> int:
        # Not the time of its content: a file that is restored from a copy has one of long ago.
        try:
            return os.stat(os.path.join(self.path, name)).st_ctime_ns
        except (OSError, ValueError):
            return -1

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

    def write(self, name: str, content: bytes, time_ns: int | None = None) -> None:
        """Write a file so that it either does not change or holds all of `content`.

        Args:
            time_ns: the time (since 1970) that the content is true of, by default now.
        """
        write_atomic(self.path / name, content, time_ns)

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
        """Return what messages call an object."""
        return shown(self._url_of(name))

    def exists(self) -> bool:
        """Return whether anything lies under the prefix."""
        return persistently(self.url, lambda files, root: _fresh(files).isdir(root))

    def make(self) -> None:
        """Do what the store needs before objects lie under the prefix: nothing, for most."""
        persistently(self.url, lambda files, root: files.makedirs(root, exist_ok=True))

    def has(self, name: str) -> bool:
        """Return whether there is such an object."""
        return self.size(name) >= 0

    def size(self, name: str) -> int:
        """Return the size of an object in bytes, -1 where there is none."""
        return persistently(self._url_of(name), _size)

    def sizes(self, names: Iterable[str]) -> Iterator[int | None]:
        """Yield the size of each object, by one listing: a request for each would take hours.

        None where the listing has none, as that of a web server.
        """
        found = persistently(self.url, _listed)
        # Keys of a store are any text, but ./a.jpg is a.jpg to a web server.
        return (found.get(name, found.get(posixpath.normpath(name), -1)) for name in names)

    def names(self) -> list[str]:
        """Return the names of all that lies right under the prefix."""
        return [name for name in persistently(self.url, _listed) if "/" not in name]

    def open(self, name: str) -> Any:
        """Return a file to read and seek in."""
        return persistently(self._url_of(name), lambda files, path: files.open(path, "rb"))

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return read_file(self._url_of(name))

    def write(self, name: str, content: bytes, time_ns: int | None = None) -> None:
        """Write an object in one go; its time is the store's to set."""
        with naming(self.name_of(name)):
            persistently(self._url_of(name), lambda files, path: files.pipe_file(path, content))

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yield a local path to write in the body; without an error it is uploaded afterwards."""
        with tempfile.TemporaryDirectory(prefix="mrrcnn-") as folder, naming(self.name_of(name)):
            local = Path(folder, name)
            yield local
            persistently(self._url_of(name), lambda files, path: files.put_file(str(local), path))

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        if self.has(name):
            persistently(self._url_of(name), lambda files, path: files.rm_file(path))

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Return whether an object has its size: the store answers for the bytes, and reading them costs."""
        return self.size(name) == size

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing: an object store has no locks."""
        return nullcontext()

    def _url_of(self, name: str) -> str:
        # To a web server a # or ? would end the name, and % begin a code.
        return f"{self.url.rstrip('/')}/{quote(name) if self.url.startswith(WEB) else name}"


Folder = LocalFolder | RemoteFolder


def folder_at(place: str | Path) -> Folder:
    """Return the folder at a path or URL; `file://` is local.

    Raises:
        BadInput: a URL with a password, of a kind that fsspec does not know, or whose driver is missing.
    """
    if is_remote(place):
        persistently(place, lambda files, root: None)
        return RemoteFolder(str(place))
    path = local_path(place)
    return LocalFolder(str(path), Path(os.path.abspath(path)))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let an OSError of the body that names no file name this one: a failing store or a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        number = error.errno or next((n for kind, n in NUMBERS.items() if isinstance(error, kind)), errno.EIO)
        raise OSError(number, error.strerror or str(error), name) from error


def _fresh(files: Any) -> Any:
    """Return the file system without what it remembers of listings: others write there too."""
    files.invalidate_cache()
    return files


def _size(files: Any, path: str) -> int:
    try:
        found = _fresh(files).info(path)
    except FileNotFoundError:
        return -1
    return found["size"] if found["type"] == "file" else -1


def _listed(files: Any, root: str) -> dict[str, int | None]:
    start, named = len(root.rstrip("/")) + 1, unquote if root.startswith(WEB) else str
    found = _fresh(files).find(root, detail=True)
    return {named(path[start:]): entry["size"] for path, entry in found.items()}


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
