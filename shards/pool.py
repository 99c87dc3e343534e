"""Work spread over processes, results in the order of the tasks."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait

from shards.errors import CutShort

AHEAD = 4
# `map` over tasks, somewhere: yields `function(task)` of each in order and draws only a few tasks ahead.
Spread = Callable[[Callable, Iterable], Iterator]


@contextmanager
def processes(workers: int) -> Iterator[Spread]:
    """Yield a `map` in order that `workers` processes compute (1: this one), for one use after the other.

    Only a few tasks a worker are in flight, so an iterator of tasks is not drawn into memory. Processes are
    spawned, not forked: the caller may hold threads, and a forked child may inherit a locked lock. They
    start with the first task and stay, since importing what they need takes them seconds.

    Raises:
        CutShort: a process was killed.
    """
    if workers <= 1:
        yield map
        return
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield partial(in_order, pool.submit, Future.result, workers)
        except BrokenProcessPool:
            # The pool does not end one that was being started just then, and would wait for it for ever.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise CutShort(
                "a worker process was killed, perhaps for want of memory; give fewer --workers, "
                "the same command goes on"
            ) from None


def in_order(
    submit: Callable, result: Callable, workers: int, function: Callable, tasks: Iterable
) -> Iterator:
    """Yield `result(submit(function, task))` of each task in order, with a few a worker in flight."""
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(submit(function, task))
            if len(waiting) >= AHEAD * workers:
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed: an idle worker would wait for tasks for ever."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
