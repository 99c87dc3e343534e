"""Work spread over processes, results in the order of the tasks."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from shards.errors import CutShort

AHEAD = 4


def map_ordered(function: Callable, tasks: Iterable, workers: int) -> Iterator:
    """Yield `function(task)` of each task in order, computed by `workers` processes (1: in this one).

    Only a few tasks a worker are in flight, so an iterator of tasks is not drawn into memory. Processes are
    spawned, not forked: the caller may hold threads, and a forked child may inherit a locked lock.

    Raises:
        CutShort: a process was killed.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        waiting: deque = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise CutShort(
                "a worker process was killed, perhaps for want of memory; give fewer --workers, "
                "the same command goes on"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed: an idle worker would wait for tasks for ever."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
