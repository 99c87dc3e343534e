"""The kill matrix: whole pipelines, each killed once in every phase, compared with one that was not."""

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import Pipeline, products, untold
from tests.faults.kills import PHASES, TARGETS, Outcome, plan, suffer

Say = Callable[[str], None]


def kill_matrix(folder: Path, say: Say, asked: Namespace) -> list[str]:
    """Return what was not as in the undisturbed run, after `asked.points` kills have struck."""
    pipeline, began = Pipeline.make(folder), time.monotonic()
    calm = folder / "undisturbed"
    pipeline.finish(calm, "torchrun")
    reference = products(calm)
    if "missing" in reference.values() or untold(calm):
        return [f"the undisturbed run is not whole: {reference} {untold(calm)}"]
    say(f"undisturbed, {time.monotonic() - began:.0f} s")
    for name, value in reference.items():
        say(f"  {name:18s} {value[:16]}")
    struck, faults, survived, finished = Counter(), [], 0, 0
    runs = enumerate(plan(asked.seed, asked.first + asked.points, asked.launchers), 1)
    for number, (launcher, kills) in runs:
        if number < asked.first:
            continue
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
        if struck.total() >= asked.points:
            break
    say(table(struck))
    ran = number - asked.first + 1
    say(f"{finished} of {ran} runs finished the same; {survived} of {struck.total()} kills survived")
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
