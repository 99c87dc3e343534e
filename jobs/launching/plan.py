"""What a task may run on, and how far it has come."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.launching.verdict import VERDICT
from jobs.launching.worker import PROGRESS


@dataclass(frozen=True)
class Plan:
    """Which groups of workers may run a task.

    Attributes:
        sizes: the legal numbers of workers, rising; the last is what is wanted.
        checkpoints: the directory where `step-...` appear, or None if the task keeps none: such a task
            never grows, because that would begin it anew.
        scratch: the task's; its progress.log also hears of changes of size.
        stop_file: appears when the task is asked to end; None if it cannot be asked.
        heard: whether the driver was asked to, which a full disk keeps it from passing on by the file.
    """

    sizes: tuple[int, ...]
    checkpoints: Path | None
    scratch: Path
    stop_file: Path | None = None
    heard: Callable[[], bool] = lambda: False

    def largest(self, room: int) -> int:
        """Return the largest legal number of workers that `room` workers' resources hold; 0 if none."""
        return max((size for size in self.sizes if size <= room), default=0)

    def newest(self) -> str:
        """Return the name of the newest checkpoint, or an empty string."""
        if self.checkpoints is None:
            return ""
        return max((path.name for path in self.checkpoints.glob("step-*")), default="")

    def errors(self) -> set[Path]:
        """Return the files in which ranks have left what they ended with."""
        return set(self.scratch.glob("error-*.json"))

    def stopped(self) -> bool:
        """Return whether the task was asked to end."""
        return self.heard() or (self.stop_file is not None and self.stop_file.exists())

    def over(self) -> bool:
        """Return whether another start of the workers would do nothing, or only to be stopped."""
        return self.stopped() or (self.scratch / VERDICT).exists()

    def check(self) -> None:
        """Raise RuntimeError if the task is over, rather than wait for a lost node for ever."""
        if self.over():
            raise RuntimeError("no workers are started any more")

    def say(self, line: str) -> None:
        """Append a line to the task's log."""
        with (self.scratch / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
