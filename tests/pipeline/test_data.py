"""What the network trains on: targets as the annotations say, chance by the sample's position alone."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import parse_config
from pipeline.data import (
    TrainingSamples,
    first_batch,
    flip,
    sample_order,
    training_batches,
    training_target,
)
from shards.errors import BadInput, CorruptSample
from shards.masks import decode_mask
from shards.read import Sample, ShardDataset
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_synthetic(folder / "coco", images=12, seed=3)
    annotations = folder / "coco" / "annotations" / "instances_train2017.json"
    write_shards(folder / "coco" / "train2017", annotations, folder / "shards")
    return ShardDataset(folder / "shards")


def config(data=(), **train):
    schedule = {"iters": 6, "batch": 4, "warmup": 0}
    data = {"train": "-", "val": "-", "loader_workers": 0, **dict(data)}
    return parse_config({"data": data, "train": {"baseline": schedule, **train}})


def sample(annotations, height=20, width=30):
    image = torch.arange(3 * height * width).reshape(3, height, width).to(torch.uint8)
    return Sample(
        image=image, image_id=7, file_name="a.png", width=width, height=height, annotations=annotations
    )


def square(x, y, w, h, **more):
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": [x, y, w, h], "segmentation": [polygon], "category_id": 5, "iscrowd": 0, **more}


def test_boxes_are_corners_clipped_to_the_image_and_labels_are_contiguous():
    target = training_target(sample([square(2, 3, 10, 8), square(25, 15, 9, 9)]), {5: 2})
    assert target["boxes"].tolist() == [[2, 3, 12, 11], [25, 15, 30, 20]]
    assert target["labels"].tolist() == [2, 2]
    masks = target["masks"][torch.arange(2)]
    assert masks.shape == (2, 20, 30) and masks[0].sum() == 80


def test_crowds_and_boxes_without_area_do_not_train():
    crowd = square(0, 0, 5, 5, iscrowd=1)
    hair = square(20.00001, 4, 1e-6, 6)
    target = training_target(sample([crowd, square(4, 4, 0, 6), square(40, 3, 5, 5), hair]), {5: 1})
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert len(target["masks"]) == 0 and target["masks"].size == (20, 30)


@pytest.mark.parametrize("change", [{"category_id": 6}, {"bbox": [1, 2]}, {"bbox": None}])
def test_an_annotation_of_another_program_is_a_corrupt_sample_with_its_image_named(change):
    class Shards:
        directory, label_of = "shards", {5: 1}

        def __getitem__(self, place):
            return sample([square(2, 3, 10, 8, **change)])

    with pytest.raises(CorruptSample, match=r"^shards, image 7: an annotation is not COCO's"):
        TrainingSamples(Shards(), seed=0, hflip=0)[0, 0]


def test_flipping_moves_image_boxes_and_masks_together():
    one = sample([square(2, 3, 10, 8)])
    target = training_target(one, {5: 1})
    image, flipped = flip(one.image, target)
    assert torch.equal(image, one.image.flip(-1))
    rows, columns = torch.where(flipped["masks"][torch.tensor([0])][0] > 0)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert flipped["boxes"][0].tolist() == [int(edge) for edge in box] == [18, 3, 28, 11]
    again_image, again = flip(image, flipped)
    assert torch.equal(again_image, one.image) and torch.equal(again["boxes"], target["boxes"])


def test_masks_are_those_of_the_annotations(shards):
    place = next(place for place in range(len(shards)) if shards.entries[place]["num_instances"] > 1)
    raw = shards[place]
    wanted = [
        decode_mask(a["segmentation"], raw.height, raw.width) for a in raw.annotations if not a["iscrowd"]
    ]
    _, target = TrainingSamples(shards, seed=0, hflip=0.0)[(0, place)]
    assert np.array_equal(target["masks"][torch.arange(len(wanted))].numpy(), np.stack(wanted))


def test_a_flip_depends_on_seed_and_position_only(shards):
    samples = TrainingSamples(shards, seed=5, hflip=0.5)
    flipped = [not torch.equal(samples[(p, 0)][0], shards[0].image) for p in range(40)]
    assert flipped == [not torch.equal(samples[(p, 0)][0], shards[0].image) for p in range(40)]
    assert 5 < sum(flipped) < 35
    other = TrainingSamples(shards, seed=6, hflip=0.5)
    assert flipped != [not torch.equal(other[(p, 0)][0], shards[0].image) for p in range(40)]


def everything(shards, config, **place):
    batches = training_batches(shards, config, config.train.baseline, **place)
    return [[(t["position"], t["image_id"], image.sum().item()) for image, t in batch] for batch in batches]


@pytest.mark.parametrize("window", [0, 2])
def test_ranks_share_out_the_same_global_batches(shards, window):
    cfg = config(aspect_window=window)
    alone = everything(shards, cfg, rank=0, world=1, start_step=0)
    parts = [everything(shards, cfg, rank=rank, world=2, start_step=0) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in alone]
    assert len(alone) == 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["full", "window"])
def test_resuming_and_loader_workers_change_nothing(shards, workers, order):
    straight = everything(shards, config({"order": order}), rank=0, world=1, start_step=0)
    cfg = config({"order": order, "loader_workers": workers})
    assert everything(shards, cfg, rank=0, world=1, start_step=4) == straight[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_loader_processes_send_arrives_as_it_was(shards, workers):
    cfg = config({"loader_workers": workers})
    samples = TrainingSamples(shards, cfg.seed, cfg.train.hflip)
    order = sample_order(shards, cfg)
    for batch in training_batches(shards, cfg, cfg.train.baseline, 0, 1, 0):
        for image, target in batch:
            expected_image, expected = samples[target["position"], order.index(target["position"])]
            assert torch.equal(image, expected_image) and image.dtype == torch.uint8
            assert target.keys() == expected.keys() and target["masks"] == expected["masks"]
            for name in ("boxes", "labels"):
                assert (
                    torch.equal(target[name], expected[name]) and target[name].dtype == expected[name].dtype
                )


def test_the_order_is_the_one_of_the_config(shards):
    full, window = (sample_order(shards, config({"order": order})) for order in ("full", "window"))
    narrow = sample_order(shards, config({"order": "window", "order_window": 1}))
    streams = [[order.index(position) for position in range(24)] for order in (full, window, narrow)]
    assert all(sorted(stream[:12]) == sorted(stream[12:]) == list(range(12)) for stream in streams)
    assert streams[2] == [*range(12), *range(12)], "one shard, windows of one sample: nothing to shuffle"
    assert streams[0] != streams[1] != streams[2]
    assert len({order.identity for order in (full, window, narrow)}) == 3


def test_first_batch_is_the_global_batch_of_the_refining_stage(shards):
    cfg = config(refine={"iters": 3, "batch": 6, "accumulate": 2}, aspect_window=0)
    images, targets, seed = first_batch(shards, cfg)
    assert len(images) == len(targets) == 6 and seed == cfg.seed
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)
    assert sorted(target["position"] for target in targets) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named_in_one_line(shards, tmp_path, workers):
    copy = shutil.copytree(shards.directory, tmp_path / "shards")
    tar = next(copy.glob("*.tar"))
    tar.write_bytes(bytes(len(tar.read_bytes())))
    cfg = config({"loader_workers": workers})
    with pytest.raises(BadInput) as raised:
        everything(ShardDataset(copy), cfg, rank=0, world=1, start_step=0)
    assert str(raised.value).startswith(f"{tar}, sample ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_disk_is_no_bad_input_and_named_in_one_line(shards, monkeypatch, workers):
    """Bad input ends a job at once; what a file server says while it is away is worth another try."""
    tar = shards.directory / shards.description["shards"][0]["name"]

    def opened(path, *rest, really=os.open):
        if Path(path) == tar:
            raise OSError(errno.ESTALE, "Stale file handle")
        return really(path, *rest)

    monkeypatch.setattr("shards.storage.store.os.open", opened)
    with pytest.raises(OSError, match=f"Stale file handle: '{tar}'$") as raised:
        everything(
            ShardDataset(shards.directory), config({"loader_workers": workers}), rank=0, world=1, start_step=0
        )
    assert "\n" not in str(raised.value)
