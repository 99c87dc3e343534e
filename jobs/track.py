"""What a run tells MLflow: through the tracker's outbox, so that a dead server costs nothing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from configs.schema import Config
from jobs.errors import Stopped
from jobs.inputs import output_files, shards_of
from jobs.ledger import Ledger
from pipeline.evaluations import results_of

PIPELINE = "pipeline"
# How long a command's end waits for MLflow; of the grace after SIGTERM a checkpoint may have taken most.
PATIENCE_S, STOPPED_PATIENCE_S = 30.0, 3.0


@contextmanager
def tracking(config: Config, run_dir: Path, ledger: Ledger, attempt: int) -> Iterator[Any]:
    """Yield the tracker of a run; what MLflow does not take in time, `mrrcnn sync` delivers later."""
    from pipeline.tracking.tracker import Tracker

    tracker = Tracker(run_dir, config.tracking.uri, config.tracking.experiment, attempt)
    tracker.log_params(config.model_dump(mode="json", exclude={"tracking"}))
    tracker.log_artifact(PIPELINE, run_dir / "config.yaml")
    ledger.track(tracker.state())
    ended_well = False
    try:
        with closing(tracker):
            yield tracker
        ended_well = True
    finally:
        # What has ended a run is told, not that a full disk does not take this either.
        with nullcontext() if ended_well else suppress(OSError):
            ledger.track(tracker.state())


@contextmanager
def closing(tracker: Any) -> Iterator[None]:
    """End a tracker's pipeline as its body ends; who was asked to stop does not wait long for MLflow."""
    status, patience_s = "FAILED", PATIENCE_S
    try:
        yield
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status, patience_s = "KILLED", STOPPED_PATIENCE_S
        raise
    finally:
        tracker.close(patience_s, status)


@contextmanager
def telling_of_failure(tracker: Any, stage: str) -> Iterator[None]:
    """Note a stage's end where an error of any kind ends the body: MLflow would show it as running on."""
    status = "FAILED"
    try:
        yield
        status = None
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if status is not None:
            tracker.stage_finished(stage, status)


def note_begin(tracker: Any, ledger: Ledger, stage: str, attempt: int) -> None:
    """Note that a stage begins or goes on, and as its parameters all that its result depends on.

    The pipeline's own parameters are those it was first given: MLflow changes none.
    """
    tracker.stage_started(stage, attempt, ledger.name(stage))
    tracker.log_params(ledger.inputs(stage), stage)


def note_results(tracker: Any, config: Config, run_dir: Path, ledger: Ledger, stage: str) -> None:
    """Note what a finished stage made: data set, weights, AP or report."""
    if stage in ("baseline", "refine", "control"):
        source = shards_of(run_dir, config, "train")
        tracker.log_dataset(stage, "train", ledger.outputs("shard")["train"], str(source))
        for result in results_of(run_dir / stage):
            step = result.pop("step")
            tracker.log_metrics(stage, {"val": result}, step)
    if stage == "evaluate":
        source = shards_of(run_dir, config, "val")
        tracker.log_dataset(stage, "val", ledger.outputs("shard")["val"], str(source), context="evaluation")
    for name, path in output_files(run_dir, stage).items():
        folder = name if stage == "evaluate" else ""
        tracker.log_artifact(stage, path, folder)
        if stage == "evaluate":
            metrics = json.loads(path.read_text(encoding="utf-8"))
            metrics.pop("per_category", None)
            # The attempt that has begun the stage: noted again, it is the same point.
            tracker.log_metrics(stage, {name: metrics}, step=ledger.tree["stages"][stage]["attempt"])
    if stage == "report":
        tracker.log_artifact(stage, run_dir / "report")
    tracker.stage_finished(stage)
    ledger.track(tracker.state())
