"""Tasks on a Ray cluster: a `map` in order, as shards.pool has one over processes of this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jobs.errors import JobFailed
from shards.pool import Spread, in_order


@contextmanager
def ray_tasks(address: str, workers: int | None) -> Iterator[Spread]:
    """Yield a `map` in order that tasks of a cluster compute, `workers` at a time (None: one a core).

    A task that dies with its node is done again by Ray. What a task raises is raised here.

    Raises:
        BadInput: no cluster at the address.
        JobFailed: a task was killed as often as Ray tries it.
    """
    from jobs.launching.ray_launch import connect

    connect(address, workers or 1)
    import ray

    cores = int(ray.cluster_resources().get("CPU", 1))
    # SPREAD: packing would fill one node first, and its disk or network is what waits.
    call = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
    try:
        yield partial(in_order, lambda *task: _Task(call.remote(*task)), _result, workers or cores)
    finally:
        ray.shutdown()


class _Task:
    """A task under way, which `in_order` may cancel as it does a future."""

    def __init__(self, reference: Any):
        self.reference = reference

    def cancel(self) -> None:
        import ray

        ray.cancel(self.reference)


def _call(function: Callable, task: Any) -> Any:
    return function(task)


def _result(task: _Task) -> Any:
    from ray import get
    from ray.exceptions import RayError, RayTaskError

    try:
        return get(task.reference)
    except RayTaskError as error:
        # Ray's own error holds a traceback of the worker; ours is one line.
        raise error.cause from None
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise JobFailed(f"a Ray task did not end ({reason}); the same command goes on") from None
