"""Where the files of a data set are: a directory, or a URL behind a local cache."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import BadInput
from shards.storage.cache import Cache, cache_at
from shards.storage.files import LOST
from shards.storage.folder import naming
from shards.storage.remote import check_url, is_remote, local_path, read_url, shown

MAX_OPEN_FILES = 64
_AGAIN = "copy it again or make the shards again"


class LocalStore:
    """The files of a directory; shards stay open between reads."""

    def __init__(self, place: str | Path):
        self.place = Path(place)
        self._files: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def name(self, file: str) -> str:
        """Return what a file is called in messages."""
        return str(self.place / file)

    def description(self, file: str) -> bytes:
        """Return the content of the file that says what the others are; raises as `read`."""
        with _judged(self.name(file), "give a directory that `mrrcnn shard` has finished"):
            return (self.place / file).read_bytes()

    def content(self, file: str, sha256: str) -> bytes:
        """Return the content of a small file, which has this checksum.

        Raises:
            BadInput: it is not there, or damaged.
            OSError: the disk fails; names the file.
        """
        with _judged(self.name(file), _AGAIN):
            content = (self.place / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BadInput(f"{self.name(file)}: is damaged; {_AGAIN}")
        return content

    def read(self, shard: dict, offset: int, size: int) -> bytes:
        """Return bytes of a shard, a row of dataset.json; fewer where it ends.

        Raises:
            BadInput: it is not there.
            OSError: the disk fails; names the shard.
        """
        return _pread(self._file(shard["name"]), size, offset, self.place, shard["name"])

    def open(self, shard: dict) -> BinaryIO:
        """Return a whole shard to read and seek in; raises as `read`."""
        with _judged(self.name(shard["name"]), _AGAIN):
            return open(self.place / shard["name"], "rb")

    def forget(self, shard: dict) -> None:
        """Open a shard anew next time: it may have been replaced."""
        if shard["name"] in self._files:
            os.close(self._files.pop(shard["name"]))

    def _file(self, file: str) -> int:
        if file not in self._files:
            if len(self._files) >= MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            with _judged(self.name(file), _AGAIN):
                self._files[file] = os.open(self.place / file, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[file]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)


class RemoteStore:
    """The files behind a URL; the methods are those of `LocalStore`.

    Shards are downloaded whole into the cache, and opened for each read: then what is evicted is gone, and
    the cap of the cache is one of the disk. A shard that is damaged behind its URL is read as it is: the
    checksum of each sample tells which ones are damaged.
    """

    def __init__(self, place: str, cache: Cache):
        check_url(place)
        self.place, self.cache = place.rstrip("/"), cache
        self._opened = time.time()

    def name(self, file: str) -> str:
        return shown(self._url_of(file))

    def description(self, file: str) -> bytes:
        return read_url(self._url_of(file))

    def content(self, file: str, sha256: str) -> bytes:
        return self.cache.read(self._url_of(file), sha256)

    def read(self, shard: dict, offset: int, size: int) -> bytes:
        descriptor = self.cache.open(self._url_of(shard["name"]), shard["sha256"], shard["bytes"])
        try:
            return _pread(descriptor, size, offset, self.cache.folder, shard["sha256"])
        finally:
            os.close(descriptor)

    def open(self, shard: dict) -> BinaryIO:
        return open(self.cache.open(self._url_of(shard["name"]), shard["sha256"], shard["bytes"]), "rb")

    def forget(self, shard: dict) -> None:
        """Remove a shard from the cache: its copy has been damaged there, or came so to an earlier store.

        One that came damaged to this store stays: it was fetched twice, and would be again for each sample.
        """
        self.cache.forget(shard["sha256"], before=self._opened)

    def _url_of(self, file: str) -> str:
        return f"{self.place}/{file}"


@contextmanager
def _judged(name: str, remedy: str) -> Iterator[None]:
    try:
        with naming(name):
            yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise BadInput(f"{name}: is missing ({error.strerror}); {remedy}") from None


def _pread(descriptor: int, size: int, offset: int, *path: str | Path) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.path.join(*path)) from None


Store = LocalStore | RemoteStore


def open_store(place: str | Path, cache: Cache | None = None) -> Store:
    """Return the store of a directory, or of an fsspec URL behind a cache, by default the user's."""
    if is_remote(place):
        return RemoteStore(str(place), cache or cache_at())
    return LocalStore(local_path(place))
