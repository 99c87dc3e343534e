"""Python processes of our own that outlive nobody: where they find our folders, and when they end."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_path() -> str:
    """Return the PYTHONPATH with which a process started from anywhere finds our folders."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def await_parents_end() -> None:
    """Return when this process's standard input ends: a pipe whose parent is gone, even by kill -9."""
    while os.read(0, 1):
        pass
