"""Passwords and tokens reach no byte that a run writes or prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_run import write_tiny
from jobs.cli import main
from pipeline.tracking.tracker import sync

ROOT = Path(__file__).resolve().parents[2]
SENTINEL = b"sentinel"
TOKENS = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "RAY_AUTH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
)


def holding(folder):
    """Return the files below a folder that hold the sentinel, or are named after it."""
    return [
        path
        for path in folder.rglob("*")
        if "sentinel" in path.name or (path.is_file() and SENTINEL in path.read_bytes())
    ]


@pytest.mark.slow
def test_a_run_keeps_and_shows_no_password_and_no_token(tmp_path):
    """With a dead server whose address holds a password; what waits for it then goes to a file."""
    config, run = write_tiny(tmp_path / "data", 1, 1), tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {name: f"sentinel-{name}" for name in TOKENS}
    words = ["run", str(config), "--run-dir", str(run), "--launcher", "local", "--set"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words, "tracking.uri=http://me:sentinel@127.0.0.1:9/?token=sentinel"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()
    sync(run, f"sqlite:///{tmp_path}/mlflow.db")
    assert SENTINEL not in done.stdout and holding(tmp_path) == []
    assert b"http://me:***@127.0.0.1:9" in done.stdout, "the dead server was spoken of"
    assert b"train.baseline.iters" in (tmp_path / "mlflow.db").read_bytes(), "MLflow has the parameters"
    (tmp_path / "found").write_bytes(b"a sentinel")
    assert holding(tmp_path) == [tmp_path / "found"], "what looks for it finds it"


@pytest.mark.parametrize("verb", ["run", "submit"])
@pytest.mark.parametrize("place", ["data.train=https://host/train", "model.weights=https://host/r50.pth"])
def test_a_password_in_the_address_of_shards_or_weights_is_refused_without_being_shown(
    verb, place, tmp_path, capsys
):
    (tmp_path / "config.yaml").write_text("data: {train: /nfs/train, val: /nfs/val}\nmodel: {norm: group}\n")
    words = [str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([verb, *words, "--set", place.replace("host", "me:sentinel@host")])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.err.count("\n") == 1
    assert "host/" in shown.err and "sentinel" not in shown.err + shown.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "tracking=postgresql://me:sentinel@db/mlflow"],
        ["--set", "tracking.uri=[postgresql://me:sentinel@db/mlflow]"],
        ["--run-dir", "s3://me:sentinel@bucket/run"],
    ],
)
def test_a_line_that_refuses_a_setting_does_not_show_its_password(words, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("data: {train: /nfs/train, val: /nfs/val}\nmodel: {norm: group}\n")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "config.yaml"), *words])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and "***@" in shown.err and "sentinel" not in shown.err + shown.out
