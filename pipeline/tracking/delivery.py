"""Brings the outbox to MLflow: every metric point exactly once, everything else at least once.

How far a run's metrics have come is asked of MLflow itself at every connection, because a crash can
fall between MLflow's commit and any note of ours. Runs are found by tags of our own, so that a run
that was made without our learning its id is not made twice.
"""

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.tracking.outbox import Event, MetricsTail, read_events
from shards.storage.files import encode_json, write_atomic
from shards.storage.secrets import redact

log = logging.getLogger(__name__)
PIPELINE = "pipeline"
STATE = "tracking.json"
POINTS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
# MLflow refuses longer ones.
PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 6000, 8000, 36
RUN_TAG, STAGE_TAG, INPUTS_TAG, ATTEMPT_TAG = "mrrcnn.run", "mrrcnn.stage", "mrrcnn.inputs", "mrrcnn.attempt"
_writing = threading.Lock()


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace RUN/tracking.json; of two threads that write, the later one writes what is true then."""
    with _writing:
        write_atomic(run_dir / STATE, encode_json(state))


class Delivery:
    """One run directory's connection to one MLflow; any of its methods may raise whatever MLflow raises."""

    def __init__(
        self, run_dir: Path, uri: str, state: dict[str, Any], check: Callable[[], None] = lambda: None
    ):
        """`state` is RUN/tracking.json: key, uri, experiment, runs, lost, events (bytes), waiting (files).

        `check` is asked before anything is sent or noted, and raises if another process does that now.
        """
        self._run_dir, self._uri, self.state, self._check = run_dir, uri, state, check
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._marks: dict[str, dict[str, int]] = {}
        self._inputs: dict[str, str] = {}
        self._tails: dict[str, MetricsTail] = {}
        self._newest: dict[str, str] = {}
        self._failure: Exception | None = None
        self.delivered = 0
        self._recall()

    def deliver(self) -> None:
        """Deliver all that waits, then return."""
        self._check()
        if self._client is None:
            self._connect()
        self._failure = None
        self._deliver_waiting()
        events = read_events(self._run_dir, self.state["events"])
        self._newest |= {event["stage"]: event.get("inputs", "") for event, _ in events if _begins(event)}
        try:
            for event, end in events:
                self._deliver_event(event)
                self._note(events=end)
        finally:
            for stage in list(self._tails):
                self._deliver_metrics(stage)
        if self._failure is not None:
            raise self._failure

    def disconnect(self) -> None:
        """Forget the connection and all that MLflow told; the next `deliver` asks again."""
        self._client = None

    def _recall(self) -> None:
        for event, end in read_events(self._run_dir):
            if _begins(event):
                self._newest[event["stage"]] = event.get("inputs", "")
            if end <= self.state["events"]:
                self._follow(event)

    def _follow(self, event: Event) -> None:
        stage = event.get("stage", PIPELINE)
        if event["kind"] == "started":
            self._inputs[stage] = event.get("inputs", "")
            self._tails[stage] = MetricsTail(self._run_dir / stage / "metrics.jsonl")
        elif event["kind"] == "finished":
            self._tails.pop(stage, None)

    def _connect(self) -> None:
        from mlflow import MlflowClient

        self._runs, self._marks = {}, {}
        client = MlflowClient(self._uri)
        self._experiment = _experiment(client, self.state["experiment"], _files_beside(self._uri))
        self._client = client
        known = self.state["runs"].get(PIPELINE)
        if known not in (None, self._run_of(PIPELINE)):
            log.warning(
                "MLflow at %s no longer has run %s; it gets everything anew", self.state["uri"], known
            )
            self._tails, self._inputs = {}, {}
            self._note(events=0, waiting=[])

    def _run_of(self, stage: str) -> str:
        if stage not in self._runs:
            run_id = self._find_run(stage) or self._create_run(stage)
            self._runs[stage], self._marks[stage] = run_id, self._read_marks(run_id)
            self._note(runs={**self.state["runs"], stage: run_id})
        return self._runs[stage]

    def _tags(self, stage: str) -> dict[str, str]:
        return {RUN_TAG: self.state["key"], STAGE_TAG: stage, INPUTS_TAG: self._inputs.get(stage, "")}

    def _find_run(self, stage: str) -> str | None:
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in self._tags(stage).items())
        found = self._client.search_runs(
            [self._experiment], wanted, max_results=1, order_by=["start_time ASC"]
        )
        return found[0].info.run_id if found else None

    def _create_run(self, stage: str) -> str:
        tags = {**self._tags(stage), "mlflow.source.name": "mrrcnn"}
        if stage != PIPELINE:
            tags["mlflow.parentRunId"] = self._run_of(PIPELINE)
        name = self._run_dir.name if stage == PIPELINE else stage
        return self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id

    def _read_marks(self, run_id: str) -> dict[str, int]:
        keys = self._client.get_run(run_id).data.metrics
        return {
            key: max(point.step for point in self._client.get_metric_history(run_id, key)) for key in keys
        }

    def _deliver_event(self, event: Event) -> None:
        stage = event.get("stage", PIPELINE)
        # What a stage wrote before it was begun anew from other inputs is gone; the files there are the new.
        superseded = self._inputs.get(stage, "") != self._newest.get(stage, "") and not _begins(event)
        if event["kind"] == "finished" and not superseded:
            # The curve first: a run that MLflow shows as finished is complete.
            self._deliver_metrics(stage)
        self._follow(event)
        if event["kind"] == "started":
            self._runs.pop(stage, None)
        run_id = self._run_of(stage)
        match event["kind"]:
            case "started":
                self._client.update_run(run_id, status="RUNNING")
                self._client.set_tag(run_id, ATTEMPT_TAG, event["attempt"])
            case "finished":
                self._client.set_terminated(run_id, event["status"])
            case "artifact" if not superseded:
                artifact = {"run_id": run_id, "path": event["path"], "folder": event["folder"]}
                if not self._try_artifact(artifact):
                    self._note(waiting=[*self.state.get("waiting", []), artifact])
            case _:
                self._send_facts(run_id, stage, event)

    def _send_facts(self, run_id: str, stage: str, event: Event) -> None:
        match event["kind"]:
            case "metrics":
                row = {"step": event["step"], **event["metrics"]}
                self._send_points(stage, [row], event["time_ms"])
            case "params":
                self._send_params(run_id, event["params"])
            case "tags":
                for key, value in event["tags"].items():
                    self._client.set_tag(run_id, _name(key), value[:TAG_LENGTH])
            case "dataset":
                self._send_dataset(run_id, event)

    def _deliver_metrics(self, stage: str) -> None:
        tail = self._tails.get(stage)
        while tail is not None and (batch := tail.batch()) is not None:
            self._run_of(stage)
            self._send_points(stage, batch.rows, batch.seen_ms)
            tail.advance()

    def _send_points(self, stage: str, rows: list[dict[str, Any]], time_ms: int) -> None:
        from mlflow.entities import Metric

        run_id, marks = self._runs[stage], self._marks[stage]
        points = [Metric(key, value, time_ms, step) for key, value, step in _new_points(rows, marks)]
        for start in range(0, len(points), POINTS_AT_ONCE):
            sent = points[start : start + POINTS_AT_ONCE]
            self._check()
            self._client.log_batch(run_id, metrics=sent)
            marks.update((point.key, point.step) for point in sent)
            self.delivered += len(sent)

    def _send_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        # What is there already is left alone: MLflow refuses to change a parameter.
        known = self._client.get_run(run_id).data.params
        named = {_name(key): value[:PARAM_LENGTH] for key, value in params.items()}
        new = [Param(key, value) for key, value in named.items() if key not in known]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=new[start : start + PARAMS_AT_ONCE])

    def _send_dataset(self, run_id: str, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": event["source"]})
        dataset = Dataset(event["name"], event["digest"][:DIGEST_LENGTH], "local", source)
        tags = [InputTag("mlflow.data.context", event["context"])]
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _try_artifact(self, artifact: dict[str, str]) -> bool:
        # A store of files that is down shall hold up nothing else.
        try:
            self._send_artifact(artifact["run_id"], Path(artifact["path"]), artifact["folder"])
        except Exception as error:
            self._failure = error
            return False
        return True

    def _deliver_waiting(self) -> None:
        for artifact in self.state.get("waiting", []):
            if self._try_artifact(artifact):
                self._note(waiting=[other for other in self.state["waiting"] if other != artifact])

    def _send_artifact(self, run_id: str, path: Path, folder: str) -> None:
        if not path.exists():
            log.warning("%s: is gone and cannot be delivered to MLflow", path)
        elif path.is_dir():
            self._client.log_artifacts(run_id, str(path), folder or None)
        elif path.suffix == ".yaml":
            # A config may hold a tracking URI with a password.
            name = f"{folder}/{path.name}" if folder else path.name
            self._client.log_text(run_id, redact(path.read_text(encoding="utf-8")), name)
        else:
            self._client.log_artifact(run_id, str(path), folder or None)

    def _note(self, **changes: Any) -> None:
        self._check()
        self.state.update(changes)
        write_state(self._run_dir, self.state)


def _begins(event: Event) -> bool:
    return event["kind"] == "started" and "stage" in event


def _new_points(rows: list[dict[str, Any]], marks: dict[str, int]) -> Iterator[tuple[str, float, int]]:
    newest = dict(marks)
    for row in rows:
        step = row["step"]
        for name, value in row.items():
            key = _name(name)
            if key == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if step > newest.get(key, -math.inf):
                newest[key] = step
                yield key, float(value), step


def _name(key: str) -> str:
    # One name that MLflow does not accept would hold up all others.
    return re.sub(r"[^\w\-. /:]", "_", key)


def _files_beside(uri: str) -> str | None:
    # MLflow's own default is the working directory, and that of a job is deleted by Ray.
    path = uri.removeprefix("sqlite:///")
    return str(Path(path).parent / "mlruns") if path != uri else None


def _experiment(client: Any, name: str, files: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=files)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # Another pipeline was quicker.
        return client.get_experiment_by_name(name).experiment_id
