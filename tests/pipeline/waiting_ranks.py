"""A task of test_agreement.py: two ranks wait for an evaluation that never comes."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from configs.schema import Schedule
from jobs.launching.preemption import Listener
from pipeline.evaluations import Evaluations
from pipeline.notice import Preempted
from pipeline.train import _Books


def wait(payload: dict[str, Any]) -> None:
    """At the first start rank 1 is killed, and torchrun sends rank 0 SIGTERM; at the second rank 1 gets it.

    Who was asked to stop leaves `stopped-START-RANK`.
    """
    out, rank = Path(payload["out"]), os.environ["RANK"]
    listener = Listener(payload["stop_file"])
    engine, nothing = SimpleNamespace(device="cpu"), SimpleNamespace(wait=lambda: None)
    books = _Books(None, Schedule(iters=12), engine, None, nothing, None, "", 0, {}, listener)
    # As of rank 1, both: neither has a process or a snapshot, and nothing but the wait is tried.
    evaluations = Evaluations(out, Schedule(iters=12, eval_every=3, patience=1), {}, 1)
    start, limit = 2 if (out / "started").exists() else 1, time.monotonic() + 60

    def agree(step: int, lacking: bool) -> bool:
        if rank == "1":
            os.kill(os.getpid(), signal.SIGKILL if start == 1 else signal.SIGTERM)
        while start == 1 and not listener().stop:
            assert time.monotonic() < limit, "nobody came"
            time.sleep(0.05)
        assert time.monotonic() < limit, "nobody was heard"
        return books.agree(step, lacking)

    # Together: who comes later would take this for the second start.
    books.agree(0, False)
    (out / "started").touch()
    try:
        evaluations.stops(6, agree)
    except Preempted:
        (out / f"stopped-{start}-{rank}").touch()
        raise
