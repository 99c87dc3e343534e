"""Whole files from elsewhere kept on this machine's disk, for any number of processes and jobs at once.

A file's name is its SHA-256, so that jobs, data sets and URLs share what is the same. A finished file is
never written to; it may be removed at any time, and whoever has it open reads on. Beside it may lie

    SHA256.damaged      what its URL gave twice instead; its time is that of the download
    SHA256.lock         held (flock) by the one process that downloads it; its death frees it
    SHA256.SIZE.part    its download; the size is the room that it was granted
    .lock               held while room is counted and granted
"""

import fcntl
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput
from shards.storage.files import only_one, sha256_of
from shards.storage.remote import download, read_url, shown

LIMIT_GB = 20.0
WAIT_S = 0.1
DIGEST = 64
DAMAGED = ".damaged"
_ELSEWHERE = "set data.cache_dir or MRRCNN_CACHE"


@dataclass(frozen=True)
class Cache:
    """A folder of downloaded files whose sizes add up to no more than a limit.

    Attributes:
        folder: any directory of a local disk; made when it is first needed.
        limit_bytes: of all files in it, those being downloaded included.
    """

    folder: str
    limit_bytes: int

    def open(self, url: str, sha256: str, size: int) -> int:
        """Return a descriptor of a file of `size` bytes, to be closed; downloads it unless it is there.

        A file that comes damaged twice is kept apart and given as it is: who reads it must verify what he
        reads. `forget` says when it is fetched once more.

        Raises:
            BadInput: the URL cannot be read, is a larger file, or is larger than the cache.
            OSError: the store cannot be reached, or the disk is full.
        """
        return self._open(sha256, size, lambda part: _download(url, sha256, size, part))

    def read(self, url: str, sha256: str) -> bytes:
        """Return the content of a small file; errors as `open`."""
        descriptor = _opened(self._path(sha256))
        if descriptor is None:
            content = read_url(url)
            _check_is(url, sha256, hashlib.sha256(content).hexdigest())
            descriptor = self._open(
                sha256, len(content), lambda part: part.write_bytes(content) == len(content)
            )
        with open(descriptor, "rb") as stream:
            return stream.read()

    def forget(self, sha256: str, before: float = math.inf) -> None:
        """Remove a file, for one that has been damaged since it was downloaded.

        One that came damaged is removed if it came before a time (seconds since 1970): its URL may have been
        put right since.
        """
        self._path(sha256).unlink(missing_ok=True)
        damaged = self._damaged(sha256)
        with suppress(FileNotFoundError):
            if damaged.stat().st_mtime < before:
                damaged.unlink()

    def _path(self, sha256: str) -> Path:
        return Path(self.folder, sha256)

    def _damaged(self, sha256: str) -> Path:
        return Path(self.folder, sha256 + DAMAGED)

    def _open(self, sha256: str, size: int, fill: Callable[[Path], bool]) -> int:
        path = self._path(sha256)
        while (descriptor := self._there(sha256)) is None:
            self._check(size)
            with only_one(path.with_name(f"{sha256}.lock")) as mine:
                # Else another process has just finished it.
                if mine and not path.exists() and not self._damaged(sha256).exists():
                    return self._filled(sha256, size, fill)
        return descriptor

    def _there(self, sha256: str) -> int | None:
        descriptor = _opened(self._path(sha256))
        return _opened(self._damaged(sha256), used=False) if descriptor is None else descriptor

    def _check(self, size: int) -> None:
        if size > self.limit_bytes:
            raise BadInput(
                f"{self.folder}: a shard of {size / 1e9:.3g} GB does not fit into a cache of "
                f"{self.limit_bytes / 1e9:.3g} GB; raise data.cache_gb"
            )
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{self.folder}: cannot be made a folder ({error.strerror}); {_ELSEWHERE}"
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise BadInput(f"{self.folder}: may not be written to; {_ELSEWHERE}")

    def _filled(self, sha256: str, size: int, fill: Callable[[Path], bool]) -> int:
        part = Path(self.folder, f"{sha256}.{size}.part")
        # Of a process that was killed: this one holds the lock now.
        part.unlink(missing_ok=True)
        while not self._granted(part, size):
            time.sleep(WAIT_S)
        try:
            path = self._path(sha256) if fill(part) else self._damaged(sha256)
            # Opened before it has its name: from then on any process may evict it.
            descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return descriptor

    def _granted(self, part: Path, size: int) -> bool:
        """Return whether there is room, after evicting what was not used for longest; creates the part."""
        with _locked(part.with_name(".lock")):
            room = self.limit_bytes - sum(_promised(other) for other in part.parent.glob("*.part"))
            if size > room:
                # Taken by downloads under way: they will be files to evict.
                return False
            finished = sorted(_finished(part.parent))
            room -= sum(bytes_ for _, bytes_, _ in finished)
            for _, bytes_, path in finished:
                if size <= room:
                    break
                path.unlink(missing_ok=True)
                room += bytes_
            part.touch()
            return True


def cache_at(folder: str | None = None, limit_gb: float = LIMIT_GB) -> Cache:
    """Return the cache in a folder; by default in MRRCNN_CACHE, or else in ~/.cache/mrrcnn."""
    place = Path(folder or os.environ.get("MRRCNN_CACHE") or "~/.cache/mrrcnn")
    return Cache(str(place.expanduser().absolute()), int(limit_gb * 1e9))


def _opened(path: Path, used: bool = True) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if used:
        # The time of the last use; the file system's own access times are mostly off. Another user's file,
        # or one on a disk that is only read, is good without.
        with suppress(OSError):
            os.utime(descriptor)
    return descriptor


def _finished(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield (time of last use, bytes, path) of every file that is whole."""
    for entry in os.scandir(folder):
        # A file may be forgotten at any time.
        with suppress(FileNotFoundError):
            if len(entry.name.removesuffix(DAMAGED)) == DIGEST:
                found = entry.stat()
                yield found.st_mtime_ns, found.st_size, Path(entry.path)


def _promised(part: Path) -> int:
    """Return the room that a download was granted; one whose process died is removed and has none."""
    digest, size, _ = part.name.split(".")
    with only_one(part.with_name(f"{digest}.lock"), wait=False) as dead:
        if dead:
            part.unlink(missing_ok=True)
    return 0 if dead else int(size)


def _download(url: str, sha256: str, size: int, part: Path) -> bool:
    """Return whether the file came as it should; once more if not: it may just be written, or a line drop."""
    for _ in range(2):
        download(url, part)
        found = sha256_of(part)
        if found == sha256:
            return True
    if part.stat().st_size > size:
        # There may be no room for it.
        _check_is(url, sha256, found)
    return False


def _check_is(url: str, wanted: str, found: str) -> None:
    if found != wanted:
        raise BadInput(
            f"{shown(url)}: does not match its checksum in dataset.json; copy the shards there again"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # To write: NFS refuses an exclusive lock to who may only read.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
