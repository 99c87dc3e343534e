"""`--redo` begins a stage anew once: the same command after a kill goes on, until the pipeline's end."""

import json

import pytest

import jobs.stages
from jobs.errors import Stopped
from pipeline.lease import StaleAttempt
from shards.errors import BadInput
from tests.jobs.stage_bench import ALL, Bench


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def interrupted(bench, stage, **asked):
    """Run until `stage` is killed, after its first checkpoint; return what was done."""
    bench.broken[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.run(**asked)
    bench.broken.clear()
    return bench.did


def test_a_redo_that_was_interrupted_goes_on_and_begins_anew_only_after_the_pipelines_end(bench, capsys):
    bench.run()
    assert interrupted(bench, "refine", redo="baseline") == ["baseline", "refine"]
    bench.write("refine/left-over", "")
    assert interrupted(bench, "refine", redo="baseline") == ["refine"]
    assert "--redo baseline: goes on" in capsys.readouterr().out
    assert bench.run(redo="baseline") == ALL[2:]
    assert (bench.run_dir / "refine" / "left-over").exists()
    assert bench.run(redo="baseline") == ALL[1:]
    assert not (bench.run_dir / "refine" / "left-over").exists()


@pytest.mark.parametrize("asked", [{}, {"redo": "refine"}])
def test_a_redo_stands_until_the_pipelines_end_also_without_it_or_with_another(bench, asked):
    bench.run()
    interrupted(bench, "control", redo="baseline")
    done = (["refine"] if asked else []) + ["control", "evaluate", "report"]
    assert interrupted(bench, "report", **asked) == done
    assert bench.run(redo="baseline") == ["report"], "the other has not ended it"
    assert bench.run(redo="baseline") == ALL[1:]


def test_a_redo_of_an_earlier_stage_is_honoured_while_another_stands(bench):
    bench.run()
    interrupted(bench, "refine", redo="refine")
    assert interrupted(bench, "refine", redo="baseline") == ["baseline", "refine"]
    assert bench.run(redo="refine") == ALL[2:]


def test_a_redo_that_goes_on_redoes_what_has_changed_since(bench):
    bench.run()
    interrupted(bench, "evaluate", redo="baseline")
    changed = {"train__refine__lr": 0.5}
    assert interrupted(bench, "evaluate", redo="baseline", **changed) == ["refine", "control", "evaluate"]
    assert bench.run(redo="baseline", **changed) == ["evaluate", "report"]


def test_a_redo_that_goes_on_does_its_stage_again_once_the_result_is_damaged(bench):
    """The line that names the damage asks for this very redo."""
    bench.run()
    interrupted(bench, "refine", redo="baseline")
    (bench.run_dir / "baseline" / "weights.safetensors").write_text("other")
    with pytest.raises(BadInput, match="give --redo baseline"):
        bench.run()
    assert bench.run(redo="baseline") == ALL[1:]


def test_a_redo_that_was_killed_before_it_deleted_anything_goes_on_from_nothing(bench, monkeypatch):
    bench.run()
    bench.write("refine/left-over", "")
    with monkeypatch.context() as patch:
        patch.setattr(jobs.stages, "discard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench.run(redo="refine")
    assert bench.run(redo="refine") == ["refine", "evaluate", "report"]
    assert not (bench.run_dir / "refine" / "left-over").exists()


def test_a_redo_asked_to_stop_at_the_pipelines_end_goes_on_to_nothing(bench, monkeypatch):
    def asked_to_stop(run):
        run.stop_file.parent.mkdir(parents=True)
        run.stop_file.touch()

    bench.run()
    with monkeypatch.context() as patch:
        patch.setitem(jobs.stages.STAGES, "report", asked_to_stop)
        with pytest.raises(Stopped):
            bench.run(redo="baseline")
    assert bench.run(redo="baseline") == []


def test_what_a_newer_attempt_has_made_is_not_deleted_by_one_that_was_deleting(bench, monkeypatch):
    """Its machine slept in the minutes that it takes to delete shards; meanwhile another took over."""
    bench.run()
    delete = jobs.stages.discard

    def sleep_after(run_dir, stage):
        delete(run_dir, stage)
        newer = json.loads((run_dir / "lease.json").read_text())
        newer["attempt"] += 1
        (run_dir / "lease.json").write_text(json.dumps(newer))

    monkeypatch.setattr(jobs.stages, "discard", sleep_after)
    with pytest.raises(StaleAttempt):
        bench.run(redo="shard")
    assert (bench.run_dir / "baseline" / "weights.safetensors").exists()


def test_a_stage_whose_checkpoints_cannot_be_listed_just_now_is_not_begun_anew(bench, monkeypatch):
    interrupted(bench, "baseline")

    def refuse(directory):
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr("pipeline.checkpoint.os.listdir", refuse)
    with pytest.raises(PermissionError):
        bench.run(train__baseline__lr=0.5)
    assert list((bench.run_dir / "baseline" / "checkpoints").glob("step-*"))
