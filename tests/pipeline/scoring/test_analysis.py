"""What a comparison needs of one evaluated network agrees with the evaluation itself."""

import pytest

from pipeline.evaluate import measure
from pipeline.scoring.analysis import LEVELS, MEASURES, analyse, resampled_of
from pipeline.scoring.bootstrap import paired_interval
from pipeline.scoring.coco_ap import prepare_annotations
from pipeline.scoring.matches import image_precisions, match_images
from tests.pipeline.coco_cases import random_case

COCO, RESULTS = random_case(21, images=10)
TRUTH = prepare_annotations(COCO)


@pytest.fixture(scope="module")
def analysis():
    return analyse(TRUTH, RESULTS, resamples=20)


def test_whole_set_and_the_curves_ends_are_the_metrics(analysis):
    metrics = measure(COCO, RESULTS)
    for name, huddled, kind in MEASURES:
        expected = (metrics["huddled"] if huddled else metrics)[kind]["AP"]
        assert resampled_of(analysis, name).whole == pytest.approx(expected, abs=1e-10)
    curve = {point["least"]: point for point in analysis["huddledness"]}
    assert tuple(curve) == LEVELS
    for kind in ("bbox", "segm"):
        assert curve[0.0][kind] == metrics[kind]["AP"]
        assert curve[0.3][kind] == metrics["huddled"][kind]["AP"]
    counts = [point["instances"] for point in analysis["huddledness"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == sum(not item["iscrowd"] for item in TRUTH["annotations"])


def test_a_saved_analysis_pairs_as_the_matches_do(analysis):
    fewer = analyse(TRUTH, RESULTS[::2], resamples=20)
    interval = paired_interval(resampled_of(fewer, "mask AP"), resampled_of(analysis, "mask AP"))
    assert interval.low <= interval.difference <= interval.high
    same = paired_interval(resampled_of(analysis, "box AP"), resampled_of(analysis, "box AP"))
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_an_images_ap_is_that_of_the_image_alone(analysis):
    """The library's own AP of a set of that one image, with the categories of its ground truth."""
    for image in COCO["images"]:
        truth = [item for item in COCO["annotations"] if item["image_id"] == image["id"]]
        kinds = {item["category_id"] for item in truth}
        alone = {
            "images": [image],
            "annotations": truth,
            "categories": [item for item in COCO["categories"] if item["id"] in kinds],
        }
        own = [item for item in RESULTS if item["image_id"] == image["id"] and item["category_id"] in kinds]
        expected = measure(alone, own)["segm"]["AP"] if truth else None
        found = analysis["images"][str(image["id"])]
        assert found is None if expected is None else found == pytest.approx(expected, abs=1e-10)


def test_no_results_give_every_image_with_ground_truth_nothing():
    found = image_precisions(match_images(TRUTH, [], "segm"))
    assert set(found) <= {0.0, None} and 0.0 in found
