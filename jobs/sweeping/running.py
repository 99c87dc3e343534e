"""Rows of a sweep being done: one after the other, or beside each other where GPUs allow it."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.console import say
from jobs.errors import Stopped
from jobs.sweeping.rows import RowJob, do_row, is_done


def do_rows(
    jobs: dict[str, RowJob], parallel: int | None, logs: Path, check: Callable[[], None]
) -> dict[str, str]:
    """Do the rows that are not done yet; return, by row, why some failed.

    Args:
        jobs: the rows by name, in their order.
        parallel: rows at a time; None: as many as the GPUs hold, one without, or with `min_workers`.
        logs: folder for what rows print that run beside each other, and for tracebacks.
        check: raises an error when another command has the folder now: no row begins after that.

    Raises:
        Stopped: the command was asked to stop.
        StaleAttempt: by `check`.
    """
    waiting = [job for job in jobs.values() if not is_done(job)]
    for job in jobs.values():
        if job not in waiting:
            say(f"{job.name}: done already")
    failed: dict[str, str] = {}
    for job, error in _attempts(waiting, parallel, logs) if waiting else ():
        check()
        say(f"{job.name}: " + ("done" if error is None else f"failed: {_reason(error)}"))
        if error is not None:
            failed[job.name] = _reason(error) + _details(job, error, logs)
    return failed


def _attempts(
    waiting: list[RowJob], parallel: int | None, logs: Path
) -> Iterator[tuple[RowJob, BaseException | None]]:
    parallel = parallel or _as_gpus_allow(waiting[0])
    if parallel == 1:
        return ((job, _attempt(job)) for job in waiting)
    from jobs.sweeping.parallel import run_beside

    return run_beside([replace(job, output=logs / f"{job.name}.log") for job in waiting], parallel)


def _as_gpus_allow(job: RowJob) -> int:
    if job.launcher != "ray" or job.min_workers is not None:
        return 1
    if job.address is None:
        import torch

        return max(1, torch.cuda.device_count() // job.workers) if torch.cuda.is_available() else 1
    from jobs.launching.ray_launch import connect

    connect(job.address, job.workers)
    import ray

    return max(1, int(ray.cluster_resources().get("GPU", 0)) // job.workers)


def _attempt(job: RowJob) -> BaseException | None:
    say(f"{job.name}: starting")
    try:
        do_row(job)
    except Stopped:
        # Asked to stop: not this row alone.
        raise
    except Exception as error:
        return error
    return None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _details(job: RowJob, error: BaseException, logs: Path) -> str:
    if isinstance(error, ValueError | RuntimeError | OSError):
        return ""
    # A fault of ours: whoever mends it needs more than a line.
    logs.mkdir(parents=True, exist_ok=True)
    details = logs / f"{job.name}.traceback.txt"
    details.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"; see {details}"
