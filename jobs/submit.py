"""The same run as a job of a Ray cluster: package the code, submit, follow, pass the exit code on."""

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

from configs.load import dump_config
from configs.schema import Config
from jobs.console import say
from jobs.package import write_package
from shards.errors import BadInput

CONFIG = "submitted.yaml"
INTERRUPTED = 130


def submit(config: Config, run_dir: str, workers: int, address: str, redo: str | None = None) -> int:
    """Return the exit code of `mrrcnn run` on the cluster, after showing its log to the end.

    Args:
        config: resolved here, so that the job sees no overrides.
        run_dir: absolute; the cluster's nodes see it.
        workers: ranks on the cluster.
        address: of the head's job server, such as http://HEAD:8265.
        redo: as for `run`.

    Raises:
        BadInput: a relative path, which means another place on the cluster, or nobody at the address.
    """
    _check_paths(config, run_dir)
    package = write_package({CONFIG: dump_config(config)})
    client = _client(address)
    environment = {"working_dir": str(package), "env_vars": {"MLFLOW_TRACKING_URI": _tracking_uri(run_dir)}}
    job = client.submit_job(entrypoint=entrypoint(run_dir, workers, redo), runtime_env=environment)
    say(f"job {job} at {address}; to stop it: ray job stop {job} --address {address}")
    try:
        return asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        say(f"the job goes on; to see its log: ray job logs {job} --address {address} --follow")
        return INTERRUPTED


def entrypoint(run_dir: str, workers: int, redo: str | None) -> str:
    """Return the job's shell command: prove that the operator came along, then run."""
    words = ["python", "-m", "jobs.cli", "run", CONFIG, "--run-dir", run_dir, "--workers", str(workers)]
    words += ["--launcher", "ray", "--address", "auto", *(["--redo", redo] if redo else [])]
    return f"python -m jobs.submit {shlex.quote(_backend())} && {shlex.join(words)}"


def assert_operator(expected: str) -> None:
    """Raise RuntimeError unless the operator here is as well built as where the job came from."""
    from ops import backend_info

    info = backend_info()
    if expected != "reference" and info["backend"] == "reference":
        raise RuntimeError(f"the operator's library does not load on {_host()}: {info.get('reason')}")
    say(f"operator: {info['backend']} on {_host()}")


def _tracking_uri(run_dir: str) -> str:
    # MLflow's own default would be a file in the job's working directory, which Ray deletes.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(run_dir).parent}/mlflow.db"


def _backend() -> str:
    from ops import backend_info

    return backend_info()["backend"]


def _host() -> str:
    import socket

    return socket.gethostname()


def _check_paths(config: Config, run_dir: str) -> None:
    paths = {"--run-dir": run_dir, "model.weights": config.model.weights}
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
        if path is not None and not Path(path).is_absolute():
            raise BadInput(
                f"{key}={path}: is relative, but the job runs elsewhere; give the cluster's full path"
            )


def _client(address: str) -> Any:
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise BadInput(f"--address {address}: is no URL of a job server; give one such as http://HEAD:8265")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"--address {address}: no Ray job server answers there ({reason})") from None


async def _follow(client: Any, job: str) -> int:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
    details = client.get_job_info(job)
    say(f"job {job}: {details.status}")
    code = details.driver_exit_code
    return code if code is not None else int(str(details.status) != "SUCCEEDED")


if __name__ == "__main__":
    import sys

    assert_operator(sys.argv[1])
