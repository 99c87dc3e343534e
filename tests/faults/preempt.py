"""SIGTERM, and Ray's notice that a node is to go: a checkpoint within the grace period, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import yaml

from pipeline.checkpoint import defects
from tests.faults.case import ITERS, ROOT, OneStage, Pipeline, environment, log_of, products, untold
from tests.faults.kills import Kill, signs, steps, strike, victims
from tests.faults.watch import end, exit_code, orphans, wait_for

# What Kubernetes gives a container that it ends.
GRACE_S, STEP = 30.0, 4
MANIFEST = ROOT / "jobs" / "manifests" / "rayjob-cpu.yaml"
Say = Callable[[str], None]


def ask_to_stop(folder: Path, say: Say, launchers: list[str]) -> list[str]:
    """Return what went wrong when `mrrcnn run` got SIGTERM in a step, then in a wait at a stage's end."""
    pipeline, calm = Pipeline.make(folder), folder / "undisturbed"
    pipeline.finish(calm, "torchrun")
    return [fault for launcher in launchers for fault in _stop_twice(pipeline, calm, launcher, say)]


def _stop_twice(pipeline: Pipeline, calm: Path, launcher: str, say: Say) -> list[str]:
    run = calm.with_name(launcher)
    stage = run / "baseline"
    in_training = _stopped(pipeline, run, launcher, lambda: steps(stage) >= STEP)
    last = steps(stage)
    saved = (stage / "checkpoints" / f"step-{last:09d}").exists()
    waits = Kill("wait", "driver", stage.name, ITERS, 0.0, 0.0)
    in_wait = _stopped(pipeline, run, launcher, signs(run, waits))
    pipeline.finish(run, launcher)
    same = products(run) == products(calm) and not untold(run)
    kept, verdict = "saved" if saved else "NOT SAVED", "all the same" if same else "DIFFERS"
    say(f"SIGTERM under {launcher}: exit {in_training[0]} after {in_training[1]:.1f} s, step {last} {kept}")
    say(f"  while it waits for an evaluation: exit {in_wait[0]} after {in_wait[1]:.1f} s; then {verdict}")
    went_on = f"checkpoints/step-{last:09d}" in log_of(run).read_text()
    wrong = {"exit code": {in_training[0], in_wait[0]} != {143}, "step not saved": not saved}
    slow = max(in_training[1], in_wait[1]) > GRACE_S
    wrong |= {"slower than the grace period": slow, "began anew": not went_on, "result": not same}
    return [f"SIGTERM, {launcher}: {name}" for name, is_so in wrong.items() if is_so]


def _stopped(pipeline: Pipeline, run: Path, launcher: str, sign: Callable[[], bool]) -> tuple[int, float]:
    """Return exit code and seconds of a run that gets SIGTERM when a sign has come."""
    process = pipeline.start(run, launcher)
    wait_for(process, sign, run)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    return exit_code(process, run), time.monotonic() - began


def drain_node(folder: Path, say: Say) -> list[str]:
    """Return what went wrong when Ray was told, in the words of our pods, that the only node will be gone."""
    # No checkpoint is due for hours, so the one that appears is the notice's.
    never = ("train.baseline.iters=100000", "checkpoint_every=100000")
    stage, run = replace(OneStage.make(folder), overrides=never), folder / "run"
    process, raylet = stage.start(run, "ray"), Kill("step", "raylet", "baseline", 0, 0.0, 0.0)
    checkpoints = run / "baseline" / "checkpoints"
    try:
        wait_for(process, lambda: steps(run / "baseline") >= STEP, run)
        code = _drain(victims(process, raylet)[0], run)
        began, at = time.monotonic(), steps(run / "baseline")
        limit = began + 2 * GRACE_S
        wait_for(process, lambda: any(checkpoints.glob("step-*")) or time.monotonic() > limit, run)
        took, found = time.monotonic() - began, sorted(checkpoints.glob("step-*"))
    finally:
        if process.poll() is None:
            strike(process, replace(raylet, target="host"), run)
        end(orphans(run))
    say(
        f"Ray drains the node (exit {code}) at step {at}: checkpoint {[path.name for path in found]} "
        f"{took:.1f} s later"
    )
    sound = bool(found) and not defects(found[0]) and took <= GRACE_S
    return [] if sound else ["Ray's notice gave no checkpoint in time"]


def _drain(raylet: psutil.Process, run: Path) -> int:
    # The cluster is the run's own: its address and its token are known to its processes alone.
    options = dict(
        part.lstrip("-").split("=", 1) for part in raylet.cmdline() if part.startswith("--") and "=" in part
    )
    own = {name: value for name, value in raylet.environ().items() if name.startswith("RAY_AUTH")}
    own |= {"RAY_ADDRESS": options["gcs-address"]}
    own |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log_of(run).open("ab") as log:
        return subprocess.run(
            ["bash", "-c", _last_words()], env={**environment(run), **own}, cwd=ROOT, stdout=log, stderr=log
        ).returncode


def _last_words() -> str:
    """Return what a pod of our manifests does when it is to end, but for the wait after it."""
    [job] = [item for item in yaml.safe_load_all(MANIFEST.read_text()) if item and item["kind"] == "RayJob"]
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    return container["lifecycle"]["preStop"]["exec"]["command"][-1].partition(";")[0]
