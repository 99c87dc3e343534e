"""Ranks that wait do so together: a dead one brings all back, and one that is asked to stop stops all."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from jobs.errors import Stopped
from jobs.launching.launch import launch
from pipeline import train as module
from pipeline.agreement import on_any_rank
from pipeline.notice import ASKED, Notice, Preempted, no_notice
from pipeline.train import TrainJob, _Books, _finish
from tests.pipeline import waiting_ranks


@pytest.fixture(autouse=True)
def alone():
    """A world of this process."""
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if begun:
        dist.destroy_process_group()


def stopping():
    return Notice(save=True, stop=True)


def books(waited, ask):
    checkpoints = SimpleNamespace(wait=lambda: waited.append(True))
    schedule, engine = SimpleNamespace(iters=12), SimpleNamespace(device="cpu")
    return _Books(None, schedule, engine, None, checkpoints, None, "", 0, {}, ask)


def test_a_world_of_one_agrees_with_itself():
    assert on_any_rank(True, False, True, device="cpu") == [True, False, True]


def test_who_waits_and_is_asked_to_stop_stops_once_the_checkpoint_is_on_the_disk():
    waited = []
    assert books(waited, no_notice).agree(6, True)
    assert not books(waited, no_notice).agree(6, False)
    # Nothing to wait for: the next step hears of it, or the stage is done.
    assert not books(waited, stopping).agree(6, False)
    assert waited == []
    with pytest.raises(Preempted, match="asked to stop: step 6 of 12 is saved"):
        books(waited, stopping).agree(6, True)
    assert waited == [True]


def test_a_checkpoint_that_fails_as_a_rank_stops_is_known_to_be_of_that():
    """Or the ranks would be started again, and nobody would know of the one's SIGTERM."""
    stopped = books([], stopping)
    stopped.checkpoints.wait = Path("/nowhere/step-000000006").read_text
    with pytest.raises(FileNotFoundError) as failed:
        stopped.stop(6)
    assert failed.value.__notes__ == [ASKED]


@pytest.mark.parametrize(("ask", "told"), [(no_notice, False), (stopping, True)])
def test_who_is_asked_to_stop_in_the_last_step_has_the_weights_and_says_so(tmp_path, monkeypatch, ask, told):
    saved = []
    monkeypatch.setattr(module, "save_weights", lambda *_: saved.append(True))
    engine = SimpleNamespace(module=torch.nn.Linear(1, 1), destroy=lambda: None, device="cpu")
    job = TrainJob(None, "baseline", str(tmp_path), "", None, 1)

    def late():
        assert saved, "while the weights are written too"
        return ask()

    assert _finish(engine, job, SimpleNamespace(check=lambda: None), {}, late) is told


@pytest.mark.slow
def test_a_rank_that_dies_as_others_wait_comes_back_and_one_that_gets_sigterm_ends_all(tmp_path):
    """The dead one's peer gets SIGTERM too, from torchrun, and it is nobody's wish to stop."""
    payload = {"out": str(tmp_path), "stop_file": str(tmp_path / "stop")}
    with pytest.raises(Stopped, match="asked to stop: step 6 of 12 is saved"):
        launch(waiting_ranks.wait, payload, tmp_path / "scratch", 2, "torchrun")
    # Both by themselves: who does not end is killed by torchrun half a minute later.
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == ["stopped-2-0", "stopped-2-1"]
