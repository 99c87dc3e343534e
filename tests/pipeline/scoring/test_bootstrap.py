"""The paired bootstrap: right on cases with a known answer, and its AP is the library's."""

import numpy as np
import pytest

from pipeline.scoring.bootstrap import paired_interval, resample
from pipeline.scoring.coco_ap import evaluate_kind, prepare_annotations
from pipeline.scoring.huddled import huddled_ids
from pipeline.scoring.matches import average_precision, match_images
from tests.pipeline.coco_cases import annotation, jitter, random_case, result


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_unresampled_ap_is_the_librarys(seed, kind):
    coco, results = random_case(seed, images=12)
    coco = prepare_annotations(coco)
    for counted in (None, huddled_ids(coco["annotations"])):
        summary, _ = evaluate_kind(coco, results, kind, counted)
        ours = average_precision(match_images(coco, results, kind, counted))
        assert ours == pytest.approx(summary["AP"], abs=1e-10)


def test_weights_are_repeated_images():
    """An image of weight n counts as n copies of it do in the library's evaluation."""
    coco, results = random_case(7)
    coco = prepare_annotations(coco)
    weights = np.array([2, 0, 1, 3, 0, 1, 1, 0])
    copied, copies = {**coco, "images": [], "annotations": []}, []
    for place, (image, times) in enumerate(zip(coco["images"], weights, strict=True)):
        for copy in range(times):
            identity = 1000 * place + copy
            copied["images"].append({**image, "id": identity})
            copied["annotations"] += [
                {**item, "image_id": identity}
                for item in coco["annotations"]
                if item["image_id"] == image["id"]
            ]
            copies += [{**item, "image_id": identity} for item in results if item["image_id"] == image["id"]]
    summary, _ = evaluate_kind(prepare_annotations(copied), copies, "bbox")
    assert average_precision(match_images(coco, results), weights) == pytest.approx(summary["AP"], abs=1e-10)


def difference(a, b, resamples, seed=0):
    return paired_interval(resample(a, resamples, seed), resample(b, resamples, seed))


def test_identical_results_differ_by_exactly_nothing():
    coco, results = random_case(2)
    matches = match_images(prepare_annotations(coco), results)
    interval = difference(matches, matches, 50)
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)


def scene(images=40):
    rng = np.random.default_rng(0)
    coco = {
        "images": [
            {"id": i, "width": 128, "height": 128, "file_name": f"{i}.png"} for i in range(1, images + 1)
        ],
        "annotations": [annotation(i, i, 1, (20, 20, 50, 60)) for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "a"}],
    }
    good = [result(rng, i, 1, (20, 20, 50, 60), 0.9) for i in range(1, images + 1)]
    rough = [result(rng, i, 1, jitter(rng, (20, 20, 50, 60)), 0.9) for i in range(1, images + 1)]
    return prepare_annotations(coco), good, rough


def test_clearly_better_results_have_an_interval_above_zero_and_its_mirror_below():
    coco, good, rough = scene()
    a, b = match_images(coco, rough), match_images(coco, good)
    better, worse = difference(a, b, 100), difference(b, a, 100)
    assert 0 < better.low < better.difference < better.high
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def test_interval_narrows_with_more_images():
    widths = []
    for images in (10, 90):
        coco, good, rough = scene(images)
        interval = difference(match_images(coco, rough), match_images(coco, good), 100)
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 1.5


def test_seed_fixes_the_interval():
    coco, good, rough = scene()
    a, b = match_images(coco, rough), match_images(coco, good)
    assert difference(a, b, 30, seed=1) == difference(a, b, 30, seed=1)
    assert difference(a, b, 30, seed=1) != difference(a, b, 30, seed=2)


def test_no_detections_and_no_ground_truth():
    coco, good, _ = scene()
    assert average_precision(match_images(coco, [])) == 0
    nothing = match_images({**coco, "annotations": []}, good)
    assert difference(nothing, nothing, 5).difference is None
