"""Pictures: what is drawn, where, and in which colours."""

import numpy as np
import torch

from pipeline.report.overlay import draw_instances, instance_colours, side_by_side
from tests.pipeline.coco_cases import annotation, encode

NAMES = {1: "cat"}


def item(score=None, box=(60, 60, 120, 90), size=360, **fields):
    mask = np.zeros((size, size), bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    scored = {} if score is None else {"score": score}
    return {"category_id": 1, "bbox": list(box), "segmentation": encode(mask), **scored, **fields}


def changed(picture, image):
    return (picture != image).any(0)


def test_mask_and_box_are_where_the_instance_is():
    image = torch.full((3, 360, 360), 128, dtype=torch.uint8)
    picture = draw_instances(image, [item(0.9)], NAMES)
    difference = changed(picture, image)
    assert difference[70:140, 70:170].all(), "the mask is tinted"
    assert not difference[200:].any() and not difference[:, 200:].any(), "nothing far from it is touched"
    assert (image == 128).all(), "the argument is left alone"


def test_results_below_the_score_and_crowds_are_left_out():
    image = torch.zeros(3, 360, 360, dtype=torch.uint8)
    assert not changed(draw_instances(image, [item(0.49)], NAMES, score=0.5), image).any()
    assert not changed(draw_instances(image, [item(iscrowd=1)], NAMES), image).any()
    assert changed(draw_instances(image, [item(0.5)], NAMES, score=0.5), image).any()
    assert changed(draw_instances(image, [item()], NAMES), image).any(), "ground truth has no score"


def test_small_images_are_enlarged_by_a_whole_number():
    image = torch.zeros(3, 128, 100, dtype=torch.uint8)
    assert draw_instances(image, [], NAMES).shape == (3, 512, 400)
    truth = {**annotation(1, 1, 1, (10, 10, 40, 40))}
    square = torch.zeros(3, 128, 128, dtype=torch.uint8)
    assert changed(draw_instances(square, [truth], NAMES), torch.zeros(3, 384, 384))[90, 90]


def test_label_stays_in_the_picture_and_is_left_out_where_it_would_hide_the_neighbours():
    image = torch.zeros(3, 360, 360, dtype=torch.uint8)
    labelled = changed(draw_instances(image, [item(0.9, box=(330, 0, 30, 60), category_id=77)], NAMES), image)
    assert labelled[:12, 315:325].any(), "moved left of its box to fit"
    small = changed(draw_instances(image, [item(0.9, box=(100, 100, 9, 9))], NAMES), image)
    assert not small[:95].any()


def test_neighbouring_colours_differ():
    colours = np.array(instance_colours(100), dtype=int)
    assert len({tuple(colour) for colour in colours}) == 100
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 150


def test_figure_has_a_column_for_each_title_and_a_row_for_each_image():
    picture = torch.full((3, 40, 50), 200, dtype=torch.uint8)
    figure = np.array(side_by_side([("one", [picture, picture]), ("two", [picture, picture])], ["a", "b"]))
    filled = (figure == 200).all(2)
    assert filled.sum() >= 4 * 40 * 50 and figure.shape[1] == 2 * 62 + 12
