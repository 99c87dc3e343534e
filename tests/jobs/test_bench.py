"""`mrrcnn bench`: it runs the checkout's benchmark as it was asked to, and refuses what it cannot measure."""

import subprocess
from types import SimpleNamespace

import pytest

from benchmarks import timing
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


def test_paths_and_the_part_of_the_data_benchmark_pass_through(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        bench.subprocess,
        "run",
        lambda command, cwd: seen.append(command) or subprocess.CompletedProcess([], 0),
    )
    monkeypatch.chdir(tmp_path)
    options = ("--workers", "3", "--only", "loading", "--coco", "a", "--out", "b.json")
    assert run_cli("bench", "data", *options) == 0
    assert seen[0][1:] == [
        *("-m", "benchmarks.data", "--workers", "3", "--repeats", "5", "--coco", str(tmp_path / "a")),
        *("--only", "loading", "--out", str(tmp_path / "b.json")),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("ops", "--images", "3"), "--images does not apply; it takes --device, --repeats, --threads, --out"),
        (("ops", "--coco", "a"), "--coco does not apply"),
        (("train", "--images", "3"), "--images does not apply; it takes --workers, --repeats, --out"),
        (("data", "--device", "cpu"), "--device does not apply; it takes --workers, --repeats, --images"),
        (("data", "--threads", "2"), "--threads does not apply"),
        (("data", "--images", "3", "--coco", "a"), "give one"),
        (("data", "--only", "speed"), "speed"),
    ],
)
def test_an_option_that_does_not_apply_is_refused_in_a_line(options, said, monkeypatch, capsys):
    monkeypatch.setattr(bench.subprocess, "run", None)
    assert run_cli("bench", *options) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_folder_that_is_no_coco_is_named(tmp_path, capfd):
    assert run_cli("bench", "data", "--coco", str(tmp_path)) == 2
    assert str(tmp_path / "train2017") in capfd.readouterr().err


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


def test_every_turn_is_prepared():
    calls = []
    alternate({"a": calls.append}, 1, "cpu", lambda: calls.append("begin"))
    assert calls == ["begin", 0, "begin", 1]


def test_processes_that_a_contender_waited_for_are_counted(monkeypatch):
    clock = {"wall": 0.0, "own": 0.0, "children": 0.0}

    def run(turn):
        for name, seconds in (("wall", 4), ("own", 1), ("children", 2)):
            clock[name] += seconds

    def usage(whose):
        assert whose == "children"
        return SimpleNamespace(ru_utime=clock[whose] / 4, ru_stime=clock[whose] * 3 / 4)

    clocks = {"perf_counter": lambda: clock["wall"], "process_time": lambda: clock["own"]}
    monkeypatch.setattr(timing, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(timing, "resource", SimpleNamespace(RUSAGE_CHILDREN="children", getrusage=usage))
    assert alternate({"a": run}, 3, "cpu") == {"a": {"wall": 4000, "cpu": 3000}}
