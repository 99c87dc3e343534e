"""An error that repeats itself ends the job with a report; one that comes of a dead peer never does."""

import json

import pytest
import torch
import torch.distributed as dist

from jobs.launching.verdict import VERDICT, Judging
from pipeline.evaluations import EvaluationFailed
from pipeline.lease import StaleAttempt, Superseded
from pipeline.notice import ASKED, Preempted
from pipeline.step_note import InStep
from pipeline.train import NonFiniteLoss
from shards.errors import BadInput


def end_with(scratch, error, step=7, **judging):
    with pytest.raises(type(error)), Judging(scratch, **judging), InStep(step):
        raise error


@pytest.fixture(autouse=True)
def start(monkeypatch):
    """The starts of the workers: named as the list says, without a name in it each anew."""
    names = []
    monkeypatch.setenv("RANK", "0")

    def agree(told):
        told[0] = names[0] if names else told[0]

    monkeypatch.setattr(dist, "broadcast_object_list", agree)
    return names


def verdict(scratch):
    path = scratch / VERDICT
    return json.loads(path.read_text()) if path.exists() else None


def test_the_same_error_twice_in_the_same_step_is_told_with_its_step(tmp_path, monkeypatch):
    end_with(tmp_path, RuntimeError("out of memory: process 17"))
    assert verdict(tmp_path) is None
    monkeypatch.setenv("RANK", "3")
    end_with(tmp_path, RuntimeError("out of memory: process 18"))
    found = verdict(tmp_path)
    assert found["message"] == (
        "twice the same error, so it is not tried again: out of memory: process 18 (in step 7)"
    )
    assert not found["expected"], "so that the line names the traceback"
    assert "in end_with" in found["traceback"] and "in step 7" in found["traceback"]


def test_two_ranks_of_one_start_are_no_second_time(tmp_path, monkeypatch, start):
    """A store that is away fails every rank at the same line in the same step; nothing was tried again."""
    start.append("first")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        end_with(tmp_path, OSError("the store is away"))
    assert verdict(tmp_path) is None
    start[0] = "second"
    end_with(tmp_path, OSError("the store is away"))
    assert verdict(tmp_path)["message"].startswith("twice the same error")


def test_in_another_step_at_another_place_or_of_another_kind_it_is_tried_again(tmp_path):
    end_with(tmp_path, RuntimeError("out of memory"))
    end_with(tmp_path, RuntimeError("out of memory"), step=8)
    end_with(tmp_path, OSError("out of memory"), step=8)
    with pytest.raises(RuntimeError), Judging(tmp_path), InStep(8):
        raise RuntimeError("out of memory")
    assert verdict(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
        dist.DistBackendError("NCCL communicator was aborted"),
        ConnectionResetError("Connection reset by peer"),
        Superseded("the workers were started again"),
    ],
)
def test_a_dead_or_newer_peer_is_never_held_against_the_job(tmp_path, error):
    for _ in range(3):
        end_with(tmp_path, error)
    assert verdict(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "stopped", "of_the_user"),
    [
        (BadInput("a.json: is empty"), False, True),
        (BadInput("/data/gloo/a.json: is empty"), False, True),
        (NonFiniteLoss("step 7"), False, False),
        (StaleAttempt("attempt 1 is over"), False, False),
        (Preempted("asked to stop"), True, False),
    ],
)
def test_what_a_new_try_would_only_repeat_is_final_at_once(tmp_path, error, stopped, of_the_user):
    end_with(tmp_path, error)
    found = verdict(tmp_path)
    assert (found["message"], found["stopped"], found["input"]) == (str(error), stopped, of_the_user)


def test_the_end_of_a_process_is_no_error(tmp_path):
    for kind in (KeyboardInterrupt, SystemExit):
        for _ in range(2):
            end_with(tmp_path, kind())
    assert verdict(tmp_path) is None


def test_what_fails_once_the_task_is_asked_to_stop_is_told_since_nobody_tries_again(tmp_path):
    stop, full = tmp_path / "stop", OSError(28, "No space left on device", "step-000000007")
    end_with(tmp_path, full, stop_file=str(stop))
    assert verdict(tmp_path) is None
    stop.touch()
    end_with(tmp_path, ConnectionResetError("Connection reset by peer"), stop_file=str(stop))
    assert verdict(tmp_path) is None
    end_with(tmp_path, full, stop_file=str(stop))
    found = verdict(tmp_path)
    assert found["message"].startswith("asked to stop, but this came first")
    assert found["message"].endswith("No space left on device: 'step-000000007' (in step 7)")
    assert found["stopped"] and not found["expected"], "so that the line names the traceback"
    end_with(tmp_path, BadInput("a.json: is empty"), stop_file=str(stop))
    assert (verdict(tmp_path)["input"], verdict(tmp_path)["stopped"]) == (True, False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EvaluationFailed("ended or stood still 4 times; see output.log"), True),
        (Superseded("the workers were started again"), True),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), False),
        (KeyError("loss"), False),
    ],
)
def test_where_nobody_tries_again_everything_is_final_but_what_the_system_refuses(tmp_path, error, expected):
    end_with(tmp_path, OSError(28, "No space left on device"), again=False)
    assert verdict(tmp_path) is None, "the command has a remedy for it"
    end_with(tmp_path, error, again=False)
    found = verdict(tmp_path)
    assert (found["message"], found["expected"], found["stopped"]) == (str(error), expected, False)


def test_what_fails_while_a_rank_stops_as_asked_ends_the_job_without_the_drivers_stop_file(tmp_path):
    """torchrun's rank alone has heard SIGTERM; begun again, it would train on."""
    error = OSError(28, "No space left on device")
    error.add_note("in step 6")
    error.add_note(ASKED)
    end_with(tmp_path, error)
    found = verdict(tmp_path)
    assert found["stopped"] and found["message"].startswith("asked to stop, but this came first")
    assert found["message"].endswith("No space left on device (in step 6)")


@pytest.mark.parametrize("error", [OSError("/data/gloo/a.tar: no"), RuntimeError("category 'igloo'")])
def test_a_name_that_is_like_a_peers_is_no_excuse(tmp_path, error):
    for _ in range(2):
        end_with(tmp_path, error)
    assert verdict(tmp_path)["message"].startswith("twice the same error")


@pytest.mark.parametrize("error", [BadInput("a.json: is empty"), Preempted("asked to stop"), OSError("full")])
def test_a_disk_that_takes_no_verdict_does_not_hide_the_error(tmp_path, error):
    end_with(tmp_path / "full", error)
