"""Global batches cut out of the order of samples, and one rank's share of them."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from shards.errors import BadInput
from shards.order import SampleOrder, permute, round_keys
from shards.window import WindowOrder

Batch = list[tuple[int, int]]


class GlobalBatches:
    """A batch sampler: one `[(position, index), ...]` for each micro-batch of this rank.

    Step s consumes one global batch, the same whatever the world size, the rank or the step that training
    resumed from. It is cut into `accumulate` slices; rank r takes `slice[r::world]`. There is no state: a
    sampler made with `start_step=k` goes on as one that started at 0 would.

    With aspect grouping, the positions of a window of `aspect_window` global batches are regrouped so that
    at most one batch of the window mixes upright with other images; every position is still used exactly
    once, in its own window. Random numbers of a sample should be keyed by its position.

    Args:
        order: the order of samples.
        batch: samples of a global batch (one optimizer step over all ranks).
        accumulate: micro-batches of a step.
        rank, world: this process and how many there are.
        start_step, stop_step: the steps to yield, from start_step up to and without stop_step.
        aspects: width / height of each sample, by index; needed for grouping only.
        aspect_window: global batches of a window; 0 leaves the order as it is.

    Raises:
        BadInput: the batch does not divide evenly; names the world sizes that do.
    """

    def __init__(
        self,
        order: SampleOrder | WindowOrder,
        *,
        batch: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        stop_step: int,
        aspects: Sequence[float] | None = None,
        aspect_window: int = 0,
    ):
        legal = legal_world_sizes(batch, accumulate)
        if world not in legal:
            raise BadInput(
                f"{world} workers do not divide a batch of {batch} in {accumulate} accumulation step(s); "
                f"use {', '.join(map(str, legal))} workers, or change batch or accumulate"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if aspect_window and aspects is None:
            raise ValueError("aspect_window needs aspects")
        self.order, self.batch, self.accumulate = order, batch, accumulate
        self.rank, self.world = rank, world
        self.start_step, self.stop_step = start_step, stop_step
        self.aspects, self.aspect_window = aspects, aspect_window

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        micro = self.batch // self.accumulate
        window = lru_cache(maxsize=1)(self._window)
        for step in range(self.start_step, self.stop_step):
            for first in range(0, self.batch, micro):
                mine = slice(first + self.rank, first + micro, self.world)
                yield self._of_step(step, mine, window)

    def global_batch(self, step: int) -> Batch:
        """Return all `batch` samples of a step, in order; the same for every rank and world size."""
        return self._of_step(step, slice(None), self._window)

    def _of_step(self, step: int, part: slice, window: Callable[[int], list[Batch]]) -> Batch:
        if not self.aspect_window:
            # One of thousands of ranks looks up no more than its own share.
            return self._samples(range(step * self.batch, (step + 1) * self.batch)[part])
        number, place = divmod(step, self.aspect_window)
        return window(number)[place][part]

    def _window(self, number: int) -> list[Batch]:
        size = self.aspect_window * self.batch
        samples = self._samples(range(number * size, (number + 1) * size))
        # A stable sort: within its kind, each sample keeps its turn in the order.
        grouped = sorted(samples, key=lambda sample: self.aspects[sample[1]] < 1)
        batches = [grouped[first : first + self.batch] for first in range(0, size, self.batch)]
        # Upright images would else always come last in a window.
        keys = round_keys(self.order.seed, "window", number)
        return [batches[permute(place, self.aspect_window, keys)] for place in range(self.aspect_window)]

    def _samples(self, positions: range) -> Batch:
        return [(position, self.order.index(position)) for position in positions]


def legal_world_sizes(batch: int, accumulate: int) -> list[int]:
    """Return the numbers of workers, increasing, that share each micro-batch of a step evenly.

    Raises:
        BadInput: `accumulate` does not divide `batch`.
    """
    if batch < 1 or accumulate < 1 or batch % accumulate:
        raise BadInput(f"accumulate {accumulate} does not divide batch {batch}; make batch a multiple of it")
    micro = batch // accumulate
    return [world for world in range(1, micro + 1) if micro % world == 0]
