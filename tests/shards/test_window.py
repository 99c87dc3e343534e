"""The window-shuffled order: whole shards in turn, nothing lost or twice, at any number of shards."""

import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shards import window as module
from shards.batches import GlobalBatches
from shards.order import permute, permute_all, round_keys
from shards.window import WindowOrder

COUNTS = st.lists(st.integers(0, 20), min_size=1, max_size=12)
WINDOWS = st.integers(1, 90)
SEEDS = st.integers(0, 2**63)


def one_epoch(order, epoch=0):
    return [order.index(position) for position in range(epoch * order.size, (epoch + 1) * order.size)]


@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 10**6))
def test_each_epoch_visits_each_sample_exactly_once(counts, window, seed, epoch):
    assume(sum(counts))
    order = WindowOrder(counts, window, seed)
    assert sorted(one_epoch(order, epoch)) == list(range(sum(counts)))
    assert order.epoch(epoch * order.size) == order.epoch((epoch + 1) * order.size - 1) == epoch


@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 5))
def test_a_window_reads_neighbouring_shards_only(counts, window, seed, epoch):
    """Windows are stretches of one line of shards: only neighbours share a shard, and no more than one."""
    assume(sum(counts))
    order = WindowOrder(counts, window, seed)
    shards = [order.locate(epoch * order.size + place)[0] for place in range(order.size)]
    windows = [set(shards[first : first + window]) for first in range(0, order.size, window)]
    for one, after in pairwise(windows):
        assert len(one & after) <= 1
    for shard in set(shards):
        turns = [turn for turn, inside in enumerate(windows) if shard in inside]
        assert turns == list(range(turns[0], turns[-1] + 1))


@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 500))
def test_shard_and_offset_are_those_of_the_index(counts, window, seed, position):
    assume(sum(counts))
    order = WindowOrder(counts, window, seed)
    shard, offset = order.locate(position)
    assert 0 <= offset < counts[shard]
    assert order.index(position) == sum(counts[:shard]) + offset


@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 500))
def test_the_shards_of_a_window_are_those_that_its_positions_read(counts, window, seed, position):
    assume(sum(counts))
    order = WindowOrder(counts, window, seed)
    shards, after = order.window_at(position)
    first = position - position % order.size % window
    assert first <= position < after <= first + window and (after - first == window or not after % order.size)
    assert set(shards) == {order.locate(place)[0] for place in range(first, after)}
    assert len(shards) == len(set(shards))


def test_every_shard_is_read_in_one_stretch_of_an_epoch():
    """What a cold store is about: 40 shards through a cache that holds but three of them."""
    counts = [25] * 40
    order = WindowOrder(counts, 50, 1)
    cache, fetched = [], 0
    for position in range(order.size):
        shard, _ = order.locate(position)
        fetched += shard not in cache
        cache = [shard, *(other for other in cache if other != shard)][:3]
    assert fetched == 40


def test_shards_and_samples_are_shuffled_and_each_epoch_otherwise():
    order = WindowOrder([50] * 20, 100, 1, "hash")
    first, second = one_epoch(order), one_epoch(order, 1)
    assert first != second and first != sorted(first)
    assert sorted(first[:100]) != sorted(second[:100]), "other shards come first in another epoch"
    assert [index // 50 for index in first[:100]] != sorted(index // 50 for index in first[:100])
    orders = {tuple(one_epoch(WindowOrder([50] * 20, 100, seed, name))) for seed in (1, 2) for name in "ab"}
    assert len(orders) == 4


def test_a_window_of_everything_mixes_all_shards():
    order = WindowOrder([10] * 10, 1000, 3)
    assert len({index // 10 for index in one_epoch(order)[:30]}) > 5


@given(st.integers(1, 300), SEEDS)
def test_the_bijection_of_all_places_is_that_of_each(size, seed):
    keys = round_keys(seed)
    assert permute_all(size, keys).tolist() == [permute(place, size, keys) for place in range(size)]


def test_the_order_is_the_one_that_old_checkpoints_assume():
    """A change here would let a resumed run replay and skip samples."""
    order = WindowOrder([3, 0, 5, 1], 4, 3)
    assert [order.index(position) for position in range(18)] == GOLDEN


def test_identity_tells_how_the_data_are_cut_and_how_wide_the_window_is():
    """The hash of a data set does not; a run resumed on shards of other sizes would skip samples."""
    order = WindowOrder([3, 5], 4, 0, "hash")
    assert order.identity == WindowOrder([3, 5], 4, 9, "hash").identity
    others = [WindowOrder([5, 3], 4, 0, "hash"), WindowOrder([3, 5], 5, 0, "hash"), WindowOrder([3, 5], 4, 0)]
    assert len({order.identity, *(other.identity for other in others)}) == 4


def test_an_order_may_be_pickled():
    order = WindowOrder([3, 0, 5, 1], 4, 3)
    assert one_epoch(pickle.loads(pickle.dumps(order)), 2) == one_epoch(order, 2)


@pytest.mark.parametrize(("counts", "window"), [([], 4), ([0, 0], 4), ([3], 0)])
def test_no_samples_and_no_window_are_refused(counts, window):
    with pytest.raises(ValueError, match="at least 1"):
        WindowOrder(counts, window, 0)


def test_a_billion_samples_in_a_hundred_thousand_shards_on_4096_ranks(monkeypatch):
    """The plan of the largest run: work and memory a position do not depend on where it is."""
    counts = np.random.default_rng(0).integers(9_000, 11_001, 100_000)
    calls = []
    monkeypatch.setattr(module, "permute", lambda *a: calls.append(a) or permute(*a))
    tracemalloc.start()
    order = WindowOrder(counts, 65_536, 7, "hash")
    steps = [0, 1, 15_000, 10**6, 10**7]
    for step in steps:
        # A resumed rank asks for its share of one step, and for nothing before it.
        calls.clear()
        ranks = [_share(order, step, rank) for rank in (0, 1, 2047, 4095)]
        samples = [sample for rank in ranks for sample in rank]
        assert len(calls) == 2 * len(samples)
        assert len(set(samples)) == len(samples) == 8
        for position, index in samples:
            shard, offset = order.locate(position)
            assert 0 <= offset < counts[shard] and 0 <= index < order.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20, "of the 200 MiB that the planner may take; Python and numpy come first"


def _share(order, step, rank):
    batches = GlobalBatches(order, batch=8192, rank=rank, world=4096, start_step=step, stop_step=step + 1)
    (share,) = batches
    return share


GOLDEN = [3, 2, 0, 1, 5, 6, 4, 7, 8, 5, 4, 6, 3, 7, 1, 0, 2, 8]
