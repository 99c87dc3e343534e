"""What a rank may delete and leave when it detects, and when it may not; and what it says of its machine."""

from contextlib import nullcontext

import pytest
import torch

from jobs.launching import worker
from jobs.launching.preemption import own_sigterm
from jobs.launching.worker import detect_parts, train_stage
from pipeline import evaluate
from pipeline.lease import StaleAttempt, acquire


@pytest.fixture
def rank_0(monkeypatch, tmp_path):
    """Rank 0 of 1 that detects nothing: the path of its part, and the payload of attempt 1."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    part = tmp_path / "parts" / "rank-0000-of-0001.jsonl"

    def detect(*_, may_commit, **__):
        may_commit()
        part.touch()

    monkeypatch.setattr("pipeline.evaluate.detect", detect)
    part.parent.mkdir()
    (part.parent / "rank-0000-of-0002.jsonl").touch()
    jobs = [{"weights": "w", "parts": str(part.parent)}]
    claim = {"run_dir": str(tmp_path), "stage": "evaluate", "attempt": 1}
    return part, {"jobs": jobs, "test": {}, "cache": {}, "shards": "s", "claim": claim}


def test_a_group_of_another_size_clears_what_the_one_before_has_left(rank_0, tmp_path):
    part, payload = rank_0
    with acquire(tmp_path):
        detect_parts(payload)
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_an_old_group_deletes_and_leaves_nothing_of_a_newer_attempt(rank_0, tmp_path, monkeypatch):
    part, payload = rank_0
    for _ in range(2):
        with acquire(tmp_path):
            pass
    with pytest.raises(StaleAttempt):
        detect_parts(payload)
    assert [path.name for path in part.parent.iterdir()] == ["rank-0000-of-0002.jsonl"]


def test_a_group_that_is_replaced_while_it_detects_leaves_nothing(rank_0, tmp_path, monkeypatch):
    part, payload = rank_0
    real = evaluate.detect

    def detect(*place, **options):
        (tmp_path / "evaluate" / ".claim").write_text("another start's")
        real(*place, **options)

    monkeypatch.setattr("pipeline.evaluate.detect", detect)
    with acquire(tmp_path), pytest.raises(RuntimeError, match="started again"):
        detect_parts(payload)
    assert not part.exists()


@pytest.mark.parametrize("asked", [True, False])
def test_a_rank_that_was_asked_to_stop_in_the_last_step_tells_the_driver(tmp_path, monkeypatch, asked):
    """Else the next stage would begin, of which SIGTERM to one rank of torchrun says nothing."""
    monkeypatch.setattr("pipeline.train.train", lambda job, ask: asked)
    job = {"stage": "baseline", "run_dir": "r", "shards": "s", "init_weights": None, "attempt": 1}
    config = {"data": {"train": "-", "val": "-"}}
    with own_sigterm():
        train_stage({**job, "config": config, "stop_file": str(tmp_path / "stop")})
    assert (tmp_path / "stop").exists() is asked


@pytest.fixture
def work_with(monkeypatch, tmp_path):
    """Do nothing as rank 0 of 2, with GPUs or without; return what was told."""

    def work(gpu, library):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr("ops.backend_info", lambda: {"cuda_library": library, "reason": "no such file"})
        monkeypatch.setattr(worker, "_settle_process", lambda: None)
        monkeypatch.setattr(worker, "Judging", lambda *_: nullcontext())
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        worker.work(lambda _: None, {}, str(tmp_path))
        return (tmp_path / worker.PROGRESS).read_text()

    return work


@pytest.mark.parametrize(
    ("gpu", "library", "told"), [(True, None, True), (True, "_C_cuda.so", False), (False, None, False)]
)
def test_gpus_without_the_operators_cuda_library_are_told_of(work_with, gpu, library, told):
    """A package from a laptop without nvcc would train slower on every GPU, without a word."""
    slower = "plain PyTorch one runs on the GPUs, slower (no such file)"
    assert (slower in work_with(gpu, library)) is told


@pytest.mark.parametrize(("gpu", "device"), [(True, "NVIDIA H200"), (False, "CPU")])
def test_a_start_of_the_workers_says_how_many_they_are_and_what_they_train_on(work_with, gpu, device):
    """Where a driver is broken, a cluster would train on its CPUs for days, without a word."""
    assert f"workers: 2 on {device}\n" in work_with(gpu, "_C_cuda.so")
