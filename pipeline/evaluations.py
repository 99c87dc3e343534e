"""Evaluation while training goes on: another process works on snapshots, and nothing else is shared.

A checkpoint's weights, when due, are linked into STAGE/evaluations/ before it can be pruned; the process
(`pipeline.evaluating`) evaluates the links in the order of their steps and leaves a result a step. Whether to
stop early is decided at steps that are fixed beforehand, from the results of fixed earlier steps, for which
training waits if it must: so a run that was killed decides as one that was not, however long anything took.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.schema import Schedule
from pipeline.checkpoint import NAMES, WEIGHTS, defects, list_checkpoints, step_of
from pipeline.child import ROOT, python_path
from pipeline.step_note import InStep
from shards.storage.files import clear_temporaries, flush_path, rename_durably, temporary_beside, write_atomic

log = logging.getLogger(__name__)
POLL_S, STARTS = 0.2, 4
# Without an image evaluated, longer than scoring all of them or fetching the shards takes: its store hangs.
STALL_S = 1800.0
# By mask AP; and of those that were evaluated under settings that have changed since.
BEST, BEST_BEFORE = "best.safetensors", "best-before.safetensors"
# Takes the step that training waits after, and whether this rank lacks a result; returns whether any does.
# Collective, as all go on together; raises Preempted, on all, where one was asked to stop while they wait.
Agree = Callable[[int, bool], bool]


class EvaluationFailed(RuntimeError):
    """A result will not come: the process ended again and again, or the weights are gone; says what to do."""


class Evaluations:
    """What a rank knows of the evaluations of its stage; rank 0 has the process that does them.

    A context manager: leaving it ends the process. Without `eval_every` nothing is ever due.
    """

    def __init__(self, folder: Path, schedule: Schedule, order: dict[str, Any], rank: int):
        """Keep what is due at the steps of a schedule.

        Args:
            folder: STAGE's folder, which every rank sees.
            schedule: its `iters`, `eval_every` and `patience` are used.
            order: what the process is told: `shards`, `test`, `cache`, `meta` and `claim`, in JSON values.
            rank: 0 starts the process.
        """
        self._beat, self._beaten = 0, 0.0
        self._folder, self._schedule, self._rank = folder / "evaluations", schedule, rank
        self._checkpoints = folder / "checkpoints"
        self._order, self._process, self._starts = order, None, 0

    def __enter__(self) -> "Evaluations":
        if self._rank == 0 and self._schedule.eval_every:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_incomparable()
            write_atomic(self._folder / "order.json", json.dumps(self._order).encode())
            alive_file(self._folder).touch()
            clear_temporaries(self._folder)
            self._mend()
            self._start()
        elif self._rank == 0:
            self._drop_unwanted()
        return self

    def _drop_unwanted(self) -> None:
        # Whole weights, which nobody would come for any more.
        waiting = snapshots(self._folder)
        if waiting:
            log.warning("eval_every is 0 now: %d evaluations that waited are left out", len(waiting))
        for place in waiting:
            shutil.rmtree(place)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._end()

    def due(self, step: int) -> bool:
        """Return whether the weights after `step` steps are to be evaluated."""
        every = self._schedule.eval_every
        return bool(every) and step > 0 and (step % every == 0 or step == self._schedule.iters)

    def keep(self, step: int, checkpoint: Path) -> None:
        """Link a checkpoint's weights and manifest, if they are due, so that they outlive its pruning."""
        if not self._lacks(step):
            return
        place = snapshot_of(self._folder, step)
        partial = temporary_beside(place)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in (WEIGHTS, "manifest.json"):
            _link(checkpoint / name, partial / name)
        flush_path(partial)
        rename_durably(partial, place)

    def stops(self, step: int, agree: Agree) -> bool:
        """Return whether training ends after `step` steps; the same on every rank and at every try.

        Decided at every evaluated step from the results of the evaluations before it, so that the process has
        had one interval for the last of them.

        Raises:
            EvaluationFailed: on rank 0, one of these will not come.
            Preempted: on every rank, from `agree`.
        """
        every, patience = self._schedule.eval_every, self._schedule.patience
        if not patience or step == self._schedule.iters or not self.due(step):
            return False
        steps = range(every, step, every)
        self._wait(step, steps, agree)
        ended = out_of_patience([mask_ap(read_result(self._folder, earlier)) for earlier in steps], patience)
        if ended:
            log.info("stops early after step %d: mask AP has not risen for %d evaluations", step, patience)
        return ended

    def finish(self, step: int, agree: Agree) -> None:
        """Return when the last step, which is due, has its result, and no snapshot is left.

        Earlier steps that nothing depended on may have been lost, which is told.

        Raises:
            EvaluationFailed: on rank 0, it will not come.
            Preempted: on every rank, from `agree`.
        """
        if not self.due(step):
            return
        self._wait(step, [step], agree, emptied=True)
        steps = range(self._schedule.eval_every, step, self._schedule.eval_every)
        lost = self._without_result(steps) if self._rank == 0 else []
        if lost:
            log.warning("steps %s are not evaluated: their weights were damaged or deleted before", lost)

    def _wait(self, step: int, steps: Iterable[int], agree: Agree, emptied: bool = False) -> None:
        self._beaten, lacking = time.monotonic(), self._without_result(steps)
        # With all results too: another rank's view of the disk may be older.
        while agree(step, bool(lacking) or (emptied and self._has_work())):
            if self._process is not None:
                with InStep(step):
                    self._mind(lacking)
            time.sleep(POLL_S)
            lacking = self._without_result(lacking)

    def _mind(self, lacking: list[int]) -> None:
        for step in lacking:
            self._check_snapshot(step)
        self._mind_process()

    def _has_work(self) -> bool:
        # A result comes before its snapshot goes, and whole weights: ended between them, they would stay.
        return self._process is not None and bool(snapshots(self._folder))

    def _without_result(self, steps: Iterable[int]) -> list[int]:
        return [step for step in steps if not result_file(self._folder, step).exists()]

    def _check_snapshot(self, step: int) -> None:
        place = snapshot_of(self._folder, step)
        # Asked in this order, as the result comes before the snapshot goes.
        if place.exists() or result_file(self._folder, step).exists():
            return
        raise EvaluationFailed(
            f"{place}: the weights of step {step} were damaged or deleted before they were evaluated, and no "
            "whole checkpoint of it is left; move the checkpoints from that step on away, and training goes "
            f"on from the one before, or begin the stage anew with --redo {self._folder.parent.name}"
        )

    def _drop_incomparable(self) -> None:
        path, now, best = self._folder / "order.json", self._order["test"], self._folder.parent / BEST
        before = json.loads(path.read_text(encoding="utf-8"))["test"] if path.exists() else now
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        results = sorted(self._folder.glob("step-*.json")) if changed else []
        if not results:
            return
        if best.exists():
            os.replace(best, best.with_name(BEST_BEFORE))
        for result in results:
            result.unlink()
        log.warning(
            "test.%s changed: %d evaluations, which compare with none to come, are deleted, and done "
            "again where the step's checkpoint is left; the weights that were best by them are %s",
            ", test.".join(changed),
            len(results),
            best.with_name(BEST_BEFORE),
        )

    def _mend(self) -> None:
        for place in snapshots(self._folder):
            # One that has its result is only waiting to be deleted.
            evaluated = result_file(self._folder, step_of(place)).exists()
            wrong = "" if evaluated else defects(place, (WEIGHTS,))
            if wrong:
                drop_snapshot(place, wrong)
        for checkpoint in list_checkpoints(self._checkpoints):
            step = step_of(checkpoint)
            # Dropped, or killed between writing and linking it.
            if self._lacks(step) and not defects(checkpoint, (WEIGHTS,)):
                self.keep(step, checkpoint)

    def _lacks(self, step: int) -> bool:
        place, result = snapshot_of(self._folder, step), result_file(self._folder, step)
        return self.due(step) and not result.exists() and not place.exists()

    def _mind_process(self) -> None:
        beat, now = alive_file(self._folder).stat().st_mtime_ns, time.monotonic()
        if beat != self._beat:
            self._beat, self._beaten = beat, now
        if now - self._beaten > STALL_S or self._process.poll() is not None:
            self._end()
            self._start()

    def _start(self) -> None:
        output = self._folder / "output.log"
        if self._starts == STARTS:
            raise EvaluationFailed(
                f"the evaluating process ended or stood still {STARTS} times; see {output}"
            )
        self._starts, self._beaten = self._starts + 1, time.monotonic()
        # No rank of training: it must not take part in anything that they do together.
        alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        alone["OMP_NUM_THREADS"] = "1"
        alone["PYTHONPATH"] = python_path()
        command = [sys.executable, "-m", "pipeline.evaluating", str(self._folder)]
        with output.open("ab") as sink:
            # Its standard input ends with this process, and so does it.
            self._process = subprocess.Popen(
                command, env=alone, cwd=ROOT, stdin=subprocess.PIPE, stdout=sink, stderr=sink
            )

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        # What has ended training is told, not that this cannot be deleted either.
        with suppress(OSError):
            for folder in (self._folder, self._folder.parent):
                clear_temporaries(folder, self._process.pid)


