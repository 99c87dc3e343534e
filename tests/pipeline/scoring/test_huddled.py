"""Which instances huddle, and that huddled AP is about them alone."""

import pytest

from pipeline.scoring.huddled import huddled_ids


def boxes(*rows):
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for number, (image, category, box, crowd) in enumerate(rows, 1)
    ]


def test_overlapping_pair_huddles_across_categories_and_the_lone_one_does_not():
    found = huddled_ids(
        boxes((1, 1, [0, 0, 10, 10], 0), (1, 2, [2, 2, 10, 10], 0), (1, 1, [50, 50, 10, 10], 0))
    )
    assert found == {1, 2}


def test_same_place_in_another_image_is_no_neighbour():
    assert huddled_ids(boxes((1, 1, [0, 0, 10, 10], 0), (2, 1, [0, 0, 10, 10], 0))) == set()


def test_crowd_neither_huddles_nor_makes_huddle():
    assert huddled_ids(boxes((1, 1, [0, 0, 10, 10], 0), (1, 1, [0, 0, 10, 10], 1))) == set()


@pytest.mark.parametrize(("width", "huddles"), [(30, True), (29.9, False)])
def test_threshold_of_three_tenths_is_included(width, huddles):
    found = huddled_ids(boxes((1, 1, [0, 0, 100, 10], 0), (1, 1, [0, 0, width, 10], 0)))
    assert found == ({1, 2} if huddles else set())


def test_boxes_of_zero_size_and_no_annotations_are_ordinary_input():
    assert huddled_ids([]) == set()
    assert huddled_ids(boxes((1, 1, [5, 5, 0, 0], 0), (1, 1, [5, 5, 0, 0], 0))) == set()
