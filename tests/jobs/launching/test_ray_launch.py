"""Ray Train as a launcher: killed workers and killed drivers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.errors import GIVE_TOKEN, JobFailed
from jobs.launching import ray_launch
from jobs.launching.plan import Plan
from jobs.launching.ray_launch import _gpus, _uses_gpus, connect, run_on_ray
from shards.errors import BadInput

ROOT = Path(__file__).resolve().parents[3]
# In a process of its own: Ray reads its settings when it is imported.
DRIVER = """
import sys
from pathlib import Path
from jobs.launching.launch import launch
from tests.jobs import tasks
out = Path(sys.argv[1])
for number, name in enumerate(sys.argv[2:]):
    launch(getattr(tasks, name), {"out": str(out)}, out / f"scratch-{number}", 2, "ray")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_killed_drivers_and_workers_under_ray_and_a_users_error(tmp_path):
    """One cluster after the other: each start takes seconds.

    A driver is killed and leaves no worker behind; the same command then works although a worker is
    killed in it; and what is wrong with the user's data is one line, not tried again.
    """
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), "linger"], cwd=ROOT)
    pids = [int(_wait_for(tmp_path / f"pid-{rank}")) for rank in (0, 1)]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = _drive(tmp_path, "die_then_refuse")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert (tmp_path / "died").exists()
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert "  sum 3 of 2 ranks\n" in done.stdout
    assert done.returncode == 1
    assert done.stderr.strip().endswith("BadInput: cat.json: annotation 7 has no area; remove it")
    assert (tmp_path / "tries-0").read_text() == "x"


def test_a_disk_that_takes_no_traceback_does_not_hide_what_failed(monkeypatch, tmp_path):
    from ray.train.v2.api.exceptions import WorkerGroupError

    def fit(*_):
        raise WorkerGroupError("workers failed", {0: RuntimeError("this came first")})

    monkeypatch.setattr(ray_launch, "_fit", fit)
    monkeypatch.setattr(ray_launch, "connect", lambda *_: None)
    (tmp_path / "traceback.txt").mkdir()
    with pytest.raises(JobFailed, match=r"^workers failed: this came first$"):
        run_on_ray(None, {}, Plan((1,), tmp_path, tmp_path), None)


@pytest.fixture
def resources(monkeypatch):
    """What Ray says that its cluster has."""
    found = {"CPU": 4.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: found)
    _gpus.cache_clear()
    yield found
    _gpus.cache_clear()


@pytest.mark.parametrize(("gpus", "uses"), [(0, False), (2, True), (3, True)])
def test_gpus_are_used_where_there_are_some(resources, gpus, uses):
    resources["GPU"] = float(gpus)
    assert _uses_gpus(None, 2) == _uses_gpus("auto", 2) == uses


def test_a_machine_with_fewer_gpus_than_workers_is_refused_and_a_cluster_is_waited_for(resources):
    resources["GPU"] = 1.0
    with pytest.raises(BadInput, match="use --workers 1"):
        _uses_gpus(None, 2)
    assert _uses_gpus("auto", 2)


def test_a_command_that_began_on_gpus_stays_on_gpus_whatever_its_cluster_loses(resources):
    resources["GPU"] = 2.0
    assert _uses_gpus("auto", 2)
    del resources["GPU"]
    assert _uses_gpus("auto", 2), "the next stage waits"


def test_a_command_that_holds_a_password_joins_no_cluster_which_would_show_it(monkeypatch):
    """Ray keeps the command line of every driver, and its dashboard shows it to whoever has the token."""
    monkeypatch.setattr("sys.argv", ["mrrcnn", "run", "--set", "tracking.uri=http://me:sentinel@mlflow:5000"])
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_PASSWORD") as raised:
        connect("127.0.0.1:1", 1)
    assert "sentinel" not in str(raised.value) and "tracking.uri=http://me:***@mlflow" in str(raised.value)
    monkeypatch.setattr("sys.argv", ["mrrcnn", "run", "--set", "tracking.uri=http://mlflow:5000"])
    with pytest.raises(BadInput, match="nobody answers"):
        connect("127.0.0.1:1", 1)


def refused(monkeypatch, error):
    """Return the line of a command whose `ray.init` raises an error."""

    def init(**_):
        raise error

    monkeypatch.setattr("sys.argv", ["mrrcnn"])
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(BadInput) as raised:
        connect("auto", 1)
    return str(raised.value)


def test_a_cluster_that_cannot_be_joined_is_one_line_with_what_to_do(monkeypatch):
    from ray.exceptions import AuthenticationError, RuntimeEnvSetupError

    line = refused(monkeypatch, AuthenticationError("no authentication token was found"))
    assert line == f"--address auto: the cluster wants its token, and there is none here; {GIVE_TOKEN}"
    mismatch = "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    line = refused(monkeypatch, RuntimeError(mismatch + "This process was started with:\n    Ray: 2.59.0\n"))
    assert "Ray: 2.60.0 Python: 3.11.7" in line and "Ray: 2.59.0; install the same Ray and Python" in line
    line = refused(monkeypatch, ConnectionError("Could not find any running Ray instance"))
    assert "no Ray cluster answers there (Could not" in line and GIVE_TOKEN in line
    line = refused(monkeypatch, RuntimeEnvSetupError("no room for the package"))
    assert "Ray cannot join that cluster" in line and "no room for the package" in line


def test_workers_that_die_while_they_start_are_counted_since_the_newest_checkpoint(monkeypatch, tmp_path):
    from ray.train.v2.api.exceptions import ControllerError

    trials = []

    def fit(body, trial, plan, address):
        trials.append(trial)
        if len(trials) == 3:
            (tmp_path / "step-000000005").mkdir()
        raise ControllerError(RuntimeError("a worker died"))

    monkeypatch.setattr(ray_launch, "_fit", fit)
    monkeypatch.setattr(ray_launch, "connect", lambda *_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(JobFailed, match="a worker died; see"):
        run_on_ray(None, {}, Plan((1,), tmp_path, tmp_path), None)
    assert trials == list(range(2 + 4)), "each with a name of its own for Ray"


STAND_IN = """
import os, signal
def is_initialized(): return False
def init(address, include_dashboard, **_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(15))
    print(address, include_dashboard, os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
"""


def test_a_private_cluster_has_no_dashboard_a_token_of_its_own_and_leaves_sigterm_alone(tmp_path):
    (tmp_path / "ray.py").write_text(STAND_IN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "RAY_ADDRESS": "somebody:6379"}
    code = "import signal; from jobs.launching.ray_launch import connect; connect(None, 1); "
    code += "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert said == "local False token 64\nTrue\n", "Ray's own handler would end it with 15, not with 143"


@pytest.mark.parametrize(
    ("end", "told"), [("pass", 0), ("1 / 0", 0), ("os._exit(1)", 1), ("os.kill(os.getpid(), 9)", 1)]
)
def test_a_driver_that_ray_ends_without_a_word_leaves_one(end, told):
    """Ray ends a driver from within when its raylet dies; who watches it would see nothing but a prompt."""
    code = f"import os; from jobs.launching.ray_launch import _leave_a_last_word as l; l(); l(); {end}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.count("its node of the Ray cluster has ended") == told


def _drive(folder: Path, *names: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DRIVER, str(folder), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def _wait_for(path: Path) -> str:
    for _ in range(3000):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.1)
    pytest.fail(f"{path} did not appear in five minutes")
