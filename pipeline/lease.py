"""One live run per directory: an exclusive lease with an attempt number.

The kernel holds the lease (`flock`), so it is free the moment its holder dies, however it dies.
Workers may outlive a killed driver, and a lock says nothing of them; the attempt number does:
whoever commits asks first whether a newer attempt has begun. Within an attempt the workers may be
started again while some of them live on behind a broken network: each start claims its stage anew.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from shards.errors import BadInput
from shards.storage.files import clear_temporaries, write_atomic

# Loader processes of a killed driver notice its death within seconds; a lock left to them passes.
PATIENCE_S = 3.0
CLAIM = ".claim"

_held: set[int] = set()


class LeaseHeld(ValueError):
    """Another live command holds the run directory; the message names it."""


class StaleAttempt(RuntimeError):
    """A newer attempt has taken over the run directory; this one must commit nothing more."""


class Superseded(RuntimeError):
    """The workers were started again; those of an earlier start must commit nothing more."""


@dataclass(frozen=True)
class Lease:
    """Who runs a directory: attempt number (from 1), host, process id, start time (ISO 8601, UTC)."""

    attempt: int
    host: str
    pid: int
    started: str


@contextmanager
def acquire(run_dir: str | Path, patience_s: float = PATIENCE_S) -> Iterator[Lease]:
    """Yield the exclusive lease of a run directory, with an attempt number above all earlier ones.

    Args:
        run_dir: a directory of a POSIX file system; made if absent.
        patience_s: how long to wait for a holder to go before giving up.

    Raises:
        LeaseHeld: a live process holds it; names host, process id and start.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / "lease.lock", os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(descriptor)
    try:
        _lock(descriptor, run_dir, patience_s)
        yield _begin(run_dir, descriptor)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def check_attempt(run_dir: str | Path, attempt: int) -> None:
    """Return when `attempt` is still the newest one of the run directory.

    Raises:
        StaleAttempt: a newer attempt has begun, so that nothing may be committed any more.
    """
    newest = _newest(Path(run_dir))
    if newest is not None and newest.attempt != attempt:
        raise StaleAttempt(
            f"{run_dir}: attempt {attempt} is over, attempt {newest.attempt} "
            f"(process {newest.pid} on {newest.host}) has taken over; nothing more is written"
        )


@dataclass(frozen=True)
class Claim:
    """The right to write one stage's folder; the next start of the workers, or a newer attempt, ends it."""

    run_dir: Path
    stage: str
    attempt: int
    token: str | None

    def check(self) -> None:
        """Return when this start of the workers is still the newest; ask before every commit.

        Raises:
            StaleAttempt: a newer attempt has begun.
            Superseded: the workers of this attempt were started again.
        """
        check_attempt(self.run_dir, self.attempt)
        if self.token is not None and _claimed(self.run_dir / self.stage) != self.token:
            raise Superseded(
                f"{self.run_dir / self.stage}: the workers were started again; this start of theirs is over"
            )


def claim_stage(run_dir: str | Path, stage: str, attempt: int, rank: int) -> Claim:
    """Return the claim of a rank that starts to train; that of rank 0, which alone writes, ends earlier ones.

    What these have left half-written in the stage's folder is deleted.

    Raises:
        StaleAttempt: a newer attempt has begun.
    """
    run_dir = Path(run_dir)
    check_attempt(run_dir, attempt)
    if rank:
        return Claim(run_dir, stage, attempt, None)
    claim = Claim(run_dir, stage, attempt, uuid.uuid4().hex)
    (run_dir / stage).mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir / stage / CLAIM, claim.token.encode())
    clear_temporaries(run_dir / stage)
    return claim


def _claimed(folder: Path) -> str | None:
    try:
        return (folder / CLAIM).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _lock(descriptor: int, run_dir: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LeaseHeld(_refusal(run_dir)) from None
            time.sleep(0.1)


def _refusal(run_dir: Path) -> str:
    holder = _newest(run_dir)
    named = "a process that is just starting"
    if holder is not None:
        named = f"process {holder.pid} on {holder.host} since {holder.started}"
    return f"{run_dir}: is being run by {named}; wait for it, stop it, or choose another --run-dir"


def _begin(run_dir: Path, descriptor: int) -> Lease:
    before = _newest(run_dir)
    # Also in the locked file: whoever deletes a damaged lease.json must not be given an old number again.
    counted = os.pread(descriptor, 20, 0)
    lease = Lease(
        attempt=1 + max(before.attempt if before else 0, int(counted) if counted.isdigit() else 0),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    os.pwrite(descriptor, str(lease.attempt).encode(), 0)
    os.fsync(descriptor)
    clear_temporaries(run_dir)
    write_atomic(run_dir / "lease.json", json.dumps(asdict(lease), sort_keys=True, indent=1).encode() + b"\n")
    return lease


def _newest(run_dir: Path) -> Lease | None:
    path = run_dir / "lease.json"
    try:
        return Lease(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        # Without the number no older attempt could be told from this one.
        raise BadInput(f"{path}: is damaged ({error}); make sure no run is alive, then delete it") from None


def _let_go() -> None:
    # A forked child shares its parent's lock and would keep it after the parent's death.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
