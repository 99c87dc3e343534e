"""The same run as a job of a Ray cluster: package the code, submit it once, follow it."""

import hashlib
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from configs.load import dump_config
from configs.schema import Config
from jobs.checks import check_sources
from jobs.console import say
from jobs.errors import GIVE_TOKEN
from jobs.submission.follow import Job, follow
from jobs.submission.package import packaged
from pipeline.tracking.uri import DEFAULT_FILE, DEFAULT_URI
from shards.errors import BadInput
from shards.storage.secrets import holds_secret, redact

CONFIG = "submitted.yaml"
# What `ray job stop` leaves a run between SIGTERM and SIGKILL; Ray's own 3 seconds write no checkpoint.
STOP_WAIT_S = 60
RUN_DIR, COMMAND = "mrrcnn.run_dir", "mrrcnn.command"


def submit(
    config: Config,
    run_dir: str,
    workers: int,
    address: str,
    redo: str | None = None,
    min_workers: int | None = None,
) -> int:
    """Return the exit code of `mrrcnn run` on the cluster, after showing its log to the end.

    While a job of the same command is alive, it is followed and no other is started. A `redo` that the
    directory's last job has done is not begun anew unasked: whoever was away could not know.

    Args:
        config: resolved here, so that the job sees no overrides.
        run_dir: absolute; the cluster's nodes see it.
        workers: ranks on the cluster.
        address: of the head's job server, such as http://HEAD:8265.
        redo, min_workers: as for `run`.

    Raises:
        BadInput: a relative path, which means another place on the cluster; a password that would be
            shown with the job; nobody at the address; a live job of the directory that does otherwise; or
            a redo that was done.
        JobFailed: the job server has gone.
    """
    check_sources(config)
    _check_paths(config, run_dir)
    _check_secrets(config)
    client = connect(address)
    words = entrypoint(run_dir, workers, redo, min_workers)
    text = dump_config(config)
    label = {RUN_DIR: run_dir, COMMAND: hashlib.sha256(f"{words}\n{text}".encode()).hexdigest()[:16]}
    name = _live(client, label)
    if name is None and redo is not None:
        _check_not_done(client, label, redo, redact(address))
    return follow(Job(client, name or _start(client, words, text, label), redact(address)))


def entrypoint(run_dir: str, workers: int, redo: str | None = None, min_workers: int | None = None) -> str:
    """Return the job's shell command: prove that the operator came along, then run."""
    words = ["--run-dir", run_dir, "--workers", str(workers)]
    words += ["--launcher", "ray", "--address", "auto", *(["--redo", redo] if redo else [])]
    words += ["--min-workers", str(min_workers)] if min_workers else []
    # MLflow's own default is a file in a directory that Ray deletes.
    uri = shlex.quote(f"sqlite:///{Path(run_dir).parent}/{DEFAULT_FILE}")
    check = f"python -m jobs.submission.submit {shlex.quote(_backend())}"
    # Ray deletes a job's directory and makes it anew when another node of the same machine first uses it.
    run = f'cd / && python -m jobs.cli run "$OLDPWD/{CONFIG}" {shlex.join(words)}'
    return f"export {DEFAULT_URI}={uri} && {check} && {run}"


