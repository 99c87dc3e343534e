"""What training is asked to do before its machine is taken away."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """What one rank has been asked: to save a checkpoint now, and whether to stop after it."""

    save: bool = False
    stop: bool = False


Ask = Callable[[], Notice]


# Noted on an error that came while a rank stopped as asked: it is no reason to go on.
ASKED = "asked to stop"


class Preempted(RuntimeError):
    """Training stopped because it was asked to; the message names the step that was saved."""


def no_notice() -> Notice:
    """Return that nothing is asked."""
    return Notice()
