"""A disk that is full for real: the run stops loudly, keeps its checkpoints, and goes on with more room."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint import defects
from tests.faults.case import OneStage, log_of, trained
from tests.faults.watch import exit_code


def fill_disk(folder: Path, say: Callable[[str], None]) -> list[str]:
    """Return what went wrong on a tmpfs with room for one checkpoint and half of the next."""
    stage = OneStage.make(folder)
    stage.finish(folder / "undisturbed", "torchrun")
    sizes = _sizes(folder / "undisturbed")
    with small_disk(folder / "disk", int(1.6 * sizes)) as disk:
        if disk is None:
            say("full disk: NOT TRIED, mounting a tmpfs takes root")
            return ["full disk: not tried; be root, or name the other trials"]
        run = disk / "run"
        code = exit_code(stage.start(run, "torchrun"), run)
        said = log_of(run).read_text().strip().splitlines()[-1]
        left = sorted((run / "baseline" / "checkpoints").iterdir())
        sound = bool(left) and not any(defects(path) for path in left)
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        stage.finish(run, "torchrun")
        same = trained(run) == trained(folder / "undisturbed")
    say(f"full disk: exit {code}, {said!r}; {[path.name for path in left]} left")
    say(f"with room again: {'all the same' if same else 'DIFFERS'}")
    wrong = {"exit code": code != 1, "not told": "No space left" not in said, "checkpoints": not sound}
    return [f"full disk: {name}" for name, is_so in {**wrong, "result": not same}.items() if is_so]


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path | None]:
    """Yield a file system of so many bytes, or None where nobody may mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "mrrcnn-faults", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _sizes(run: Path) -> int:
    newest = max((run / "baseline" / "checkpoints").glob("step-*"))
    return sum(path.stat().st_size for path in newest.iterdir())
