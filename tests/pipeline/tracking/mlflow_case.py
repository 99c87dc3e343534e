"""What training writes, and what MLflow has of it."""

import json
import os
import time

from mlflow import MlflowClient


def write_steps(run_dir, steps, speed=10.0, stage="refine"):
    """Append training's lines of these steps to the stage's log."""
    with (run_dir / stage / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {"step": step, "loss": 1 / step, "lr": 0.01, "images_per_s": speed, "note": None}
            file.write(json.dumps(line) + "\n")


def cut_back(run_dir, step, stage="refine"):
    """Cut the log back as training does on resume: rewritten under another name, then renamed."""
    path = run_dir / stage / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def history(uri, state, stage="refine", key="loss"):
    return [point.step for point in MlflowClient(uri).get_metric_history(state["runs"][stage], key)]


def runs(uri):
    client = MlflowClient(uri)
    return client.search_runs([item.experiment_id for item in client.search_experiments()])


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
