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


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_log_that_lost_what_came_before_the_checkpoint_says_so(tmp_path, monkeypatch, caplog, name, keep):
    """Training does not go back behind its checkpoint, so nothing would ever tell that lines are missing."""
    _two_ranks(monkeypatch)
    window = {"steps": 1, "timed": 1, "seconds": 1.0, "quarantined": 0, "total": 6.0}
    log = runlog.RunLog(tmp_path, 0, 2, 0, lambda: None)
    for step in (1, 2, 3):
        log.samples(step, [step, step])
        log.metrics(step, Schedule(iters=4, steps=(), batch=8), 10, 0.1, dict(window))
    assert log.logged == {"metrics.jsonl": 3, "samples.jsonl": 12}
    again = runlog.RunLog(tmp_path, 0, 2, 3, lambda: None, log.logged)
    assert again.logged == log.logged and "was cut" not in caplog.text
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * keep)])
    runlog.RunLog(tmp_path, 0, 2, 3, lambda: None, log.logged)
    assert f"{name}: was cut or changed" in caplog.text and "up to step 3" in caplog.text


def test_a_resume_from_an_earlier_step_misses_nothing(tmp_path, monkeypatch, caplog):
    _two_ranks(monkeypatch)
    log = runlog.RunLog(tmp_path, 0, 2, 0, lambda: None)
    log.samples(1, [1])
    saved = dict(log.logged)
    log.samples(2, [2])
    again = runlog.RunLog(tmp_path, 0, 2, 1, lambda: None, saved)
    assert again.logged == saved and "was cut" not in caplog.text


def test_a_full_disk_is_told_with_the_file_that_it_is_full_for(tmp_path, monkeypatch):
    _two_ranks(monkeypatch)
    log = runlog.RunLog(tmp_path, 0, 2, 0, lambda: None)
    (tmp_path / "samples.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*samples\.jsonl"):
        log.samples(1, [1])


def _two_ranks(monkeypatch):
    def gather(everyone, mine):
        everyone[:] = [mine for _ in everyone]

    monkeypatch.setattr(runlog.dist, "all_gather_object", gather)
