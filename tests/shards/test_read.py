"""Reading: what went in comes out, whatever process asks, and a flipped bit is named."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from shards.errors import BadInput
from shards.read import ShardDataset
from tests.shards.coco_case import flip_byte


def test_round_trip(case):
    case.shard()
    data_set = ShardDataset(case.out)
    by_id = {image["id"]: image for image in case.tree["images"]}
    assert [entry["image_id"] for entry in data_set.entries] == [7, 12, 30, 99]
    for place, entry in enumerate(data_set.entries):
        sample, image = data_set[place], by_id[entry["image_id"]]
        assert (sample.image_id, sample.file_name) == (image["id"], image["file_name"])
        assert (sample.width, sample.height) == (40, 30)
        assert sample.annotations == [a for a in case.tree["annotations"] if a["image_id"] == image["id"]]
        assert data_set.image_bytes(place) == (case.images / image["file_name"]).read_bytes()
        assert entry["num_instances"] == len(sample.annotations)
        assert sample.image.dtype == torch.uint8
        pixels = np.asarray(Image.open(case.images / image["file_name"]))
        # JPEG decoders may differ by a rounding step.
        assert np.abs(sample.image.permute(1, 2, 0).numpy().astype(int) - pixels).max() <= 4


def test_category_ids_with_gaps_map_to_labels_and_back(case):
    case.shard()
    data_set = ShardDataset(case.out)
    assert data_set.label_of == {3: 1, 17: 2, 90: 3}
    assert data_set.category_of == [0, 3, 17, 90]
    assert [category["name"] for category in data_set.categories] == ["a", "m", "z"]


def test_a_category_id_of_zero_is_a_category_like_any_other(case):
    case.tree["categories"].append({"id": 0, "name": "zero"})
    case.annotation(1)["category_id"] = 0
    case.shard()
    data_set = ShardDataset(case.out)
    assert data_set.label_of == {0: 1, 3: 2, 17: 3, 90: 4}
    assert data_set.category_of == [0, 0, 3, 17, 90]


def test_to_coco_is_the_ground_truth_again(case):
    case.shard()
    coco = ShardDataset(case.out).to_coco()
    for name in ("images", "annotations", "categories"):
        assert sorted(coco[name], key=lambda row: row["id"]) == sorted(
            case.tree[name], key=lambda row: row["id"]
        )


def test_to_coco_fills_in_what_evaluation_needs(case):
    del case.annotation(1)["area"], case.annotation(1)["iscrowd"]
    case.shard()
    first = next(a for a in ShardDataset(case.out).to_coco()["annotations"] if a["id"] == 1)
    assert (first["area"], first["iscrowd"]) == (200, 0)


def exif_rotated(picture):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def saved(picture, kind):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


GREY = np.arange(1200, dtype=np.uint8).reshape(30, 40)
VARIANTS = {
    "grey.jpg": saved(Image.fromarray(GREY), "JPEG"),
    "cmyk.jpg": saved(Image.fromarray(GREY).convert("CMYK"), "JPEG"),
    "turned.jpg": exif_rotated(Image.fromarray(GREY)),
    "grey.png": saved(Image.fromarray(GREY), "PNG"),
    "alpha.png": saved(Image.fromarray(GREY).convert("RGBA"), "PNG"),
    "palette.png": saved(Image.fromarray(GREY).convert("P"), "PNG"),
    "deep.png": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_pixel_becomes_rgb_in_the_pixels_as_stored(case, name):
    (case.images / name).write_bytes(VARIANTS[name])
    case.tree["images"][1]["file_name"] = name
    case.shard()
    image = ShardDataset(case.out)[0].image
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    assert np.abs(image.numpy().astype(int) - GREY).mean() < (0.01 if name.endswith("png") else 8)


def test_loader_workers_and_pickles_read_the_same(sharded):
    data_set = ShardDataset(sharded)
    expected = [data_set[place].image for place in range(6)]
    copied = pickle.loads(pickle.dumps(data_set))
    assert all(torch.equal(copied[place].image, image) for place, image in enumerate(expected))
    loader = DataLoader(data_set, batch_size=None, sampler=range(6), num_workers=2)
    assert all(torch.equal(s.image, image) for s, image in zip(loader, expected, strict=True))


@pytest.mark.parametrize("extension", ["jpg", "json"])
def test_a_flipped_byte_is_reported_with_shard_and_key(case, extension):
    case.shard()
    entries = json.loads((case.out / "instances-000000.index.json").read_text())
    flip_byte(case.out / "instances-000000.tar", entries[1]["members"][extension]["offset"] + 30)
    data_set = ShardDataset(case.out)
    with pytest.raises(BadInput, match=rf"instances-000000\.tar, sample 000000000012\.{extension}"):
        data_set[1]
    assert data_set[0].image_id == 7


def test_a_short_shard_and_a_missing_one_are_reported(case):
    case.shard()
    shard = case.out / "instances-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600])
    with pytest.raises(BadInput, match="sample 000000000007"):
        ShardDataset(case.out)[0]
    shard.unlink()
    with pytest.raises(BadInput, match="is missing"):
        ShardDataset(case.out)[0]


def test_a_damaged_index_and_an_unfinished_folder_are_refused(case):
    case.shard()
    flip_byte(case.out / "instances-000000.index.json", 40)
    with pytest.raises(BadInput, match=r"instances-000000\.index\.json"):
        ShardDataset(case.out)
    (case.out / "dataset.json").unlink()
    with pytest.raises(BadInput, match=r"dataset\.json: is missing"):
        ShardDataset(case.out)


def test_a_place_beyond_the_end_is_an_index_error(sharded):
    data_set = ShardDataset(sharded)
    with pytest.raises(IndexError):
        data_set[len(data_set)]


def test_many_shards_do_not_run_out_of_open_files(case, monkeypatch):
    from shards import write
    from shards.storage import store

    plan = write.plan_shards
    monkeypatch.setattr(write, "plan_shards", lambda images, name, size: plan(images, name, 1))
    monkeypatch.setattr(store, "MAX_OPEN_FILES", 2)
    assert len(case.shard()["shards"]) == 4
    data_set = ShardDataset(case.out)
    assert [data_set[place].image_id for place in (0, 1, 2, 3, 0, 2)] == [7, 12, 30, 99, 7, 30]
    assert len(data_set.store._files) == 2
