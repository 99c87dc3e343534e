"""Training waits for a copy, never for the disk; what a write ends with is told, and told once."""

import threading

import pytest
import torch

from pipeline import background
from pipeline.background import CheckpointWriter
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.lease import StaleAttempt
from pipeline.step_note import InStep

LIMIT_S = 30


@pytest.fixture
def slow_disk(monkeypatch):
    """A write waits until it is told to go on."""
    go = threading.Event()

    def save(*arguments):
        assert go.wait(LIMIT_S)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(background, "save_checkpoint", save)
    yield go
    go.set()


def writer(folder, keep=3, every=0, may_commit=lambda: None):
    return CheckpointWriter(folder, keep, every, may_commit)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_what_is_written_is_what_was_there_when_saved(tmp_path, slow_disk):
    weights = {"a": torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)}
    momentum = {"a": torch.ones(4, 3, 2, 2)}
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, weights, momentum, {"step": 1})
        # The disk still waits, and training is a step further already.
        weights["a"] += 7
        momentum["a"] += 7
        assert not tmp_path.exists() or not steps(tmp_path)
        slow_disk.set()
        checkpoints.wait()
    saved, moved, state = load_checkpoint(tmp_path / "step-000000001")
    assert not saved["a"].any() and (moved["a"] == 1).all() and state == {"step": 1}


def test_one_write_at_a_time_in_order_and_pruned(tmp_path):
    with writer(tmp_path, keep=2, every=3) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"a": torch.zeros(1)}, {}, {"step": step})
    assert steps(tmp_path) == [3, 6, 7]


@pytest.mark.parametrize("ask", ["check", "wait", "save"])
def test_a_write_that_failed_is_told_at_the_next_step_and_only_once(tmp_path, monkeypatch, ask):
    written = threading.Event()

    def fail(*_):
        written.set()
        raise OSError(28, "No space left on device", "step-000000001")

    monkeypatch.setattr(background, "save_checkpoint", fail)
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, {}, {}, {})
        assert written.wait(LIMIT_S)
        checkpoints._pool.submit(lambda: None).result()
        call = {"save": lambda: checkpoints.save(2, {}, {}, {})}.get(ask) or getattr(checkpoints, ask)
        with pytest.raises(OSError, match="No space left") as failed, InStep(9):
            call()
        assert failed.value.__notes__ == ["in step 1"], "when it is told depends on the disk"
        checkpoints.check()
        checkpoints.wait()


def test_asking_does_not_wait(tmp_path, slow_disk):
    with writer(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, {}, {})
        checkpoints.check()
        assert not slow_disk.is_set()
        slow_disk.set()


def test_the_right_to_write_is_asked_for_when_it_is_done_not_when_it_begins(tmp_path, slow_disk):
    over = threading.Event()

    def may_commit():
        if over.is_set():
            raise StaleAttempt("attempt 1 is over")

    with writer(tmp_path, may_commit=may_commit) as checkpoints:
        checkpoints.save(1, {"a": torch.zeros(1)}, {}, {})
        over.set()
        slow_disk.set()
        with pytest.raises(StaleAttempt):
            checkpoints.wait()
    assert not list(tmp_path.iterdir())
