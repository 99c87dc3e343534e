"""What `submit` sends, and that the job's exit code comes back."""

import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

import jobs.submission.follow
import jobs.submission.submit
from configs.load import parse_config
from jobs.errors import JobFailed
from jobs.submission.package import packaged
from jobs.submission.submit import entrypoint, operator_fault, submit
from pipeline.tracking.uri import resolve_uri
from shards.errors import BadInput
from tests.jobs.submission.job_server import CONFIG, HEAD, Client


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_the_log_is_shown_and_the_exit_code_passed_on(client, capsys, code):
    client.code = code
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == code
    assert "baseline: starting\nreport: starting\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        (None, "The runtime env\n  was not set up: http://me:sentinel@h", "(The runtime env was not set up: http://me:***@h)"),
        (2, "last logs: a page of them", "mend what it names"),
        (1, "last logs: a page of them", "exit code 1; the same command goes on"),
    ],
)  # fmt: skip
def test_why_a_job_failed_is_told_where_its_log_does_not(client, capsys, code, message, said):
    """A job whose environment could not be made, or whose head found no room for it, has printed nothing."""

    def end(name, *_):
        job = client.get_job_info(name)
        job.status, job.driver_exit_code, job.message = JobStatus.FAILED, code, message

    client.end, client.log = end, ("baseline: starting\n", "Ray's last word, without an end")
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == (code or 1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("job ") and "FAILED" in last and said in last
    assert "sentinel" not in last and "page" not in last


def test_mlflow_is_the_submitters_else_the_clusters_else_the_runs_else_beside_it(client, monkeypatch):
    submit(CONFIG, "/nfs/runs/one", 1, HEAD)
    assert "MLFLOW_TRACKING_URI" not in client.variables
    shown = f"{client.entrypoint.split(' && ')[0]} && env"

    def used(remembered=None, **variables):
        told = subprocess.check_output(shown, shell=True, env=variables, text=True).splitlines()
        with monkeypatch.context() as patch:
            for name, _, value in (line.partition("=") for line in told):
                patch.setenv(name, value)
            return resolve_uri(None, remembered)

    assert used() == "sqlite:////nfs/runs/mlflow.db"
    assert used(remembered="http://first:5000") == "http://first:5000", "a run stays where it began"
    assert used(MLFLOW_TRACKING_URI="http://cluster:5000") == "http://cluster:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    submit(CONFIG, "/nfs/runs/two", 1, HEAD)
    assert client.variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_a_live_job_of_the_same_command_is_followed_and_no_other_started(client, capsys):
    client.code = 1
    submit(CONFIG, "/nfs/run", 4, HEAD)
    client.end(client.jobs[0].submission_id, JobStatus.RUNNING, None)
    client.code = 0
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 0
    assert len(client.jobs) == 1
    assert "is running it already; no other is started" in capsys.readouterr().out
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 0
    assert len({job.submission_id for job in client.jobs}) == 2, "it had ended: the next goes on"


def test_a_live_job_with_other_settings_is_named(client):
    submit(CONFIG, "/nfs/run", 4, HEAD)
    client.end(client.jobs[0].submission_id, JobStatus.PENDING, None)
    with pytest.raises(BadInput, match=rf"job {client.jobs[0].submission_id} is running it with other set"):
        submit(CONFIG, "/nfs/run", 2, HEAD)
    assert submit(CONFIG, "/nfs/other", 2, HEAD) == 0


def test_of_two_that_submit_at_once_the_second_follows_the_first(client, monkeypatch):
    real = jobs.submission.submit._live
    monkeypatch.setattr(jobs.submission.submit, "_name", lambda *args: "mrrcnn-run-1")
    submit(CONFIG, "/nfs/run", 4, HEAD)
    client.end("mrrcnn-run-1", JobStatus.RUNNING, None)
    monkeypatch.setattr(jobs.submission.submit, "_live", Late(real))
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 0
    assert len(client.jobs) == 1


class Late:
    """Sees no live job at first: another submission comes in between."""

    def __init__(self, look):
        self.look, self.calls = look, 0

    def __call__(self, *args):
        self.calls += 1
        return None if self.calls == 1 else self.look(*args)


@pytest.mark.parametrize("told", [True, False])
def test_ctrl_c_is_heard_by_a_client_that_makes_a_lost_connection_of_it(client, capsys, monkeypatch, told):
    calls = []

    async def logs(name):
        calls.append(name)
        if told:
            yield "baseline: starting\n"
        if len(calls) > 1:
            client.end(name, JobStatus.SUCCEEDED, 0)
            return
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("WebSocket connection closed unexpectedly") from None

    monkeypatch.setattr(client, "tail_job_logs", logs)
    monkeypatch.setattr(jobs.submission.follow, "_wants_stop", lambda job: True)
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 130
    assert client.stopped and "STOPPED" in capsys.readouterr().out


def test_a_broken_connection_is_taken_up_again_and_nothing_is_shown_twice(client, capsys):
    told = ["one\n", "two\n", "three\n"]
    cuts = iter([1, 0, 2])

    async def tail(name):
        for text in told[: (cut := next(cuts, 3))]:
            yield text
        if cut < 3:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        client.end(name, JobStatus.SUCCEEDED, 0)

    client.tail_job_logs = tail
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 0
    assert "one\ntwo\nthree\n" in capsys.readouterr().out


def test_a_job_server_that_stays_away_is_one_line_that_says_what_to_do(client, monkeypatch):
    def away(name):
        raise ConnectionError("refused")

    monkeypatch.setattr(jobs.submission.follow, "PATIENCE_S", -1)
    client.tail_job_logs = away
    with pytest.raises(JobFailed, match="the same command follows it"):
        submit(CONFIG, "/nfs/run", 4, HEAD)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes where a test says so; a pause takes a second."""
    clock = SimpleNamespace(now=1000.0)

    async def pause(_):
        clock.now += 1

    times = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda _: setattr(clock, "now", clock.now + 1))
    monkeypatch.setattr(jobs.submission.follow, "time", times)
    monkeypatch.setattr(jobs.submission.follow.asyncio, "sleep", pause)
    return clock


@pytest.mark.parametrize(("away_s", "code"), [(100, 0), (130, None)])
def test_a_head_that_restarts_after_hours_of_log_is_waited_for_as_long_as_any(client, clock, away_s, code):
    """Twice: only the time since it went away counts, not that of the log before or of an earlier time."""
    gone = []

    def answer():
        if gone and clock.now < gone[-1] + away_s:
            raise ConnectionError("refused")

    async def tail(name):
        answer()
        yield "baseline: starting\n"
        if len(gone) < 2:
            clock.now += 5 * 3600
            gone.append(clock.now)
            raise RuntimeError("WebSocket connection closed unexpectedly")
        client.end(name, JobStatus.SUCCEEDED, 0)

    def info(name):
        answer()
        return Client.get_job_info(client, name)

    client.tail_job_logs, client.get_job_info = tail, info
    if code is None:
        with pytest.raises(JobFailed, match="has not answered for 120 s"):
            submit(CONFIG, "/nfs/run", 4, HEAD)
    else:
        assert submit(CONFIG, "/nfs/run", 4, HEAD) == code


@pytest.mark.parametrize("away_s", [100, 130])
def test_a_job_server_that_goes_while_a_job_is_stopped_is_waited_for_too(client, clock, monkeypatch, away_s):
    def interrupted(name):
        raise KeyboardInterrupt

    def stop(name):
        if clock.now < 1000 + away_s:
            raise ConnectionError("refused")
        Client.stop_job(client, name)

    client.tail_job_logs, client.stop_job = interrupted, stop
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    if away_s > 120:
        with pytest.raises(JobFailed, match="has not answered for 120 s"):
            submit(CONFIG, "/nfs/run", 4, HEAD)
    else:
        assert submit(CONFIG, "/nfs/run", 4, HEAD) == 130
        assert client.stopped == [client.jobs[0].submission_id]


def test_who_reads_no_further_does_not_keep_the_client_waiting_for_ever(client, monkeypatch):
    """`mrrcnn submit ... | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, monkeypatch.context() as patched:
        patched.setattr(jobs.submission.follow, "say", lambda *_: None)
        patched.setattr(sys, "stdout", gone)
        with pytest.raises(SystemExit) as ended:
            submit(CONFIG, "/nfs/run", 4, HEAD)
    assert ended.value.code == 141 and not client.stopped


def test_a_deleted_job_does_not_give_its_successor_the_name_of_a_job_that_is_there(client):
    for _ in range(3):
        submit(CONFIG, "/nfs/run", 4, HEAD)
    del client.jobs[0]
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 0
    assert client.jobs[-1].submission_id.endswith("-4")


@pytest.mark.parametrize(("answer", "stopped"), [("y", True), ("", False), ("n", False), (None, False)])
def test_ctrl_c_asks_at_a_terminal_and_leaves_the_job_alone_without_one(
    client, monkeypatch, capsys, answer, stopped
):
    def interrupted(name):
        raise KeyboardInterrupt

    client.tail_job_logs = interrupted
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: answer is not None))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert submit(CONFIG, "/nfs/run", 4, HEAD) == 130
    name = client.jobs[0].submission_id
    assert client.stopped == ([name] if stopped else [])
    said = capsys.readouterr().out
    assert ("STOPPED" in said) == stopped
    assert (f"ray job stop {name} --address {HEAD}" in said) != stopped


@pytest.mark.parametrize("where", ["config", "environment"])
def test_a_password_that_ray_would_show_is_refused_without_showing_it(client, monkeypatch, where):
    uri = "http://me:sentinel@mlflow:5000"
    tree = CONFIG.model_dump(mode="json")
    if where == "config":
        tree["tracking"]["uri"] = uri
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_PASSWORD") as raised:
        submit(parse_config(tree), "/nfs/run", 1, HEAD)
    assert "sentinel" not in str(raised.value) and not client.jobs


def test_shards_at_a_url_are_no_relative_path(client):
    tree = CONFIG.model_dump(mode="json")
    tree["data"]["train"] = "s3://bucket/train"
    assert submit(parse_config(tree), "/nfs/run", 1, HEAD) == 0
    tree["data"]["train"] = "https://me:sentinel@host/train"
    with pytest.raises(BadInput, match="password"):
        submit(parse_config(tree), "/nfs/run", 1, HEAD)


@pytest.mark.parametrize(
    "weights", ["https://me:sentinel@host/r50.pth", "https://host/r50.pth", "file:///r50"]
)
def test_weights_at_a_url_are_sent_nowhere(client, weights):
    tree = CONFIG.model_dump(mode="json")
    tree["model"]["weights"] = weights
    with pytest.raises(BadInput, match=r"is a URL, .* download it and give its path") as raised:
        submit(parse_config(tree), "/nfs/run", 1, HEAD)
    assert "sentinel" not in str(raised.value) and not client.jobs


def test_the_package_holds_the_code_the_operator_and_the_resolved_config(client, tmp_path, monkeypatch):
    root = tmp_path / "repository"
    for name in ("ops/_C_cpu.so", "ops/csrc/cpu/kernel.cpp", "jobs/cli.py", "configs/demo.yaml"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in (
        "runs/x/ledger.json",
        ".venv/lib/torch.py",
        "data/a.json",
        "jobs/__pycache__/cli.py",
        "ops/x.o",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr("jobs.submission.package.ROOT", root)
    submit(CONFIG, "/nfs/run", 4, HEAD)
    assert sorted(client.package) == [
        "configs/demo.yaml",
        "jobs/cli.py",
        "ops/_C_cpu.so",
        "ops/csrc/cpu/kernel.cpp",
        "submitted.yaml",
    ]
    assert b"seed: 7" in client.package["submitted.yaml"]
    assert not client.path.parent.exists(), "the package is gone once it is sent"


def test_the_same_code_is_the_same_package():
    with packaged() as first, packaged() as second:
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


def test_the_job_proves_its_operator_and_then_runs_under_ray():
    _, check, leave, run = entrypoint("/nfs/my run", 4, "refine", 2).split(" && ")
    assert check.startswith("python -m jobs.submission.submit ")
    assert leave == "cd /", "not in a directory that Ray deletes"
    assert """run "$OLDPWD/submitted.yaml" --run-dir '/nfs/my run' --workers 4 --launcher ray""" in run
    assert run.endswith("--redo refine --min-workers 2")


def test_an_operator_that_did_not_come_along_stops_the_job(monkeypatch):
    monkeypatch.setattr(
        "ops.backend_info", lambda: {"backend": "reference", "reason": "_C_cpu.so is not built"}
    )
    assert "_C_cpu.so is not built" in operator_fault("cpu")
    assert not operator_fault("reference")
