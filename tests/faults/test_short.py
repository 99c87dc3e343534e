"""The short form of `make faults`: killed, asked to stop, killed again, and the same in the end."""

import shutil
import signal

import pytest

from tests.faults.case import OneStage, log_of, ray_folder, trained
from tests.faults.kills import Kill, plan, signs, steps, strike, suffer, wait_for


@pytest.mark.slow
def test_a_training_that_is_killed_stopped_and_killed_again_is_the_undisturbed_one(tmp_path):
    stage = OneStage.make(tmp_path)
    stage.finish(tmp_path / "undisturbed", "torchrun")
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "baseline" / "checkpoints"
    host = Kill("checkpoint", "host", "baseline", 3, 0.005, 0.0)
    process = stage.start(run, "torchrun")
    wait_for(process, signs(run, host))
    assert "killed" in strike(process, host, run)
    # The same command at once, while ranks of the killed one may live.
    process = stage.start(run, "torchrun")
    wait_for(process, lambda: steps(run / "baseline") >= 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    last = steps(run / "baseline")
    assert (checkpoints / f"step-{last:09d}").exists(), "nothing is lost: the last step is saved"
    assert f"asked to stop: step {last} of 10 is saved; the same command goes on" in log_of(run).read_text()
    worker = Kill("step", "worker", "baseline", min(last + 1, 9), 0.0, 0.9)
    outcome = suffer(stage, run, "torchrun", [worker], print)
    assert (outcome.code, outcome.hits, outcome.left) == (0, [worker], 0), log_of(run).read_text()[-3000:]
    assert trained(run) == trained(tmp_path / "undisturbed")
    shutil.rmtree(ray_folder())


def test_a_plan_is_its_seeds_and_hits_every_target_in_every_phase():
    assert list(plan(3, 10, ["ray", "torchrun"])) == list(plan(3, 10, ["ray", "torchrun"]))
    assert list(plan(3, 10, ["ray"])) != list(plan(4, 10, ["ray"]))
    every = {(kill.target, kill.phase) for _, kills in plan(0, 8, ["ray"]) for kill in kills}
    phases = ("step", "checkpoint", "switch", "evaluate")
    wanted = {(target, phase) for target in ("worker", "driver", "raylet", "host") for phase in phases}
    assert every == wanted | {(target, "shard") for target in ("worker", "driver", "host")}
