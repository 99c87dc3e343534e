"""Every metric point reaches MLflow exactly once, whatever dies when, and nothing reaches the pipeline."""

import json
import logging
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.lease import StaleAttempt, acquire
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.outbox import append_event, read_events
from pipeline.tracking.tracker import NotDelivered, Tracker, flatten, sync
from pipeline.tracking.uri import resolve_uri
from shards.errors import BadInput
from tests.pipeline.tracking.mlflow_case import cut_back, history, runs, wait_until, write_steps


def test_a_run_shows_pipeline_stages_params_data_artifacts_and_points(uri, run_dir):
    (run_dir / "config.yaml").write_text("uri: postgresql://me:secret@host/db\n")
    tracker = Tracker(run_dir, uri, "demo", attempt=3)
    tracker.log_params({"train": {"lr": 0.1, "steps": (1, 2)}, "uri": "http://me:secret@host"})
    tracker.stage_started("refine", attempt=3)
    tracker.log_dataset("refine", "coco", "a" * 64, "/data/shards")
    write_steps(run_dir, range(1, 121))
    tracker.log_metrics("refine", {"bbox": {"AP": 0.5, "APs": None}}, step=3)
    tracker.log_artifact("pipeline", run_dir / "config.yaml")
    tracker.log_artifact("refine", run_dir / "refine", "logs")
    tracker.stage_finished("refine")
    assert tracker.close()
    state, client = tracker.state(), MlflowClient(uri)
    assert (
        state["uri"] == uri and state["experiment"] == "demo" and set(state["runs"]) == {"pipeline", "refine"}
    )
    parent, child = (client.get_run(state["runs"][name]) for name in ("pipeline", "refine"))
    assert parent.info.run_name == "run" and child.info.run_name == "refine"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["mrrcnn.attempt"] == parent.data.tags["mrrcnn.attempt"] == "3"
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.params == {"train.lr": "0.1", "train.steps": "(1, 2)", "uri": "http://me:***@host"}
    assert child.data.metrics["bbox.AP"] == 0.5 and "note" not in child.data.metrics
    assert child.inputs.dataset_inputs[0].dataset.digest == "a" * 36
    assert [item.path for item in client.list_artifacts(child.info.run_id, "logs")] == ["logs/metrics.jsonl"]
    assert client.get_metric_history(child.info.run_id, "loss")[9].value == 1 / 10
    assert history(uri, state) == list(range(1, 121))
    config = client.download_artifacts(parent.info.run_id, "config.yaml", str(run_dir))
    assert "secret" not in Path(config).read_text()


def test_resume_goes_on_in_the_same_runs_and_repeats_no_point(uri, run_dir):
    first = Tracker(run_dir, uri)
    first.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 11))
    first.close()
    cut_back(run_dir, 4)
    second = Tracker(run_dir, uri, attempt=2)
    second.stage_started("refine", attempt=2)
    write_steps(run_dir, range(5, 16), speed=12345.678)
    second.stage_finished("refine")
    assert second.close()
    assert second.state() == first.state() and len(runs(uri)) == 2
    for key in ("loss", "lr", "images_per_s"):
        assert history(uri, second.state(), key=key) == list(range(1, 16))


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("dies_at", [1, 2, 4])
def test_crash_around_a_commit_neither_loses_nor_repeats(uri, run_dir, monkeypatch, committed, dies_at):
    """The process dies just before or just after MLflow commits a batch, with nothing noted of it."""
    tracker_files(run_dir, uri)
    write_steps(run_dir, range(1, 301))
    calls = []
    log_batch = MlflowClient.log_batch

    def dying(self, run_id, **batch):
        calls.append(1)
        if len(calls) == dies_at and not committed:
            raise ConnectionError("died before")
        log_batch(self, run_id, **batch)
        if len(calls) == dies_at:
            raise ConnectionError("died after")

    monkeypatch.setattr(MlflowClient, "log_batch", dying)
    with pytest.raises(NotDelivered, match="ConnectionError"):
        sync(run_dir)
    delivered = sync(run_dir)
    assert history(uri, delivered) == list(range(1, 301))
    assert sync(run_dir)["points"] == 0


def tracker_files(run_dir, uri):
    """Leave what a driver leaves that was killed before anything was delivered."""
    state = {"key": "k1", "uri": uri, "experiment": "mrrcnn", "runs": {}, "events": 0}
    (run_dir / "tracking.json").write_text(json.dumps(state))
    append_event(run_dir, {"kind": "started", "stage": "pipeline", "attempt": 1})
    append_event(run_dir, {"kind": "started", "stage": "refine", "attempt": 1, "inputs": ""})


