"""`mrrcnn bench`: it runs the checkout's benchmark as it was asked to, and refuses what it cannot measure."""

import subprocess

import pytest

from benchmarks.timing import alternate
from jobs import bench
from jobs.cli import main


def run_cli(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_options_and_exit_code_pass_through(monkeypatch, tmp_path):
    seen = []

    def run(command, cwd):
        seen.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    assert run_cli("bench", "ops", "--threads", "1", "--threads", "2", "--out", "a.json") == 7
    assert seen[0][1:5] == ["-m", "benchmarks.ops", "--device", "cpu"]
    assert seen[0][-5:] == ["--threads", "1", "2", "--out", str(tmp_path / "a.json")]


def test_an_installation_without_benchmarks_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert run_cli("bench", "ops") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_missing_gpu_is_named(monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_cli("bench", "ops", "--device", "cuda") == 2
    assert "no CUDA device is visible" in capfd.readouterr().err


def test_contenders_take_turns_after_a_warm_up():
    calls = []
    contenders = {name: lambda turn, name=name: calls.append((name, turn)) for name in ("ours", "peer")}
    times = alternate(contenders, 3, "cpu")
    assert calls == [(name, turn) for turn in range(4) for name in ("ours", "peer")]
    assert all(times[name][kind] >= 0 for name in contenders for kind in ("wall", "cpu"))
