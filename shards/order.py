"""The order of samples: a keyed bijection of each epoch, evaluated one position at a time."""

import hashlib
from functools import lru_cache

import numpy as np

ROUNDS = 8
WORD = (1 << 64) - 1


class SampleOrder:
    """Which sample stands at a position; a pure function, so nothing is stored but three constants.

    A position counts the samples consumed since the start of training, over all epochs. Every epoch visits
    each sample exactly once. Memory and time do not depend on the size: it holds at 10^9 samples.

    Args:
        size: number of samples, at least 1.
        seed: of the run.
        dataset_hash: `ShardDataset.hash`; another data set gets another order.

    Attributes:
        identity: what the order depends on but the seed: the data set alone.

    Source: a Feistel network is a permutation for any round function (Luby and Rackoff 1988); cycle walking
    restricts it to `size` values (Black and Rogaway 2002).
    """

    def __init__(self, size: int, seed: int, dataset_hash: str = ""):
        if size < 1:
            raise ValueError(f"an order of {size} samples; there must be at least 1")
        self.size = size
        self.seed = seed
        self.dataset_hash = self.identity = dataset_hash

    def index(self, position: int) -> int:
        """Return the sample, 0..size-1, at a position of 0 or more."""
        epoch, place = divmod(position, self.size)
        return permute(place, self.size, _round_keys(self.seed, self.dataset_hash, epoch))

    def epoch(self, position: int) -> int:
        """Return the epoch, from 0, that a position belongs to."""
        return position // self.size


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """Return where the bijection of 0..size-1 with these round keys sends `place`."""
    half_bits = ((size - 1).bit_length() + 1) // 2
    while True:
        place = _feistel(place, half_bits, keys)
        if place < size:
            return place


def permute_all(size: int, keys: tuple[int, ...]) -> np.ndarray:
    """Return `permute` of each of 0..size-1, int64 `[size]`, without a step of Python for each."""
    half_bits = ((size - 1).bit_length() + 1) // 2
    places = _feistel_all(np.arange(size, dtype=np.uint64), half_bits, keys)
    outside = np.flatnonzero(places >= size)
    while len(outside):
        places[outside] = _feistel_all(places[outside], half_bits, keys)
        outside = outside[places[outside] >= size]
    return places.astype(np.int64)


def round_keys(*parts: object) -> tuple[int, ...]:
    """Return the round keys that belong to a tuple of numbers and strings."""
    digest = hashlib.shake_128(repr(parts).encode()).digest(8 * ROUNDS)
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 8 * ROUNDS, 8))


_round_keys = lru_cache(maxsize=8)(round_keys)


def _feistel(value: int, half_bits: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half_bits | right


def _feistel_all(values: np.ndarray, half_bits: int, keys: tuple[int, ...]) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix_all(right ^ np.uint64(key)) & mask)
    return left << shift | right


def _mix_all(words: np.ndarray) -> np.ndarray:
    # uint64 wraps as `_mix` does with WORD.
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def _mix(word: int) -> int:
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & WORD
    return word ^ word >> 31
