"""The log of training: what a line says after a resume."""

import json

from configs.schema import Schedule
from pipeline import runlog


def test_speed_is_that_of_the_steps_since_the_resume(tmp_path, monkeypatch):
    """A window of 20 steps of which 19 were taken before a kill: they took their time elsewhere."""
    monkeypatch.setattr(runlog.dist, "barrier", lambda: None)
    log = runlog.RunLog(tmp_path, 0, 1, 0)
    window = {"steps": 20, "timed": 1, "seconds": 2.0, "quarantined": 3, "total": 20.0}
    log.metrics(20, Schedule(iters=100, steps=(), batch=8), 10, 0.1, window)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["images_per_s"] == 4.0 and line["loss"] == 1.0
    assert line["quarantined"] == 3, "a count, not a mean"


def test_a_line_is_the_same_whether_its_window_was_filled_or_restored(tmp_path):
    filled = {"steps": 2, "timed": 2, "seconds": 1.0, "quarantined": 0, "loss_mask": 2.0, "loss_box": 4.0}
    filled["total"] = 6.0
    restored = json.loads(json.dumps(filled, sort_keys=True))
    for folder, window in ((tmp_path / "a", filled), (tmp_path / "b", restored)):
        runlog.RunLog(folder, 0, 1, 0).metrics(2, Schedule(iters=4, steps=(), batch=8), 10, 0.1, window)
    first, second = (tmp_path / name / "metrics.jsonl" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
