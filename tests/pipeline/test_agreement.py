"""Ranks that wait do so together: a dead one brings all back, and one that is asked to stop stops all."""

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from jobs.errors import Stopped
from jobs.launching.launch import launch
from pipeline.agreement import on_any_rank
from pipeline.notice import Notice, Preempted, no_notice
from pipeline.train import _Books
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


@pytest.mark.slow
def test_a_rank_that_dies_as_others_wait_comes_back_and_one_that_gets_sigterm_ends_all(tmp_path):
    """The dead one's peer gets SIGTERM too, from torchrun, and it is nobody's wish to stop."""
    payload = {"out": str(tmp_path), "stop_file": str(tmp_path / "stop")}
    with pytest.raises(Stopped, match="asked to stop: step 6 of 12 is saved"):
        launch(waiting_ranks.wait, payload, tmp_path / "scratch", 2, "torchrun")
    # Both by themselves: who does not end is killed by torchrun half a minute later.
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == ["stopped-2-0", "stopped-2-1"]