def out_of_patience(values: list[float], patience: int) -> bool:
    """Return whether the last `patience` values are none of them above all that were before."""
    best = max(range(len(values)), key=lambda place: (values[place], -place), default=0)
    return len(values) - 1 - best >= patience


def mask_ap(result: dict[str, Any]) -> float:
    """Return what networks of a stage are ranked by; an undefined AP is below any other."""
    value = result["segm"]["AP"]
    return -1.0 if value is None else value


def drop_snapshot(snapshot: Path, wrong: str) -> None:
    """Delete a snapshot that does not verify, and say so."""
    log.warning(
        "%s is broken: %s; deleted, and linked again where a whole checkpoint of that step is left",
        snapshot,
        wrong,
    )
    shutil.rmtree(snapshot, ignore_errors=True)


def snapshot_of(folder: Path, step: int) -> Path:
    """Return where the weights of a step wait with the manifest of their checkpoint."""
    return folder / f"step-{step:09d}"


def snapshots(folder: Path) -> list[Path]:
    """Return the snapshots that are there, by step."""
    return sorted(folder.glob(NAMES))


def alive_file(folder: Path) -> Path:
    """Return what the evaluating process touches with every image."""
    return folder / "alive"


def result_file(folder: Path, step: int) -> Path:
    """Return where the result of a step is, once it is there."""
    return folder / f"step-{step:09d}.json"


def read_result(folder: Path, step: int) -> dict[str, Any]:
    """Return a step's metrics and its `step`."""
    return json.loads(result_file(folder, step).read_text(encoding="utf-8"))


def results_of(stage_folder: Path) -> list[dict[str, Any]]:
    """Return every result of a stage, by step; [] without evaluations."""
    paths = sorted((stage_folder / "evaluations").glob("step-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, target)
        flush_path(target)
