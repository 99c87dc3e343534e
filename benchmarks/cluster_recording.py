"""Records a job that loses a worker, a node and its driver, and ends with the hash of the undisturbed one.

    python -m benchmarks.cluster_recording FOLDER

FOLDER is made, and holds both runs afterwards. The cluster is a real one of two nodes on this machine
(benchmarks/local_cluster.py), one worker on each; `mrrcnn submit` talks to its job server as it would to any.
Lines that begin with `>` are what this script does; the others are what was printed. Exits 1 if anything
differs from the undisturbed run.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.local_cluster import LocalCluster, local_cluster
from benchmarks.tiny_run import write_tiny
from shards.storage.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
STEPS, REFINE_STEPS = 60, 5
TRAINED = ("baseline", "refine", "control")
PATIENCE_S, WIDTH = 600, 120


class Recording:
    """The client's side: one command, its printed lines with the seconds since the start."""

    def __init__(self, cluster: LocalCluster, config: Path):
        """Nothing is submitted yet."""
        self.cluster, self.config, self.began = cluster, config, time.monotonic()

    def note(self, text: str) -> None:
        """Print a line of the script's own."""
        print(f"{time.monotonic() - self.began:6.1f} s  > {text}", flush=True)

    def submit(self, run: Path) -> "Client":
        """Return the running client of `mrrcnn submit` for a run directory."""
        words = ["submit", str(self.config), "--run-dir", str(run), "--address", self.cluster.address]
        words += ["--workers", "2"]
        self.note(f"mrrcnn {' '.join(words)}")
        return Client(self, words)


class Client:
    """A running `mrrcnn submit`, whose lines are printed as they come."""

    def __init__(self, recording: Recording, words: list[str]):
        """Start it."""
        environment = {**os.environ, **recording.cluster.login, "PYTHONPATH": str(ROOT)}
        self.recording, self.lines = recording, []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def wait(self) -> int:
        """Return the exit code."""
        code = self.process.wait(PATIENCE_S)
        self.reader.join()
        self.recording.note(f"mrrcnn submit ended with exit code {code}")
        return code

    def until(self, ripe: Callable[[], bool]) -> None:
        """Return when something has come true; raises RuntimeError if the job ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not ripe():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the job ended, or hangs, before it could be disturbed")
            time.sleep(0.1)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if "detected " not in line:
                print(f"{time.monotonic() - self.recording.began:6.1f} s  {shortened(line)}", flush=True)


def shortened(line: str) -> str:
    """Return a line without colours, cut to a page's width."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip("\n"))
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 4] + " ..."


def main(folder: Path) -> int:
    """Return 0 when the disturbed run is the undisturbed one, byte for byte."""
    folder.mkdir(parents=True)
    config = write_tiny(folder, STEPS, REFINE_STEPS)
    with local_cluster(2) as cluster:
        recording = Recording(cluster, config)
        recording.note("the undisturbed run")
        if recording.submit(folder / "undisturbed").wait():
            return 1
        recording.note("the disturbed run")
        disturb(recording, folder / "disturbed")
        recording.note("the same command again")
        if recording.submit(folder / "disturbed").wait():
            return 1
    return compare(folder / "undisturbed", folder / "disturbed")


def disturb(recording: Recording, run: Path) -> None:
    """Submit, kill a worker, a whole node, bring the node back, kill the driver."""
    cluster, client = recording.cluster, recording.submit(run)
    client.until(lambda: step_of(run) >= 12)
    [worker, *_] = cluster.processes(1, "RayTrainWorker")
    recording.note(f"step {step_of(run)}: kill -9 of the worker on node 1 (process {worker.pid})")
    worker.kill()
    client.until(lambda: starts(client) == 2)
    client.until(lambda: step_of(run) >= 28)
    recording.note(f"step {step_of(run)}: node 1 is lost")
    recording.note(f"killed its raylet and all else on it: {cluster.kill(1)} processes")
    client.until(lambda: any("waiting for 2," in line for line in client.lines))
    recording.note("node 1 comes back")
    cluster.start(1)
    client.until(lambda: starts(client) == 3)
    client.until(lambda: step_of(run) >= 43)
    [driver, *_] = [item for item in cluster.processes(0, "jobs.cli run") if "python" in item.name()]
    recording.note(f"step {step_of(run)}: kill -9 of the driver (process {driver.pid})")
    driver.send_signal(signal.SIGKILL)
    client.wait()


def starts(client: Client) -> int:
    """Return how often workers have been started."""
    return sum("workers: starting" in line for line in client.lines)


def step_of(run: Path) -> int:
    """Return the last step of the baseline that is in the log of samples."""
    path = run / "baseline" / "samples.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return json.loads(lines[-1])["step"]
    except (IndexError, ValueError):
        return 0


def compare(one: Path, other: Path) -> int:
    """Print what is the same of two runs; return the number of differences."""
    differing = 0
    for stage in TRAINED:
        names = {name: content_of(run / stage) for name, run in (("one", one), ("other", other))}
        for what, value in names["one"].items():
            same = value == names["other"][what]
            differing += not same
            print(f"{'same   ' if same else 'DIFFERS'} {stage:9} {what:8} {value}")
    return differing


def content_of(stage: Path) -> dict[str, str]:
    """Return weights' sha256, and a hash of the log of samples and of the metrics without their speed."""
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("images_per_s")
    return {
        "weights": sha256_of(stage / "weights.safetensors"),
        "samples": sha256_of(stage / "samples.jsonl"),
        "metrics": hashlib.sha256(json.dumps(metrics).encode()).hexdigest(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the runs go, which both nodes see")
    sys.exit(main(parser.parse_args().folder.resolve()))
