"""The same task under every launcher; killed workers come back; one clear line when they cannot help it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.errors import JobFailed, Stopped
from jobs.launching.environment import worker_environment
from jobs.launching.launch import _raise_verdict, launch
from pipeline.notice import Preempted
from shards.errors import BadInput
from tests.jobs import tasks

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import sys
from pathlib import Path
from jobs.launching.launch import launch
from tests.jobs import tasks
out = Path(sys.argv[1])
launch(tasks.linger, {"out": str(out)}, out / "scratch", 1, sys.argv[2])
"""


def test_one_local_process_is_a_world_of_one(tmp_path, capsys):
    launch(tasks.add_ranks, {"out": str(tmp_path)}, tmp_path / "scratch", 1, "local")
    assert (tmp_path / "rank-0").read_text() == "1"
    assert capsys.readouterr().out == "  workers: 1 on CPU\n  sum 1 of 1 ranks\n"


def test_nothing_that_lies_in_the_scratch_folder_is_gone_on_from(tmp_path):
    for name in ("verdict.json", "ray/scratch-0/checkpoint_manager_snapshot.json"):
        path = tmp_path / "scratch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"torn": ')
    launch(tasks.add_ranks, {"out": str(tmp_path)}, tmp_path / "scratch", 1, "local")
    assert (tmp_path / "rank-0").exists()
    assert [path.name for path in (tmp_path / "scratch").rglob("*")] == ["progress.log"]


def test_a_local_world_of_two_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--workers 1"):
        launch(tasks.add_ranks, {"out": str(tmp_path)}, tmp_path / "scratch", 2, "local")


def test_torchrun_brings_a_killed_rank_back_and_shows_rank_0s_lines(tmp_path, capsys):
    launch(tasks.die_once, {"out": str(tmp_path)}, tmp_path / "scratch", 2, "torchrun")
    assert (tmp_path / "died").exists()
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert capsys.readouterr().out == 2 * "  workers: 2 on CPU\n" + "  sum 3 of 2 ranks\n"


@pytest.fixture
def agents(monkeypatch):
    """torchrun's agents, which do nothing but what the test says, number by number, and fail."""
    tries, at = [], {}

    def run(command, environment, output):
        tries.append(len(tries) + 1)
        at.get(tries[-1], lambda: None)()
        return 7

    monkeypatch.setattr("jobs.launching.launch._run_agent", run)
    return SimpleNamespace(tries=tries, at=at)


def test_torchrun_counts_failures_since_the_newest_checkpoint_as_ray_does(tmp_path, agents):
    agents.at[3] = (tmp_path / "step-000000005").mkdir
    with pytest.raises(JobFailed, match="torchrun failed 4 times in a row, at last with exit code 7"):
        launch(tasks.crash, {}, tmp_path / "scratch", 2, "torchrun", checkpoints=tmp_path)
    assert len(agents.tries) == 2 + 4


def test_what_was_asked_to_stop_is_not_tried_again_whatever_it_ended_with(tmp_path, agents):
    stop = tmp_path / "stop"
    agents.at[1] = stop.touch
    with pytest.raises(Stopped, match="the same command goes on"):
        launch(tasks.crash, {"stop_file": str(stop)}, tmp_path / "scratch", 2, "torchrun")
    assert agents.tries == [1]


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_not_forgotten_where_the_disk_takes_no_stop_file(tmp_path, agents):
    """Its ranks hear nothing and fail on the same disk, and would be begun again."""
    agents.at[1] = terminated
    with pytest.raises(Stopped, match="the same command goes on"):
        launch(tasks.crash, {"stop_file": str(tmp_path / "full/stop")}, tmp_path / "scratch", 2, "torchrun")
    assert agents.tries == [1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "step-6"), "but this came first: .*No space left"),
        (Preempted("asked to stop: step 6 of 9 is saved"), "^asked to stop: step 6 of 9 is saved$"),
    ],
)
def test_the_only_process_stops_also_where_the_disk_takes_nothing_at_all(tmp_path, monkeypatch, error, said):
    def fail(*_, **__):
        terminated()
        raise error

    monkeypatch.setattr("jobs.launching.launch.work", fail)
    with pytest.raises(Stopped, match=said):
        launch(tasks.crash, {"stop_file": str(tmp_path / "full/stop")}, tmp_path / "scratch", 1, "local")


def test_what_is_asked_to_stop_before_anything_is_started_starts_nothing(tmp_path, agents):
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped, match="the same command goes on"):
        launch(tasks.crash, {"stop_file": str(tmp_path / "stop")}, tmp_path / "scratch", 2, "torchrun")
    assert agents.tries == []


def test_a_users_error_in_a_worker_is_one_line_and_is_not_tried_again(tmp_path):
    with pytest.raises(BadInput, match=r"^cat\.json: annotation 7 has no area; remove it$"):
        launch(tasks.refuse, {"out": str(tmp_path)}, tmp_path / "scratch", 2, "torchrun")
    assert (tmp_path / "tries-0").read_text() == "x"


def test_a_defect_of_ours_is_one_line_that_names_the_traceback(tmp_path):
    scratch = tmp_path / "scratch"
    with pytest.raises(JobFailed, match=rf"^no such thing; see {scratch}/traceback\.txt$"):
        launch(tasks.crash, {}, scratch, 1, "local")
    assert (
        "def crash" in (scratch / "traceback.txt").read_text()
        or "in crash" in (scratch / "traceback.txt").read_text()
    )


def test_a_disk_that_takes_no_traceback_does_not_hide_the_error(tmp_path):
    (tmp_path / "traceback.txt").mkdir()
    found = {
        "input": False,
        "stopped": True,
        "expected": False,
        "message": "this came first",
        "traceback": "",
    }
    (tmp_path / "verdict.json").write_text(json.dumps(found))
    with pytest.raises(Stopped, match=r"^this came first; see .*/verdict\.json$"):
        _raise_verdict(tmp_path)


def test_an_error_of_torch_in_the_only_process_is_one_line_that_names_the_traceback(tmp_path):
    scratch = tmp_path / "scratch"
    with pytest.raises(JobFailed, match=rf"can't allocate memory; see {scratch}/traceback\.txt$"):
        launch(tasks.run_out, {}, scratch, 1, "local")
    assert "in run_out" in (scratch / "traceback.txt").read_text()


@pytest.mark.parametrize("launcher", ["local", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_checkpoint_that_cannot_be_written_when_asked_to_stop_is_told_of(tmp_path, launcher):
    scratch, stop = tmp_path / "scratch", tmp_path / "stop"
    said = rf"^asked to stop, but .*No space left on device: .*step-000000006'; see {scratch}/traceback\.txt$"
    with pytest.raises(Stopped, match=said):
        launch(tasks.stop_on_a_full_disk, {"stop_file": str(stop)}, scratch, 1, launcher)
    assert "in stop_on_a_full_disk" in (scratch / "traceback.txt").read_text()


def test_workers_of_a_killed_driver_die(tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), "torchrun"], cwd=ROOT)
    pid = int(_wait_for(tmp_path / "pid-0"))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for _ in range(600):
        if not _alive(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived its driver by a minute")


def test_ranks_share_the_cores_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [worker_environment(workers)["OMP_NUM_THREADS"] for workers in (1, 3, 9)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(3)["OMP_NUM_THREADS"] == "5"
    assert worker_environment(1)["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def _wait_for(path: Path) -> str:
    for _ in range(1200):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.1)
    pytest.fail(f"{path} did not appear in two minutes")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
