"""The test-dev archive: made as the COCO server wants it, and refused by us before the server does."""

import json
import zipfile

import pytest

from pipeline.scoring.server import check_server_zip, server_name, write_server_zip
from shards.errors import BadInput
from tests.pipeline.coco_cases import SIZE, random_case

COCO, RESULTS = random_case(4)
IMAGES = {image["id"]: (SIZE, SIZE) for image in COCO["images"]}
CATEGORIES = {3, 17, 90}


def test_what_is_written_is_what_the_server_takes(tmp_path):
    path = write_server_zip(tmp_path, RESULTS, "MR R-CNN (R-50)")
    assert path.name == "detections_test-dev2017_MR-R-CNN-R-50_results.zip"
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.namelist()
        assert member == f"{path.stem}.json"
        assert json.loads(archive.read(member)) == RESULTS
    assert check_server_zip(path, IMAGES, CATEGORIES) == len(RESULTS)
    written = path.read_bytes()
    assert write_server_zip(tmp_path, RESULTS, "MR R-CNN (R-50)").read_bytes() == written


def test_no_detections_are_results_too(tmp_path):
    assert check_server_zip(write_server_zip(tmp_path, [], "a"), IMAGES, CATEGORIES) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 7}, "image_id 7 is not in the test set"),
        ({"image_id": 101.0}, "image_id 101.0"),
        ({"category_id": 4}, "category_id 4"),
        ({"score": float("nan")}, "score nan"),
        ({"score": 1.5}, "score 1.5"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [1, 2, -3, 4]}, "bbox"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "not compressed RLE"),
        ({"segmentation": {"size": [64, 64], "counts": "PP8"}}, r"\[128, 128\]"),
        ({"segmentation": {"size": [128, 128], "counts": "PP8"}}, "add up to"),
    ],
)
def test_a_result_that_the_server_would_refuse_is_named(tmp_path, change, said):
    results = [*RESULTS[:2], {**RESULTS[2], **change}]
    # By hand: what is not finite is refused by our own writer already.
    path = tmp_path / f"{server_name('a')}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}.json", json.dumps(results))
    with pytest.raises(BadInput, match=rf"result 2: .*{said}"):
        check_server_zip(path, IMAGES, CATEGORIES)


def test_a_missing_field_too_many_results_and_a_wrong_name_are_refused(tmp_path):
    lacking = [{key: value for key, value in RESULTS[0].items() if key != "score"}]
    with pytest.raises(BadInput, match="result 0: lacks score"):
        check_server_zip(write_server_zip(tmp_path, lacking, "a"), IMAGES, CATEGORIES)
    with pytest.raises(BadInput, match="has 101 results"):
        check_server_zip(write_server_zip(tmp_path, RESULTS[:1] * 101, "a"), IMAGES, CATEGORIES)
    good = write_server_zip(tmp_path, RESULTS, "a")
    with pytest.raises(BadInput, match=r"holds detections_test-dev2017_a_results\.json"):
        check_server_zip(good.rename(tmp_path / f"{server_name('b')}.zip"), IMAGES, CATEGORIES)
    with pytest.raises(BadInput, match="is not named"):
        check_server_zip(tmp_path / "results.zip", IMAGES, CATEGORIES)
    (tmp_path / f"{server_name('c')}.zip").write_bytes(b"no zip")
    with pytest.raises(BadInput, match="cannot be read"):
        check_server_zip(tmp_path / f"{server_name('c')}.zip", IMAGES, CATEGORIES)
