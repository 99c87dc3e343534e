"""`mrrcnn bench data` times only what makes the same samples, and says which bars are met."""

import json
import shutil
import sys

import pytest
from PIL import Image

from benchmarks import data, loading, memory, parts, planning, sharding
from benchmarks.photographs import write_photographs
from shards.write import write_shards

IMAGES = 6


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A few photographs; read only."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, IMAGES)
    return root


@pytest.fixture
def files(coco, tmp_path):
    return sharding.Files(
        coco / "train2017", coco / "annotations/instances_train2017.json", tmp_path / "scratch"
    )


@pytest.fixture(scope="module")
def shards(coco, tmp_path_factory):
    """The photographs in shards; read only."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(coco / "train2017", coco / "annotations/instances_train2017.json", out)
    return out


def test_the_photographs_have_no_defect_and_are_as_heavy_as_cocos(coco, shards):
    report = json.loads((shards / "report.json").read_text())
    assert (report["errors"], report["warnings"]) == ({}, {})
    sizes = [path.stat().st_size for path in (coco / "train2017").iterdir()]
    assert len(sizes) == IMAGES and 100_000 < sum(sizes) / IMAGES < 250_000


def test_every_way_to_shard_runs_and_writes_the_same_samples(files):
    sharding.check(files, workers=1)
    for run in (sharding.contenders(files, workers=1) | sharding.pieces(files, workers=1)).values():
        files.begin()
        run(0)


def test_other_samples_are_not_timed(files, monkeypatch):
    sample = sharding._sample
    monkeypatch.setattr(sharding, "_sample", lambda row, *rest: {**sample(row, *rest), "jpg": b"other"})
    with pytest.raises(SystemExit, match=r"differ in 6 members, first 000000000001\.jpg"):
        sharding.check(files, workers=1)


def test_every_way_to_load_runs_and_gives_the_same_pixels_boxes_and_masks(files, shards):
    loading.check(files.images, files.annotations, shards, IMAGES)
    loaded = loading.under_a_loader(files.images, files.annotations, shards, count=2, workers=0)
    for run in (loading.alone(shards, count=2) | loaded).values():
        run(0)


def test_other_pixels_are_not_timed(files, shards, tmp_path):
    images = shutil.copytree(files.images, tmp_path / "other")
    with Image.open(images / "000000000002.jpg") as image:
        image.point(lambda value: value // 2).save(images / "000000000002.jpg")
    with pytest.raises(SystemExit, match="differ in the pixels of sample 1"):
        loading.check(images, files.annotations, shards, IMAGES)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("category_id", 7, "other annotations of sample 0"), ("bbox", [0, 0, 5, 5], "other annotations")],
)
def test_other_targets_are_not_timed(files, shards, tmp_path, field, value, said):
    tree = json.loads(files.annotations.read_text())
    tree["annotations"][0][field] = value
    (tmp_path / "other.json").write_text(json.dumps(tree))
    with pytest.raises(SystemExit, match=said):
        loading.check(files.images, tmp_path / "other.json", shards, IMAGES)


def test_a_sharding_and_a_loading_process_tell_their_memory(tmp_path):
    found = memory.measure(tmp_path, 50)
    assert found["annotations"] == 50
    assert found["load_kb"] > 10_000


def test_a_small_plan_is_whole_and_a_broken_one_is_refused(monkeypatch):
    planning.check(samples=100, shards=7)
    found = planning.measure(samples=10_000, shards=10, ranks=8)
    assert found["planner_mb"] < 1 and found["locate_ms"] > 0
    monkeypatch.setattr(planning.Plan, "locate", lambda self, position: (0, position % 50))
    with pytest.raises(SystemExit, match="does not visit each sample once"):
        planning.check(samples=100, shards=7)


def test_bars_are_called_met_or_missed():
    assert parts.Bar("a", 1.5, "x", ">=", 1.5).verdict == ">= 1.5  met"
    assert parts.Bar("a", 1.11, "x", "<=", 1.1).verdict == "<= 1.1  MISSED"
    assert parts.Bar("a", 3, "ms").verdict == ""


def test_the_table_and_the_json_hold_versions_times_and_verdicts(monkeypatch, tmp_path, capsys):
    found = {
        "images": 3,
        "times": {"ours": {"wall": 5.0, "cpu": 4.0}},
        "bars": [parts.Bar("b", 2, "x", "<=", 1)],
    }
    monkeypatch.setattr(parts, "measured", lambda arguments, scratch: iter([("sharding", found)]))
    monkeypatch.setattr(sys, "argv", ["data", "--out", str(tmp_path / "a.json")])
    assert data.main() == 0
    table = capsys.readouterr().out
    assert "sharding: 3 images" in table and "<= 1  MISSED" in table
    tree = json.loads((tmp_path / "a.json").read_text())
    assert {"device", "torch", "torchvision", "webdataset", "pillow"} <= tree["machine"].keys()
    assert tree["parts"]["sharding"]["times"] == found["times"]
    assert tree["parts"]["sharding"]["bars"][0]["verdict"] == "<= 1  MISSED"
