"""Tasks that the launch tests run on real ranks."""

import errno
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards.errors import BadInput

log = logging.getLogger("jobs.tasks")


def add_ranks(payload: dict[str, Any]) -> None:
    """Write the sum over all ranks of rank + 1, and say so."""
    total = torch.tensor([int(os.environ["RANK"]) + 1])
    dist.all_reduce(total)
    log.info("sum %d of %d ranks", int(total), dist.get_world_size())
    Path(payload["out"], f"rank-{os.environ['RANK']}").write_text(str(int(total)))


def die_once(payload: dict[str, Any]) -> None:
    """Rank 1 is killed in its first try, in the middle of a collective; the second try succeeds."""
    mark = Path(payload["out"], "died")
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    add_ranks(payload)


def refuse(payload: dict[str, Any]) -> None:
    """Rank 0 finds the user's data wrong while the others wait for it; counts the tries."""
    with Path(payload["out"], f"tries-{os.environ['RANK']}").open("a") as file:
        file.write("x")
    if os.environ["RANK"] == "0":
        raise BadInput("cat.json: annotation 7 has no area;\nremove it")
    dist.barrier()


def die_then_refuse(payload: dict[str, Any]) -> None:
    """A worker is killed some seconds into the work; the next try finds the user's data wrong."""
    time.sleep(3)
    die_once(payload)
    refuse(payload)


def crash(payload: dict[str, Any]) -> None:
    """A defect in our own code."""
    raise TypeError("no such thing")


def run_out(payload: dict[str, Any]) -> None:
    """Torch finds no memory: an error like any other of its own."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] can't allocate memory")


def stop_on_a_full_disk(payload: dict[str, Any]) -> None:
    """The driver is asked to stop, and then the checkpoint cannot be written."""
    Path(payload["stop_file"]).touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoints/step-000000006")


def linger(payload: dict[str, Any]) -> None:
    """Write every rank's process id and wait to be killed."""
    Path(payload["out"], f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
    sys.exit("nobody came")
