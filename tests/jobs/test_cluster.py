"""A laptop submits to a real two-node cluster: nodes lost and back, Ctrl-C, exit codes, secrets.

One cluster for all of it: its start and every start of workers take seconds.
"""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.local_cluster import local_cluster
from benchmarks.tiny_run import write_tiny
from configs.load import load_config
from pipeline.data import sample_order
from shards.batches import GlobalBatches
from shards.read import ShardDataset

ROOT = Path(__file__).resolve().parents[2]
SECRET = "sentinel-of-mlflow"
# Seconds that nothing here should take, on a machine that has other work as well.
PATIENCE_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2, {"MLFLOW_TRACKING_PASSWORD": SECRET, "MLFLOW_TRACKING_USERNAME": "me"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A config whose baseline does not end by itself within the test, its checkpoints all kept."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), 5000, 5, keep_checkpoints=10000)


def command(cluster, config, run_dir, *more):
    words = [sys.executable, "-m", "jobs.cli", "submit", str(config), "--run-dir", str(run_dir)]
    return [*words, "--address", cluster.address, *more]


def laptop(cluster, folder, **more):
    """Return a client's environment: sources, token, and a place of its own for temporary files."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**keep, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **cluster.login, **more}


@contextmanager
def at_a_terminal(words, environment, folder):
    """Yield (process, its output so far, a function that types) of a command that has a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words, env=environment, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = []

    def output():
        try:
            while chunk := os.read(ours, 65536):
                said.append(chunk.decode(errors="replace"))
        except OSError:
            pass
        return "".join(said)

    try:
        yield process, output, lambda text: os.write(ours, text.encode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_until(ripe, process, output):
    deadline = time.monotonic() + PATIENCE_S
    while not ripe():
        assert time.monotonic() < deadline and process.poll() is None, output()[-3000:]
        time.sleep(0.2)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_jobs_exit_code_and_its_line_come_back_and_no_package_is_left(cluster, tiny, tmp_path):
    words = command(cluster, tiny, tmp_path / "run", "--set", f"data.train={tmp_path}/none", "--workers", "2")
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        words, env=laptop(cluster, tmp_path / "home"), cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "operator: " in done.stdout and "none: holds no dataset.json" in done.stdout
    assert "workers: 2 (legal: 1, 2, 4)" in done.stdout
    assert list((tmp_path / "home").iterdir()) == []
    stranger = {**laptop(cluster, tmp_path), "RAY_AUTH_MODE": "disabled"}
    del stranger["RAY_AUTH_TOKEN_PATH"]
    refused = subprocess.run(words, env=stranger, cwd="/", capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr


def test_a_lost_node_a_node_that_comes_back_and_a_stopped_job(cluster, tiny, tmp_path):
    """It goes on with the node that is left, grows again from a new checkpoint, and shows no secret."""
    run = tmp_path / "run"
    samples, checkpoints = run / "baseline" / "samples.jsonl", run / "baseline" / "checkpoints"
    words = command(cluster, tiny, run, "--workers", "2", "--min-workers", "1")
    environment = laptop(cluster, tmp_path)

    def two():
        return last_rank(samples) == 1

    with at_a_terminal(words, environment, "/") as (process, output, keyboard):
        wait_until(lambda: two() and any(checkpoints.glob("step-*")), process, output)
        second = subprocess.Popen(words, env=environment, cwd="/", stdout=subprocess.PIPE, text=True)
        cluster.kill(1)
        wait_until(lambda: last_rank(samples) == 0, process, output)
        cluster.start(1)
        wait_until(lambda: two() and output().count("resumed from") == 2, process, output)
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: "[y/N]" in output(), process, output)
        keyboard("y\n")
        assert process.wait(PATIENCE_S) == 130
        said = output()
        follower = second.communicate(timeout=PATIENCE_S)[0]
    assert "STOPPED" in said
    grown = re.search(r"has room for 2 again; going on from (step-\d+)", said)[1]
    assert f"checkpoints/{grown}" in re.findall("resumed from (.*)", said)[-1], "it went on from the newest"
    assert "is running it already; no other is started" in follower
    assert "workers: starting 1 of 2" in follower and second.returncode == 1
    check_samples(samples, tiny)
    last = f"step-{lines(samples)[-1]['step']:09d}"
    assert (checkpoints / last).is_dir(), "a stopped job saves its last step"
    with at_a_terminal(words, environment, "/") as (process, output, _):
        wait_until(lambda: f"checkpoints/{last}" in output(), process, output)
    for secret in (SECRET, cluster.token.read_text()):
        assert secret not in said + follower
        assert [path for path in holding(secret, cluster.folder, run) if path != cluster.token] == []


def last_rank(samples):
    found = lines(samples)
    return found[-1]["rank"] if found else None


def check_samples(samples, config):
    """Every step, with whatever number of workers, has seen the images of the undisturbed order."""
    settings = load_config(config)
    schedule = settings.train.baseline
    dataset = ShardDataset(settings.data.train)
    order = sample_order(dataset, settings)
    seen = defaultdict(list)
    for line in lines(samples):
        seen[line["step"]] += line["image_ids"]
    assert sorted(seen) == list(range(1, len(seen) + 1)) and len(seen) > 10
    every = GlobalBatches(order, batch=schedule.batch, stop_step=len(seen))
    for step, batch in enumerate(every, 1):
        assert sorted(seen[step]) == sorted(dataset.entries[index]["image_id"] for _, index in batch)


def holding(secret, *folders):
    held = {}
    # The job is alive: what it has renamed before it was read is there under its new name, and read then.
    while new := {path for folder in folders for path in folder.rglob("*") if path.is_file()} - held.keys():
        for path in new:
            with contextlib.suppress(FileNotFoundError):
                held[path] = secret.encode() in path.read_bytes()
    assert len(held) > 50, "Ray's logs are among them"
    return [path for path, holds in held.items() if holds]
