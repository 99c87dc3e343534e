"""`mrrcnn bench eval` times only scorers that agree, and measures what `mrrcnn evaluate` does."""

import pytest

from benchmarks import eval as bench
from benchmarks.made_results import made_case


def test_made_cases_are_the_same_for_the_same_seed_and_of_the_size_asked_for():
    coco, results = made_case(images=6, detections=5)
    assert (coco, results) == made_case(images=6, detections=5)
    assert results != made_case(images=6, detections=5, seed=1)[1]
    assert len(coco["images"]) == 6 and len(results) == 30
    assert len({item["id"] for item in coco["annotations"]}) == len(coco["annotations"])


def test_scorers_that_disagree_are_not_timed(monkeypatch):
    coco, results = made_case(images=8, detections=10)
    bench.check(coco, results)
    monkeypatch.setattr(bench, "ours", lambda *_: {"bbox": 0.5, "segm": 0.5})
    with pytest.raises(SystemExit, match=r"bbox AP is 0\.5, pycocotools says"):
        bench.check(coco, results)


def test_memory_is_that_of_a_process_that_scores_shards(tmp_path):
    assert 0.05 < bench.peak_gb(tmp_path, *made_case(images=3, detections=4)) < 2
    assert (tmp_path / "out" / "metrics.json").is_file()
