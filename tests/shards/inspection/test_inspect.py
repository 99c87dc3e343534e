"""Inspection reads every byte, names what is damaged, counts right and draws two pictures."""

import errno
import gzip
import hashlib
import json
import re
import shutil
import tarfile

import pytest
from PIL import Image

from shards.boxes import huddled, largest_overlap
from shards.description import sealed
from shards.errors import BadInput
from shards.inspection import charts
from shards.inspection.inspect import inspect_shards
from shards.inspection.sheet import caption
from shards.inspection.tally import Tally
from shards.read import ShardDataset
from shards.storage.cache import Cache
from tests.shards.coco_case import HEIGHT, WIDTH, flip_byte
from tests.shards.http_folder import served


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
        assert sheet.size == (4 * 260 - 4, 256 + 18)
    assert found["statistics"] == str(case.root / "sheet" / "statistics.png")
    with Image.open(found["statistics"]) as charts:
        assert charts.format == "PNG" and min(charts.size) >= 600


def test_the_contact_sheet_says_under_each_image_which_it_is_and_what_is_in_it(case):
    """A category map that is off by one shows here, and an odd mask can be looked up by its image's id."""
    case.tree["categories"][2]["name"] = "m\n" * 200
    case.shard()
    data_set = ShardDataset(case.out)
    names = {category["id"]: category["name"] for category in data_set.categories}
    captions = [caption(data_set[place], names) for place in range(4)]
    assert captions[:2] == ["7: a 1, z 1", "12: a 1, z 1"] and captions[3] == "99: no annotations"
    assert captions[2].startswith("30: m m m") and "\n" not in captions[2]
    with Image.open(inspect_shards(case.out)["contact_sheet"]) as sheet:
        under = [sheet.crop((left, 256, left + 256, 274)).convert("L") for left in range(0, 4 * 260, 260)]
    assert all(strip.getextrema() < (100, 256) for strip in under), "ink on white"
    assert len({strip.tobytes() for strip in under}) == 4


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


