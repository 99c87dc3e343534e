"""Rows of a sweep beside each other: each is a Ray task, which runs its own training on the same cluster."""

from collections.abc import Iterator
from typing import Any

from jobs.errors import JobFailed
from jobs.sweeping.rows import RowJob, do_row


def run_beside(jobs: list[RowJob], at_once: int) -> Iterator[tuple[RowJob, BaseException | None]]:
    """Yield (row, None or its error) as rows end, `at_once` at a time in their order.

    A row waits while another one fills a folder that it needs too. Without an address, all share one
    private cluster of this machine.
    """
    from jobs.launching.ray_launch import connect

    connect(jobs[0].address, jobs[0].workers * at_once)
    import ray

    # No processor of its own: the row only waits for its ranks. Ray would repeat a row that it lost.
    call = ray.remote(num_cpus=0, max_retries=0)(do_row)
    waiting, running = list(jobs), {}
    while waiting or running:
        for job in _startable(waiting, list(running.values()), at_once):
            waiting.remove(job)
            running[call.remote(job)] = job
        (ended,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ended), _error(ended)


def _startable(waiting: list[RowJob], running: list[RowJob], at_once: int) -> list[RowJob]:
    taken = {place for job in running for place in job.claims}
    chosen: list[RowJob] = []
    for job in waiting:
        claims = set(job.claims)
        if len(running) + len(chosen) < at_once and not claims & taken:
            chosen.append(job)
            taken |= claims
    return chosen


def _error(reference: Any) -> BaseException | None:
    from ray import get
    from ray.exceptions import RayError, RayTaskError

    try:
        get(reference)
    except RayTaskError as error:
        return error.cause
    except RayError as error:
        return JobFailed(f"its process did not end ({' '.join(str(error).split())[:200]})")
    return None
