"""Waiting for runs, without waiting for ever, and ending all that they have started."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import psutil

# Found again in the environment of every process that a run has started, whoever its parent is by then.
MARK = "MRRCNN_FAULTS"
# Longer than a collective waits for a lost peer, which ends by itself.
HANG_S = 900.0
LOOK_S, LOOK_AT_FILES_S = 0.001, 5.0


class Patience:
    """Runs out when nothing in a folder has changed for HANG_S, however long the whole takes."""

    def __init__(self, folder: Path):
        self._folder, self._newest = folder, 0.0
        self._looked = self._changed = time.monotonic()

    def is_out(self) -> bool:
        """Return whether it has run out; looks at the files every few seconds only."""
        now = time.monotonic()
        if now - self._looked > LOOK_AT_FILES_S:
            self._looked, newest = now, _newest_change(self._folder)
            if newest != self._newest:
                self._newest, self._changed = newest, now
        return now - self._changed > HANG_S


def wait_for(process: Popen, sign: Callable[[], bool], run: Path) -> None:
    """Return when a sign has come; an error if the process ends before, or does nothing any more."""
    patience = Patience(run)
    while not sign():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} too early")
        _fail_if_out(patience, process)
        time.sleep(LOOK_S)


def exit_code(process: Popen, run: Path) -> int:
    """Return a run's exit code; an error if it does nothing any more."""
    patience = Patience(run)
    while process.poll() is None:
        _fail_if_out(patience, process)
        time.sleep(0.1)
    return process.returncode


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """End, after the body and whatever it ended with, all processes of the runs in a folder."""
    try:
        yield
    finally:
        end(marked(folder))


def orphans(run: Path, patience_s: float = 30.0) -> list[psutil.Process]:
    """Return the processes of a run that live on `patience_s` after it."""
    deadline = time.monotonic() + patience_s
    while (left := marked(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def marked(folder: Path) -> list[psutil.Process]:
    """Return the live processes of a run, or of all runs in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            if mark and Path(mark).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill what a run has left."""
    for process in processes:
        kill(process)


def kill(process: psutil.Process) -> None:
    """Send SIGKILL, if there is still anybody."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def _fail_if_out(patience: Patience, process: Popen) -> None:
    if patience.is_out():
        raise RuntimeError(f"{process.args}: nothing has changed for {HANG_S:.0f} s")


def _newest_change(folder: Path) -> float:
    newest = 0.0
    for path in folder.rglob("*"):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except OSError:
            continue
    return newest
