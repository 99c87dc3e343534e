"""Sharding as tasks of a Ray cluster: the bytes of one machine, the one line of one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.launching.ray_tasks import _result
from shards.errors import BadInput
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards

ROOT = Path(__file__).resolve().parents[3]
# In a process of its own: Ray reads its settings when it is imported. The cluster is one of this machine.
COMMAND = """
import sys
from jobs import cli
from jobs.launching import ray_launch, ray_tasks
from shards import write
ray_launch.connect(None, 2)
seen, result, plan = [], ray_tasks._result, write.plan_shards
ray_tasks._result = lambda task: (seen.append(1), result(task))[1]
write.plan_shards = lambda images, name, size: plan(images, name, 40_000)
try:
    cli.main(sys.argv[1:])
finally:
    print("tasks", len(seen))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_names_the_same_fault(tmp_path, monkeypatch):
    write_synthetic(tmp_path, 12, seed=1, size=64)
    plan = write_shards.__globals__["plan_shards"]
    monkeypatch.setitem(
        write_shards.__globals__, "plan_shards", lambda images, name, size: plan(images, name, 40_000)
    )
    annotations = tmp_path / "annotations/instances_train2017.json"
    described = write_shards(tmp_path / "train2017", annotations, tmp_path / "local")
    assert len(described["shards"]) > 1
    arguments = ["shard", "--images", "train2017", "--annotations", "annotations/instances_train2017.json"]
    done = drive(tmp_path, *arguments, "--out", "far", "--address", "auto", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"tasks {len(described['shards'])}" in done.stdout
    assert contents(tmp_path / "far") == contents(tmp_path / "local")
    next((tmp_path / "train2017").iterdir()).write_bytes(b"")
    refused = drive(tmp_path, *arguments, "--out", "other", "--address", "auto", "--workers", "2")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("mrrcnn: train2017/")
    assert "is empty" in refused.stderr and "Traceback" not in refused.stderr


def test_what_a_task_raises_is_raised_without_the_workers_traceback(monkeypatch):
    from ray.exceptions import RayTaskError

    def fail(_):
        raise RayTaskError("f", "Traceback of the worker", BadInput("a.jpg: is empty; restore it"))

    monkeypatch.setattr("ray.get", fail)
    with pytest.raises(BadInput, match=r"^a\.jpg: is empty; restore it$"):
        _result(type("Task", (), {"reference": None}))


def drive(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", COMMAND, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "report.json"}
