"""What every launcher gives its workers: the environment, and how often they are started again."""

import os

from pipeline.child import python_path

RESTARTS = 3


def worker_environment(workers: int) -> dict[str, str]:
    """Return the variables of a worker process: our folders importable, the cores shared out."""
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return {
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