@pytest.mark.parametrize("checksums", ["of before", "its own"])
@pytest.mark.parametrize("member", ["../escaped", "/etc/escaped", "link"])
def test_a_member_that_could_be_unpacked_elsewhere_is_named(case, member, checksums):
    case.shard()
    shard, described = case.out / "instances-000000.tar", case.out / "dataset.json"
    with tarfile.open(shard, "a") as tar:
        info = tarfile.TarInfo(member)
        info.type = tarfile.SYMTYPE if member == "link" else tarfile.REGTYPE
        tar.addfile(info)
    if checksums == "its own":
        tree = json.loads(described.read_text())
        tree["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
        described.write_text(json.dumps(sealed(tree)))
    damaged = inspect_shards(case.out)["damaged"]
    assert any(f"holds '{member}', which this program did not write" in line for line in damaged)
    assert len(damaged) == (1 if checksums == "its own" else 2)


@pytest.mark.parametrize(("shift", "expected"), [(5, True), (6, False)])
def test_huddled_begins_at_an_iou_of_three_tenths(shift, expected):
    """Boxes of 10 x 1 shifted by s overlap at (10 - s) / (10 + s): 0.333 and 0.25."""
    boxes = [{"bbox": [0, 0, 10, 1]}, {"bbox": [shift, 0, 10, 1]}, {"bbox": [0, 0, 10, 1], "iscrowd": 1}]
    assert huddled(boxes).tolist() == [expected, expected, False]


def test_the_largest_overlap_is_drawn_and_crowds_are_nobodys_other():
    """Of three boxes in a row, 10 wide and 5 apart, the middle one overlaps both by a third."""
    boxes = [{"bbox": [x, 0, 10, 1]} for x in (0, 5, 10)]
    assert largest_overlap([*boxes, {"bbox": [0, 0, 10, 1], "iscrowd": 1}]).tolist() == [*[5 / 15] * 3, 0]


def test_an_area_that_the_source_does_not_state_is_the_masks(case):
    for annotation in case.tree["annotations"]:
        del annotation["area"]
    case.shard()
    assert inspect_shards(case.out)["area"] == {"small": 3, "medium": 1, "large": 0}


def test_an_image_list_without_annotations_is_drawn_too(case):
    del case.tree["annotations"]
    case.shard()
    found = inspect_shards(case.out)
    assert (found["instances"], found["huddled"]) == (0, None)
    assert (case.out / "statistics.png").is_file()


def test_the_picture_names_the_largest_categories_and_what_the_others_hold(monkeypatch, case, tmp_path):
    case.shard()
    rows = ShardDataset(case.out).entries.rows
    names = {number: f"$ kind {number:02d}" for number in range(40)}
    tally = Tally(names)
    for number in names:
        single = [{"bbox": [0, 0, 9, 9], "area": 81, "category_id": number}] * (number + 1)
        tally.add({"annotations": single})
    seen = []
    monkeypatch.setattr(charts, "_finish", lambda axis, title, *labels: seen.append((axis, title)))
    charts.draw_charts(rows, tally, tmp_path / "a.png")
    axis, title = seen[-1]
    assert title == "30 of 40 categories; 10 more hold 55"
    assert [label.get_text() for label in axis.get_yticklabels()][:2] == [r"\$ kind 39", r"\$ kind 38"]
    assert [bar.get_width() for bar in axis.patches] == list(range(40, 10, -1))


def test_boxes_without_area_do_not_huddle():
    assert huddled([{"bbox": [3, 3, 0, 0]}, {"bbox": [3, 3, 0, 0]}]).tolist() == [False, False]
    assert huddled([]).tolist() == []


def test_a_missing_shard_is_one_line_however_many_samples_it_had(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "copy")
    gone = sorted((tmp_path / "copy").glob("*.tar"))[0]
    gone.unlink()
    found = inspect_shards(tmp_path / "copy")
    assert len(found["damaged"]) == 1 and str(gone) in found["damaged"][0]


@pytest.mark.parametrize("failing", ["shards.storage.store.open", "hashlib.file_digest"])
def test_a_disk_that_fails_ends_it_and_is_named(case, monkeypatch, failing):
    """Damage is what is still there once the file server is back."""
    case.shard()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(failing, fail, raising=False)
    with pytest.raises(OSError, match="Input/output error") as raised:
        inspect_shards(case.out)
    assert raised.value.filename == str(case.out / "instances-000000.tar")


def test_an_image_whose_decoder_complains_is_listed_though_nothing_is_damaged_since(case):
    """A stretch of its coded pixels stands there twice: sharding passes it, training decodes it, wrongly."""
    path = case.images / "a.jpg"
    Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB").save(path, quality=95)
    content = path.read_bytes()
    middle = len(content) * 3 // 4
    path.write_bytes(content[:middle] + content[middle - 200 : middle] + content[middle:])
    case.shard()
    found = inspect_shards(case.out)
    assert found["damaged"] == [] and len(found["complaints"]) == 1
    assert re.search(r"000000000007\.jpg: decodes, but: Corrupt JPEG data", found["complaints"][0])


def test_shards_behind_a_url_are_inspected_as_those_of_a_directory(case, tmp_path, monkeypatch):
    case.shard()
    cache = Cache(str(tmp_path / "cache"), 10**9)
    with served(case.out) as server:
        found = inspect_shards(server.url, tmp_path / "pictures" / "sheet.png", cache)
        local = inspect_shards(case.out)
        pictures = {"contact_sheet", "statistics"}
        assert {name: found[name] for name in found.keys() - pictures} == {
            name: local[name] for name in local.keys() - pictures
        }
        with pytest.raises(BadInput, match="is a URL; give --out"):
            inspect_shards(server.url, cache=cache)
        flip_byte(
            next((tmp_path / "cache").glob(ShardDataset(case.out).description["shards"][0]["sha256"])), 700
        )
        assert inspect_shards(server.url, tmp_path / "sheet.png", cache)["damaged"] == [], "fetched again"
        flip_byte(case.out / "instances-000000.tar", 700)
        for copy in (tmp_path / "cache").iterdir():
            copy.unlink()
        damaged = inspect_shards(server.url, tmp_path / "sheet.png", cache)["damaged"]
        assert [line.replace(server.url, str(case.out)) for line in damaged] == inspect_shards(case.out)[
            "damaged"
        ], "shard and sample, as of a directory"
        assert len(damaged) == 2


def test_a_folder_that_takes_no_pictures_is_refused_before_anything_is_read(case, monkeypatch):
    case.shard()
    (case.out / "instances-000000.tar").unlink()
    monkeypatch.setattr("shards.inspection.inspect.os.access", lambda folder, mode: False)
    with pytest.raises(BadInput, match=f"{case.out}: may not be written to; give --out"):
        inspect_shards(case.out)


NO_TARS = {"empty": b"", "text": b"no tar" * 200, "packed": gzip.compress(bytes(10_000))}


@pytest.mark.parametrize("damage", NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_any_more_is_one_line_and_is_not_unpacked(case, damage):
    case.shard()
    (case.out / "instances-000000.tar").write_bytes(damage)
    damaged = inspect_shards(case.out)["damaged"]
    assert any("is no tar file any more" in line for line in damaged)
    assert all("\n" not in line for line in damaged)
