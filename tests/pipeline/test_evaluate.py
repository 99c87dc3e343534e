"""AP equal to pycocotools, huddled apart from plain, and results that cover every image exactly once."""

import contextlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline import evaluate
from pipeline.evaluate import check_categories, detect_images, measure, score
from pipeline.lease import StaleAttempt
from pipeline.scoring.coco_ap import evaluate_kind, prepare_annotations
from pipeline.scoring.huddled import huddled_ids
from shards.errors import BadInput
from shards.storage.files import encode_json
from tests.pipeline.coco_cases import annotation, random_case, result

SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


def pycocotools_summary(coco, results, kind, counted=None):
    """Return the summary of pycocotools itself, ignoring what is not counted after its preparation."""

    class Reference(COCOeval):
        def _prepare(self):
            super()._prepare()
            for members in self._gts.values():
                for member in members:
                    if counted is not None and member["id"] not in counted:
                        member["ignore"] = 1

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(coco))
        truth.createIndex()
        reference = Reference(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    stats = {name: reference.stats[place] for name, place in SUMMARY.items()}
    return {name: None if value == -1 else pytest.approx(value, abs=1e-10) for name, value in stats.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_equals_pycocotools_plain_and_huddled(seed, kind):
    coco, results = random_case(seed)
    metrics = measure(coco, results)
    assert metrics[kind] == pycocotools_summary(coco, results, kind)
    huddled = huddled_ids(coco["annotations"])
    assert metrics["huddled"][kind] == pycocotools_summary(coco, results, kind, huddled)


def test_per_category_ap_is_that_of_the_category_alone():
    coco, results = random_case(3)
    per_category = measure(coco, results)["per_category"]
    assert list(per_category) == ["3", "17", "90"]
    alone = {
        **coco,
        "categories": coco["categories"][1:2],
        "annotations": [item for item in coco["annotations"] if item["category_id"] == 17],
    }
    expected = pycocotools_summary(alone, [item for item in results if item["category_id"] == 17], "segm")
    assert per_category["17"]["segm"] == expected["AP"]
    assert per_category["17"]["name"] == "kind 17"


def pair_and_loner():
    coco = {
        "images": [{"id": 1, "width": 128, "height": 128, "file_name": "1.png"}],
        "annotations": [
            annotation(1, 1, 1, (10, 10, 40, 40)),
            annotation(2, 1, 2, (15, 15, 40, 40)),
            annotation(3, 1, 1, (80, 80, 30, 30)),
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return coco


def test_huddled_ap_counts_huddled_instances_alone():
    """Only the lone instance is found: plain AP sees a success, huddled AP none, and no false alarm."""
    coco = pair_and_loner()
    metrics = measure(coco, [result(None, 1, 1, (80, 80, 30, 30), score=0.9)])
    assert metrics["bbox"]["AP"] == pytest.approx(51 / 101 / 2)
    assert metrics["huddled"]["bbox"]["AP"] == 0
    both = [result(None, 1, 1, (10, 10, 40, 40), score=0.8), result(None, 1, 2, (15, 15, 40, 40), score=0.8)]
    metrics = measure(coco, [result(None, 1, 1, (80, 80, 30, 30), score=0.9), *both])
    assert metrics["huddled"]["bbox"]["AP"] == pytest.approx(1), "the loner's detection is ignored, not false"


def test_crowds_stay_crowds_in_huddled_ap():
    """Two detections inside one crowd are both forgiven: an ignored ordinary object forgives only one."""
    coco = pair_and_loner()
    coco["annotations"].append(annotation(4, 1, 1, (60, 0, 60, 60), crowd=1))
    inside = [result(None, 1, 1, (65 + 20 * i, 10, 15, 15), score=0.95) for i in range(2)]
    found = [result(None, 1, 1, (10, 10, 40, 40), score=0.8), result(None, 1, 2, (15, 15, 40, 40), score=0.8)]
    assert measure(coco, [*inside, *found])["huddled"]["bbox"]["AP"] == pytest.approx(1)


def test_annotation_id_zero_is_no_unmatched_ground_truth():
    """Evaluators take the id as the mark of a match: found as it is, number 0 would be a false alarm."""
    coco = pair_and_loner()
    found = [result(None, 1, item["category_id"], item["bbox"], score=0.9) for item in coco["annotations"]]
    shifted = {**coco, "annotations": [{**item, "id": item["id"] - 1} for item in coco["annotations"]]}
    for ground_truth in (coco, shifted):
        metrics = measure(ground_truth, found)
        assert metrics["bbox"]["AP"] == metrics["huddled"]["segm"]["AP"] == pytest.approx(1)


def test_missing_area_and_crowd_flag_and_empty_segmentation_are_filled_in():
    coco, results = random_case(2)
    bare = {
        **coco,
        "annotations": [
            {key: value for key, value in item.items() if key != "area" and (key != "iscrowd" or value)}
            for item in coco["annotations"]
        ],
    }
    assert measure(bare, results) == measure(coco, results)
    bare["annotations"][0]["segmentation"] = []
    assert measure(bare, results)["segm"]["AP"] is not None


def test_undefined_is_none_and_no_results_are_zero():
    coco, results = random_case(0)
    assert measure({**coco, "annotations": []}, results)["bbox"]["AP"] is None
    metrics = measure(coco, [])
    assert metrics["bbox"]["AP"] == 0 and metrics["segm"]["AR100"] == 0
    json.dumps(metrics, allow_nan=False)


def test_evaluation_leaves_its_arguments_alone():
    coco, results = random_case(4)
    coco = prepare_annotations(coco)
    before = json.dumps([coco, results])
    evaluate_kind(coco, results, "segm", huddled_ids(coco["annotations"]))
    assert json.dumps([coco, results]) == before


class FakeShards:
    """The part of ShardDataset that evaluation uses, over a COCO dict; image = its id in red."""

    def __init__(self, coco, annotated=True):
        self.coco, self.has_annotations, self.hash = coco, annotated, "d0"
        self.entries = [
            {"image_id": image["id"], "height": image["height"], "width": image["width"]}
            for image in coco["images"]
        ]
        self.categories = coco["categories"]

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        image_id = self.entries[index]["image_id"]
        return SimpleNamespace(
            image=torch.full((3, 128, 128), image_id, dtype=torch.uint8), image_id=image_id
        )

    def to_coco(self):
        return self.coco


class FakeModel:
    """Finds two boxes an image, of which the second is empty when the image id is even."""

    categories = (
        {"id": 3, "name": "kind 3"},
        {"id": 17, "name": "kind 17"},
        {"id": 90, "name": "kind 90"},
    )

    def to(self, device):
        return self

    def __call__(self, images):
        return [self.one(int(image[0, 0, 0])) for image in images]

    def one(self, image_id):
        masks = torch.zeros(2, 128, 128, dtype=torch.bool)
        masks[0, 10:20, 30 : 40 + image_id % 7] = True
        masks[1, 5, 5] = bool(image_id % 2)
        return {
            "boxes": torch.tensor([[30.0, 10.0, 40.5, 20.25], [5, 5, 6, 6]]),
            "labels": torch.tensor([17, 3]),
            "scores": torch.tensor([0.75, image_id / 256]),
            "masks": masks,
        }


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Detection over a fake model and fake shards; returns (shards, run all ranks of a world)."""
    return stand_in(monkeypatch, tmp_path, random_case(5)[0])


def stand_in(monkeypatch, tmp_path, coco):
    shards = FakeShards(coco)
    monkeypatch.setattr(evaluate, "ShardDataset", lambda place, cache: shards)
    fake_module = SimpleNamespace(load_model=lambda path, test: FakeModel())
    monkeypatch.setitem(sys.modules, "pipeline.model", fake_module)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")

    def run(parts, world, ranks=None, batch=1):
        test = SimpleNamespace(model_dump=lambda: {"alpha": 1.0})
        for rank in range(world) if ranks is None else ranks:
            evaluate.detect(weights, "shards", tmp_path / parts, test, rank, world, batch)
        return tmp_path / parts

    return shards, run


def test_results_do_not_depend_on_world_size_or_batch(fakes, tmp_path):
    _, run = fakes
    for name, world, batch in (("one", 1, 1), ("three", 3, 2), ("many", 11, 1)):
        score("shards", run(name, world, batch=batch), tmp_path / f"out-{name}")
    contents = {
        (tmp_path / f"out-{name}/coco_results.json").read_bytes() for name in ("one", "three", "many")
    }
    assert len(contents) == 1
    results = json.loads(contents.pop())
    assert [item["image_id"] for item in results] == sorted(item["image_id"] for item in results)


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 24), st.integers(1, 4), st.randoms())
def test_each_image_is_covered_once_by_any_ranks_in_any_turn(images, world, batch, random):
    """Ranks run one after the other here, without a process group: none ever waits for another."""
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        shards, run = stand_in(monkeypatch, Path(folder), random_case(5, images)[0])
        ranks = random.sample(range(world), world)
        parts = run("parts", world, ranks, batch)
        ids = [entry["image_id"] for entry in shards.entries]
        _, results = evaluate.merge_parts(parts, ids)
        found = [json.loads(path.open().readline())["image_ids"] for path in parts.iterdir()]
        assert len(found) == world and sorted(i for part in found for i in part) == ids
        assert max(map(len, found)) - min(map(len, found)) <= 1
        alone = list(detect_images(FakeModel(), shards, range(images)))
        assert results == alone


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_results_are_one_json_whatever_the_pieces(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(evaluate, "RESULTS_AT_ONCE", at_once)
    for results in (random_case(2)[1], []):
        evaluate._write_results(tmp_path / "r.json", results)
        assert (tmp_path / "r.json").read_bytes() == encode_json(results)


def test_score_writes_the_form_that_scripts_rely_on(fakes, tmp_path):
    shards, run = fakes
    returned = score("shards", run("parts", 2), tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics == returned
    assert list(metrics) == ["bbox", "segm", "huddled", "per_category"]
    assert list(metrics["bbox"]) == list(metrics["huddled"]["segm"]) == list(SUMMARY)
    assert set(metrics["per_category"]["17"]) == {"name", "bbox", "segm"}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = shards.to_coco()
        truth.createIndex()
        truth.loadRes(str(tmp_path / "out/coco_results.json"))


@pytest.mark.parametrize("allowed", [0, 1])
def test_scoring_that_was_replaced_writes_no_more(fakes, tmp_path, allowed):
    """At its begin, or in the minutes between the results and their AP."""
    run, answers = fakes[1], [None] * allowed

    def may_commit():
        if not answers:
            raise StaleAttempt
        answers.pop()

    with pytest.raises(StaleAttempt):
        score("shards", run("parts", 1), tmp_path / "out", may_commit=may_commit)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert (tmp_path / "out" / "coco_results.json").exists() == bool(allowed)


def test_scoring_that_is_killed_leaves_no_old_ap_beside_new_results(fakes, tmp_path, monkeypatch):
    run = fakes[1]
    score("shards", run("parts", 1), tmp_path / "out")
    monkeypatch.setattr(evaluate, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score("shards", tmp_path / "parts", tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_it_is_told_that_detecting_goes_on_also_where_nothing_is_found(fakes, monkeypatch):
    monkeypatch.setattr(evaluate, "coco_results", lambda *_: [])
    beats = []
    assert not list(detect_images(FakeModel(), fakes[0], range(5), batch=2, beat=lambda: beats.append(1)))
    assert len(beats) == 3


def test_result_is_xywh_in_pixels_and_rle_with_string_counts(fakes):
    shards, _ = fakes
    first = next(detect_images(FakeModel(), shards, range(2, 3)))
    assert first["bbox"] == [30.0, 10.0, 10.5, 10.25]
    assert first["category_id"] == 17 and first["image_id"] == 103 and first["score"] == 0.75
    assert isinstance(first["segmentation"]["counts"], str)
    assert rle.decode(first["segmentation"])[10:20, 30 : 40 + 103 % 7].all()


def test_missing_rank_repeated_rank_and_mixed_detections_are_refused(fakes, tmp_path):
    shards, run = fakes
    with pytest.raises(BadInput, match=r"lacks 4 of 8 images \(the first is 102\)"):
        score("shards", run("half", 2, ranks=[0]), tmp_path / "out")
    run("twice", 2)
    with pytest.raises(BadInput, match="more than once"):
        score("shards", run("twice", 1), tmp_path / "out")
    run("mixed", 2, ranks=[0])
    shards.hash = "d1"
    with pytest.raises(BadInput, match="mixes results"):
        score("shards", run("mixed", 2, ranks=[1]), tmp_path / "out")
    with pytest.raises(BadInput, match="holds no results"):
        score("shards", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_set_without_annotations_gives_results_and_the_servers_zip_but_no_ap(fakes, tmp_path):
    shards, run = fakes
    shards.has_annotations = False
    out = tmp_path / "out"
    assert score("shards", run("parts", 2), out) == {}
    assert not (out / "metrics.json").exists()
    name = "detections_test-dev2017_mrrcnn_results"
    with zipfile.ZipFile(out / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        assert archive.read(f"{name}.json") == (out / "coco_results.json").read_bytes()


def test_an_archive_that_the_server_would_refuse_is_not_left_as_one(fakes, tmp_path):
    """What a sweep finds under that name counts as a row that is done."""
    shards, run = fakes
    shards.has_annotations = False
    parts = run("parts", 1)
    shards.categories = [{"id": 1, "name": "another"}]
    with pytest.raises(BadInput, match="result 0: category_id 17 is not in the test set"):
        score("shards", parts, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.zip"))
    shards.categories = list(FakeModel.categories)
    score("shards", parts, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.zip"))) == 1


def test_weights_of_other_categories_are_refused():
    learned = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    check_categories(learned, [{"id": 2, "name": "dog"}], "w", "s")
    check_categories(learned, [], "w", "s")
    with pytest.raises(BadInput, match="category 2 is 'dog' but 'fish' in s"):
        check_categories(learned, [{"id": 2, "name": "fish"}], "w", "s")
    with pytest.raises(BadInput, match="shares no category"):
        check_categories(learned, [{"id": 7, "name": "cow"}], "w", "s")
