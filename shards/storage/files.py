"""Whole-or-absent files and the lock of a folder that is being written."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from shards.errors import BadInput

TEMPORARY = ".*.tmp-*"
# Ranks of a killed command notice its death within seconds.
PATIENCE_S = 3.0
# Not there. EIO is no verdict on a file: a file server that is away for a minute says so of all of them.
LOST = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def temporary_beside(path: Path) -> Path:
    """Return a name in the same folder (so that a rename is atomic) that no other process writes."""
    return path.with_name(f".{path.name}.tmp-{_writer(os.getpid())}")


def write_atomic(path: Path, content: bytes, time_ns: int | None = None) -> None:
    """Write `content` so that `path` either does not change or holds all of it, even after a power cut.

    Args:
        time_ns: the time (since 1970) that the file gets, by default now.
    """
    with whole_or_absent(path) as temporary, open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        if time_ns is not None:
            os.utime(stream.fileno(), ns=(time_ns, time_ns))
        flush(stream)


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield the name to write, and flush, in the body; without an error it is `path` afterwards.

    Raises:
        OSError: of the body or the renaming; it names `path` if it named no file, as that of a full disk.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        rename_durably(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(stream: IO[bytes]) -> None:
    """Return when what was written to `stream` is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def rename_durably(source: Path, target: Path) -> None:
    """Rename, and return when the folder on the disk knows it."""
    os.replace(source, target)
    flush_path(target.parent)


def flush_path(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_one(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file of that name and remove it afterwards; yields False if it is not held.

    Without `wait`, that is when another process holds it; with it, when the one that did has removed it.
    """
    # To write: NFS refuses an exclusive lock to who may only read.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        mine = _taken(descriptor, wait) and _is_named(descriptor, path)
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; clear away what was left half-written before, and in the meantime.

    Raises:
        BadInput: another live process holds it, or a lock that only another user may open lies there.
    """
    with ExitStack() as stack:
        _hold(stack, directory)
        clear_temporaries(directory)
        yield
        # Of machines that were lost while they wrote for this process.
        clear_temporaries(directory)


def _hold(stack: ExitStack, directory: Path) -> None:
    # Not the folder itself: of NFS's, another machine would not know that it is locked.
    path, deadline = directory / ".mrrcnn.lock", time.monotonic() + PATIENCE_S
    try:
        while not stack.enter_context(only_one(path, wait=False)):
            if time.monotonic() >= deadline:
                raise BadInput(f"{directory}: another process is writing there; wait for it or stop it")
            time.sleep(0.1)
    except PermissionError as error:
        if not path.exists():
            raise
        raise BadInput(f"{path}: {error.strerror}; if nobody is writing there, delete it") from None


def clear_temporaries(folder: Path, process: int | None = None) -> None:
    """Delete what a kill has left half-written in a folder, which this process alone may write.

    Args:
        process: only what this one of this machine, which is dead, has left: others may write there.
    """
    for left in folder.glob(TEMPORARY if process is None else f".*.tmp-{_writer(process)}"):
        if not left.is_dir():
            left.unlink(missing_ok=True)
        elif re.fullmatch(r"\.step-\d+\.tmp-.+-\d+", left.name):
            # No other folders: a user's own may have a name that is a little like it.
            shutil.rmtree(left, ignore_errors=True)


def encode_json(tree: object) -> bytes:
    """Return JSON of one form only: sorted keys, no blanks, ASCII; NaN is refused by ValueError."""
    return _ENCODER.encode(tree).encode()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _writer(process: int) -> str:
    # Process ids alone repeat: in containers that share a file system, most are below a hundred.
    return f"{socket.gethostname()}-{process}"


def _taken(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        # NFS's word for one that another machine has just removed.
        if isinstance(error, BlockingIOError) or error.errno == errno.ESTALE:
            return False
        raise
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
