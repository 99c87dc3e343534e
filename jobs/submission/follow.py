"""Following a job of a Ray cluster: its log to the end, its exit code, and what Ctrl-C means."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.console import say
from jobs.errors import BAD_INPUT, INTERRUPTED, JobFailed
from shards.storage.secrets import redact

POLL_S = 1.0
# How long a job server may be away: a head that restarts, a laptop that sleeps.
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Job:
    """A submitted job: Ray's client of the job server, the job's name, the server's address to show."""

    client: Any
    name: str
    address: str


def follow(job: Job) -> int:
    """Return the exit code of a job after showing its log from the start.

    Ctrl-C asks whether to stop the job; without a terminal it leaves the job running and says how to
    stop it and how to follow it.

    Raises:
        JobFailed: the job server has not answered for PATIENCE_S.
    """
    say(f"job {job.name} at {job.address}")
    shown = _Shown()
    try:
        asyncio.run(_show_log(job, shown))
    except KeyboardInterrupt:
        return _interrupted(job)
    if not shown.last.endswith("\n"):
        # Ray's own last word has no end of line.
        say("")
    details = _patiently(job, job.client.get_job_info)
    code = details.driver_exit_code
    if code is None:
        code = int(str(details.status) != "SUCCEEDED")
    say(f"job {job.name}: {details.status}" + (f", exit code {code}{_why(details)}" if code else ""))
    return code


def _why(details: Any) -> str:
    if details.driver_exit_code == BAD_INPUT:
        return "; mend what it names, then submit again"
    # Without an exit code nothing of ours has run to the end, and no log says why: the head does.
    silent = details.driver_exit_code is None and str(details.status) == "FAILED"
    reason = redact(" ".join((details.message or "").split()))[:200]
    return (f" ({reason})" if silent and reason else "") + "; the same command goes on"


@dataclass
class _Shown:
    """How many characters of the log were shown, and the last lot of them."""

    count: int = 0
    last: str = "\n"


async def _show_log(job: Job, shown: _Shown) -> None:
    patience = _Patience(job)
    # Ctrl-C cancels this task once; a client that makes a lost connection of it must not swallow it.
    while not asyncio.current_task().cancelling():
        with patience:
            await _show_rest(job, shown, patience)
            if job.client.get_job_info(job.name).status.is_terminal():
                return
        await asyncio.sleep(POLL_S)
    raise asyncio.CancelledError


async def _show_rest(job: Job, shown: _Shown, patience: "_Patience") -> None:
    # The server tells the log from its start, each time.
    told = 0
    try:
        async for text in job.client.tail_job_logs(job.name):
            patience.renew()
            if new := text[max(0, shown.count - told) :]:
                _show(new)
                shown.last = new
            told += len(text)
            shown.count = max(shown.count, told)
    except _lost():
        if not told:
            raise


def _show(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # `| head` has read enough; the job goes on. Python would try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


class _Patience:
    """Swallows a lost job server's errors, for PATIENCE_S since the first one without an answer between.

    A log may be followed for hours before it breaks off, so they do not count since the last answer.
    """

    def __init__(self, job: Job):
        self._job, self._since = job, None

    def renew(self) -> None:
        """Note an answer."""
        self._since = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, _lost()):
            self.renew()
            return False
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since > PATIENCE_S:
            raise JobFailed(_gone(self._job, error)) from None
        return True


def _patiently(job: Job, ask: Callable[[str], Any]) -> Any:
    patience = _Patience(job)
    while True:
        with patience:
            return ask(job.name)
        time.sleep(POLL_S)


def _lost() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError

    return (OSError, RuntimeError, ClientError)


def _gone(job: Job, error: Exception) -> str:
    return (
        f"the job server at {job.address} has not answered for {PATIENCE_S:.0f} s "
        f"({type(error).__name__}); job {job.name} may be alive: the same command follows it, or goes on"
    )


def _interrupted(job: Job) -> int:
    if not _wants_stop(job):
        say(f"the job goes on; to follow it:  ray job logs {job.name} --address {job.address} --follow")
        say(f"                  to stop it:    ray job stop {job.name} --address {job.address}")
        return INTERRUPTED
    _patiently(job, job.client.stop_job)
    while not (details := _patiently(job, job.client.get_job_info)).status.is_terminal():
        time.sleep(POLL_S)
    say(f"job {job.name}: {details.status}")
    return INTERRUPTED


def _wants_stop(job: Job) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"\nstop job {job.name}? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False
