"""Bad input is refused in one line with file, id and remedy; skipped or repaired, it is listed."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from shards.errors import BadInput
from shards.read import ShardDataset
from shards.write import write_shards
from tests.shards.coco_case import HEIGHT, WIDTH, annotation, compressed, polygon, rectangle


def edit(case, annotation_id, **fields):
    case.annotation(annotation_id).update(fields)


def truncate(case, name):
    path = case.images / name
    path.write_bytes(path.read_bytes()[:-200])


def rename(case, image_id, name):
    next(image for image in case.tree["images"] if image["id"] == image_id)["file_name"] = name


def save_as_png(case, name):
    Image.new("RGB", (WIDTH, HEIGHT)).save(case.images / name, "PNG")


RLE = {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}

# kind: (how to damage image 7 (a.jpg) or annotation 1, whether an image, words the message must hold)
DAMAGES = {
    "image_missing": (lambda c: (c.images / "a.jpg").unlink(), True, "No such file"),
    "image_truncated": (lambda c: truncate(c, "a.jpg"), True, "truncated"),
    "image_size": (lambda c: c.tree["images"][1].update(width=41), True, "is 40 x 30, declared as 41 x 30"),
    "image_format": (lambda c: save_as_png(c, "a.jpg"), True, "is a PNG file"),
    "image_path": (lambda c: rename(c, 7, "../a.jpg"), True, "leads out"),
    "image_malformed": (lambda c: c.tree["images"][1].update(height="30"), True, "'30'"),
    "duplicate_image_id": (lambda c: c.tree["images"].append(c.tree["images"][1]), True, "twice"),
    "polygon_odd": (lambda c: edit(c, 1, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), False, "7 coordinates"),
    "polygon_short": (lambda c: edit(c, 1, segmentation=[[1, 2, 3, 4]]), False, "2 points"),
    "segmentation_missing": (lambda c: edit(c, 1, segmentation=[]), False, "no segmentation"),
    "segmentation_malformed": (lambda c: edit(c, 1, segmentation=[[1, 2, 3, 4, 5, None]]), False, "numbers"),
    "rle_size": (lambda c: edit(c, 1, segmentation={**RLE, "size": [40, 30]}), False, "[40, 30]"),
    "rle_counts": (lambda c: edit(c, 1, segmentation={**RLE, "counts": [7]}), False, "add up to 7"),
    "box_outside": (lambda c: edit(c, 1, bbox=[40, 3, 5, 5]), False, "[40, 3, 5, 5] lies outside"),
    "box_malformed": (lambda c: edit(c, 1, bbox=[4, 5, 20]), False, "[4, 5, 20]"),
    "not_finite": (lambda c: edit(c, 1, score=float("nan")), False, "'score' holds NaN"),
    "area_malformed": (lambda c: edit(c, 1, area=float("nan")), False, "area is nan"),
    "unknown_category": (lambda c: edit(c, 1, category_id=4), False, "category_id 4"),
    "unknown_image": (lambda c: edit(c, 1, image_id=8), False, "not listed"),
    "duplicate_annotation_id": (lambda c: c.tree["annotations"].append(c.annotation(1)), False, "twice"),
    "annotation_malformed": (lambda c: edit(c, 1, iscrowd=2), False, "iscrowd"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_error_is_refused_in_one_line_that_names_file_id_and_remedy(case, kind):
    damage, of_image, words = DAMAGES[kind]
    damage(case)
    with pytest.raises(BadInput) as caught:
        case.shard()
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert "; " in message, "the remedy follows the fault"
    assert "image 7" in message if of_image else "annotation 1" in message
    assert str(case.root) in message
    assert [path.name for path in case.out.iterdir()] == ["report.json"]
    assert case.report()["errors"][kind] == 1
    assert case.report()["kept"] == {"images": 0, "annotations": 0}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_error_can_be_skipped_and_is_counted_and_listed(case, kind):
    damage, of_image, _ = DAMAGES[kind]
    damage(case)
    case.shard(on_bad="skip")
    data_set, report = ShardDataset(case.out), case.report()
    found = [finding for finding in report["findings"] if finding["kind"] == kind]
    assert len(found) == 1
    assert found[0]["action"] == "skipped"
    assert found[0]["image_id" if of_image else "annotation_id"] == (7 if of_image else 1)
    assert report["errors"][kind] == 1
    coco = data_set.to_coco()
    assert report["kept"] == {"images": len(coco["images"]), "annotations": len(coco["annotations"])}
    assert all(
        report["read"][n] - report["kept"][n] == report["dropped"][n] for n in ("images", "annotations")
    )
    assert sum(report["dropped"].values()) >= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (
            b'{"images": [1], "categories": [' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"]}",
            "category number 0",
        ),
        (b'{"images": [' + b"9" * 5000 + b"]}", r"is not JSON \(Exceeds the limit [^;]*\); give a COCO"),
        (b"\x1f\x8b\x08", "is compressed by gzip; unpack it"),
        (
            b'{"images": [1], "categories": [{"id": 1, "name": "a", "x": NaN}]}',
            "category 1: 'x' holds NaN or",
        ),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"images": [{"id": 1}], "annotations": [], "images": []}', "two different values of 'images'"),
        (b'{"images": [{"id": 1, "x": {"a": 1, "a": 2}}]}', "two different values of 'a'"),
        (b'{"annotations": [{"id": 7, "bbox": 1, "bbox": 2}]}', "object with id 7 has two different values"),
        (b'{"images": {}}', "'images' is no list"),
        (b'{"images": [1], "annotations": [1]}', "has annotations and no categories; add"),
        (b'{"images": [1], "categories": [{"id": 1, "name": " "}]}', "category number 0"),
        (b'{"images": [], "annotations": []}', "holds no images"),
        (b'{"images": [1], "categories": [{"id": "1", "name": "a"}]}', "category number 0"),
        (
            b'{"images": [1], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "id 1 is used twice",
        ),
    ],
)
@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_file_that_is_wrong_as_a_whole_is_refused_even_when_skipping(case, content, words, on_bad):
    case.json.write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        write_shards(case.images, case.json, case.out, on_bad=on_bad)
    assert str(case.json) in str(caught.value)


def test_a_file_beyond_the_memory_is_refused_in_one_line(case, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("shards.validation.source.json.loads", full)
    with pytest.raises(BadInput, match="does not fit into memory; cut it"):
        case.shard()


def test_an_annotation_that_is_too_deep_for_readers_is_an_error_of_its_own(case):
    deep = 1
    for _ in range(150):
        deep = [deep]
    edit(case, 1, attributes=deep)
    edit(case, 2, attributes=[[]] * 150)
    case.shard(on_bad="skip")
    assert case.report()["errors"] == {"not_finite": 1}
    assert "'attributes' holds lists or objects nested deeper" in case.report()["findings"][0]["message"]


def test_missing_files_are_named(case):
    with pytest.raises(BadInput, match="absent"):
        write_shards(case.images, case.root / "absent.json", case.out)
    with pytest.raises(BadInput, match="nowhere"):
        write_shards(case.root / "nowhere", case.json, case.out)


def test_nothing_left_after_skipping_is_refused(case):
    for image in case.tree["images"]:
        image["width"] = 1
    with pytest.raises(BadInput, match="no image is left"):
        case.shard(on_bad="skip")


@pytest.mark.parametrize(
    "name",
    [
        *("../a.jpg", "sub/../../a.jpg", "/etc/a.jpg", "..\\a.jpg", "C:\\a.jpg", "c:/a.jpg", "a\0.jpg"),
        *("http://host/a.jpg", "sub/x::file:///a.jpg"),
    ],
)
def test_no_file_name_leads_out_of_the_image_folder(case, name):
    (case.root / "a.jpg").write_bytes((case.images / "a.jpg").read_bytes())
    rename(case, 7, name)
    with pytest.raises(BadInput, match="leads out of the image folder"):
        case.shard()


def test_a_colon_is_a_character_like_any_other_where_it_names_no_drive(case):
    (case.images / "a.jpg").rename(case.images / "12:30.jpg")
    rename(case, 7, "12:30.jpg")
    assert case.shard()["images"] == 4


def test_what_is_there_twice_under_two_ids_is_a_warning(case):
    case.tree["images"].append({**case.tree["images"][1], "id": 8, "file_name": "./a.jpg"})
    case.tree["annotations"].append({**case.annotation(2), "id": 6})
    case.tree["annotations"].append({**case.annotation(2), "id": 9, "category_id": 90})
    case.tree["categories"].append({"id": 91, "name": "z"})
    case.shard()
    named = ("image_file_shared", "annotation_repeated", "category_name_shared")
    found = {one["kind"]: one for one in case.report()["findings"] if one["kind"] in named}
    assert all(case.report()["warnings"][kind] == 1 for kind in named)
    assert "image 7, 'a.jpg'" in found["image_file_shared"]["message"]
    assert (found["annotation_repeated"]["annotation_id"], found["annotation_repeated"]["image_id"]) == (6, 7)
    assert "category 90, 'z'" in found["category_name_shared"]["message"]
    assert {one["action"] for one in found.values()} == {"kept"}


def test_several_errors_are_counted_in_the_message_and_all_listed(case):
    DAMAGES["box_outside"][0](case)
    (case.images / "c.png").unlink()
    with pytest.raises(BadInput, match=r"1 more in .*report\.json"):
        case.shard()
    assert len(case.report()["findings"]) == 3  # and the image without annotations


WARNINGS = {
    "box_zero_size": lambda c: edit(c, 1, bbox=[4, 5, 20, 0]),
    "box_past_edge": lambda c: c.tree["annotations"].append(
        annotation(6, 7, 3, (30, 20, 11, 10), polygon(30, 20, 11, 10))
    ),
    "area_disagrees": lambda c: edit(c, 1, area=270.0),
    "bbox_disagrees": lambda c: edit(c, 1, bbox=[4, 5, 20, 14]),
    "mask_empty": lambda c: edit(c, 1, segmentation=RLE),
    "area_missing": lambda c: c.annotation(1).pop("area"),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_what_official_coco_contains_is_a_warning_and_changes_nothing(case, kind):
    WARNINGS[kind](case)
    case.shard()
    assert case.report()["warnings"][kind] == 1
    assert case.report()["errors"] == {}
    assert case.report()["dropped"] == {"images": 0, "annotations": 0}
    kept = {a["id"]: a for i in range(4) for a in ShardDataset(case.out).annotations(i)["annotations"]}
    assert kept == {a["id"]: a for a in case.tree["annotations"]}


def test_small_disagreements_are_none(case):
    edit(case, 1, area=225, bbox=[1, 5, 23, 10])  # 25 px and 3 px off
    edit(case, 4, area=1060)  # 140 px off, but less than 15 %
    case.shard()
    assert case.report()["warnings"] == {"image_empty": 1}


def test_skipping_an_image_counts_its_annotations_as_dropped(case):
    (case.images / "a.jpg").unlink()
    case.shard(on_bad="skip")
    assert case.report()["dropped"] == {"images": 1, "annotations": 2}
    assert "2 annotations go with it" in case.report()["findings"][0]["message"]


@pytest.mark.parametrize("options", [{"on_bad": "skip"}, {"on_bad": "skip", "name": "x"}, {"repair": True}])
def test_an_image_that_keeps_none_of_its_annotations_is_told(case, options):
    """It trains as background from then on, though something is in it."""
    damage = {"bbox": [100, 100, 5, 5]} if "on_bad" in options else {"segmentation": RLE}
    edit(case, 4, **({"category_id": 4} if "name" in options else damage))
    case.shard(**options)
    found = [one for one in case.report()["findings"] if one["kind"] == "image_emptied"]
    assert [(one["image_id"], one["severity"], one["action"]) for one in found] == [(30, "warning", "kept")]
    assert "keeps no annotation of 1" in found[0]["message"]


def test_findings_do_not_depend_on_workers(case, monkeypatch):
    monkeypatch.setattr("shards.write.IMAGES_A_WORKER", 1)
    monkeypatch.setattr("shards.tars.MAX_PACKED_BYTES", 1)
    edit(case, 1, area=1000.0)
    edit(case, 4, bbox=[60, 60, 5, 5])
    case.shard(on_bad="skip", workers=2)
    two = case.report()
    for path in case.out.iterdir():
        path.unlink()
    case.shard(on_bad="skip")
    assert case.report() == two


def test_official_looking_compressed_crowd_and_strange_fields_pass(case):
    case.tree["annotations"].append(
        {
            **annotation(6, 7, 3, (1, 1, 3, 3), compressed(rectangle(1, 1, 3, 3)), 1),
            "attributes": {"x": [1, "y"]},
        }
    )
    case.tree["info"] = {"year": 2017}
    case.shard()
    kept = ShardDataset(case.out).to_coco()["annotations"]
    assert next(a for a in kept if a["id"] == 6) == json.loads(json.dumps(case.annotation(6)))
    assert np.isfinite(case.report()["kept"]["annotations"])


def test_images_that_another_machine_does_not_see_are_no_missing_images(case):
    @contextmanager
    def elsewhere():
        case.images.rename(case.root / "hidden")
        yield map

    with pytest.raises(BadInput, match=r"images: is no folder on \S+; give one that every machine"):
        case.shard(spreading=elsewhere(), on_bad="skip")
    assert not (case.out / "report.json").exists()


def test_a_name_given_twice_with_one_value_is_no_fault(case):
    text = json.dumps(case.tree).replace('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 0')
    case.json.write_text(text)
    assert write_shards(case.images, case.json, case.out)["instances"] == 5