def test_lost_answer_of_a_live_server_repeats_nothing(uri, run_dir, monkeypatch):
    """A batch whose answer was lost may be committed late: the same batch must come with the same time."""
    tracker_files(run_dir, uri)
    write_steps(run_dir, range(1, 11))
    sent = []

    def losing(self, run_id, metrics=(), params=()):
        sent.append([(point.key, point.step, point.timestamp) for point in metrics])
        raise ConnectionError

    monkeypatch.setattr(MlflowClient, "log_batch", losing)
    delivery = Delivery(run_dir, uri, json.loads((run_dir / "tracking.json").read_text()))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            delivery.deliver()
        delivery.disconnect()
        time.sleep(0.01)
    assert sent[0] and sent[0] == sent[1]


def test_log_cut_back_under_a_live_tracker(uri, run_dir):
    """A worker dies, training goes back to its checkpoint, and the driver's tracker lives on."""
    tracker = Tracker(run_dir, uri, pause_s=0.05)
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 9))
    wait_until(lambda: "refine" in tracker.state()["runs"] and len(history(uri, tracker.state())) == 8)
    cut_back(run_dir, 3)
    write_steps(run_dir, range(4, 13), speed=8.5)
    assert tracker.close()
    assert history(uri, tracker.state()) == list(range(1, 13))


def test_other_inputs_make_another_child_run(uri, run_dir):
    first = Tracker(run_dir, uri)
    first.stage_started("refine", attempt=1, inputs="h1")
    first.log_params({"lr": 0.1}, "refine")
    write_steps(run_dir, range(1, 6))
    first.stage_finished("refine")
    first.close()
    (run_dir / "refine/metrics.jsonl").unlink()
    second = Tracker(run_dir, uri)
    second.stage_started("refine", attempt=2, inputs="h2")
    second.log_params({"lr": 0.2}, "refine")
    write_steps(run_dir, range(1, 4))
    second.stage_finished("refine")
    assert second.close()
    assert history(uri, first.state()) == [1, 2, 3, 4, 5]
    assert history(uri, second.state()) == [1, 2, 3]
    children = [MlflowClient(uri).get_run(one.state()["runs"]["refine"]) for one in (first, second)]
    assert [child.data.params for child in children] == [{"lr": "0.1"}, {"lr": "0.2"}]
    assert second.state()["runs"]["pipeline"] == first.state()["runs"]["pipeline"]


def test_dead_server_raises_nothing_blocks_nothing_and_sync_delivers_later(uri, dead_uri, run_dir, caplog):
    tracker = Tracker(run_dir, dead_uri, pause_s=0.05)
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 31))
    tracker.log_params({"seed": 1})
    tracker.stage_finished("refine")
    assert not tracker.close(timeout=20)
    assert f"mrrcnn sync {run_dir}" in caplog.text
    assert caplog.text.count("out of reach") == 1, "an outage is one warning, not one a try"
    with pytest.raises(NotDelivered, match="nothing is lost"):
        sync(run_dir)
    delivered = sync(run_dir, uri)
    assert history(uri, delivered) == list(range(1, 31))
    assert {run.info.status for run in runs(uri)} == {"FINISHED"}
    assert delivered["points"] == 90
    assert sync(run_dir)["points"] == 0, "where it was delivered last is where it reports to"


def test_server_that_comes_back_gets_everything_without_sync(uri, run_dir, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    down = threading.Event()
    down.set()
    log_batch = MlflowClient.log_batch

    def sometimes(self, run_id, **batch):
        if down.is_set():
            raise ConnectionError("down")
        log_batch(self, run_id, **batch)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    tracker = Tracker(run_dir, uri, pause_s=0.05)
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 6))
    wait_until(lambda: "out of reach" in caplog.text)
    down.clear()
    wait_until(lambda: "is back" in caplog.text)
    write_steps(run_dir, range(6, 11))
    assert tracker.close()
    assert history(uri, tracker.state()) == list(range(1, 11))


def test_fresh_server_gets_the_whole_run_again(uri, run_dir, empty_database, tmp_path):
    tracker = Tracker(run_dir, uri)
    tracker.log_params({"seed": 1})
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 6))
    tracker.stage_finished("refine")
    tracker.close()
    shutil.copy(empty_database, tmp_path / "store.db")
    delivered = sync(run_dir)
    assert history(uri, delivered) == [1, 2, 3, 4, 5]
    assert MlflowClient(uri).get_run(delivered["runs"]["pipeline"]).data.params == {"seed": "1"}


