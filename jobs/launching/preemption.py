"""How workers learn that they are to save and perhaps to stop: SIGTERM, and Ray's notice of a node's end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from jobs.errors import Stopped
from pipeline.notice import Notice

SAME_S = 5.0
# How long a disk that does not take the stop file is left alone.
AGAIN_S = 1.0


class Listener:
    """Asked by every rank as it trains or waits; SIGTERM to driver or rank stops, Ray's notice only saves."""

    def __init__(self, stop_file: str | None):
        """Hear of `stop_file`, which a driver makes that is told to end, and of SIGTERM to this process."""
        self._stop_file = None if stop_file is None else Path(stop_file)
        self._terminated = threading.Event()
        self._announced = False
        # Ray's workers do their work in a thread, where no handler can be set; Ray ends them on SIGTERM.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, self._hear)

    def __call__(self) -> Notice:
        """Return what this rank has been told since the last call; a request to stop stays."""
        stop = self._terminated.is_set() or (self._stop_file is not None and self._stop_file.exists())
        announced = _ray_announced()
        fresh, self._announced = announced and not self._announced, announced
        return Notice(save=stop or fresh, stop=stop)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._terminated.set()
        # With --launcher local the driver is this process, and hears it too.
        if callable(self._before):
            self._before(number, frame)


@contextmanager
def passing_on(stop_file: str | None) -> Iterator[Callable[[], bool]]:
    """While the body runs, SIGTERM to this process makes `stop_file` instead of ending it.

    Yields what tells whether it has come, which the file says only where the disk takes it.

    A second one means what it did before, unless it comes within SAME_S: `timeout` and others send the
    same one to a process and to its group. A disk that does not take the file is asked again and again:
    a rank of this process has heard it anyhow, others not before.

    Raises:
        Stopped: SIGTERM came, and the body is done without the file: nobody else would tell later stages.
    """
    if stop_file is None or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard: list[float] = []
    over = threading.Event()

    def hear(number: int, _: object) -> None:
        heard.append(time.monotonic())
        # What a handler raises would end the training that is to save first.
        if not _made(stop_file):
            threading.Thread(target=_make_later, args=(stop_file, over), daemon=True).start()
        if heard[-1] - heard[0] > SAME_S:
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with own_sigterm():
            signal.signal(signal.SIGTERM, hear)
            yield lambda: bool(heard)
    finally:
        over.set()
    if heard and not _made(stop_file):
        raise Stopped("asked to stop; the same command goes on")


def _made(stop_file: str) -> bool:
    try:
        Path(stop_file).touch()
    except OSError:
        return False
    return True


def _make_later(stop_file: str, over: threading.Event) -> None:
    while not over.wait(AGAIN_S) and not _made(stop_file):
        pass


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Let SIGTERM mean after the body what it did before: Ray sets a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ray_announced() -> bool:
    # The public get_preemption_info is a barrier of all ranks, too slow for every step.
    context = sys.modules.get("ray.train.v2._internal.execution.context")
    if context is None:
        return False
    try:
        return context.get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:
        # This process has Ray, but is no worker of it.
        return False
