"""Kills the whole demo with SIGKILL in the middle of every stage, and compares what comes out.

    python benchmarks/demo_kills.py runs/demo runs/killed [more arguments of `mrrcnn demo`]

The first directory holds an undisturbed demo; the second is made here, by the same command again and
again. Prints where each kill fell and whether weights, logs of training and results are the same bytes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TRAINED = ("baseline", "refine", "control")
POLL_S = 0.05


def main(reference: Path, run: Path, arguments: list[str]) -> int:
    """Return 0 when every kill fell where it should and everything is the same."""
    missed = 0
    for stage, ripe in moments(reference, run).items():
        told = kill_when(ripe, run, arguments)
        missed += not told.startswith("killed")
        print(f"{stage}: {told}", flush=True)
    subprocess.run(command(run, arguments), check=True)
    differing = [name for name in products(reference) if content(reference / name) != content(run / name)]
    for name in products(reference):
        print(f"{'DIFFERS' if name in differing else 'same   '} {name}")
    return 1 if differing or missed else 0


def moments(reference: Path, run: Path) -> dict[str, Callable[[], bool]]:
    """Return for every stage what has come true in its middle."""
    half = {stage: last_step(reference / stage) // 2 for stage in TRAINED}
    return {
        "shard": lambda: (run / "shards" / "train").exists() and state(run, "shard") == "running",
        **{stage: lambda stage=stage: last_step(run / stage) >= half[stage] for stage in TRAINED},
        # The first of the three networks has been scored on every image, the others have not.
        "evaluate": lambda: any(run.glob("evaluate/*/parts/*.json")),
        "report": lambda: state(run, "report") == "running",
    }


def kill_when(ripe: Callable[[], bool], run: Path, arguments: list[str]) -> str:
    """Start the demo, kill it and all it started when `ripe()`; return what it was doing."""
    with (run.parent / f"{run.name}.log").open("ab") as log:
        demo = psutil.Popen(command(run, arguments), stdout=log, stderr=log)
        while not ripe():
            if demo.poll() is not None:
                return f"ended with {demo.returncode} before it could be killed"
            time.sleep(POLL_S)
        family = [demo, *demo.children(recursive=True)]
        for process in family:
            if process.is_running():
                process.kill()
        demo.wait()
    ledger = {stage: state(run, stage) for stage in ("shard", *TRAINED, "evaluate", "report")}
    steps = {stage: last_step(run / stage) for stage in TRAINED if last_step(run / stage)}
    return f"killed {len(family)} processes; ledger {ledger}, logged steps {steps}"


def command(run: Path, arguments: list[str]) -> list[str]:
    """Return the demo's command line."""
    return [sys.executable, "-m", "jobs.cli", "demo", "--run-dir", str(run), *arguments]


def state(run: Path, stage: str) -> str:
    """Return the ledger's word on a stage."""
    try:
        return json.loads((run / "ledger.json").read_text())["stages"].get(stage, {}).get("state", "pending")
    except (OSError, ValueError):
        return "pending"


def last_step(stage: Path) -> int:
    """Return the last step in a stage's log; 0 without one."""
    try:
        return json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


def products(run: Path) -> list[str]:
    """Return what must come out the same."""
    trained = [f"{stage}/{name}" for stage in TRAINED for name in ("weights.safetensors", "metrics.jsonl")]
    scored = [f"evaluate/{name}/coco_results.json" for name in ("baseline", "control", "refined")]
    return [*trained, *scored]


def content(path: Path) -> object:
    """Return a file's bytes; of a log its lines without the speed, the one thing that may differ."""
    if path.suffix != ".jsonl":
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("undisturbed", type=Path, help="the run directory of a demo that has ended")
    parser.add_argument("killed", type=Path, help="the run directory of the one to kill")
    options, more = parser.parse_known_args()
    sys.exit(main(options.undisturbed, options.killed, more))
