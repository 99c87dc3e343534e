"""Masks equal pycocotools' on what it can read, and damaged ones are refused instead of crashing it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from shards.boxes import box_of
from shards.errors import BadInput
from shards.masks import decode_mask, measure_mask, run_lengths

SIDES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)


@given(SIDES, SIDES, SEEDS, st.floats(0, 1))
def test_run_lengths_of_both_kinds_are_read_as_pycocotools_wrote_them(height, width, seed, density):
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    for counts in (rle["counts"], rle["counts"].decode(), run_lengths(rle["counts"]).tolist()):
        segmentation = {"size": [height, width], "counts": counts}
        np.testing.assert_array_equal(decode_mask(segmentation, height, width), mask)


@given(SIDES, SIDES, SEEDS, st.integers(1, 3))
def test_polygons_are_rasterised_and_united_as_pycocotools_does(height, width, seed, count):
    rng = np.random.default_rng(seed)
    polygons = [
        (rng.random((rng.integers(3, 9), 2)) * (width + 9, height + 9) - 4).ravel().tolist()
        for _ in range(count)
    ]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    np.testing.assert_array_equal(decode_mask(polygons, height, width), expected)


def measured_by_decoding(segmentation, height, width) -> list[float]:
    mask = decode_mask(segmentation, height, width)
    left, top, right, bottom = box_of(mask)
    return [left, top, right - left, bottom - top, mask.sum()]


@given(SIDES, SIDES, SEEDS, st.integers(1, 3))
def test_box_and_area_of_polygons_are_those_of_the_decoded_mask(height, width, seed, count):
    rng = np.random.default_rng(seed)
    polygons = [
        ((2 * rng.random((rng.integers(3, 9), 2)) - 0.5) * (width, height)).ravel().tolist()
        for _ in range(count)
    ]
    found = measure_mask(polygons, height, width)
    assert found == measured_by_decoding(polygons, height, width)


@given(SIDES, SIDES, st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_box_and_area_of_run_lengths_are_those_of_the_decoded_mask_with_runs_of_length_0_too(
    height, width, runs
):
    runs = [run for place, run in enumerate(runs) if sum(runs[: place + 1]) <= height * width]
    segmentation = {"size": [height, width], "counts": [*runs, height * width - sum(runs)]}
    found = measure_mask(segmentation, height, width)
    assert found == measured_by_decoding(segmentation, height, width)


def test_result_is_uint8_and_no_polygons_give_an_empty_mask():
    mask = decode_mask([], 4, 6)
    assert mask.shape == (4, 6)
    assert mask.dtype == np.uint8
    assert not mask.any()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "odd number"),
        ([[1, 2, 3, 4]], "fewer than 3"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e300]], "far outside"),
        ([[1, 2, 3, 4, 5, "6"]], "other than numbers"),
        ([{"size": [4, 6], "counts": [24]}], "no list of coordinates"),
        ("text", "neither"),
        ({"size": [6, 4], "counts": [24]}, "RLE size"),
        ({"counts": [24]}, "RLE size"),
        ({"size": [4, 6]}, "RLE counts are missing"),
        ({"size": [4, 6], "counts": [23]}, "add up to 23"),
        ({"size": [4, 6], "counts": [30, -6]}, "negative"),
        ({"size": [4, 6], "counts": [24.0]}, "whole numbers"),
        ({"size": [4, 6], "counts": None}, "whole numbers"),
        ({"size": [4, 6], "counts": "\x7f\x01"}, "damaged"),
        ({"size": [4, 6], "counts": "o"}, "damaged"),
        ({"size": [4, 6], "counts": "\u00e9"}, "ASCII"),
        ({"size": [4, 6], "counts": "oooooooooooooooo0"}, "absurd"),
    ],
)
def test_a_damaged_segmentation_is_refused_with_the_reason(segmentation, words):
    with pytest.raises(BadInput, match=words):
        decode_mask(segmentation, 4, 6)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_no_string_of_counts_does_anything_but_decode_or_be_refused(text):
    try:
        mask = decode_mask({"size": [5, 7], "counts": text}, 5, 7)
    except BadInput:
        return
    assert mask.shape == (5, 7)
