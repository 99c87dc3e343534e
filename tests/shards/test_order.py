"""The order of samples: a bijection an epoch, a pure function, at any size."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import SampleOrder

SIZES = st.integers(1, 700)
SEEDS = st.integers(0, 2**63)


@given(SIZES, SEEDS, st.integers(0, 10**6))
def test_each_epoch_visits_each_sample_exactly_once(size, seed, epoch):
    order = SampleOrder(size, seed)
    positions = range(epoch * size, (epoch + 1) * size)
    assert sorted(order.index(position) for position in positions) == list(range(size))
    assert {order.epoch(position) for position in positions} == {epoch}


@given(st.integers(100, 700), SEEDS)
def test_epochs_seeds_and_data_sets_have_orders_of_their_own(size, seed):
    def first_epoch(order, first=0):
        return tuple(order.index(position) for position in range(first, first + size))

    order = SampleOrder(size, seed, "hash")
    orders = {
        first_epoch(order),
        first_epoch(order, size),
        first_epoch(SampleOrder(size, seed + 1, "hash")),
        first_epoch(SampleOrder(size, seed, "other")),
    }
    assert len(orders) == 4


@given(st.integers(0, 2 * 10**9), SEEDS)
def test_a_billion_samples_need_no_memory_and_stay_in_range(position, seed):
    order = SampleOrder(10**9, seed)
    assert 0 <= order.index(position) < 10**9
    assert order.index(position) == pickle.loads(pickle.dumps(order)).index(position)


def test_a_billion_samples_do_not_collide():
    order = SampleOrder(10**9, 0)
    assert len({order.index(position) for position in range(20_000)}) == 20_000


def test_every_sample_is_about_equally_likely_at_every_place():
    size, epochs = 10, 2000
    order = SampleOrder(size, 1)
    for place in (0, 4, 9):
        counts = Counter(order.index(epoch * size + place) for epoch in range(epochs))
        # 200 expected, standard deviation 13.4: five of them on either side.
        assert all(133 <= counts[sample] <= 267 for sample in range(size))


def test_the_order_is_the_one_that_old_checkpoints_assume():
    """A change here would let a resumed run replay and skip samples."""
    assert [SampleOrder(8, 0).index(position) for position in range(16)] == GOLDEN


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SampleOrder(0, 0)


GOLDEN = [2, 5, 3, 6, 7, 1, 4, 0, 2, 1, 7, 5, 3, 6, 4, 0]