def test_vanished_artifact_is_a_warning_and_holds_up_nothing(uri, run_dir, caplog):
    tracker = Tracker(run_dir, uri)
    tracker.log_artifact("pipeline", run_dir / "gone.png")
    tracker.log_params({"seed": 1})
    assert tracker.close()
    assert "gone.png: is gone" in caplog.text
    assert MlflowClient(uri).get_run(tracker.state()["runs"]["pipeline"]).data.params == {"seed": "1"}


def test_live_run_and_foreign_directory_refuse_sync(uri, run_dir, tmp_path):
    with pytest.raises(BadInput, match=r"holds no tracking\.json"):
        sync(tmp_path)
    tracker = Tracker(run_dir, uri, pause_s=0.05)
    wait_until(lambda: tracker.state()["runs"])
    with pytest.raises(BadInput, match="is live"):
        sync(run_dir)
    tracker.close()
    sync(run_dir)


def test_torn_event_costs_only_itself(tmp_path):
    append_event(tmp_path, {"kind": "a"})
    with (tmp_path / "outbox.jsonl").open("a") as file:
        file.write('{"kind": "to')
    append_event(tmp_path, {"kind": "b"})
    assert [event["kind"] for event, _ in read_events(tmp_path)] == ["a", "b"]
    (_, end), _ = read_events(tmp_path)
    assert [event["kind"] for event, _ in read_events(tmp_path, end)] == ["b"]


def test_uri_is_resolved_once_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MRRCNN_DEFAULT_TRACKING_URI", "sqlite:////beside/mlflow.db")
    assert resolve_uri(None) == "sqlite:////beside/mlflow.db"
    assert resolve_uri(None, "sqlite:////elsewhere/mlflow.db") == "sqlite:////elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(None, "sqlite:////elsewhere/mlflow.db") == "http://server:5000"
    assert resolve_uri("sqlite:///own.db") == f"sqlite:///{tmp_path}/own.db"
    assert resolve_uri("sqlite:////abs/own.db") == "sqlite:////abs/own.db"


def test_passwords_are_shown_nowhere(run_dir, monkeypatch, caplog):
    secret = "http://me:secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    tracker = Tracker(run_dir, None, pause_s=0.05)
    tracker.log_params({"tracking": {"uri": secret}})
    tracker.close(timeout=20)
    written = "".join(path.read_text() for path in run_dir.rglob("*") if path.is_file())
    assert "secret" not in written + caplog.text + json.dumps(tracker.state())
    with pytest.raises(NotDelivered):
        sync(run_dir)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(BadInput, match="set MLFLOW_TRACKING_URI"):
        sync(run_dir)


def test_machine_without_mlflow_runs_on_and_keeps_the_outbox(run_dir, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.store.tracking.sqlalchemy_store", None)
    tracker = Tracker(run_dir, "http://127.0.0.1:9", pause_s=0.05)
    tracker.stage_started("refine", attempt=1)
    assert not tracker.close(timeout=20)
    assert "out of reach" in caplog.text
    assert [event["kind"] for event, _ in read_events(run_dir)] == ["started", "started", "finished"]


def test_flatten_dots_nested_keys():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1]}) == {"a.b.c": 1, "a.d": None, "e": [1]}


def test_a_curve_stays_in_the_run_that_drew_it_when_its_stage_is_redone_unseen(uri, run_dir, dead_uri):
    """The server was down over a redo: the first run's log is gone, and the second's is not the first's."""
    log = run_dir / "refine" / "metrics.jsonl"
    for inputs in ("first", "second"):
        append_event(run_dir, {"kind": "started", "stage": "refine", "attempt": 1, "inputs": inputs})
        log.unlink(missing_ok=True)
        write_steps(run_dir, range(1, 4))
        append_event(run_dir, {"kind": "artifact", "stage": "refine", "path": str(log), "folder": ""})
        append_event(run_dir, {"kind": "finished", "stage": "refine", "status": "FINISHED"})
    tracker = Tracker(run_dir, uri)
    assert tracker.close()
    children = [run for run in runs(uri) if run.data.tags["mrrcnn.stage"] == "refine"]
    curves = {run.data.tags["mrrcnn.inputs"]: run.data.metrics.get("loss") for run in children}
    assert curves == {"first": None, "second": 1 / 3}
    assert {run.info.status for run in children} == {"FINISHED"}
    client = MlflowClient(uri)
    files = {run.data.tags["mrrcnn.inputs"]: len(client.list_artifacts(run.info.run_id)) for run in children}
    assert files == {"first": 0, "second": 1}