def connect(address: str) -> Any:
    """Return Ray's client of a job server.

    Raises:
        BadInput: no URL, nobody there, or one that wants another token.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    shown = redact(address)
    if not address.startswith(("http://", "https://")):
        raise BadInput(f"--address {shown}: is no URL of a job server; give one such as http://HEAD:8265")
    # Of every package and every closed connection they would speak.
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
        return client
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = redact(" ".join(str(error).split()))[:200]
        if "authenticat" in reason.lower() or "401" in reason or "403" in reason:
            raise BadInput(
                f"--address {shown}: the job server wants the cluster's token; {GIVE_TOKEN}"
            ) from None
        raise BadInput(f"--address {shown}: no Ray job server answers there ({reason})") from None


def operator_fault(expected: str) -> str:
    """Return why the operator here is not as well built as where the job came from, or an empty string."""
    from ops import backend_info

    info = backend_info()
    if expected != "reference" and info["backend"] == "reference":
        return f"the operator's library does not load on {_host()}: {info.get('reason')}"
    say(f"operator: {info['backend']} on {_host()}")
    return ""


def _start(client: Any, words: str, config: str, label: dict[str, str]) -> str:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if os.environ.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    with packaged({CONFIG: config}) as package:
        try:
            return client.submit_job(
                entrypoint=words,
                runtime_env={"working_dir": str(package), "env_vars": variables},
                submission_id=_name(client, label[RUN_DIR]),
                metadata=label,
            )
        except RuntimeError as error:
            # Another submission of this directory came first: it has taken the name.
            if "already exists" in str(error) and (name := _live(client, label)):
                return name
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"the job server refuses the job ({redact(reason)})") from None


def _name(client: Any, run_dir: str) -> str:
    folder = re.sub(r"[^\w-]+", "-", Path(run_dir).name)
    stem = f"mrrcnn-{folder}-{hashlib.sha256(run_dir.encode()).hexdigest()[:6]}"
    names = [job.submission_id or "" for job in client.list_jobs()]
    taken = [int(name.rpartition("-")[2]) for name in names if re.fullmatch(rf"{re.escape(stem)}-\d+", name)]
    # Above the highest: `ray job delete` may have taken any of them away.
    return f"{stem}-{1 + max(taken, default=0)}"


def _live(client: Any, label: dict[str, str]) -> str | None:
    for job in client.list_jobs():
        theirs = job.metadata or {}
        if theirs.get(RUN_DIR) != label[RUN_DIR] or job.status.is_terminal():
            continue
        if theirs.get(COMMAND) != label[COMMAND]:
            raise BadInput(
                f"{label[RUN_DIR]}: job {job.submission_id} is running it with other settings; wait for it, "
                f"stop it (ray job stop {job.submission_id}), or choose another --run-dir"
            )
        say(f"{label[RUN_DIR]}: job {job.submission_id} is running it already; no other is started")
        return job.submission_id
    return None


def _check_not_done(client: Any, label: dict[str, str], redo: str, address: str) -> None:
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN_DIR) == label[RUN_DIR]]
    last = max(jobs, key=lambda job: job.start_time or 0, default=None)
    if last and last.metadata.get(COMMAND) == label[COMMAND] and str(last.status) == "SUCCEEDED":
        name = last.submission_id
        raise BadInput(
            f"{label[RUN_DIR]}: job {name} has done this --redo {redo} to its end; leave it out, or, to do "
            f"it once more, first: ray job delete {name} --address {address}"
        )


def _backend() -> str:
    from ops import backend_info

    return backend_info()["backend"]


def _host() -> str:
    import socket

    return socket.gethostname()


def _check_secrets(config: Config) -> None:
    told = {"tracking.uri": config.tracking.uri, "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI")}
    for key, uri in told.items():
        if uri and holds_secret(uri):
            raise BadInput(
                f"{key}={redact(uri)}: holds a password or token, and Ray shows a job's settings to all; "
                "leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the head "
                "is started"
            )


def _check_paths(config: Config, run_dir: str) -> None:
    paths = {"--run-dir": run_dir, "model.weights": config.model.weights}
    # A home is one on every machine.
    paths["data.cache_dir"] = config.data.cache_dir and os.path.expanduser(config.data.cache_dir)
    told = os.environ.get("MLFLOW_TRACKING_URI")
    for key, uri in (("tracking.uri", config.tracking.uri), ("MLFLOW_TRACKING_URI", told)):
        if uri and (uri.startswith("sqlite:") or "://" not in uri):
            paths[key] = uri.removeprefix("sqlite:///")
    for split in ("train", "val"):
        source = getattr(config.data, split)
        if isinstance(source, str):
            paths[f"data.{split}"] = source
        else:
            paths |= {f"data.{split}.{key}": path for key, path in source.model_dump().items()}
    for key, path in paths.items():
        if path is not None and "://" not in path and not Path(path).is_absolute():
            raise BadInput(
                f"{key}={path}: is relative, but the job runs elsewhere; give the cluster's full path"
            )


if __name__ == "__main__":
    fault = operator_fault(sys.argv[1])
    sys.exit(f"mrrcnn: {fault}" if fault else 0)
