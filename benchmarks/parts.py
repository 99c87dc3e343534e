"""The parts of `mrrcnn bench data`: each compares its contenders, times them, and holds them to a bar."""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import loading, memory, planning, sharding
from benchmarks.photographs import write_photographs
from benchmarks.timing import alternate
from pipeline.heap import keep_freed_memory
from shards.write import write_shards

# Enough to settle a median, and few enough that a turn of five contenders stays in seconds.
LOADED = 100
FEW, MANY = 10_000, 1_000_000


@dataclass(frozen=True)
class Bar:
    """One number of a part, and what it should be: `sign` is ">=" or "<=", or "" where there is no bar."""

    name: str
    value: float
    unit: str
    sign: str = ""
    limit: float = 0

    @property
    def verdict(self) -> str:
        """Whether the bar is met, in a word."""
        if not self.sign:
            return ""
        met = self.value >= self.limit if self.sign == ">=" else self.value <= self.limit
        return f"{self.sign} {self.limit:g}  {'met' if met else 'MISSED'}"


def measured(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, dict]]:
    """Yield (part, {"times", "bars", ...}) of the parts that were asked for."""
    if {"sharding", "loading"} & set(arguments.only):
        coco = arguments.coco or scratch / "coco"
        if not arguments.coco:
            write_photographs(coco, arguments.images)
        images, annotations = coco / "train2017", coco / "annotations/instances_train2017.json"
        files = sharding.Files(images, annotations, scratch / "sharded")
    for part in arguments.only:
        if part == "sharding":
            yield part, measure_sharding(files, arguments.workers, arguments.repeats)
        elif part == "loading":
            yield part, measure_loading(files, scratch, arguments.workers, arguments.repeats)
        elif part == "memory":
            yield part, measure_memory(scratch, FEW, MANY)
        else:
            yield part, measure_planning()


def measure_sharding(files: sharding.Files, workers: int, repeats: int) -> dict:
    """Compare, then time sharding."""
    sharding.check(files, workers)

    def begin() -> None:
        files.begin()
        # Nobody pays for the pages that another has left unwritten.
        os.sync()

    times = alternate(sharding.contenders(files, workers), repeats, "cpu", begin)
    # They bear no bar, and take longer than the contenders.
    times |= alternate(sharding.pieces(files, workers), 1, "cpu", begin)
    wall = wall_of(times)
    bars = [
        Bar("ShardWriter / ours", wall("ShardWriter") / wall("ours"), "x", ">=", 1.5),
        Bar(
            "ShardWriter, each image decoded / ours",
            wall("ShardWriter, each image decoded") / wall("ours"),
            "x",
        ),
        Bar("ours / tar and SHA-256", wall("ours") / wall("tar and SHA-256"), "x", "<=", 2),
    ]
    return {"images": len(files.rows()), "workers": workers, "times": times, "bars": bars}


def measure_loading(files: sharding.Files, scratch: Path, workers: int, repeats: int) -> dict:
    """Compare, then time loading, all of it as a loader process of training keeps its memory."""
    keep_freed_memory()
    shards = scratch / "to-load"
    write_shards(files.images, files.annotations, shards, workers=workers)
    count = min(LOADED, len(files.rows()))
    loading.check(files.images, files.annotations, shards, count)
    times = alternate(loading.alone(shards, count), repeats, "cpu")
    # After the others: whoever follows a fork pays for the pages that it had shared.
    loaded = loading.under_a_loader(files.images, files.annotations, shards, count, workers)
    times |= alternate(loaded, repeats, "cpu")
    wall = wall_of(times)
    bars = [Bar("ours / decode and resize", wall("ours") / wall("decode and resize"), "x", "<=", 1.1)]
    # Masks as stored are shown, and held to no bar: they are not ready for the network, as ours are.
    for peer, limit in zip(loading.PEERS, (1.1, 0, 1.5), strict=True):
        ratio = wall(f"{peer}, DataLoader") / wall("ours, DataLoader")
        bars.append(Bar(f"{peer} / ours", ratio, "x", ">=" if limit else "", limit))
    return {"images": count, "workers": workers, "times": times, "bars": bars}


def wall_of(times: dict[str, dict[str, float]]) -> Callable[[str], float]:
    """Return what gives a contender's wall time."""
    return lambda name: times[name]["wall"]


def measure_memory(scratch: Path, few: int, many: int) -> dict:
    """Measure the memory of a worker with few and with many annotations."""
    rows = [memory.measure(scratch, annotations) for annotations in (few, many)]
    bars = []
    for kind in ("shard_kb", "load_kb"):
        small, large = (row[kind] for row in rows)
        name = f"a worker that {kind.removesuffix('_kb')}s, {many:,} to {few:,} annotations"
        bars += [Bar(f"{name}, least", small / 1024, "MiB"), Bar(name, large / small, "x", "<=", 1.1)]
    return {"rows": rows, "bars": bars}


def measure_planning() -> dict:
    """Check a small plan, then time a large one."""
    planning.check(samples=1000, shards=7)
    found = planning.measure()
    bars = [
        Bar("position to (shard, offset), median", found["locate_ms"], "ms", "<=", 1),
        Bar("position to (shard, offset), 99th percentile", found["locate_99th_ms"], "ms", "<=", 1),
        Bar("a rank's first batch at step 0", found["resume_at_0_ms"], "ms"),
        Bar("resume late / at step 0", found["resume_late_ms"] / found["resume_at_0_ms"], "x", "<=", 2),
        Bar("planner", found["planner_mb"], "MB", "<=", 200),
    ]
    sizes = {"samples": planning.SAMPLES, "shards": planning.SHARDS, "ranks": planning.RANKS}
    return {**sizes, "found": found, "bars": bars}
