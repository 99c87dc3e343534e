"""One rank's process: the same function under Ray Train, torchrun and in a single local process."""

import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from configs.load import parse_config
from configs.schema import Test
from jobs.launching.verdict import VERDICT, Judging
from pipeline.child import await_parents_end
from pipeline.engine import TIMEOUT_S
from shards.storage.cache import cache_at

PROGRESS = "progress.log"
OUR_LOGGERS = ("pipeline", "shards", "ops", "jobs")

Task = Callable[[dict[str, Any]], None]
# By its name: torchrun starts this module as a program.
log = logging.getLogger("jobs.launching.worker")


def train_stage(payload: dict[str, Any]) -> None:
    """Train one stage on this rank.

    The payload is TrainJob's fields with the config as a mapping, and `stop_file`: training saves and stops
    when that file appears. A rank that is asked to stop too late for that makes it, so that no other stage
    begins.
    """
    from jobs.launching.preemption import Listener
    from pipeline.train import TrainJob, train

    fields = {name: value for name, value in payload.items() if name != "stop_file"}
    job = TrainJob(**{**fields, "config": parse_config(payload["config"])})
    if train(job, Listener(payload["stop_file"])):
        # No handler's task: when a rank dies, torchrun sends SIGTERM to the others, and they all come back.
        Path(payload["stop_file"]).touch()


def detect_parts(payload: dict[str, Any]) -> None:
    """Detect on this rank's share of the images, with one weights file after the other.

    Where the payload has a `claim`, arguments of `claim_stage`, nothing is deleted or left without its right.
    """
    from pipeline.evaluate import detect
    from pipeline.lease import claim_stage

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    check = claim_stage(**payload["claim"], rank=rank).check if payload.get("claim") else lambda: None
    for job in payload["jobs"]:
        log.info("detecting with %s", job["weights"])
        if rank == 0:
            check()
            _drop_other_worlds(Path(job["parts"]), world)
        test, cache = Test(**payload["test"]), cache_at(**payload["cache"])
        place = job["weights"], payload["shards"], job["parts"]
        detect(*place, test, rank, world, cache=cache, may_commit=check)


def _drop_other_worlds(parts: Path, world: int) -> None:
    # A group that a lost node has made smaller begins anew; what the larger one has left does not fit.
    for part in parts.glob("rank-*.jsonl"):
        if not part.name.endswith(f"-of-{world:04d}.jsonl"):
            part.unlink(missing_ok=True)


def work(task: Task, payload: dict[str, Any], scratch: str, again: bool = True) -> None:
    """Do this rank's share of a task.

    Expects RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment. Rank 0's
    log lines go to SCRATCH/progress.log. An error that a new try would only repeat is written to
    SCRATCH/verdict.json, and once that is there, a new try does nothing. Where there is no new try (not
    `again`), so is any but an OSError.
    """
    if Path(scratch, VERDICT).exists():
        return
    _settle_process()
    judging = Judging(Path(scratch), payload.get("stop_file"), again)
    with _logging_to(Path(scratch, PROGRESS)), judging:
        _tell_of_the_machine()
        _tell_of_a_slow_operator()
        task(payload)


def _settle_process() -> None:
    if torch.cuda.is_available():
        # cuBLAS is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))


def _tell_of_the_machine() -> None:
    # A cluster whose driver is broken or not asked for would train on CPUs for days, without a word.
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    log.info("workers: %s on %s", os.environ["WORLD_SIZE"], device)


def _tell_of_a_slow_operator() -> None:
    from ops import backend_info

    info = backend_info()
    if torch.cuda.is_available() and info["cuda_library"] is None:
        # Most likely the package of a submission from a machine without nvcc.
        log.warning(
            "operator: no CUDA library, so the plain PyTorch one runs on the GPUs, slower (%s); build where "
            "nvcc is, or submit from the image",
            info["reason"],
        )


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    if int(os.environ["RANK"]):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    loggers = [logging.getLogger(name) for name in OUR_LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _die_with_driver(agent: int) -> None:
    # The agent's standard input, which its workers share, is a pipe of the driver's.
    await_parents_end()
    # An agent that was killed itself has left us to a parent that is none of our business.
    if os.getppid() == agent:
        os.kill(agent, signal.SIGTERM)
    os._exit(1)


def main() -> None:
    """Do the task of a file written by `jobs.launching.launch`, on a rank that torchrun started."""
    threading.Thread(target=_die_with_driver, args=(os.getppid(),), daemon=True).start()
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, name = order["task"].split(":")
    work(getattr(importlib.import_module(module), name), order["payload"], order["scratch"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
