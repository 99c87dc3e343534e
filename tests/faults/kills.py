"""Kill points: which process, in the middle of what, and the run that must come out as if nothing had been.

Nothing in the product knows of this: points are found by watching the run directory, as anybody can.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from tests.faults.case import CHECKPOINT_EVERY, ITERS, MARK, TRAINED, Runs

TARGETS = ("worker", "driver", "raylet", "host")
PHASES = ("shard", "step", "checkpoint", "switch", "evaluate")
# How long after its sign a kill comes, at most: about as long as the thing takes.
SPREAD_S = {"shard": 3.0, "step": 0.5, "checkpoint": 0.02, "switch": 6.0, "evaluate": 2.0}
LOOK_S, HANG_S = 0.001, 900.0


@dataclass(frozen=True)
class Kill:
    """One kill point: when `stage` (of the phases inside training) has come to `step`, `delay_s` later."""

    phase: str
    target: str
    stage: str
    step: int
    delay_s: float
    choice: float

    def __str__(self) -> str:
        where = {"step": f"step {self.step} of {self.stage}", "switch": f"switch to {self.stage}"}
        where["checkpoint"] = f"checkpoint {self.step} of {self.stage}"
        return f"{self.target} x {where.get(self.phase, self.phase)} + {self.delay_s * 1000:.0f} ms"


def plan(seed: int, runs: int, launchers: list[str]) -> Iterator[tuple[str, list[Kill]]]:
    """Yield the launcher and the kill points, in the order of time, of each run: one in every phase.

    Every target comes to every phase equally often, but for raylets, which only Ray has, and only once the
    workers are launched.
    """
    for run in range(runs):
        rng = random.Random(f"{seed}-{run}")
        launcher = launchers[run % len(launchers)]
        turn = run // len(launchers)
        # Which of the three trainings is killed in which way.
        stages = dict(zip(("step", "checkpoint", "switch"), rng.sample(TRAINED, 3), strict=True))
        kills = []
        for place, phase in enumerate(PHASES):
            targets = [
                item for item in TARGETS if item != "raylet" or (launcher == "ray" and phase != "shard")
            ]
            stage = stages.get(phase, "")
            step = rng.randrange(1, ITERS)
            if phase == "checkpoint":
                step = rng.randrange(CHECKPOINT_EVERY, ITERS, CHECKPOINT_EVERY)
            target = targets[(turn + place) % len(targets)]
            kills.append(Kill(phase, target, stage, step, rng.random() * SPREAD_S[phase], rng.random()))
        order = ("", *TRAINED)
        yield launcher, sorted(kills, key=lambda kill: (kill.phase == "evaluate", order.index(kill.stage)))


def suffer(runs: Runs, run: Path, launcher: str, kills: list[Kill], tell: Callable[[str], None]) -> "Outcome":
    """Return what came of a run that is killed at every point in turn and begun again by the same command."""
    process, hits, starts = runs.start(run, launcher), [], 1
    began = time.monotonic()
    try:
        for kill in kills:
            sign = signs(run, kill)
            while not sign():
                process, again = _alive(runs, run, launcher, process, hits)
                starts += again
                if _over(process, began):
                    break
                time.sleep(LOOK_S if kill.phase == "checkpoint" else 20 * LOOK_S)
            else:
                time.sleep(kill.delay_s)
                struck = strike(process, kill, run)
                hits += [kill] if struck else []
                tell(f"  {kill}: {struck or 'nothing there to kill'}")
                began = time.monotonic()
        while True:
            process, again = _alive(runs, run, launcher, process, hits)
            starts += again
            if _over(process, began):
                break
            time.sleep(0.1)
        code = process.poll()
    finally:
        left = orphans(run)
        end(left)
    return Outcome(launcher, len(kills), hits, starts, code, len(left))


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the points that struck, how often it was started, its exit code, processes left."""

    launcher: str
    planned: int
    hits: list[Kill]
    starts: int
    code: int | None
    left: int


def _alive(runs: Runs, run: Path, launcher: str, process: Popen, hits: list[Kill]) -> tuple[Popen, bool]:
    # A run that has ended well, or has ended by itself more often than it was hit, stays ended.
    code = process.poll()
    if code in (None, 0):
        return process, False
    ends = getattr(process, "ends", 0) + 1
    if ends > len(hits) + 1:
        return process, False
    again = runs.start(run, launcher)
    again.ends = ends
    return again, True


def _over(process: Popen, since: float) -> bool:
    return process.poll() is not None or time.monotonic() - since > HANG_S


def signs(run: Path, kill: Kill) -> Callable[[], bool]:
    """Return what tells that a kill point has come."""
    stage = run / kill.stage

    def written() -> bool:
        name = f"step-{kill.step:09d}"
        entries = os.listdir(stage / "checkpoints") if (stage / "checkpoints").exists() else []
        return any(entry.startswith((f".{name}.tmp-", name)) for entry in entries)

    def begun() -> bool:
        return ledger_state(run, kill.stage) == "running" and not steps(stage)

    return {
        "shard": lambda: ledger_state(run, "shard") == "running",
        "step": lambda: steps(stage) >= kill.step,
        "checkpoint": written,
        "switch": begun,
        "evaluate": lambda: any(run.glob(".jobs/evaluate-*/progress.log")),
    }[kill.phase]


def strike(process: Popen, kill: Kill, run: Path) -> str:
    """Kill by SIGKILL; return which processes, or an empty string if there was none of that kind."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        found = victims(process, kill)
        if found:
            names = [_name(victim) for victim in found]
            for victim in found:
                _kill(victim)
            if kill.target in ("driver", "host"):
                process.wait()
            half = [path.name for path in run.glob("*/checkpoints/.step-*")]
            return f"{len(names)} killed ({names[0]})" + (", a checkpoint half written" if half else "")
        time.sleep(0.01)
    return ""


def victims(process: Popen, kill: Kill) -> list[psutil.Process]:
    """Return the processes that a kill is meant for, of the family of a driver."""
    try:
        driver = psutil.Process(process.pid)
        family = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    if kill.target == "driver":
        return [driver]
    if kill.target == "host":
        return [driver, *family]
    found = [child for child in family if _is(kill.target, _name(child))]
    return [found[int(kill.choice * len(found))]] if found else []


def _is(target: str, name: str) -> bool:
    if target == "raylet":
        return name.split(" ")[0].endswith("/raylet")
    worker = "RayTrainWorker" in name or "-m jobs.launching.worker" in name or "multiprocessing.spawn" in name
    return worker and "torch.distributed.run" not in name


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def orphans(run: Path, patience_s: float = 30.0) -> list[psutil.Process]:
    """Return the processes of a run that live on `patience_s` after it."""
    deadline = time.monotonic() + patience_s
    while (left := _marked(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def end(processes: list[psutil.Process]) -> None:
    """Kill what a run has left."""
    for process in processes:
        _kill(process)


def _marked(run: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(process: Popen, sign: Callable[[], bool]) -> None:
    """Return when a sign has come; an error if the process ends before."""
    while not sign():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} too early")
        time.sleep(LOOK_S)


def ledger_state(run: Path, stage: str) -> str:
    """Return the ledger's word on a stage."""
    try:
        return json.loads((run / "ledger.json").read_text())["stages"].get(stage, {}).get("state", "pending")
    except (OSError, ValueError):
        return "pending"


def steps(stage: Path) -> int:
    """Return the last step in the log of samples; 0 without one."""
    try:
        return json.loads((stage / "samples.jsonl").read_bytes().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0
