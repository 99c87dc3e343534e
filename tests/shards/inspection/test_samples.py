"""Shards whose checksums all hold, written by somebody else: each sample is checked as a source is."""

import io
import json

import pytest
from PIL import Image

from shards.description import sealed
from shards.errors import CorruptSample
from shards.inspection.inspect import inspect_shards
from shards.inspection.samples import checked_sample
from shards.read import ShardDataset
from tests.shards.coco_case import HEIGHT, WIDTH
from tests.shards.stranger import SHARD, written_again


def picture(width, height, form="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, form)
    return buffer.getvalue()


def with_json(**fields):
    return lambda sample: {"json": json.dumps({**json.loads(sample["json"]), **fields}).encode()}


def with_annotation(**fields):
    def change(sample):
        tree = json.loads(sample["json"])
        tree["annotations"][0] |= fields
        return {"json": json.dumps(tree).encode()}

    return change


FAULTS = {
    "another size": (lambda s: {"jpg": picture(WIDTH + 1, HEIGHT)}, "is 41 x 30, declared as 40 x 30"),
    "another format": (lambda s: {"jpg": picture(WIDTH, HEIGHT, "PNG")}, "is a PNG file by its content"),
    "no image": (lambda s: {"jpg": b"GIF89a"}, "is a GIF file by its content"),
    "half an image": (lambda s: {"jpg": s["jpg"][:-200]}, "cannot be decoded"),
    "no JSON": (lambda s: {"json": b"{"}, "is no sample's JSON"),
    "no object": (lambda s: {"json": b"[]"}, "is no sample's JSON"),
    "a field less": (lambda s: {"json": b'{"annotations": []}'}, "is no sample's JSON"),
    "another id": (with_json(image_id=8), "is not that of its index"),
    "no list": (with_json(annotations=7), "is not that of its index"),
    "one annotation less": (with_json(annotations=[]), "is not that of its index"),
    "no objects": (with_json(annotations=[1, 2]), "has no id, or no category"),
    "unknown category": (with_annotation(category_id=91), "has no id, or no category"),
    "no category": (with_annotation(category_id=[]), "has no id, or no category"),
    "two points": (
        with_annotation(segmentation=[[1, 2, 3, 4]]),
        "annotation 1, image 7: a polygon has 2 points",
    ),
    "no box": (with_annotation(bbox=None), "annotation 1, image 7: bbox is None"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_shard_would_have_refused_is_one_line_that_names_the_sample(case, fault):
    change, words = FAULTS[fault]
    case.shard()
    written_again(case.out, "000000000007", change)
    found = inspect_shards(case.out)
    assert len(found["damaged"]) == 1 and found["images"] == 4
    assert words in found["damaged"][0] and "\n" not in found["damaged"][0]
    assert f"{SHARD}.tar, sample 000000000007" in found["damaged"][0]


def test_what_is_written_again_unchanged_has_no_fault(case):
    case.shard()
    written_again(case.out, "000000000007", lambda sample: sample)
    assert inspect_shards(case.out)["damaged"] == []


def test_an_image_larger_than_was_allowed_is_not_decoded(case, monkeypatch):
    case.shard()
    tree = json.loads((case.out / "dataset.json").read_text())
    tree["source"]["max_pixels"] = WIDTH * HEIGHT - 1
    (case.out / "dataset.json").write_text(json.dumps(sealed(tree)))
    monkeypatch.setattr("torchvision.io.decode_image", None)
    with pytest.raises(CorruptSample, match="decodes to 40 x 30, more than 1199 pixels"):
        checked_sample(ShardDataset(case.out), 0)


def test_reading_names_a_sample_whose_image_is_not_of_the_size_that_its_masks_are(case):
    """It would train on masks of other pixels, or fail far from here."""
    case.shard()
    written_again(case.out, "000000000007", lambda s: {"jpg": picture(WIDTH + 1, HEIGHT)})
    with pytest.raises(
        CorruptSample, match=r"sample 000000000007\.jpg: is 41 x 30, its annotations are of 40 x 30"
    ):
        ShardDataset(case.out)[0]
