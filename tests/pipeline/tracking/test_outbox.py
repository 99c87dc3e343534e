"""An outbox that has lost events says so, and is noted anew; a log that begins anew is read anew."""

import errno
import os
import pkgutil
import threading

import pytest

import pipeline.tracking.tracker as tracker_module
from pipeline.tracking.outbox import MetricsTail, append_event, outbox_damage
from pipeline.tracking.tracker import Tracker, sync
from shards.errors import BadInput
from tests.pipeline.tracking.mlflow_case import cut_back, history, runs, wait_until, write_steps

CUTS = {"nothing": 0, "one byte": 1, "half": 0.5, "all but one byte": -1, "all but a line": "line"}


def cut(path, keep):
    content = path.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1 if keep == "line" else 0
    path.write_bytes(content[: last or (len(content) // 2 if keep == 0.5 else keep)])


@pytest.mark.parametrize("delivered", [True, False], ids=["delivered", "waiting"])
@pytest.mark.parametrize("keep", CUTS.values(), ids=CUTS)
def test_a_torn_outbox_is_told_set_aside_and_noted_anew_and_no_point_is_lost_or_doubled(
    uri, dead_uri, run_dir, caplog, keep, delivered
):
    first = Tracker(run_dir, uri if delivered else dead_uri)
    first.stage_started("refine", attempt=1, inputs="a")
    write_steps(run_dir, range(1, 11))
    first.stage_finished("refine")
    assert not first.has_lost_events()
    assert first.close(timeout=30 if delivered else 0.1) == delivered
    cut(run_dir / "outbox.jsonl", keep)
    second = Tracker(run_dir, uri, attempt=2)
    assert second.has_lost_events()
    assert "outbox.jsonl is damaged" in caplog.text and "outbox.broken.jsonl" in caplog.text
    # What jobs.stages does of stages that are done.
    second.stage_started("refine", attempt=2, inputs="a")
    second.stage_finished("refine")
    second.noted_anew()
    assert second.close()
    state = second.state()
    assert history(uri, state) == list(range(1, 11))
    assert sorted(run.info.run_name for run in runs(uri)) == ["refine", "run"]
    third = Tracker(run_dir, uri, attempt=3)
    assert not third.has_lost_events()
    third.close()


def test_a_kill_while_a_damaged_outbox_is_noted_anew_leaves_it_to_the_next_attempt(uri, run_dir):
    first = Tracker(run_dir, uri)
    first.stage_finished("refine")
    first.close()
    cut(run_dir / "outbox.jsonl", 1)
    for attempt in (2, 3):
        tracker = Tracker(run_dir, uri, attempt=attempt)
        assert tracker.has_lost_events()
        tracker.close()
    assert outbox_damage(run_dir, 0) == "", "the outbox alone does not tell"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("flag", ["kept", "kept later", "kept by the delivery"])
def test_an_event_that_a_full_disk_did_not_take_is_lost_until_it_is_noted_anew(
    uri, dead_uri, run_dir, caplog, monkeypatch, flag
):
    # The delivery notes the flag too, but of a dead server it notes nothing.
    first = Tracker(run_dir, uri if flag == "kept by the delivery" else dead_uri, pause_s=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(tracker_module, "append_event", full)
        if flag != "kept":
            disk.setattr(tracker_module, "write_state", full)
        first.stage_started("refine", attempt=1, inputs="a")
    assert "cannot be noted for MLflow ([Errno 28] No space" in caplog.text
    with monkeypatch.context() as disk:
        if flag == "kept by the delivery":
            disk.setattr(tracker_module, "write_state", full)
        first.stage_finished("refine")
        first.close()
    sync(run_dir, uri)
    assert "some events could not be noted" in caplog.text
    second = Tracker(run_dir, uri, attempt=2)
    assert second.has_lost_events()
    second.noted_anew()
    second.close()
    third = Tracker(run_dir, uri, attempt=3)
    assert not third.has_lost_events()
    third.close()


@pytest.mark.parametrize("opening", ["tracker.os.open", "tracker.fcntl.flock", "delivery.read_events"])
def test_files_that_cannot_be_opened_for_a_moment_cost_one_warning_and_no_point(
    uri, run_dir, monkeypatch, caplog, opening
):
    place = f"pipeline.tracking.{opening}"
    real, failures = pkgutil.resolve_name(place), [errno.EIO, errno.ESTALE]

    def at_first_not(*how):
        if failures and threading.current_thread().name == "mlflow-delivery":
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        return real(*how)

    monkeypatch.setattr(place, at_first_not)
    tracker = Tracker(run_dir, uri, pause_s=0.05)
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 6))
    wait_until(lambda: not failures)
    assert tracker.close()
    assert history(uri, tracker.state()) == list(range(1, 6))
    assert [line for line in caplog.messages if "tried again" in line] == [
        f"{run_dir}: cannot be read for MLflow, it is tried again: [Errno 116] Stale file handle"
    ]


def test_what_is_lost_while_it_is_noted_anew_stays_lost(uri, run_dir, monkeypatch):
    first = Tracker(run_dir, uri)
    with monkeypatch.context() as disk:
        disk.setattr(tracker_module, "append_event", full)
        first.stage_started("refine", attempt=1, inputs="a")
    first.noted_anew()
    first.close()
    second = Tracker(run_dir, uri, attempt=2)
    assert second.has_lost_events()
    second.close()


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=list(CUTS)[:4])
def test_a_torn_size_is_no_size(run_dir, keep):
    for kind in ("started", "finished"):
        append_event(run_dir, {"kind": kind, "stage": "refine"})
    assert outbox_damage(run_dir, 0) == ""
    size = run_dir / "outbox.size"
    whole = size.read_bytes()
    cut(size, keep)
    assert "outbox.size" in outbox_damage(run_dir, 0)
    size.unlink()
    assert outbox_damage(run_dir, 0) == "", "runs of earlier versions have none"
    # What a kill between the two writes leaves: more than is said.
    size.write_bytes(whole)
    with (run_dir / "outbox.jsonl").open("ab") as file:
        file.write(b'{"kind": "tags"}\n')
    assert outbox_damage(run_dir, 0) == ""


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=list(CUTS)[:4])
def test_a_torn_tracking_json_is_told_and_the_run_stays_one_run_with_every_point_once(
    uri, run_dir, caplog, keep
):
    """The tracker cannot hurt: neither a run nor `sync` stops for a file that only MLflow's part needs."""
    first = Tracker(run_dir, uri)
    first.stage_started("refine", attempt=1, inputs="a")
    write_steps(run_dir, range(1, 6))
    first.close()
    cut(run_dir / "tracking.json", keep)
    second = Tracker(run_dir, uri, attempt=2)
    assert "tracking.json: is damaged" in caplog.text and "tracking.previous.json is used" in caplog.text
    second.stage_started("refine", attempt=2, inputs="a")
    write_steps(run_dir, range(6, 11))
    second.stage_finished("refine")
    assert second.close()
    cut(run_dir / "tracking.json", keep)
    assert sync(run_dir)["points"] == 0, "MLflow has them all"
    assert history(uri, second.state()) == list(range(1, 11))
    assert sorted(run.info.run_name for run in runs(uri)) == ["refine", "run"]
    for name in ("tracking.json", "tracking.previous.json"):
        cut(run_dir / name, keep)
    with pytest.raises(BadInput, match=r"tracking\.json: is damaged"):
        sync(run_dir)