def test_a_driver_whose_directory_was_taken_over_notes_nothing(uri, run_dir):
    with acquire(run_dir) as lease:
        stale = Tracker(run_dir, uri, attempt=lease.attempt)
    with acquire(run_dir):
        pass
    before = read_events(run_dir)
    for note in (lambda: stale.log_params({"a": 1}), lambda: stale.stage_finished("refine"), stale.close):
        with pytest.raises(StaleAttempt):
            note()
    stale._thread.join(30)
    assert not stale._thread.is_alive() and read_events(run_dir) == before


def test_a_driver_whose_directory_was_taken_over_delivers_nothing(uri, run_dir, caplog):
    """Two that send the same log send its points twice, and each puts its own state over the other's."""
    with acquire(run_dir) as lease:
        stale = Tracker(run_dir, uri, pause_s=0.05, attempt=lease.attempt)
        stale.stage_started("refine", attempt=1)
        wait_until(lambda: "refine" in stale.state()["runs"])
    with acquire(run_dir):
        state = (run_dir / "tracking.json").read_text()
        write_steps(run_dir, range(1, 4))
        stale._thread.join(30)
    assert not stale._thread.is_alive() and "out of reach" not in caplog.text
    assert (run_dir / "tracking.json").read_text() == state
    assert history(uri, stale.state()) == []


def test_a_driver_whose_half_written_state_a_newer_attempt_deletes_blames_no_mlflow(
    uri, run_dir, caplog, monkeypatch
):
    def taken_over(path, _):
        with acquire(run_dir):
            raise FileNotFoundError(path)

    with acquire(run_dir) as lease:
        stale = Tracker(run_dir, uri, attempt=lease.attempt)
    monkeypatch.setattr("pipeline.tracking.delivery.write_atomic", taken_over)
    with suppress(StaleAttempt):
        stale.stage_started("refine", attempt=1)
    stale._thread.join(30)
    assert not stale._thread.is_alive() and caplog.text == ""


def test_a_driver_that_is_replaced_while_it_delivers_sends_and_notes_no_more(uri, run_dir):
    Tracker(run_dir, uri).close()
    state = json.loads((run_dir / "tracking.json").read_text())
    append_event(run_dir, {"kind": "started", "stage": "refine", "attempt": 1, "inputs": ""})
    write_steps(run_dir, range(1, 4))
    asked = []

    def check():
        asked.append(1)
        if len(asked) > 3:
            raise StaleAttempt("over")

    with pytest.raises(StaleAttempt):
        Delivery(run_dir, uri, state, check).deliver()
    assert history(uri, state) == []


def test_files_of_a_database_lie_beside_it_wherever_the_run_was_begun(uri, run_dir, tmp_path, monkeypatch):
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    (run_dir / "config.yaml").write_text("seed: 0\n")
    tracker = Tracker(run_dir, uri)
    tracker.log_artifact("pipeline", run_dir / "config.yaml")
    assert tracker.close()
    assert list((tmp_path / "mlruns").rglob("config.yaml")) and not list((tmp_path / "job").iterdir())


def test_a_failing_artifact_store_holds_up_nothing_else(uri, run_dir, tmp_path):
    store = tmp_path / "store"
    store.write_text("a file where a folder should be")
    MlflowClient(uri).create_experiment("full", artifact_location=str(store))
    (run_dir / "config.yaml").write_text("seed: 0\n")
    tracker = Tracker(run_dir, uri, "full")
    tracker.log_artifact("pipeline", run_dir / "config.yaml")
    tracker.stage_started("refine", attempt=1)
    write_steps(run_dir, range(1, 4))
    tracker.stage_finished("refine")
    assert not tracker.close(timeout=20)
    assert history(uri, tracker.state()) == [1, 2, 3]
    store.unlink()
    sync(run_dir)
    client, parent = MlflowClient(uri), tracker.state()["runs"]["pipeline"]
    assert [file.path for file in client.list_artifacts(parent)] == ["config.yaml"]
    assert history(uri, tracker.state()) == [1, 2, 3]
