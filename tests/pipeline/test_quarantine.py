"""Corrupt samples: one stops training, or another takes its place, the same on every rank and resume."""

import logging
import shutil

import pytest
import torch

from configs.load import parse_config
from pipeline import quarantine as module
from pipeline.data import TrainingSamples, training_batches
from pipeline.quarantine import Quarantine
from shards.errors import CorruptSample
from shards.read import ShardDataset
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards
from tests.shards.coco_case import flip_byte


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_synthetic(folder / "coco", images=12, seed=3)
    annotations = folder / "coco" / "annotations" / "instances_train2017.json"
    write_shards(folder / "coco" / "train2017", annotations, folder / "shards")
    return folder / "shards"


@pytest.fixture
def damaged(whole, tmp_path):
    """The same shards with a byte of image 2, of the annotations of image 5 and of image 7 flipped."""
    copy = shutil.copytree(whole, tmp_path / "shards")
    dataset = ShardDataset(copy)
    for place, member in ((2, "image"), (5, "annotations"), (7, "image")):
        flip_byte(next(copy.glob("*.tar")), getattr(dataset.entries, member)(place).offset + 30)
    return dataset


def stream(dataset, workers=0, rank=0, world=1, start=0, iters=9):
    """(position, image id, how many it stands in for) of every sample; 3 epochs of 12 in batches of 4."""
    data = {"train": "-", "val": "-", "loader_workers": workers, "on_corrupt": "quarantine"}
    schedule = {"iters": iters, "batch": 4, "warmup": 0}
    config = parse_config({"data": data, "train": {"baseline": schedule, "aspect_window": 0}})
    batches = training_batches(dataset, config, config.train.baseline, rank, world, start)
    return [[(t["position"], t["image_id"], len(t["corrupt"])) for _, t in batch] for batch in batches]


def test_by_default_a_corrupt_sample_stops_training(damaged):
    for place in (2, 5, 7):
        with pytest.raises(CorruptSample, match=r"000000\.tar, sample 0000000000"):
            TrainingSamples(damaged, 0, 0.0)[(0, place)]


def test_each_corrupt_sample_is_replaced_by_a_whole_one_and_nothing_else_is(whole, damaged):
    wanted, found = stream(ShardDataset(whole)), stream(damaged)
    lost = {damaged.entries[place]["image_id"] for place in (2, 5, 7)}
    pairs = [pair for one, other in zip(wanted, found, strict=True) for pair in zip(one, other, strict=True)]
    for (position, image_id, _), replaced in pairs:
        assert position == replaced[0]
        if image_id in lost:
            assert replaced[1] not in lost and replaced[2] >= 1
        else:
            assert replaced[1:] == (image_id, 0)
    assert sum(bool(replaced[2]) for _, replaced in pairs) == 9, "three samples, three epochs"
    assert len({replaced[1] for _, replaced in pairs if replaced[2]}) > 1, "not always the same one"


def test_the_replacement_depends_on_the_position_alone(damaged):
    straight = stream(damaged)
    assert stream(damaged, start=5) == straight[5:]
    assert stream(damaged, workers=2) == straight
    ranks = [stream(damaged, rank=rank, world=2) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*ranks, strict=True)] == [sorted(b) for b in straight]


def test_a_segmentation_that_fits_no_image_is_a_corrupt_sample_with_a_name(damaged, monkeypatch):
    inner = damaged.__class__.__getitem__

    def broken(self, place):
        sample = inner(self, place)
        if place == 0:
            sample.annotations[0]["segmentation"] = [[1, 2, 3]]
        return sample

    monkeypatch.setattr(damaged.__class__, "__getitem__", broken)
    with pytest.raises(CorruptSample, match=r"shards, image 1: a polygon has 3 coordinates"):
        TrainingSamples(damaged, 0, 0.0)[(0, 0)]
    _, target = TrainingSamples(damaged, 0, 0.0, "quarantine")[(0, 0)]
    assert target["image_id"] != 1 and "image 1" in target["corrupt"][0]


def test_a_data_set_of_nothing_but_corrupt_samples_is_an_error_and_no_endless_loop(damaged):
    path = next(damaged.directory.glob("*.tar"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptSample):
        TrainingSamples(damaged, 0, 0.0, "quarantine")[(0, 0)]


def test_a_shard_that_is_not_there_is_no_corrupt_sample(damaged):
    """A hundred images replaced for want of a file would be another data set."""
    next(damaged.directory.glob("*.tar")).unlink()
    with pytest.raises(ValueError, match="is missing") as raised:
        TrainingSamples(damaged, 0, 0.0, "quarantine")[(0, 0)]
    assert not isinstance(raised.value, CorruptSample)


def batch(*corrupt):
    return [(torch.zeros(3, 1, 1), {"corrupt": list(reasons)}) for reasons in corrupt]


def test_replaced_samples_of_all_ranks_are_counted_and_each_corrupt_one_named_once(monkeypatch, caplog):
    def gather(everyone, mine):
        everyone[:] = [mine, [["b.tar, sample 2: damaged", "c.tar, sample 3: damaged"]]]

    monkeypatch.setattr(module.dist, "all_gather_object", gather)
    monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
    quarantine = Quarantine("quarantine", 2)
    with caplog.at_level(logging.WARNING):
        assert quarantine.count(batch([], ["a.tar, sample 1: damaged"], [])) == 2
        assert quarantine.count(batch([], ["a.tar, sample 1: damaged"], [])) == 2
        assert quarantine.count(batch([])) == 1
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"quarantined: {name}" for name in (
        "a.tar, sample 1: damaged", "b.tar, sample 2: damaged", "c.tar, sample 3: damaged"
    )]  # fmt: skip


def test_without_the_policy_no_rank_waits_for_another(monkeypatch):
    monkeypatch.setattr(module.dist, "all_gather_object", None)
    assert Quarantine("fail", 2).count(batch([])) == 0