def test_a_log_that_was_cut_back_to_nothing_is_read_again_from_its_start(run_dir):
    """Looked at while it is empty: training goes on from before the first line."""
    tail = MetricsTail(run_dir / "refine" / "metrics.jsonl")
    write_steps(run_dir, [1, 2])
    assert [row["step"] for row in tail.batch().rows] == [1, 2]
    tail.advance()
    cut_back(run_dir, 0)
    assert tail.batch() is None and tail.batch() is None
    write_steps(run_dir, [1])
    assert [row["step"] for row in tail.batch().rows] == [1]


def test_tail_waits_for_a_whole_line_and_keeps_its_batch_until_advanced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.batch() is None
    path.write_text('{"step": 1}\n{"st')
    assert [row["step"] for row in tail.batch().rows] == [1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert [row["step"] for row in tail.batch().rows] == [1]
    tail.advance()
    assert [row["step"] for row in tail.batch().rows] == [2]


def test_a_disk_that_is_away_costs_what_is_noted_just_then_and_hides_no_error(
    uri, run_dir, monkeypatch, caplog
):
    """The lease is read before every note, also when a failure is told that comes of the same disk."""
    tracker = Tracker(run_dir, uri)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "lease.json")

    with monkeypatch.context() as patch:
        patch.setattr(tracker_module, "check_attempt", fail)
        tracker.stage_finished("baseline", "FAILED")
    assert "cannot be noted for MLflow ([Errno 5] Input/output error: 'lease.json')" in caplog.text
    assert tracker.has_lost_events() and tracker.close()
