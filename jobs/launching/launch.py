"""Runs a task on every rank: under Ray Train, under torchrun, or in this process."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from jobs.console import following
from jobs.errors import JobFailed, Stopped
from jobs.launching.environment import RESTARTS, worker_environment
from jobs.launching.plan import Plan
from jobs.launching.preemption import passing_on
from jobs.launching.tries import Tries
from jobs.launching.verdict import VERDICT
from jobs.launching.worker import PROGRESS, Task, work
from pipeline.child import ROOT
from pipeline.notice import Preempted
from shards.errors import BadInput


def launch(
    task: Task,
    payload: dict[str, Any],
    scratch: Path,
    workers: int = 1,
    launcher: str = "ray",
    address: str | None = None,
    sizes: tuple[int, ...] = (),
    checkpoints: Path | None = None,
) -> None:
    """Return when every rank has done `task(payload)`; a killed worker is started again.

    Args:
        task: a function of an importable module.
        payload: plain JSON values; SIGTERM makes its `stop_file`, if it names one, and the task minds that.
        scratch: an empty or absent directory that every node sees: progress, verdict, Ray's files.
        workers: number of ranks.
        launcher: "ray", "torchrun" (this machine), or "local" (this process; one worker).
        address: of a running Ray cluster; None starts a private one on this machine.
        sizes: numbers of workers that a cluster may go on with when it has lost nodes; without any,
            it waits for as many as `workers` again.
        checkpoints: the directory of the task's checkpoints; right after a new one, a group that had
            become smaller may grow again.

    Raises:
        BadInput: what a worker found wrong with the user's data or config.
        Stopped: SIGTERM, and not every rank was done; those that trained have saved what they had, or the
            message says what failed and names the traceback.
        JobFailed: anything else, after RESTARTS new tries, since the newest checkpoint, where one could help;
            "local" has none.
        OSError: with "local" alone, what the system refused.
    """
    scratch = scratch.resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    stop_file = payload.get("stop_file")
    with passing_on(stop_file) as heard:
        plan = Plan(sizes or (workers,), checkpoints, scratch, stop_file and Path(stop_file), heard)
        try:
            with following(scratch / PROGRESS):
                _start(task, payload, plan, launcher, address)
        except (RuntimeError, OSError) as error:
            if plan.stopped():
                raise _stopped(error) from None
            raise
        finally:
            _raise_verdict(scratch)


def _start(task: Task, payload: dict[str, Any], plan: Plan, launcher: str, address: str | None) -> None:
    if launcher == "local":
        _local(task, payload, plan.scratch, plan.sizes[-1])
    elif launcher == "torchrun":
        _torchrun(task, payload, plan)
    else:
        from jobs.launching.ray_launch import run_on_ray

        run_on_ray(task, payload, plan, address)


def _stopped(error: Exception) -> Stopped:
    if isinstance(error, Preempted):
        return Stopped(str(error))
    first = "" if isinstance(error, JobFailed) else f", but this came first: {error}"
    return Stopped(f"asked to stop{first}; the same command goes on")


def _local(task: Task, payload: dict[str, Any], scratch: Path, workers: int) -> None:
    if workers != 1:
        raise BadInput(f"--launcher local is one process, not {workers}; use torchrun or ray, or --workers 1")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    # Whatever a surrounding scheduler says of ranks, this is the only one.
    os.environ.update({**alone, "MASTER_PORT": _free_port(), **worker_environment(1)})
    # Not before: DeepSpeed keeps its groups from one stage to the next.
    atexit.register(_end_group)
    work(task, payload, str(scratch), again=False)


def _end_group() -> None:
    # Its threads would outlive the interpreter, which then ends with SIGABRT.
    if dist.is_initialized():
        dist.destroy_process_group()


def _torchrun(task: Task, payload: dict[str, Any], plan: Plan) -> None:
    scratch, workers = plan.scratch, plan.sizes[-1]
    order = {"task": f"{task.__module__}:{task.__qualname__}", "payload": payload, "scratch": str(scratch)}
    (scratch / "order.json").write_text(json.dumps(order), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    # Its own restarts meet in the old store, where new ranks may find the addresses of dead ones.
    command += ["--max-restarts=0", f"--log-dir={scratch / 'torchrun'}"]
    command += ["-m", "jobs.launching.worker", str(scratch / "order.json")]
    # SIGTERM may come before anything is started.
    failures, code, tries = 0, None, Tries(plan)
    while failures <= RESTARTS and not plan.over():
        code = _run_agent(command, {**os.environ, **worker_environment(workers)}, scratch / "output.log")
        if code == 0:
            return
        failures = tries.fail()
    raise JobFailed(
        f"torchrun failed {failures} times in a row, at last with exit code {code}; "
        f"see {scratch / 'output.log'}"
    )


def _run_agent(command: list[str], environment: dict[str, str], output: Path) -> int:
    with output.open("ab") as sink:
        agent = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            return agent.wait()
        finally:
            agent.terminate()
            agent.wait()


def _raise_verdict(scratch: Path) -> None:
    verdict = scratch / VERDICT
    if not verdict.exists():
        return
    found = json.loads(verdict.read_text(encoding="utf-8"))
    if found["input"]:
        raise BadInput(found["message"])
    details = scratch / "traceback.txt"
    try:
        details.write_text(found["traceback"], encoding="utf-8")
    except OSError:
        # What came first is told, not that a full disk does not take this either; the verdict holds it too.
        details = verdict
    kind = Stopped if found["stopped"] else JobFailed
    raise kind(found["message"] if found["expected"] else f"{found['message']}; see {details}")


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
