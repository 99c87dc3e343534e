"""A real Ray cluster of several nodes on one machine, whose nodes can be lost and brought back.

Each node is a `ray start --block` of its own with one CPU, so that two workers are on two nodes. The head
has the job server, on the loopback interface, and wants a token. Sockets want a short path: the directory
of Ray's sessions is under the system's own for temporary files, and goes with the cluster.
"""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_S, STARTS = 90, 3
# In the environment of every process that a node has started.
MARK = "MRRCNN_NODE"
# A lost node is noticed after some 3 seconds rather than Ray's 15 to 30.
NOTICE = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
MEMORY = 120 * 1024 * 1024


class LocalCluster:
    """Nodes by number: 0 is the head. Use `local_cluster`."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        """Nothing is started yet."""
        self.folder, self.nodes = folder, {}
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.port, self.dashboard = _free_port(), _free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        base = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **base,
            "PATH": path,
            "OMP_NUM_THREADS": "1",
            **NOTICE,
            **self.login,
            **environment,
        }

    def start(self, number: int) -> None:
        """Start a node, the head first, and return when the cluster has it.

        Ray gives a start up when the head does not answer for half a minute; it is made again, as any
        supervisor would.
        """
        for again in reversed(range(STARTS)):
            said = self._start(number)
            if said is None:
                return
            self.kill(number)
            if not again:
                raise RuntimeError(f"node {number} did not start {STARTS} times: {said[-2000:]}")

    def _start(self, number: int) -> str | None:
        """Return None when the node is there, or what it said when it is not to be."""
        output = self.folder / f"node-{number}.log"
        with output.open("wb") as log:
            self.nodes[number] = psutil.Popen(
                self._command(number),
                env={**self.environment, MARK: self._mark(number)},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in output.read_text() or not self.alive():
            if time.monotonic() > deadline or self.nodes[number].poll() is not None:
                return output.read_text()
            time.sleep(0.3)
        return None

    def _command(self, number: int) -> list[str]:
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--num-cpus=1",
            "--num-gpus=0",
        ]
        # Ray's own is one for all clusters of a machine, and jobs need the head's.
        command += [f"--dashboard-agent-listen-port={_free_port()}"]
        return [*command, f"--object-store-memory={MEMORY}", "--disable-usage-stats", *self._place(number)]

    def kill(self, number: int) -> int:
        """Kill a node with all that runs on it, as a power cut would; return how many processes it had."""
        del self.nodes[number]
        family = [process for process in psutil.process_iter() if self._is_of(number, process)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        return len(family)

    def _is_of(self, number: int, process: psutil.Process) -> bool:
        # Whose parent has ended is nobody's child, and of the node all the same.
        with contextlib.suppress(psutil.Error):
            return process.environ().get(MARK) == self._mark(number)
        return False

    def _mark(self, number: int) -> str:
        return f"{self.folder}-{number}"

    def processes(self, number: int, name: str) -> list[psutil.Process]:
        """Return a node's processes whose command line holds `name`."""
        found = []
        for process in self.nodes[number].children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def alive(self) -> int:
        """Return how many nodes the head holds for alive; 0 while it is not there."""
        import requests

        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        try:
            answer = requests.get(f"{self.address}/nodes?view=summary", headers=headers, timeout=5).json()
            return sum(node["raylet"].get("state") == "ALIVE" for node in answer["data"]["summary"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _place(self, number: int) -> list[str]:
        if number:
            return [f"--address=127.0.0.1:{self.port}"]
        return [
            "--head", f"--port={self.port}", f"--temp-dir={self.folder / 'ray'}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={_free_port()}",
        ]  # fmt: skip


@contextmanager
def local_cluster(nodes: int = 2, environment: dict[str, str] | None = None) -> Iterator[LocalCluster]:
    """Yield a running cluster; every process of it has ended and its files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mrrcnn-") as folder:
        cluster = LocalCluster(Path(folder), environment or {})
        try:
            for number in range(nodes):
                cluster.start(number)
            yield cluster
        finally:
            for number in sorted(cluster.nodes, reverse=True):
                cluster.kill(number)
            shutil.rmtree(cluster.folder / "ray", ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
