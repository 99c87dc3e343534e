"""RUN/STAGE/metrics.jsonl and samples.jsonl: appended by rank 0, cut back to the checkpoint on resume."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from configs.schema import Schedule
from shards.storage.files import write_atomic

log = logging.getLogger(__name__)
LOGS = ("metrics.jsonl", "samples.jsonl")


class RunLog:
    """The two logs of one stage, which read as if the run had never been interrupted."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        world: int,
        step: int,
        may_write: Callable[[], None],
        logged: dict[str, int] | None = None,
    ):
        """Cut both logs back to `step`; every rank must be constructed.

        `may_write` raises when this process has lost the right to; rank 0 asks right before every write.
        `logged` is what `self.logged` was at `step`: of a log that has less now, that is told.
        """
        self.folder, self.rank, self.world, self._may_write = folder, rank, world, may_write
        # Lines of metrics and ids of samples: neither depends on the number of ranks.
        self.logged = dict.fromkeys(LOGS, 0)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for name in LOGS:
                may_write()
                self.logged[name] = sum(map(_amount, _cut_back(folder / name, step)))
                _tell_lost(folder / name, step, self.logged[name], (logged or {}).get(name, 0))

    def metrics(self, step: int, schedule: Schedule, size: int, lr: float, window: dict[str, float]) -> None:
        """Append the mean of every loss term over the steps since the last line, and how many samples of
        theirs were replaced because they are corrupt.
        """
        if self.rank:
            return
        counts = {name: window[name] for name in ("steps", "timed", "seconds", "quarantined")}
        # Sorted: a window that comes from a checkpoint has another order than one that was just filled.
        terms = {
            name: value / counts["steps"] for name, value in sorted(window.items()) if name not in counts
        }
        samples = step * schedule.batch
        speed = schedule.batch * counts["timed"] / counts["seconds"] if counts["seconds"] else None
        line = {
            "step": step,
            "epoch": samples / size,
            "samples": samples,
            "lr": lr,
            "loss": terms.pop("total"),
            **terms,
            "quarantined": counts["quarantined"],
            # Of the steps of this attempt: those before a resume took their time elsewhere.
            "images_per_s": speed,
        }
        self._append("metrics.jsonl", [line])
        _say(step, schedule.iters, line)

    def samples(self, step: int, image_ids: list[int]) -> None:
        """Append the image ids that each rank really saw in a step. Collective."""
        everyone: list[list[int]] = [[] for _ in range(self.world)]
        dist.all_gather_object(everyone, image_ids)
        if self.rank == 0:
            lines = [{"step": step, "rank": rank, "image_ids": ids} for rank, ids in enumerate(everyone)]
            # The others may have let it wait for ten minutes.
            self._append("samples.jsonl", lines)

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        self._may_write()
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(map(_text, lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A full disk does not say for which file.
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        self.logged[name] += sum(map(_amount, lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON-lines log; a line torn by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    kept = [line for line in read_lines(path) if line["step"] <= step]
    write_atomic(path, "".join(map(_text, kept)).encode())
    return kept


def _amount(line: dict[str, Any]) -> int:
    return len(line.get("image_ids", ("a line of metrics",)))


def _tell_lost(path: Path, step: int, found: int, logged: int) -> None:
    # The checkpoint is whole, and what came before it will not be trained again.
    if found < logged:
        log.warning(
            "%s: was cut or changed: of %d entries up to step %d there are %d, and the others are not made "
            "again; put back a copy of it before the next start, if there is one",
            path,
            logged,
            step,
            found,
        )


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _say(step: int, last: int, line: dict[str, Any]) -> None:
    speed = f"{line['images_per_s']:.1f} images/s" if line["images_per_s"] else ""
    log.info("step %d/%d  loss %.4f  lr %.5f  %s", step, last, line["loss"], line["lr"], speed)
