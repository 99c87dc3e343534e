"""The log of training: what a line says after a resume."""

import json
import threading

import pytest

from configs.schema import Schedule
from pipeline import runlog
from pipeline.lease import Superseded


def test_speed_is_that_of_the_steps_since_the_resume(tmp_path, monkeypatch):
    """A window of 20 steps of which 19 were taken before a kill: they took their time elsewhere."""
    monkeypatch.setattr(runlog.dist, "barrier", lambda: None)
    log = runlog.RunLog(tmp_path, 0, 1, 0, lambda: None)
    window = {"steps": 20, "timed": 1, "seconds": 2.0, "quarantined": 3, "total": 20.0}
    log.metrics(20, Schedule(iters=100, steps=(), batch=8), 10, 0.1, window)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["images_per_s"] == 4.0 and line["loss"] == 1.0
    assert line["quarantined"] == 3, "a count, not a mean"


def test_who_is_overtaken_while_it_waits_for_the_other_ranks_appends_nothing(tmp_path, monkeypatch):
    """The gathering may take ten minutes; meanwhile a newer start has cut the log back and goes on."""
    over = threading.Event()

    def may_write():
        if over.is_set():
            raise Superseded("over")

    monkeypatch.setattr(runlog.dist, "all_gather_object", lambda *_: over.set())
    log = runlog.RunLog(tmp_path, 0, 1, 0, may_write)
    with pytest.raises(Superseded):
        log.samples(1, [7])
    (tmp_path / "samples.jsonl").write_text('{"step": 9}\n')
    with pytest.raises(Superseded):
        runlog.RunLog(tmp_path, 0, 1, 0, may_write)
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 9}\n', "nor does it cut it back"


def test_a_line_is_the_same_whether_its_window_was_filled_or_restored(tmp_path):
    filled = {"steps": 2, "timed": 2, "seconds": 1.0, "quarantined": 0, "loss_mask": 2.0, "loss_box": 4.0}
    filled["total"] = 6.0
    restored = json.loads(json.dumps(filled, sort_keys=True))
    for folder, window in ((tmp_path / "a", filled), (tmp_path / "b", restored)):
        log = runlog.RunLog(folder, 0, 1, 0, lambda: None)
        log.metrics(2, Schedule(iters=4, steps=(), batch=8), 10, 0.1, window)
    first, second = (tmp_path / name / "metrics.jsonl" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
