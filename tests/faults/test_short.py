"""The short form of `make faults`: killed, asked to stop, killed again, and the same in the end."""

import os
import shutil
import signal
import subprocess
from dataclasses import replace

import pytest

from tests.faults.case import CHECKPOINT_EVERY, OneStage, log_of, ray_folder, trained
from tests.faults.kills import Hit, Kill, plan, signs, steps, strike, suffer
from tests.faults.watch import MARK, exit_code, nothing_left, wait_for


@pytest.fixture
def folder(tmp_path):
    """A place for runs, of which no process and no folder of Ray's is left."""
    with nothing_left(tmp_path):
        yield tmp_path
    shutil.rmtree(ray_folder(), ignore_errors=True)


@pytest.mark.slow
def test_a_training_that_is_killed_stopped_and_killed_again_is_the_undisturbed_one(folder):
    stage = OneStage.make(folder)
    stage.finish(folder / "undisturbed", "torchrun")
    run, checkpoints = folder / "run", folder / "run" / "baseline" / "checkpoints"
    host = Kill("checkpoint", "host", "baseline", 3, 0.005, 0.0)
    process = stage.start(run, "torchrun")
    wait_for(process, signs(run, host), run)
    assert "killed" in strike(process, host, run)
    # The same command at once, while ranks of the killed one may live.
    process = stage.start(run, "torchrun")
    wait_for(process, lambda: steps(run / "baseline") >= 4, run)
    process.send_signal(signal.SIGTERM)
    assert exit_code(process, run) == 143
    last = steps(run / "baseline")
    assert (checkpoints / f"step-{last:09d}").exists(), "nothing is lost: the last step is saved"
    assert f"asked to stop: step {last} of 10 is saved; the same command goes on" in log_of(run).read_text()
    worker = Kill("step", "worker", "baseline", min(last + 1, 9), 0.0, 0.9)
    outcome = suffer(stage, run, "torchrun", [worker], print)
    (hit,) = outcome.hits
    assert (outcome.code, hit.kill, outcome.left) == (0, worker, 0), log_of(run).read_text()[-3000:]
    assert (outcome.starts, outcome.gave_up) == (1, []), "a dead worker is replaced by the command itself"
    lost, wrong = hit.loss(run)
    assert lost <= CHECKPOINT_EVERY and not wrong
    assert trained(run) == trained(folder / "undisturbed")


@pytest.mark.parametrize(
    ("said", "step", "half", "lost", "wrong"),
    [
        ("resumed from {}/checkpoints/step-000000006", 8, False, 2, False),
        ("resumed from {}/checkpoints/step-000000003", 7, True, 4, False),
        ("resumed from {}/checkpoints/step-000000003", 8, False, 5, True),
        ("baseline: going on", 8, False, 8, True),
    ],
)
def test_a_start_that_goes_on_from_too_early_is_noticed(tmp_path, said, step, half, lost, wrong):
    """The result would be the same: only the log and the claim tell that work was done again."""
    stage = tmp_path / "run" / "baseline"
    stage.mkdir(parents=True)
    (stage / ".claim").write_text("second")
    log_of(tmp_path / "run").write_text("before\n" + said.format(stage))
    kill = Kill("step", "driver", "baseline", step, 0.0, 0.0)
    hit = Hit(kill, step, 3 if half else 6, half, "first", len("before\n"))
    assert hit.loss(tmp_path / "run") == (lost, hit.loss(tmp_path / "run")[1])
    assert bool(hit.loss(tmp_path / "run")[1]) == wrong
    assert replace(hit, claim="second").loss(tmp_path / "run") == (0, ""), "it was not started again"


def test_a_run_that_does_nothing_any_more_is_not_waited_for_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.faults.watch.HANG_S", 0.2)
    monkeypatch.setattr("tests.faults.watch.LOOK_AT_FILES_S", 0)
    environment = {**os.environ, MARK: str(tmp_path / "run")}
    process = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    for wait in (lambda: exit_code(process, tmp_path), lambda: wait_for(process, lambda: False, tmp_path)):
        with pytest.raises(RuntimeError, match="nothing has changed"):
            wait()
    with pytest.raises(KeyError), nothing_left(tmp_path):
        raise KeyError
    assert process.wait(timeout=30) == -signal.SIGKILL


class Dying:
    """Runs that end with 1 at their first start, and well at the next."""

    def __init__(self):
        self.codes = [1, 0]

    def start(self, run, launcher):
        return subprocess.Popen(["sh", "-c", f"exit {self.codes.pop(0)}"])


def test_a_command_that_ends_where_it_should_go_on_by_itself_is_begun_again_but_noticed(tmp_path):
    outcome = suffer(Dying(), tmp_path / "run", "ray", [], print)
    assert (outcome.code, outcome.starts) == (0, 2)
    assert outcome.gave_up == ["the command ended with 1 after no kill"]


def test_a_plan_is_its_seeds_and_hits_every_target_in_every_phase():
    assert list(plan(3, 10, ["ray", "torchrun"])) == list(plan(3, 10, ["ray", "torchrun"]))
    assert list(plan(3, 10, ["ray"])) != list(plan(4, 10, ["ray"]))
    every = {(kill.target, kill.phase) for _, kills in plan(0, 8, ["ray"]) for kill in kills}
    phases = ("step", "checkpoint", "switch", "wait", "evaluate")
    wanted = {(target, phase) for target in ("worker", "driver", "raylet", "host") for phase in phases}
    assert every == wanted | {(target, "shard") for target in ("worker", "driver", "host")}
