"""Inspection reads every byte, names what is damaged, counts right and draws a sheet."""

import shutil
import tarfile

import pytest
from PIL import Image

from shards.boxes import huddled
from shards.inspect import inspect_shards
from tests.shards.coco_case import flip_byte


def test_whole_shards_are_counted_and_drawn(case):
    case.shard()
    found = inspect_shards(case.out, case.root / "sheet" / "sheet.png")
    assert found["damaged"] == []
    assert (found["images"], found["instances"], found["crowds"]) == (4, 4, 1)
    assert found["images_without_instances"] == 1
    assert found["categories"] == {"a": 1, "m": 1, "z": 2}
    assert found["area"] == {"small": 3, "medium": 1, "large": 0}
    assert found["huddled"] == 0.5
    assert found["instances_per_image"] == {"min": 0, "median": 1.5, "max": 2}
    with Image.open(found["contact_sheet"]) as sheet:
        assert sheet.size == (4 * 260 - 4, 256)


def test_damage_is_listed_with_shard_and_key_and_the_rest_is_still_counted(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "copy")
    shard = next((tmp_path / "copy").glob("*.tar"))
    with tarfile.open(shard) as tar:
        offset = next(member.offset_data for member in tar if member.name.endswith("7.jpg"))
    flip_byte(shard, offset + 100)
    found = inspect_shards(tmp_path / "copy")
    assert len(found["damaged"]) == 2
    assert all(str(shard) in line for line in found["damaged"])
    assert "000000000007.jpg" in found["damaged"][1]
    assert 0 < found["instances"] < inspect_shards(sharded, tmp_path / "other.png")["instances"]


def test_even_a_byte_between_members_is_noticed(case):
    case.shard()
    flip_byte(case.out / "instances-000000.tar", 200)
    assert "do not match their checksum" in inspect_shards(case.out)["damaged"][0]


def test_a_member_that_could_be_unpacked_elsewhere_is_named(case):
    case.shard()
    with tarfile.open(case.out / "instances-000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"))
    assert any("'../escaped'" in line for line in inspect_shards(case.out)["damaged"])


@pytest.mark.parametrize(("shift", "expected"), [(5, True), (6, False)])
def test_huddled_begins_at_an_iou_of_three_tenths(shift, expected):
    """Boxes of 10 x 1 shifted by s overlap at (10 - s) / (10 + s): 0.333 and 0.25."""
    boxes = [{"bbox": [0, 0, 10, 1]}, {"bbox": [shift, 0, 10, 1]}, {"bbox": [0, 0, 10, 1], "iscrowd": 1}]
    assert huddled(boxes).tolist() == [expected, expected, False]


def test_boxes_without_area_do_not_huddle():
    assert huddled([{"bbox": [3, 3, 0, 0]}, {"bbox": [3, 3, 0, 0]}]).tolist() == [False, False]
    assert huddled([]).tolist() == []


def test_a_missing_shard_is_one_line_however_many_samples_it_had(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "copy")
    gone = sorted((tmp_path / "copy").glob("*.tar"))[0]
    gone.unlink()
    found = inspect_shards(tmp_path / "copy")
    assert len(found["damaged"]) == 1 and str(gone) in found["damaged"][0]
