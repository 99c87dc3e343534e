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
    struck, faults, survived, finished, most = Counter(), [], 0, 0, 0
    runs = enumerate(plan(asked.seed, asked.first + asked.points, asked.launchers), 1)
    for number, (launcher, kills) in runs:
        if number < asked.first:
            continue
        run, began = folder / f"run-{number}", time.monotonic()
        say(f"run {number}, {launcher}")
        outcome = suffer(pipeline, run, launcher, kills, say)
        wrong = differences(outcome, run, reference)
        struck.update((hit.kill.target, hit.kill.phase) for hit in outcome.hits)
        survived += 0 if wrong else len(outcome.hits)
        finished += not wrong
        faults += [f"run {number}: {name}" for name in wrong]
        verdict = f"DIFFERS: {', '.join(wrong)}" if wrong else "all the same"
        hits = f"{len(outcome.hits)} of {len(kills)} struck"
        took = time.monotonic() - began
        lost = max((hit.loss(run)[0] for hit in outcome.hits), default=0)
        most = max(most, lost)
        hits += f", {outcome.starts} starts, {lost} steps lost"
        say(f"  {hits}, {took:.0f} s, {outcome.left} left: {verdict}")
        if struck.total() >= asked.points:
            break
    say(table(struck))
    ran = number - asked.first + 1
    say(
        f"{finished} of {ran} runs finished the same; {survived} of {struck.total()} kills survived, "
        f"at most {most} steps done again after any"
    )
    return faults


def differences(outcome: Outcome, run: Path, reference: dict[str, str]) -> list[str]:
    """Return what is not as in the undisturbed run, what was lost, and where it did not go on by itself."""
    if outcome.code != 0:
        return ["hung" if outcome.code is None else f"ended with {outcome.code}"]
    found = products(run)
    left = [f"{outcome.left} processes were left"] if outcome.left else []
    lost = [wrong for hit in outcome.hits if (wrong := hit.loss(run)[1])]
    other = [name for name in reference if found[name] != reference[name]]
    return other + untold(run) + left + lost + outcome.gave_up


def table(struck: Counter) -> str:
    """Return how often each target was killed in each phase."""
    lines = ["struck   " + "".join(f"{phase:>12s}" for phase in PHASES)]
    for target in TARGETS:
        lines.append(f"{target:9s}" + "".join(f"{struck[target, phase]:12d}" for phase in PHASES))
    return "\n".join(lines)
