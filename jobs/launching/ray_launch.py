"""The Ray launcher: Ray Train starts the ranks, restarts dead ones, and keeps no state of ours."""

import atexit
import functools
import itertools
import logging
import os
import secrets
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobs.errors import GIVE_TOKEN, JobFailed
from jobs.launching.elastic import GROW_CHECK_S, elastic_trainer
from jobs.launching.environment import RESTARTS, worker_environment
from jobs.launching.plan import Plan
from jobs.launching.preemption import own_sigterm
from jobs.launching.tries import Tries
from jobs.launching.worker import Task, work
from pipeline.engine import TIMEOUT_S
from shards.errors import BadInput
from shards.storage.secrets import holds_secret, redact

REACH_S = 10
LAST_WORD = (
    "mrrcnn: this process was killed, or its node of the Ray cluster has ended and it with it; "
    "the same command goes on"
)
# Read when Ray is imported. A start that takes longer has asked for what the cluster no longer has.
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}


def run_on_ray(task: Task, payload: dict[str, Any], plan: Plan, address: str | None) -> None:
    """Return when every rank is done.

    Raises:
        BadInput: no cluster at the address, or a private one with fewer GPUs than ranks.
        JobFailed: in one line, what failed after all restarts since the newest checkpoint, or because the
            task was asked to end.
    """
    workers, scratch = plan.sizes[-1], plan.scratch
    connect(address, workers)
    import ray
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    tries = Tries(plan)
    for trial in itertools.count():
        try:
            return _fit(lambda: work(task, payload, str(scratch)), trial, plan, address)
        except ControllerError as error:
            # Ray gives up on a worker that dies while its group still starts, and keeps its place taken.
            failure = error
            if plan.over():
                break
            ray.shutdown()
            connect(address, workers)
        except TrainingFailedError as error:
            failure = error
            break
        if tries.fail() > RESTARTS:
            break
    message, details = f"workers failed: {_cause(failure)}", scratch / "traceback.txt"
    # What failed is told, not that a full disk does not take this either.
    with suppress(OSError):
        details.write_text(str(failure), encoding="utf-8")
        message += f"; see {details}"
    raise JobFailed(message)


def _fit(body: Callable[[], None], trial: int, plan: Plan, address: str | None) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    workers = plan.sizes[-1]
    # A private cluster has room for all; another's nodes come and go.
    wanted = workers if address is None else (plan.sizes[0], workers)
    elastic_trainer(
        plan,
        train_loop_per_worker=body,
        scaling_config=ScalingConfig(
            num_workers=wanted,
            use_gpu=_uses_gpus(address, plan.sizes[0]),
            elastic_resize_monitor_interval_s=GROW_CHECK_S,
        ),
        # A new name every time, so that Ray never resumes an older run from its own snapshot.
        run_config=RunConfig(
            name=f"{plan.scratch.name}-{trial}",
            storage_path=str(plan.scratch / "ray"),
            failure_config=FailureConfig(max_failures=RESTARTS),
            worker_runtime_env={
                "env_vars": {"OMP_NUM_THREADS": worker_environment(workers)["OMP_NUM_THREADS"]}
            },
        ),
        torch_config=TorchConfig(timeout_s=TIMEOUT_S),
    ).fit()


def connect(address: str | None, workers: int) -> None:
    """Connect this process to a Ray cluster once; without an address, to a private one that ends with it.

    Raises:
        BadInput: no cluster at the address, one that wants a token or another Ray or Python, or a password
            in this command, which the cluster would show.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    if address is None:
        # Whatever RAY_ADDRESS names is somebody's cluster; only --address chooses it.
        os.environ.pop("RAY_ADDRESS", None)
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
            # A token of this process's own: Ray would leave one in the user's home for ever.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    warnings.filterwarnings("ignore", module="ray")
    import ray

    if ray.is_initialized():
        return
    _leave_a_last_word()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.update(worker_environment(workers))
        # Ranks may share a core; Ray would wait for a second one for ever.
        cores = max(os.cpu_count() or 1, workers)
        with own_sigterm():
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        return
    _check_command(sys.argv[1:])
    _check_reachable(address)
    with _code_for_cluster() as environment, own_sigterm():
        try:
            ray.init(address=address, runtime_env=environment, **quiet)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise BadInput(f"--address {address}: {_refusal(error)}") from None


def _refusal(error: Exception) -> str:
    from ray.exceptions import AuthenticationError

    line = " ".join(str(error).split())
    if isinstance(error, AuthenticationError):
        return f"the cluster wants its token, and there is none here; {GIVE_TOKEN}"
    if line.startswith("Version mismatch"):
        return f"{line}; install the same Ray and Python here as there"
    if isinstance(error, ConnectionError):
        # To the process that has another token or none at all, Ray says no more.
        return (
            f"no Ray cluster answers there ({line[:200]}); see `ray start`; if it has a token, {GIVE_TOKEN}"
        )
    return f"Ray cannot join that cluster ({line[:200]}); see `ray start`"


@functools.cache
def _leave_a_last_word() -> None:
    # Ray ends a driver from within when its node has died, without a word; a child's pipe ends with it.
    script = f"trap '' HUP INT TERM; read -r ended || echo '{LAST_WORD}' >&2"
    child = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    atexit.register(child.communicate, b"\n")


def _check_command(words: list[str]) -> None:
    # Of every driver Ray shows the command to everybody with the cluster's token.
    for word in words:
        if holds_secret(word):
            raise BadInput(
                f"{redact(word)}: holds a password or token, and the cluster shows this command to all; "
                "leave it out, and set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, in the environment"
            )


def _check_reachable(address: str) -> None:
    # Ray itself would try for minutes.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise BadInput(f"--address {address}: nobody answers there ({error}); see `ray start`") from None


@contextmanager
def _code_for_cluster() -> Iterator[dict[str, Any] | None]:
    # A job that was submitted brings its code along already.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        yield None
        return
    from jobs.submission.package import packaged

    with packaged() as package:
        yield {"working_dir": str(package)}


def _uses_gpus(address: str | None, workers: int) -> bool:
    gpus = _gpus(address)
    # A cluster that has lost a node will have more of them again; it is waited for.
    if address is None and 0 < gpus < workers:
        raise BadInput(
            f"--workers {workers}: this machine has {gpus} GPU(s), one a worker; use --workers {gpus}"
        )
    return gpus > 0


@functools.cache
def _gpus(address: str | None) -> int:
    # Once a command: its later stages must not go on without GPUs because a node is away just then.
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", {})
    first = next(iter(failures.values()), error)
    lines = str(first).strip().splitlines() or [type(first).__name__]
    return lines[-1].strip()
