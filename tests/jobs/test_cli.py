"""Exit codes and messages of the command: 0, 2 with one line, 1 with one line; and that help is quick."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import app, main
from jobs.errors import JobFailed
from pipeline.lease import LeaseHeld

ROOT = Path(__file__).resolve().parents[2]
VERBS = [item.name or item.callback.__name__ for item in app.registered_commands]


def command(capsys, *arguments):
    """Return (exit code, standard output, standard error) of a command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, shown.err


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"data:\n  train: {{images: {tmp_path}, annotations: {tmp_path}/train.json}}\n"
        f"  val: {{images: {tmp_path}, annotations: {tmp_path}/val.json}}\n"
        "model:\n  norm: group\n"
    )
    return path


def test_the_verbs_are_those_that_scripts_rely_on():
    verbs = "synth, shard, inspect, run, submit, sweep, sync, evaluate, predict, import-weights, "
    assert ", ".join(VERBS) == verbs + "export-weights, report, bench, doctor, demo"


def test_help_imports_none_of_the_heavy_packages():
    code = "import sys, jobs.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for package in ("torch", "ray", "deepspeed", "mlflow", "numpy", "pydantic", "rich", "matplotlib"):
        assert f"'{package}'" not in loaded.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_explained_with_its_default(capsys, verb):
    code, out, _ = command(capsys, verb, "--help")
    assert code == 0
    parameters = app.registered_commands[VERBS.index(verb)]
    assert parameters.callback.__doc__.split("\n")[0][:40] in " ".join(out.split())
    options = re.split(r"\n  (?=--)", out.split("Options:")[1])[1:]
    for option in options:
        text = " ".join(option.split())
        assert (
            text.startswith("--help")
            or "[default:" in text
            or "[required]" in text
            or "--set" in text
            or "--repair" in text
            or "--keep-classes" in text
        ), text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "No such command 'fly'"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read"),
        (["run", "CONFIG", "--launcher", "slurm"], "'--launcher'"),
        (["run", "CONFIG", "--workers", "0"], "'--workers'"),
        (["run", "CONFIG", "--redo", "everything"], "'--redo'"),
        (["run", "CONFIG", "--set", "train.refine.lrr=1"], "did you mean train.refine.lr?"),
        (["run", "CONFIG", "--set", "seed"], "key=value"),
        (["run", "CONFIG", "--run-dir", "s3://bucket/run"], "POSIX"),
        (["run", "CONFIG", "--workers", "5"], "use 1, 2, 4, 8, 16 workers"),
        (["run", "CONFIG"], "train.json: cannot be read"),
        (["run", "CONFIG", "--min-workers", "1"], "--min-workers: is for a Ray cluster"),
        (["submit", "CONFIG"], "--run-dir"),
        (["submit", "CONFIG", "--run-dir", "runs/x"], "--run-dir=runs/x: is relative"),
        (["synth", "OUT", "--images", "0"], "images is 0"),
        (["shard", "--images", "OUT", "--annotations", "no.json", "--out", "OUT"], "no folder"),
        (["shard", "--images", "OUT", "--annotations", "no.json", "--out", "memory://x"], "is gone when the"),
        (["inspect", "OUT"], "OUT"),
        (["evaluate", "no.safetensors", "--shards", "OUT", "--out", "OUT"], "no.safetensors"),
        (["predict", "no.safetensors", "no.jpg", "--out", "OUT"], "no.jpg"),
        (["predict", "no.safetensors", "--out", "OUT"], "'images'"),
        (["report", "OUT"], "OUT: is no run directory"),
        (["sync", "OUT"], "holds no tracking.json"),
    ],
)
def test_bad_usage_and_bad_input_exit_2_with_one_line(capsys, tmp_path, config, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    names = {"CONFIG": str(config), "OUT": "OUT"}
    code, _, err = command(capsys, *(names.get(argument, argument) for argument in arguments))
    assert code == 2
    assert err.count("\n") == 1 and err.startswith("mrrcnn: ")
    assert said in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailed("step 3: loss_mask is not finite on images [7]"), 1),
        (LeaseHeld("runs/x: is being run by process 1"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (OSError(errno.ESTALE, "Stale file handle", "shards/dataset.json"), 1),
    ],
)
def test_failures_have_their_exit_code_and_one_line(capsys, monkeypatch, config, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr("jobs.verbs.run_config", fail)
    ended, _, err = command(capsys, "run", config)
    assert ended == code
    assert err.count("\n") == 1
    assert (getattr(error, "strerror", None) or str(error)) in err
    assert (getattr(error, "filename", None) or "") in err


def test_a_sweep_has_the_least_number_of_workers_that_a_run_has(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("jobs.sweeping.sweep.run_sweep", lambda *words: asked.append(words[3:]))
    words = ["--address", "auto", "--workers", "8", "--min-workers", "4"]
    assert command(capsys, "sweep", "table1.yaml", *words)[0] == 0
    assert asked == [(8, "ray", "auto", None, 4)]


def test_a_defect_of_ours_shows_its_traceback(monkeypatch, config):
    def fail(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("jobs.verbs.run_config", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["run", str(config)])


def test_synth_shard_and_inspect_in_a_row(capsys, tmp_path):
    data, out = tmp_path / "data", tmp_path / "shards"
    assert command(capsys, "synth", data, "--images", 2, "--size", 64)[0] == 0
    source = ["--images", data / "train2017", "--annotations", data / "annotations/instances_train2017.json"]
    code, printed, _ = command(capsys, "shard", *source, "--out", out, "--workers", 1)
    assert code == 0 and "2 of 2 images" in printed
    code, printed, _ = command(capsys, "inspect", out, "--out", tmp_path)
    assert code == 0 and "every checksum is right" in printed
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


def test_damaged_shards_are_listed_and_fail_the_inspection(capsys, tmp_path):
    data, out = tmp_path / "data", tmp_path / "shards"
    command(capsys, "synth", data, "--images", 2, "--size", 64)
    source = ["--images", data / "train2017", "--annotations", data / "annotations/instances_train2017.json"]
    command(capsys, "shard", *source, "--out", out, "--workers", 1)
    shard = next(out.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[1500] ^= 1
    shard.write_bytes(content)
    code, printed, said = command(capsys, "inspect", out)
    assert code == 2 and "damaged" in said
    assert f"{shard.name}, sample 0000000000" in printed


def test_synth_mixes_no_two_data_sets(capsys, tmp_path):
    (tmp_path / "mine.txt").touch()
    code, _, err = command(capsys, "synth", str(tmp_path), "--images", "1")
    assert code == 2 and "is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_arguments_the_help_is_readable(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mrrcnn"])
    code, out, _ = command(capsys)
    assert code == 2 and out.count("\n") > 10
