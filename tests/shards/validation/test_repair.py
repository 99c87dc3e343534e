"""What --repair mends, what is said of it before and after, and what is left to --on-bad."""

import shutil

import pytest

from shards.errors import BadInput
from shards.read import ShardDataset
from tests.shards.coco_case import polygon
from tests.shards.validation.test_validate import DAMAGES, WARNINGS, edit


def test_repair_clips_and_recomputes_and_says_so(case):
    edit(case, 1, area=1000.0)
    edit(case, 2, bbox=[60, 60, 5, 5])
    WARNINGS["box_past_edge"](case)
    edit(case, 5, segmentation=[[1, 2, 3, 4]])
    case.shard(repair=True)
    kept = {a["id"]: a for a in ShardDataset(case.out).to_coco()["annotations"]}
    assert kept[1]["area"] == 200
    assert kept[2]["bbox"] == [6, 6, 20, 10]
    assert kept[6]["bbox"] == [30, 20, 10, 10]
    assert 5 not in kept
    actions = {(f["annotation_id"], f["kind"]): f["action"] for f in case.report()["findings"]}
    assert "200" in actions[1, "area_disagrees"]
    assert "taken from the mask" in actions[2, "box_outside"]
    assert "clipped" in actions[6, "box_past_edge"]
    assert actions[5, "polygon_short"] == "annotation dropped"
    assert case.report()["dropped"] == {"images": 0, "annotations": 1}


REPAIRS = {
    "polygon_short": "annotation dropped",
    "segmentation_missing": "annotation dropped",
    "rle_size": "annotation dropped",
    "mask_empty": "annotation dropped",
    "box_malformed": "bbox taken from the mask: [4.0, 5.0, 20.0, 10.0]",
    "box_outside": "bbox taken from the mask: [4.0, 5.0, 20.0, 10.0]",
    "box_zero_size": "bbox taken from the mask: [4.0, 5.0, 20.0, 10.0]",
    "bbox_disagrees": "bbox taken from the mask: [4.0, 5.0, 20.0, 10.0]",
    "box_past_edge": "bbox clipped to [30, 20, 10, 10]",
    "area_disagrees": "area taken from the mask: 200",
    "area_missing": "area taken from the mask: 200",
    "area_malformed": "area taken from the mask: 200",
    "duplicate_annotation_id": "entry dropped: it repeats the first one word for word",
    "duplicate_image_id": "entry dropped: it repeats the first one word for word",
    **dict.fromkeys(["unknown_category", "unknown_image", "annotation_malformed", "not_finite"]),
    **dict.fromkeys(["image_missing", "image_truncated", "image_size", "image_format", "image_path"]),
}


@pytest.mark.parametrize("kind", REPAIRS)
def test_each_finding_says_what_repair_does_before_and_repair_does_it(case, kind):
    (WARNINGS.get(kind) or DAMAGES[kind][0])(case)
    if REPAIRS[kind] is None or kind not in WARNINGS:
        with pytest.raises(BadInput):
            case.shard()
    else:
        case.shard(on_bad="skip")
    [before] = [found for found in case.report()["findings"] if found["kind"] == kind]
    assert before["repair"] == REPAIRS[kind]
    assert before["action"] == ("kept" if kind in WARNINGS else "refused")
    shutil.rmtree(case.out)
    case.shard(repair=True, on_bad="skip")
    [after] = [found for found in case.report()["findings"] if found["kind"] == kind]
    assert after == {**before, "action": REPAIRS[kind] or "skipped"}
    assert case.report()["dropped"]["annotations"] <= (2 if kind.startswith("image") else 1)


def test_a_repeated_id_with_other_content_is_not_certain(case):
    case.tree["annotations"].append({**case.annotation(1), "category_id": 3})
    case.tree["images"].append({**case.tree["images"][3], "file_name": "other.jpg"})
    with pytest.raises(BadInput, match="image 99: is listed twice"):
        case.shard(repair=True)
    repairs = {found["kind"]: found["repair"] for found in case.report()["findings"]}
    assert repairs["duplicate_image_id"] is None and repairs["duplicate_annotation_id"] is None


