"""Checkpoints written by a thread of their own, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import Tensors, prune_checkpoints, save_checkpoint
from pipeline.step_note import InStep


class CheckpointWriter:
    """Holds training up for a copy to host memory only; one checkpoint is written at a time.

    A context manager: leaving it waits for the last write, whose error, if nobody has asked for it, is lost.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        every: int,
        may_commit: Callable[[], None],
        tell: Callable[[int, Path], None] = lambda step, path: None,
    ):
        """Write to `directory` and prune it as `prune_checkpoints(directory, keep, every)` does.

        `may_commit` raises when this process has lost the right to write; it is asked from the thread, and so
        is `tell`, with the step and the checkpoint that is there now, before anything is pruned.
        """
        self._directory, self._keep, self._every = directory, keep, every
        self._may_commit, self._tell = may_commit, tell
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def save(self, step: int, weights: Tensors, momentum: Tensors, state: dict[str, Any]) -> None:
        """Copy everything and begin to write it, after the write before has ended.

        Raises:
            OSError, StaleAttempt, Superseded: what the write before has ended with.
        """
        self.wait()
        content = _copy(weights), _copy(momentum), state
        self._pending = self._pool.submit(self._write, step, *content)

    def check(self) -> None:
        """Return at once; raise what a write has ended with since the last call."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk; raise what the write has ended with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, weights: Tensors, momentum: Tensors, state: dict[str, Any]) -> None:
        # Told a step or more later, depending on the disk; it is of this one.
        with InStep(step):
            written = save_checkpoint(self._directory, step, weights, momentum, state, self._may_commit)
            self._may_commit()
            self._tell(step, written)
            prune_checkpoints(self._directory, self._keep, self._every, written)


def _copy(tensors: Tensors) -> Tensors:
    contiguous = torch.contiguous_format
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=contiguous)
        for name, tensor in tensors.items()
    }
