"""The kill matrix: whole pipelines, each killed once in every phase, compared with one that was not."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import Pipeline, products, untold
from tests.faults.kills import PHASES, TARGETS, Outcome, plan, suffer

Say = Callable[[str], None]


def kill_matrix(folder: Path, say: Say, points: int, seed: int, launchers: list[str]) -> list[str]:
    """Return what was not as in the undisturbed run, after `points` kills have struck."""
    pipeline, began = Pipeline.make(folder), time.monotonic()
    calm = folder / "undisturbed"
    pipeline.finish(calm, "torchrun")
    reference = products(calm)
    if "missing" in reference.values() or untold(calm):
        return [f"the undisturbed run is not whole: {reference} {untold(calm)}"]
    say(f"undisturbed, {time.monotonic() - began:.0f} s")
    for name, value in reference.items():
        say(f"  {name:18s} {value[:16]}")
    struck, faults, survived, finished, number = Counter(), [], 0, 0, 0
    for number, (launcher, kills) in enumerate(plan(seed, points, launchers), 1):
        run, began = folder / f"run-{number}", time.monotonic()
        say(f"run {number}, {launcher}")
        outcome = suffer(pipeline, run, launcher, kills, say)
        wrong = differences(outcome, run, reference)
        struck.update((kill.target, kill.phase) for kill in outcome.hits)
        survived += 0 if wrong else len(outcome.hits)
        finished += not wrong
        faults += [f"run {number}: {name}" for name in wrong]
        verdict = f"DIFFERS: {', '.join(wrong)}" if wrong else "all the same"
        hits = f"{len(outcome.hits)} of {len(kills)} struck"
        took = time.monotonic() - began
        say(f"  {hits}, {outcome.starts} starts, {took:.0f} s, {outcome.left} left: {verdict}")
        if struck.total() >= points:
            break
    say(table(struck))
    say(f"{finished} of {number} runs finished; {survived} of {struck.total()} kills survived")
    return faults


def differences(outcome: Outcome, run: Path, reference: dict[str, str]) -> list[str]:
    """Return what is not as in the undisturbed run."""
    if outcome.code != 0:
        return ["hung" if outcome.code is None else f"ended with {outcome.code}"]
    found = products(run)
    left = [f"{outcome.left} processes were left"] if outcome.left else []
    return [name for name in reference if found[name] != reference[name]] + untold(run) + left


def table(struck: Counter) -> str:
    """Return how often each target was killed in each phase."""
    lines = ["struck   " + "".join(f"{phase:>12s}" for phase in PHASES)]
    for target in TARGETS:
        lines.append(f"{target:9s}" + "".join(f"{struck[target, phase]:12d}" for phase in PHASES))
    return "\n".join(lines)
