"""Checkpoints in memory."""

from pathlib import Path

from torch import Tensor

from pipeline.importing.files import Checkpoint

WIDTH = 8


def checkpoint(tensors: dict[str, Tensor]) -> Checkpoint:
    """Return what reading a file with these tensors would give."""
    return Checkpoint(Path("some.pth"), tensors, [], "0" * 64)
