"""An MLflow server that is dead at the start, in the middle, at the end: nothing is lost or doubled."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import ROOT, Pipeline, environment, products, untold
from tests.faults.kills import ledger_state, steps
from tests.faults.watch import exit_code, wait_for


def lose_tracker(folder: Path, say: Callable[[str], None]) -> list[str]:
    """Return what went wrong in three pipelines whose server was killed, after a late `mrrcnn sync`."""
    pipeline, faults = Pipeline.make(folder), []
    pipeline.finish(folder / "undisturbed", "torchrun")
    deaths: dict[str, Callable[[Path], bool] | None] = {
        "start": None,
        "middle": lambda run: steps(run / "refine") >= 3,
        "end": lambda run: ledger_state(run, "report") == "running",
    }
    for name, moment in deaths.items():
        run, port = folder / name, _free_port()
        to_server = ("--set", f"tracking.uri=http://127.0.0.1:{port}")
        pipeline.command(run, "torchrun")
        if moment is None:
            pipeline.finish(run, "torchrun", *to_server)
        else:
            with server(run, port) as mlflow:
                process = pipeline.start(run, "torchrun", *to_server)
                wait_for(process, lambda run=run, moment=moment: moment(run), run)
                os.killpg(mlflow.pid, signal.SIGKILL)
                code = exit_code(process, run)
            faults += [f"server dead at the {name}: exit {code}"] if code else []
        before = untold(run)
        with server(run, port):
            sync = [sys.executable, "-m", "jobs.cli", "sync", str(run)]
            subprocess.run(sync, env=environment(run), cwd=ROOT, check=True)
        wrong = untold(run)
        same = products(run) == products(folder / "undisturbed")
        say(
            f"server dead at the {name}: run {'the same' if same else 'DIFFERS'}, "
            f"{'something' if before else 'nothing'} missing in MLflow, after sync "
            f"{'; '.join(wrong) or 'every point exactly once'}"
        )
        wrong += [] if same else ["result"]
        # Else the server had not been dead when there was something to tell.
        wrong += [] if before else ["nothing was missing"]
        faults += [f"server dead at the {name}: {item}" for item in wrong]
    return faults


@contextmanager
def server(run: Path, port: int) -> Iterator[subprocess.Popen]:
    """Yield a live MLflow server over RUN.db; it is killed at the end."""
    store, files = run.parent / f"{run.name}.db", run.parent / f"{run.name}-files"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(files)]
    with (run.parent / f"{run.name}-server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
        )
    try:
        wait_for(process, lambda: _answers(port), run)
        yield process
    finally:
        # uvicorn's own processes live in its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    time.sleep(0.2)
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
