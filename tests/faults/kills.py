"""Kill points: which process, in the middle of what, and the run that must come out as if nothing had been.

Nothing in the product knows of this: points are found by watching the run directory, as anybody can.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

import psutil

from pipeline.lease import CLAIM
from tests.faults.case import CHECKPOINT_EVERY, ITERS, TRAINED, Runs, log_of
from tests.faults.watch import LOOK_S, Patience, nothing_left, orphans
from tests.faults.watch import kill as kill_process

TARGETS = ("worker", "driver", "raylet", "host")
# Ranks under Ray and torchrun, processes that shard, and the one that evaluates beside training.
WORKERS = ("RayTrainWorker", "-m jobs.launching.worker", "multiprocessing.spawn", "-m pipeline.evaluating")
# "wait": the baseline has made its last step, and waits for what evaluates beside it.
PHASES = ("shard", "step", "checkpoint", "switch", "wait", "evaluate")
# How long after its sign a kill comes, at most: about as long as the thing takes.
SPREAD_S = {"shard": 3.0, "step": 0.5, "checkpoint": 0.02, "switch": 6.0, "wait": 5.0, "evaluate": 5.0}


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
        stages["wait"] = TRAINED[0]
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
    life = _Life(runs, run, launcher)
    with nothing_left(run):
        for kill in kills:
            sign = signs(run, kill)
            while not (came := sign()) and life.goes_on():
                time.sleep(LOOK_S if kill.phase == "checkpoint" else 20 * LOOK_S)
            if came:
                time.sleep(kill.delay_s)
                tell(f"  {kill}: {life.strike(kill) or 'nothing there to kill'}")
                life.settle(kill)
        while life.goes_on():
            time.sleep(0.1)
        return life.outcome(len(kills), len(orphans(run)))


@dataclass(frozen=True)
class Hit:
    """A point that struck, and what there was to lose: the stage's last step, checkpoint and claim."""

    kill: Kill
    step: int
    checkpoint: int
    half_written: bool
    claim: str
    logged: int

    def loss(self, run: Path) -> tuple[int, str]:
        """Return how many steps were done again after it, and what is wrong with that, if anything."""
        stage = run / self.kill.stage
        if self.kill.stage not in TRAINED or _claim(stage) == self.claim:
            return 0, ""
        said = log_of(run).read_bytes()[self.logged :].decode(errors="replace")
        resumed = re.search(rf"resumed from {re.escape(str(stage))}/checkpoints/step-(\d+)", said)
        first = int(resumed[1]) if resumed else 0
        lost = max(0, self.step - first)
        # While a checkpoint is written, training goes on.
        allowed = CHECKPOINT_EVERY + (self.step % CHECKPOINT_EVERY if self.half_written else 0)
        if lost <= allowed and first >= self.checkpoint:
            return lost, ""
        return lost, f"{self.kill}: at step {self.step}, checkpoint {self.checkpoint}, went on from {first}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the points that struck, how often it was started, its exit code, processes left.

    `gave_up` tells where the command ended although it is promised to go on by itself.
    """

    launcher: str
    planned: int
    hits: list[Hit]
    starts: int
    code: int | None
    left: int
    gave_up: list[str]


class _Life:
    """The starts of one run, and the kills that it has suffered."""

    def __init__(self, runs: Runs, run: Path, launcher: str):
        self._runs, self._run, self._launcher = runs, run, launcher
        self._hits: list[Hit] = []
        self._gave_up: list[str] = []
        self._starts, self._allowed = 0, 1
        self._start()

    def goes_on(self) -> bool:
        """Return whether it lives, begun again if it had ended with an error; False too when it hangs."""
        code = self._process.poll()
        if code is None:
            return not self._patience.is_out()
        if code == 0 or self._starts > len(self._hits) + 1:
            return False
        if self._starts >= self._allowed:
            last = self._hits[-1].kill if self._hits else "no kill"
            self._gave_up.append(f"the command ended with {code} after {last}")
        self._start()
        return True

    def strike(self, kill: Kill) -> str:
        """Kill; return which processes, or an empty string."""
        before = _before(kill, self._run)
        struck = strike(self._process, kill, self._run)
        if struck:
            half = any((self._run / kill.stage / "checkpoints").glob(".step-*"))
            self._hits.append(replace(before, half_written=half))
            self._allowed = max(self._allowed, self._starts + _ends_the_command(kill))
        return struck

    def settle(self, kill: Kill) -> None:
        """Return when a command that the kill ends has ended and is begun again: a dead one wastes kills."""
        if any(hit.kill == kill for hit in self._hits) and _ends_the_command(kill):
            while self._process.poll() is None and not self._patience.is_out():
                time.sleep(0.1)
            # The next sign may have come before it died.
            self.goes_on()

    def outcome(self, planned: int, left: int) -> Outcome:
        """Return how it ended."""
        code = self._process.poll()
        return Outcome(self._launcher, planned, self._hits, self._starts, code, left, self._gave_up)

    def _start(self) -> None:
        self._process = self._runs.start(self._run, self._launcher)
        self._starts, self._patience = self._starts + 1, Patience(self._run)


def _ends_the_command(kill: Kill) -> bool:
    # A private cluster has one raylet, and Ray ends the driver with it; those who shard are the driver's own.
    return kill.target != "worker" or kill.phase == "shard"


def _before(kill: Kill, run: Path) -> Hit:
    stage, log = run / kill.stage, log_of(run)
    named = [int(path.name.removeprefix("step-")) for path in (stage / "checkpoints").glob("step-*")]
    return Hit(kill, steps(stage), max(named, default=0), False, _claim(stage), log.stat().st_size)


def _claim(stage: Path) -> str:
    try:
        return (stage / CLAIM).read_text()
    except OSError:
        return ""


def signs(run: Path, kill: Kill) -> Callable[[], bool]:
    """Return what tells that a kill point has come."""
    stage = run / kill.stage

    def written() -> bool:
        name = f"step-{kill.step:09d}"
        entries = os.listdir(stage / "checkpoints") if (stage / "checkpoints").exists() else []
        return any(entry.startswith((f".{name}.tmp-", name)) for entry in entries)

    def begun() -> bool:
        return ledger_state(run, kill.stage) == "running" and not steps(stage)

    def waits() -> bool:
        return steps(stage) == ITERS and not (stage / "weights.safetensors").exists()

    return {
        "shard": lambda: ledger_state(run, "shard") == "running",
        "step": lambda: steps(stage) >= kill.step,
        "checkpoint": written,
        "switch": begun,
        "wait": waits,
        "evaluate": lambda: any(run.glob(".jobs/evaluate-*/progress.log")),
    }[kill.phase]


def strike(process: Popen, kill: Kill, run: Path) -> str:
    """Kill by SIGKILL; return which processes, or an empty string if there was none of that kind."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if kill.phase == "shard" and ledger_state(run, "shard") != "running":
            # Else it would wait for a rank of the next stage, and count that.
            return ""
        found = victims(process, kill)
        if found:
            names = [_name(victim) for victim in found]
            for victim in found:
                kill_process(victim)
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
    return any(kind in name for kind in WORKERS) and "torch.distributed.run" not in name


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return ""


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