@pytest.mark.parametrize("other", [{"file_name": "sub/b.jpg"}, {"file_name": "sub/b.jpg", "width": None}])
@pytest.mark.parametrize("repair", [False, True])
def test_annotations_of_an_id_that_two_images_share_go_to_neither(case, other, repair):
    case.tree["images"].append({**case.tree["images"][1], **other})
    case.tree["images"].append(dict(case.tree["images"][1]))
    case.shard(on_bad="skip", repair=repair)
    assert [entry["image_id"] for entry in ShardDataset(case.out).entries] == [12, 30, 99]
    report = case.report()
    assert report["errors"]["image_refused"] == 2
    assert sum(found["image_id"] == 7 for found in report["findings"]) == 5
    assert report["dropped"] == {"images": 3, "annotations": 2}


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("area", [None, NAN, -INFINITY, "200", [], 10**400])
@pytest.mark.parametrize("box", [None, [NAN, 5, 20, 10], "5", [4, 5, 20, INFINITY]])
def test_repair_takes_from_the_mask_whatever_is_no_number(case, area, box):
    edit(case, 1, area=area, bbox=box)
    with pytest.raises(BadInput):
        case.shard()
    case.shard(repair=True)
    assert case.report()["errors"] == {"area_malformed": 1, "box_malformed": 1}
    mended = next(a for a in ShardDataset(case.out).to_coco()["annotations"] if a["id"] == 1)
    assert (mended["bbox"], mended["area"]) == ([4, 5, 20, 10], 200)


@pytest.mark.parametrize("box", [None, [100, 100, 5, 5], [4, 5, 20, 0]])
def test_the_area_is_compared_with_the_mask_whatever_the_box(case, box):
    edit(case, 1, area=99999, bbox=box)
    case.shard(repair=True)
    assert case.report()["warnings"]["area_disagrees"] == 1
    mended = next(a for a in ShardDataset(case.out).to_coco()["annotations"] if a["id"] == 1)
    assert (mended["bbox"], mended["area"]) == ([4, 5, 20, 10], 200)


@pytest.mark.parametrize("worst", [NAN, 1e300, INFINITY, None])
@pytest.mark.parametrize("kind", ["polygon", "runs"])
def test_a_mask_of_no_numbers_is_dropped_by_repair_whichever_they_are(case, worst, kind):
    shape = [[1, 2, 3, 4, 5, worst]] if kind == "polygon" else {"size": [30, 40], "counts": [worst]}
    edit(case, 1, segmentation=shape)
    case.shard(repair=True)
    [found] = [found for found in case.report()["findings"] if found["annotation_id"] == 1]
    assert found["action"] == "annotation dropped"


def test_what_is_recorded_of_a_clipped_box_is_what_is_in_the_shard(case):
    edit(case, 1, bbox=[-10, 5, 34, 10], area=200)
    case.shard(repair=True)
    mended = next(a for a in ShardDataset(case.out).to_coco()["annotations"] if a["id"] == 1)
    found = [found for found in case.report()["findings"] if found["annotation_id"] == 1]
    assert {one["kind"] for one in found} == {"box_past_edge", "bbox_disagrees"}
    assert all(one["action"] == f"bbox taken from the mask: {mended['bbox']}" for one in found)


def test_a_negative_area_disagrees_however_small(case):
    edit(case, 1, area=-1, segmentation=polygon(4, 5, 4, 4), bbox=[4, 5, 4, 4])
    case.shard(repair=True)
    assert case.report()["warnings"]["area_disagrees"] == 1


def test_repair_leaves_what_is_not_certain_to_on_bad(case):
    edit(case, 1, category_id=4)
    with pytest.raises(BadInput, match="category_id 4"):
        case.shard(repair=True)
    case.shard(repair=True, on_bad="skip")
    assert 1 not in {a["id"] for a in ShardDataset(case.out).to_coco()["annotations"]}
