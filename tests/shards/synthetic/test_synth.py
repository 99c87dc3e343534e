"""The synthetic data set: reproducible, COCO through and through, and as huddled as asked for."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from shards.boxes import box_of, huddled
from shards.errors import BadInput
from shards.synthetic.synth import write_synthetic


def digests(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def share_huddled(coco):
    groups = {}
    for annotation in coco["annotations"]:
        groups.setdefault(annotation["image_id"], []).append(annotation)
    flags = np.concatenate([huddled(group) for group in groups.values()])
    return flags.sum() / sum(not annotation["iscrowd"] for annotation in coco["annotations"])


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_synthetic(tmp_path / name, 6, seed, size=64)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert first != other


def test_a_larger_set_begins_with_the_same_images(tmp_path):
    write_synthetic(tmp_path / "few", 3, 1, size=64)
    write_synthetic(tmp_path / "many", 5, 1, size=64)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    training = [name for name in few if name.startswith("train2017")]
    assert len(training) == 3
    assert all(few[name] == many[name] for name in training)


def test_paths_and_counts_are_those_of_coco_2017(synthetic):
    for split, count in (("train2017", 60), ("val2017", 50)):
        coco = json.loads((synthetic / f"annotations/instances_{split}.json").read_text())
        assert len(coco["images"]) == count
        assert all((synthetic / split / image["file_name"]).is_file() for image in coco["images"])
        assert [annotation["id"] for annotation in coco["annotations"]] == [
            *range(1, len(coco["annotations"]) + 1)
        ]


def test_box_and_area_are_those_of_the_mask_as_pycocotools_decodes_it(synthetic):
    coco = COCO(synthetic / "annotations/instances_train2017.json")
    for annotation in coco.dataset["annotations"]:
        mask = coco_mask.decode(coco.annToRLE(annotation))
        x, y, w, h = annotation["bbox"]
        assert box_of(mask).tolist() == [x, y, x + w, y + h]
        assert annotation["area"] == mask.sum()


def test_every_kind_of_ground_truth_is_there(tmp_path):
    coco = write_synthetic(tmp_path, 150, 0, size=64)["train2017"]
    kinds = {(type(a["segmentation"]), a["iscrowd"]) for a in coco["annotations"]}
    assert kinds == {(list, 0), (dict, 0), (dict, 1)}
    crowds = [a for a in coco["annotations"] if a["iscrowd"]]
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert {a["category_id"] for a in coco["annotations"]} == {1, 2, 3, 5, 8, 13}
    assert {image["id"] for image in coco["images"]} - {a["image_id"] for a in coco["annotations"]}
    assert {Image.open(tmp_path / "train2017" / i["file_name"]).format for i in coco["images"]} == {
        "PNG",
        "JPEG",
    }


@pytest.mark.parametrize(("huddle", "low", "high"), [(0.0, 0.0, 0.02), (0.6, 0.5, 0.7), (1.0, 0.9, 1.0)])
def test_huddle_sets_the_share_of_huddled_instances(tmp_path, huddle, low, high):
    coco = write_synthetic(tmp_path, 60, 11, huddle=huddle, size=96)["train2017"]
    assert low <= share_huddled(coco) <= high


@pytest.mark.parametrize(
    "arguments", [{"images": 0}, {"seed": -1}, {"huddle": 1.5}, {"huddle": float("nan")}, {"size": 8}]
)
def test_arguments_out_of_range_are_refused_by_name(tmp_path, arguments):
    with pytest.raises(BadInput, match=next(iter(arguments))):
        write_synthetic(tmp_path, **{"images": 1, "seed": 0, **arguments})
