"""SIGTERM: a checkpoint of the last step within the grace period, and nothing lost."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import OneStage, log_of, trained
from tests.faults.kills import steps, wait_for

# What Kubernetes gives a container that it ends.
GRACE_S, STEP = 30.0, 4


def ask_to_stop(folder: Path, say: Callable[[str], None], launchers: list[str]) -> list[str]:
    """Return what went wrong when the driver got SIGTERM in mid-training and was started again."""
    stage, faults = OneStage.make(folder), []
    stage.finish(folder / "undisturbed", "torchrun")
    for launcher in launchers:
        run = folder / launcher
        process = stage.start(run, launcher)
        wait_for(process, lambda run=run: steps(run / "baseline") >= STEP)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
        took, last = time.monotonic() - began, steps(run / "baseline")
        saved = (run / "baseline" / "checkpoints" / f"step-{last:09d}").exists()
        stage.finish(run, launcher)
        same = trained(run) == trained(folder / "undisturbed")
        went_on = f"checkpoints/step-{last:09d}" in log_of(run).read_text()
        say(
            f"SIGTERM under {launcher}: exit {code} after {took:.1f} s, step {last} "
            f"{'saved' if saved else 'NOT SAVED'}; afterwards {'all the same' if same else 'DIFFERS'}"
        )
        wrong = {"exit code": code != 143, "step not saved": not saved, "result": not same}
        wrong |= {"slower than the grace period": took > GRACE_S, "began anew": not went_on}
        faults += [f"SIGTERM, {launcher}: {name}" for name, is_so in wrong.items() if is_so]
    return faults
