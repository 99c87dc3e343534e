"""Planning at scale, simulated: where a position of the order lies among 10^9 samples in 10^5 shards."""

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from shards.batches import GlobalBatches
from shards.order import SampleOrder

SAMPLES, SHARDS, RANKS = 10**9, 10**5, 4096
CALLS = 5000
LATE_STEP = 10**6


class Plan:
    """A billion samples, of which no list is kept: an order, and where each shard begins."""

    def __init__(self, samples: int, shards: int):
        # Shards of unequal length, as real ones are.
        cuts = np.random.default_rng(0).choice(samples - 1, shards - 1, replace=False) if shards > 1 else []
        self.starts = np.concatenate([[0], np.sort(np.asarray(cuts, np.int64)) + 1])
        self.order = SampleOrder(samples, seed=0, dataset_hash="simulated")

    def locate(self, position: int) -> tuple[int, int]:
        """Return (shard, place in the shard) of a position."""
        index = self.order.index(position)
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])


def measure(samples: int = SAMPLES, shards: int = SHARDS, ranks: int = RANKS) -> dict[str, float]:
    """Return milliseconds a call, milliseconds to resume early and late, and the planner's megabytes."""
    plan = Plan(samples, shards)
    calls = _calls(plan)
    early, late = (_resume(plan, ranks, step) for step in (0, LATE_STEP))
    return {
        **calls,
        "resume_at_0_ms": early,
        "resume_late_ms": late,
        "planner_mb": _megabytes(samples, shards),
    }


def _megabytes(samples: int, shards: int) -> float:
    """Return what a plan holds once it has found some positions; apart, for counting slows everything."""
    tracemalloc.start()
    plan = Plan(samples, shards)
    for position in range(CALLS):
        plan.locate(position)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / 1e6


def check(samples: int, shards: int) -> None:
    """Refuse to time a plan that does not visit each place of each shard exactly once an epoch."""
    plan = Plan(samples, shards)
    found = sorted(plan.locate(position) for position in range(samples, 2 * samples))
    lengths = np.diff([*plan.starts.tolist(), samples])
    if found != [(shard, place) for shard, length in enumerate(lengths) for place in range(length)]:
        raise SystemExit("bench data: the plan does not visit each sample once")


def _calls(plan: Plan) -> dict[str, float]:
    rng = random.Random(0)
    positions = [rng.randrange(10 * plan.order.size) for _ in range(CALLS)]
    times = [_milliseconds(lambda position=position: plan.locate(position)) for position in positions]
    times.sort()
    return {"locate_ms": statistics.median(times), "locate_99th_ms": times[len(times) * 99 // 100]}


def _resume(plan: Plan, ranks: int, step: int) -> float:
    """Return the milliseconds until a rank knows its first batch after resuming at a step."""

    def first() -> object:
        batches = GlobalBatches(
            plan.order, batch=ranks, rank=ranks - 1, world=ranks, start_step=step, stop_step=step + 1
        )
        return next(iter(batches))

    return statistics.median(_milliseconds(first) for _ in range(5))


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
