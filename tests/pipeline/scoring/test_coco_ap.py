"""Either library gives the same AP, however the categories are cut into blocks and the countings combined."""

import copy

import pytest

from benchmarks.made_results import made_case
from pipeline.evaluate import measure
from pipeline.scoring import coco_ap
from pipeline.scoring.coco_ap import evaluate_countings, evaluate_kind, prepare_annotations
from pipeline.scoring.huddled import huddled_ids
from tests.pipeline.coco_cases import random_case


def close(tree):
    """Return metrics with every number to be met to 1e-10."""
    if isinstance(tree, dict):
        return {key: close(value) for key, value in tree.items()}
    return pytest.approx(tree, abs=1e-10) if isinstance(tree, float) else tree


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
@pytest.mark.parametrize("seed", [11, 12])
def test_faster_coco_eval_and_pycocotools_agree_to_1e_10(seed, at_once, monkeypatch):
    monkeypatch.setattr(coco_ap, "RESULTS_AT_ONCE", at_once)
    coco, results = random_case(seed, images=12)
    assert measure(coco, results) == close(measure(coco, results, "pycocotools"))


def test_they_agree_at_the_size_of_an_image_of_coco():
    """80 categories, 100 results an image, most of them of categories that the image has nothing of."""
    coco, results = made_case(images=20, detections=100)
    assert measure(coco, results) == close(measure(coco, results, "pycocotools"))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_countings_together_are_each_alone(kind):
    coco, results = random_case(13, images=12)
    coco = prepare_annotations(coco)
    countings = [huddled_ids(coco["annotations"]), None, set(), {1, 2, 3}]
    together = evaluate_countings(coco, results, kind, countings)
    assert together == [evaluate_kind(coco, results, kind, counted) for counted in countings]
    assert together[2][0]["AP"] is None
    reference = evaluate_countings(coco, results, kind, countings, "pycocotools")
    assert [close(scores[0]) for scores in reference] == [scores[0] for scores in together]


@pytest.mark.parametrize("scorer", ["faster_coco_eval", "pycocotools"])
def test_ground_truth_and_results_are_left_as_they_were(scorer):
    coco, results = random_case(14)
    before = copy.deepcopy((coco, results))
    measure(coco, results, scorer)
    assert (coco, results) == before


@pytest.mark.parametrize("scorer", ["faster_coco_eval", "pycocotools"])
def test_no_results_and_no_ground_truth(scorer):
    coco, results = random_case(15)
    assert measure(coco, [], scorer)["segm"]["AP"] == 0
    assert measure({**coco, "annotations": []}, results, scorer)["bbox"]["AP"] is None
