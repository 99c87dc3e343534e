"""Global batches: the same for any world size, resume point and rank; nothing lost, nothing twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shards.batches import GlobalBatches, legal_world_sizes
from shards.errors import BadInput
from shards.order import SampleOrder
from shards.window import WindowOrder

SIZES = st.integers(1, 60)
WORLDS = st.integers(1, 4)
WINDOWS = st.integers(0, 5)
# Either order of as many samples; the window-shuffled one in shards of uneven sizes.
ORDERS = st.sampled_from(["full", 1, 7, 100])


def order_of(size, kind):
    if kind == "full":
        return SampleOrder(size, 0)
    cuts = np.random.default_rng(size).integers(0, size + 1, 3)
    return WindowOrder(np.diff([0, *sorted(cuts), size]), kind, 0)


def batches(size, *, steps, window=0, order="full", **options):
    aspects = np.random.default_rng(size).choice([0.5, 0.75, 1.0, 1.5], size)
    return GlobalBatches(
        order_of(size, order), aspects=aspects, aspect_window=window, stop_step=steps, **options
    )


def gathered(size, world, accumulate, micro, steps, window, order, start=0):
    """What all ranks yield, put together again: one list of (position, index) a step."""
    options = {"batch": world * micro * accumulate, "accumulate": accumulate, "world": world}
    ranks = [
        list(batches(size, steps=steps, window=window, order=order, rank=rank, start_step=start, **options))
        for rank in range(world)
    ]
    assert {len(rank) for rank in ranks} == {(steps - start) * accumulate}
    steps_of = []
    for step in range(steps - start):
        joined = []
        for part in range(step * accumulate, (step + 1) * accumulate):
            slices = [rank[part] for rank in ranks]
            assert {len(piece) for piece in slices} == {micro}
            joined += [sample for turn in zip(*slices, strict=True) for sample in turn]
        steps_of.append(joined)
    return steps_of


@given(SIZES, WORLDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), WINDOWS, ORDERS)
def test_ranks_together_yield_the_global_batches_in_equal_parts(
    size, world, accumulate, micro, steps, window, order
):
    batch = world * accumulate * micro
    whole = batches(size, steps=steps, window=window, order=order, batch=batch)
    expected = [whole.global_batch(step) for step in range(steps)]
    assert gathered(size, world, accumulate, micro, steps, window, order) == expected


@given(SIZES, WINDOWS, ORDERS, st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=8))
def test_worlds_that_change_at_any_step_leave_the_stream_as_it_was(size, window, order, worlds):
    """Elastic: killed and gone on after every step, each time with another number of ranks."""
    through = gathered(size, 1, 1, 12, len(worlds), window, order)
    for step, world in enumerate(worlds):
        (alone,) = gathered(size, world, 1, 12 // world, step + 1, window, order, start=step)
        assert alone == through[step]


@given(SIZES, st.integers(1, 12), st.integers(0, 9), st.integers(1, 9), WINDOWS, ORDERS)
def test_resume_at_a_step_equals_running_through_it(size, batch, start, more, window, order):
    options = {"steps": start + more, "window": window, "order": order, "batch": batch}
    through = list(batches(size, **options))
    resumed = list(batches(size, **options, start_step=start))
    assert resumed == through[start:]


@given(SIZES, st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), ORDERS)
def test_each_position_is_used_once_and_each_sample_once_an_epoch(size, batch, window, windows, order):
    sampler = batches(size, steps=window * windows, window=window, order=order, batch=batch)
    samples = [sample for micro in sampler for sample in micro]
    assert sorted(position for position, _ in samples) == list(range(batch * window * windows))
    assert all(index == sampler.order.index(position) for position, index in samples)
    by_epoch = Counter((position // size, index) for position, index in samples)
    assert set(by_epoch.values()) == {1}


@given(st.integers(10, 60), st.integers(2, 8), st.integers(2, 5))
def test_at_most_one_batch_of_a_window_mixes_orientations(size, batch, window):
    sampler = batches(size, steps=window, window=window, batch=batch)
    upright = [{sampler.aspects[index] < 1 for _, index in micro} for micro in sampler]
    assert sum(len(kinds) > 1 for kinds in upright) <= 1


@given(st.integers(1, 48), st.integers(1, 6))
def test_world_sizes_that_are_not_legal_are_refused_naming_those_that_are(batch, accumulate):
    assume(batch % accumulate == 0)
    legal = legal_world_sizes(batch, accumulate)
    assert legal == [world for world in range(1, batch + 1) if batch % (world * accumulate) == 0]
    for world in set(range(1, 9)) - set(legal):
        with pytest.raises(BadInput, match=f"use {', '.join(map(str, legal))} workers"):
            batches(10, steps=1, batch=batch, accumulate=accumulate, world=world)


def test_accumulation_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(BadInput, match="accumulate 3 does not divide batch 8"):
        legal_world_sizes(8, 3)


def test_length_is_the_number_of_micro_batches_left():
    assert len(batches(9, steps=10, batch=8, accumulate=2, start_step=7)) == 6
    assert list(batches(9, steps=3, batch=8, start_step=5)) == []
