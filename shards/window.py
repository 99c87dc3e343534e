"""The order of samples for cold object stores: whole shards in turn, shuffled inside a moving window."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from shards.order import permute, permute_all, round_keys


class WindowOrder:
    """Which sample stands at a position, such that samples near each other lie in few shards.

    Each epoch lays the shards end to end in an order of its own, cuts that line into windows of `window`
    samples and shuffles each: a window reads the shards that it crosses and no others, and only a shard
    at an edge is read by two windows, which follow each other. Every epoch visits each sample exactly
    once. A pure function: no permutation is stored, but where each shard of an epoch's line ends, 8 bytes
    a shard, made anew from the epoch alone, so that going on at any position costs the same.

    Args:
        counts: samples of each shard, `[S]`, in their order in the data set; their sum is at least 1.
        window: samples of a window, at least 1. One as large as the data set shuffles all of it.
        seed: of the run.
        dataset_hash: `ShardDataset.hash`; another data set gets another order.

    Attributes:
        identity: what the order depends on but the seed: also on how the data set is cut into shards.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, window: int, seed: int, dataset_hash: str = ""):
        counts = np.asarray(counts, np.int64)
        self.size = int(counts.sum())
        if self.size < 1 or window < 1:
            raise ValueError(f"{self.size} samples in windows of {window}; there must be at least 1 of both")
        self.window = window
        self.seed = seed
        self.dataset_hash = dataset_hash
        self.identity = hashlib.sha256(f"{dataset_hash}/{window}/".encode() + counts.tobytes()).hexdigest()
        self._counts = counts
        self._first = np.cumsum(counts) - counts
        # Of the object, not the class: a cache of the class would keep every order alive.
        self._ends = lru_cache(maxsize=2)(self._line)

    def __reduce__(self) -> tuple:
        return WindowOrder, (self._counts, self.window, self.seed, self.dataset_hash)

    def index(self, position: int) -> int:
        """Return the sample, 0..size-1, at a position of 0 or more."""
        shard, offset = self.locate(position)
        return int(self._first[shard]) + offset

    def locate(self, position: int) -> tuple[int, int]:
        """Return the shard at a position of 0 or more, and which of its samples it is."""
        epoch, place = divmod(position, self.size)
        window, inside = divmod(place, self.window)
        first = window * self.window
        width = min(self.window, self.size - first)
        place = first + permute(inside, width, self._keys(epoch, window))
        ends = self._ends(epoch)
        # The first shard that ends beyond the place; one without samples ends where it begins.
        turn = int(np.searchsorted(ends, place, side="right"))
        shard = permute(turn, len(ends), self._keys(epoch, "shards"))
        return shard, place - int(ends[turn]) + int(self._counts[shard])

    def window_at(self, position: int) -> tuple[list[int], int]:
        """Return the shards that the window of a position reads, in turn, and where the next one begins."""
        epoch, place = divmod(position, self.size)
        first = place - place % self.window
        end = min(first + self.window, self.size)
        ends = self._ends(epoch)
        turns = np.searchsorted(ends, [first, end - 1], side="right")
        keys = self._keys(epoch, "shards")
        crossed = (permute(turn, len(ends), keys) for turn in range(turns[0], turns[1] + 1))
        return [shard for shard in crossed if self._counts[shard]], epoch * self.size + end

    def epoch(self, position: int) -> int:
        """Return the epoch, from 0, that a position belongs to."""
        return position // self.size

    def _keys(self, epoch: int, window: int | str) -> tuple[int, ...]:
        return _round_keys(self.seed, self.dataset_hash, epoch, window)

    def _line(self, epoch: int) -> np.ndarray:
        """Return where each shard ends on the line of an epoch, `[S]`, in its order there."""
        return np.cumsum(self._counts[permute_all(len(self._counts), self._keys(epoch, "shards"))])


_round_keys = lru_cache(maxsize=8)(round_keys)
