"""What a run tells MLflow of its stages, and how a command's end is told."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

import jobs.stages
from jobs.errors import JobFailed, Stopped
from jobs.track import closing, tracking
from tests.jobs.stage_bench import Bench, SilentTracker
from tests.pipeline.tracking.conftest import empty_database, uri  # noqa: F401
from tests.pipeline.tracking.mlflow_case import runs


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (JobFailed("x"), "FAILED"),
        (Stopped("asked"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_dead_mlflow_costs_little_of_the_grace_after_sigterm_and_ctrl_c(error, status):
    told = []

    def end():
        with closing(SimpleNamespace(close=lambda *how: told.append(how))):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            end()
    else:
        end()
    ((waits, how),) = told
    assert how == status and (waits <= 5) == (status == "KILLED")


def test_a_full_disk_does_not_hide_what_ended_a_run_nor_that_it_was_asked_to_stop(tmp_path, monkeypatch):
    told, bench = [], Bench(tmp_path, monkeypatch)
    tracker = SilentTracker()
    tracker.stage_finished = lambda *how: told.append(how)
    tracker.close = lambda *_: None
    tracker.state = lambda: {"uri": "sqlite:////nowhere.db", "runs": {"baseline": str(len(told))}}
    monkeypatch.setattr("pipeline.tracking.tracker.Tracker", lambda *_: tracker)
    monkeypatch.setattr(jobs.stages, "tracking", tracking)

    def fill(run):
        monkeypatch.setattr("jobs.ledger.write_atomic", lambda *_: Path("/dev/full").write_text("x"))
        raise Stopped("asked to stop, but this came first")

    monkeypatch.setitem(jobs.stages.STAGES, "baseline", fill)
    with pytest.raises(Stopped, match="this came first"):
        bench.run()
    assert told[-1] == ("baseline", "KILLED")


class Trained(Bench):
    """A run directory that reports to MLflow, whose `refine` logs steps and resumes at its checkpoint."""

    def __init__(self, folder, monkeypatch, uri):  # noqa: F811
        super().__init__(folder, monkeypatch)
        self.uri = uri
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setattr(jobs.stages, "tracking", tracking)
        monkeypatch.setitem(jobs.stages.STAGES, "refine", self.refine)

    def refine(self, run):
        log = self.run_dir / "refine" / "metrics.jsonl"
        steps = len(log.read_text().splitlines()) if log.exists() else 0
        for step in range(steps + 1, steps + 6):
            before = log.read_text() if log.exists() else ""
            line = {"step": step, "loss": run.attempt}
            self.write("refine/metrics.jsonl", before + json.dumps(line) + "\n")
        self.stage("refine")(run)

    def children(self, stage):
        """Return the child runs of a stage, oldest first."""
        found = [run for run in runs(self.uri) if run.data.tags["mrrcnn.stage"] == stage]
        return sorted(found, key=lambda run: run.info.start_time)

    def curves(self):
        """Return the (step, loss) of every child run of `refine`."""
        client = MlflowClient(self.uri)
        histories = [client.get_metric_history(run.info.run_id, "loss") for run in self.children("refine")]
        return [[(point.step, point.value) for point in points] for points in histories]


@pytest.fixture
def trained(tmp_path, monkeypatch, uri):  # noqa: F811
    return Trained(tmp_path, monkeypatch, uri)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError("a defect of ours"), "FAILED"),
        (MemoryError(), "FAILED"),
        (JobFailed("x"), "FAILED"),
        (Stopped("asked"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_whatever_ends_a_stage_it_is_not_shown_as_running_for_ever(trained, error, status):
    trained.broken["refine"] = error
    with pytest.raises(type(error)) as raised:
        trained.run()
    assert raised.value is error
    assert [run.info.status for run in trained.children("refine")] == [status]


def test_a_stage_whose_result_cannot_be_read_is_not_shown_as_running_for_ever(trained, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(jobs.stages, "stage_outputs", fail)
    with pytest.raises(OSError, match="Input/output error"):
        trained.run(stages=("shard",))
    assert [run.info.status for run in trained.children("shard")] == ["FAILED"]


def test_a_stage_that_goes_on_is_one_run_and_one_redone_from_the_same_inputs_another(trained):
    trained.broken["refine"] = RuntimeError("killed")
    with pytest.raises(RuntimeError):
        trained.run()
    trained.broken.clear()
    trained.run()
    first = [(step, 1 if step <= 5 else 2) for step in range(1, 11)]
    assert trained.curves() == [first]
    trained.run(redo="refine")
    assert trained.curves() == [first, [(step, 3) for step in range(1, 6)]]
    assert {run.info.status for run in trained.children("refine")} == {"FINISHED"}


def test_a_stages_run_has_the_parameters_of_its_own_result(trained):
    trained.run()
    trained.run(test__alpha=2.0)
    trained.run(redo="refine", train__refine__lr=0.5, test__alpha=2.0)
    rates = [run.data.params["train.refine.lr"] for run in trained.children("refine")]
    assert rates[1] == "0.5" != rates[0]
    alphas = [run.data.params["test.alpha"] for run in trained.children("evaluate")]
    assert alphas == ["1.0", "2.0", "2.0"]
