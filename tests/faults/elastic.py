"""Other numbers of workers after a kill: the same samples in every step, and losses that agree."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.faults.case import CHECKPOINT_EVERY, ITERS, OneStage, log_of, series
from tests.faults.kills import Kill, signs, strike
from tests.faults.watch import end, orphans, wait_for

TOLERANCE = 1e-5
# A rate at which ten steps are too few for rounding to move a proposal across a threshold.
GENTLE = ("train.baseline.lr=0.0005", "train.log_every=1")


def change_workers(folder: Path, say: Callable[[str], None], schedules: list[list[int]]) -> list[str]:
    """Return what differs from an undisturbed run of two workers when the number changes at each kill."""
    stage, faults = replace(OneStage.make(folder), overrides=GENTLE), []
    calm = folder / "undisturbed"
    stage.finish(calm, "torchrun")
    for sizes in schedules:
        run = folder / "-".join(map(str, sizes))
        for place, workers in enumerate(sizes[:-1], 1):
            _until(replace(stage, workers=workers), run, place * CHECKPOINT_EVERY)
        replace(stage, workers=sizes[-1]).finish(run, "torchrun")
        worlds = [len(ranks) for ranks in _ranks(run).values()]
        apart = _apart(series(calm, "baseline"), series(run, "baseline"))
        same = _samples(run) == _samples(calm)
        say(
            f"{' -> '.join(map(str, sizes))} workers, of each step {worlds}: samples "
            f"{'the same' if same else 'DIFFER'}, losses within {apart:.1e} over {ITERS} steps"
        )
        name = f"{sizes} workers"
        faults += [] if same else [f"{name}: samples differ"]
        faults += [] if apart <= TOLERANCE else [f"{name}: losses differ by {apart:.1e}"]
        faults += [] if _changed(worlds) == sizes else [f"{name}: steps had {worlds} workers: {log_of(run)}"]
    return faults


def _until(stage: OneStage, run: Path, step: int) -> None:
    """Train until a checkpoint has its name, then kill everything."""
    process = stage.start(run, "torchrun")
    kill = Kill("checkpoint", "host", "baseline", step, 0.0, 0.0)
    wait_for(process, signs(run, kill), run)
    wait_for(process, lambda: (run / "baseline" / "checkpoints" / f"step-{step:09d}").exists(), run)
    strike(process, kill, run)
    end(orphans(run, patience_s=1))


def _changed(worlds: list[int]) -> list[int]:
    return [size for place, size in enumerate(worlds) if place == 0 or worlds[place - 1] != size]


def _ranks(run: Path) -> dict[int, dict[int, list[int]]]:
    steps: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for line in map(json.loads, (run / "baseline" / "samples.jsonl").read_text().splitlines()):
        steps[line["step"]][line["rank"]] = line["image_ids"]
    return dict(sorted(steps.items()))


def _samples(run: Path) -> list[list[int]]:
    # In the order of the global batch: rank r of W has its places r, r + W, ...
    whole = []
    for ranks in _ranks(run).values():
        shares = [ranks[rank] for rank in sorted(ranks)]
        whole.append(
            [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]
        )
    return whole


def _apart(ours: list[dict], theirs: list[dict]) -> float:
    if [line["step"] for line in ours] != [line["step"] for line in theirs]:
        return float("inf")
    pairs = zip(ours, theirs, strict=True)
    return max(abs(one["loss"] - two["loss"]) / abs(one["loss"]) for one, two in pairs)
