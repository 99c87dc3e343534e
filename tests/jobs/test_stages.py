"""Which stages run again, which changes are refused, and that a killed run goes on: with stand-in stages."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import jobs.inputs
import jobs.stages
from configs.load import ConfigError, parse_config
from jobs.errors import Stopped
from jobs.inputs import NEEDS
from jobs.ledger import Ledger
from jobs.stages import run_pipeline
from pipeline.lease import LeaseHeld, StaleAttempt, acquire
from shards.errors import BadInput
from tests.jobs.stage_bench import ALL, Bench, SilentTracker


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_stages_run_in_order_once(bench):
    assert list(jobs.stages.STAGES) == list(NEEDS) == ALL
    assert bench.run() == ALL
    assert bench.run() == []


def test_what_does_not_change_the_result_may_change(bench):
    bench.run()
    changes = {
        "data__loader_workers": 0,
        # Of no account while the order is the full one.
        "data__order_window": 5,
        # What a run that stopped at a corrupt sample needs, to go on.
        "data__on_corrupt": "quarantine",
        "data__cache_dir": "/elsewhere",
        "data__cache_gb": 3,
        "debug__log_samples": True,
        "tracking__uri": "http://elsewhere",
        "tracking__experiment": "other",
        "checkpoint_every": 7,
        "keep_checkpoints": 9,
        "deepspeed__stage": 2,
        "train__log_every": 3,
    }
    assert bench.run(workers=4, **changes) == []
    assert bench.run(workers=1) == []


def test_inference_settings_redo_evaluation_and_report_only(bench):
    bench.run()
    assert bench.run(test__alpha=2.0) == ["evaluate", "report"]
    assert bench.run(test__alpha=2.0) == []


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("seed", "baseline"),
        ("data__repair", "shard"),
        ("data__shard_size_mb", "shard"),
        ("data__max_pixels", "shard"),
        ("model__fpn_channels", "baseline"),
        ("train__baseline__lr", "baseline"),
        ("train__hflip", "baseline"),
        ("train__aspect_window", "baseline"),
        ("train__refine__iters", "refine"),
        ("refine__iou", "refine"),
        ("sara__sampling_ratio", "refine"),
    ],
)
def test_any_other_change_is_refused_naming_the_key_and_the_stage_to_redo(bench, key, stage):
    bench.run()
    value = {"data__repair": True, "train__hflip": 0.25, "train__baseline__lr": 0.5, "refine__iou": 0.6}.get(
        key, 3
    )
    before = (bench.run_dir / "ledger.json").read_bytes(), (bench.run_dir / "config.yaml").read_bytes()
    with pytest.raises(BadInput, match=rf"stage {stage} .*{key.replace('__', '.')} was .*--redo {stage}"):
        bench.run(**{key: value})
    assert bench.did == []
    assert before == (
        (bench.run_dir / "ledger.json").read_bytes(),
        (bench.run_dir / "config.yaml").read_bytes(),
    )


def test_another_order_is_another_training(bench):
    bench.run()
    with pytest.raises(BadInput, match=r"stage baseline .*data\.order was None, now window.*--redo baseline"):
        bench.run(data__order="window")
    assert bench.run(data__order="window", redo="baseline") == ALL[1:]
    with pytest.raises(BadInput, match=r"data\.order_window was 8192, now 5"):
        bench.run(data__order="window", data__order_window=5)


@pytest.mark.parametrize(
    ("redo", "done"),
    [
        ("shard", ALL),
        ("baseline", ALL[1:]),
        ("refine", ["refine", "evaluate", "report"]),
        ("control", ["control", "evaluate", "report"]),
        ("evaluate", ["evaluate", "report"]),
        ("report", ["report"]),
    ],
)
def test_redo_does_a_stage_and_what_depends_on_it(bench, redo, done):
    bench.run()
    left_over = f"{'shards' if redo == 'shard' else redo}/left-over"
    bench.write(left_over, "")
    assert bench.run(redo=redo) == done
    assert not (bench.run_dir / left_over).exists()


def test_redo_accepts_a_change_also_where_a_later_stage_shares_the_key(bench):
    bench.run()
    assert bench.run(redo="refine", train__refine__lr=0.5) == ["refine", "control", "evaluate", "report"]
    assert bench.run(train__refine__lr=0.5) == []


def test_redo_of_a_later_stage_does_not_excuse_a_change_of_an_earlier_one(bench):
    bench.run()
    with pytest.raises(BadInput, match="--redo baseline"):
        bench.run(redo="refine", seed=3)


def test_changed_annotations_are_noticed_by_content_and_moved_ones_are_not(bench, tmp_path):
    bench.run()
    moved = tmp_path / "moved.json"
    moved.write_text("{}")
    assert bench.run(data__train={"images": str(tmp_path), "annotations": str(moved)}) == []
    moved.write_text("{ }")
    with pytest.raises(BadInput, match=r"data\.train was .*--redo shard"):
        bench.run(data__train={"images": str(tmp_path), "annotations": str(moved)})


def test_sigterm_at_a_stages_end_ends_the_command_before_the_next_stage(bench, monkeypatch):
    def ends_well_although_asked(run):
        run.stop_file.parent.mkdir(parents=True)
        run.stop_file.touch()
        bench.stage("baseline")(run)

    monkeypatch.setitem(jobs.stages.STAGES, "baseline", ends_well_although_asked)
    with pytest.raises(Stopped, match="asked to stop: stage baseline is done"):
        bench.run()
    assert bench.did == ["shard", "baseline"]
    assert bench.run() == ALL[2:], "the next attempt was not asked"


def test_a_stage_that_ctrl_c_ended_is_told_to_mlflow_as_ended_and_goes_on(bench, monkeypatch):
    told = []

    @contextmanager
    def tracking(*_):
        tracker = SilentTracker()
        tracker.stage_finished = lambda *how: told.append(how)
        yield tracker

    monkeypatch.setattr(jobs.stages, "tracking", tracking)
    bench.broken["baseline"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert told[-1] == ("baseline", "KILLED")
    bench.broken.clear()
    assert bench.run() == ALL[1:]


def test_a_stage_that_failed_goes_on_with_what_it_has(bench):
    bench.broken["refine"] = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.run()
    ledger = Ledger.load(bench.run_dir)
    assert (ledger.state("baseline"), ledger.state("refine")) == ("done", "failed")
    bench.broken.clear()
    assert bench.run() == ALL[2:]
    assert (bench.run_dir / "refine" / "checkpoints" / "step-000000001").exists()


def test_a_half_trained_stage_refuses_another_learning_rate(bench):
    bench.broken["baseline"] = RuntimeError("killed")
    with pytest.raises(RuntimeError):
        bench.run()
    with pytest.raises(BadInput, match=r"train\.baseline\.lr .*--redo baseline"):
        bench.run(train__baseline__lr=0.5)


def test_bad_data_may_be_mended_without_redo_since_nothing_is_lost(bench, tmp_path):
    bench.broken["shard"] = BadInput("train.json: image 7 is missing")
    with pytest.raises(BadInput):
        bench.run()
    bench.broken.clear()
    (tmp_path / "train.json").write_text("{ }")
    assert bench.run(data__on_bad="skip") == ALL


def test_what_a_kill_left_half_written_is_gone_when_the_stage_goes_on(bench, tmp_path, monkeypatch):
    config = parse_config(bench.tree)
    run = jobs.stages.Run(config, tmp_path, 1, 1, "local", None, (1,), None, None)
    places = ("evaluate/baseline", "evaluate/refined", "report")
    left = [tmp_path / place / ".file.tmp-there-7" for place in places]
    # Of one that is scored, killed before its parts were deleted.
    left.append(tmp_path / "evaluate" / "control" / "parts" / "rank-0000-of-0001.jsonl")
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "evaluate" / "control" / "metrics.json").touch()

    def detect(run, stage, task, payload):
        for job in payload["jobs"]:
            Path(job["parts"]).mkdir(parents=True)

    monkeypatch.setattr(jobs.stages, "_launch", detect)
    monkeypatch.setattr("pipeline.evaluate.score", lambda *_, **__: None)
    monkeypatch.setattr("pipeline.report.document.write_report", lambda *_: None)
    jobs.stages.evaluate(run)
    jobs.stages.report(run)
    assert not [path for path in left if path.exists()]


def test_what_the_ledger_does_not_know_is_neither_deleted_nor_gone_on_from(bench):
    bench.write("baseline/checkpoints/step-000000009/state.json", "{}")
    with pytest.raises(BadInput, match=r"baseline: is there, .* knows of no stage baseline"):
        bench.run()
    assert (bench.run_dir / "baseline" / "checkpoints" / "step-000000009" / "state.json").exists()


def test_a_kill_between_forgetting_a_stage_and_deleting_it_leaves_nothing_to_go_on_from(bench):
    bench.run()
    ledger = Ledger.load(bench.run_dir)
    ledger.forget(["refine", "evaluate", "report"])
    bench.write("refine/checkpoints/step-000000009/state.json", "{}")
    bench.run()
    assert not (bench.run_dir / "refine" / "checkpoints" / "step-000000009").exists()


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_damaged_weights_of_a_finished_stage_are_named(bench, damage):
    bench.run()
    weights = bench.run_dir / "baseline" / "weights.safetensors"
    weights.unlink() if damage == "gone" else weights.write_text("other")
    with pytest.raises(BadInput, match=r"baseline/weights\.safetensors: .*--redo baseline"):
        bench.run()
    assert bench.run(redo="baseline") == ALL[1:]


def test_a_url_is_no_run_directory(bench):
    bench.run_dir = "s3://bucket/run"
    with pytest.raises(BadInput, match="POSIX"):
        bench.run()


def test_workers_that_do_not_divide_every_batch_are_refused_naming_those_that_do(bench):
    with pytest.raises(BadInput, match=r"--workers 8: .*train\.baseline\.batch.*use 1, 2, 4 workers"):
        bench.run(workers=8)
    assert not Path(bench.run_dir).exists()


def test_an_imported_baseline_needs_weights(bench):
    with pytest.raises(ConfigError, match=r"model\.weights"):
        bench.run(train__baseline__iters=0)


def test_a_second_live_command_is_refused(bench, monkeypatch):
    monkeypatch.setattr("pipeline.lease.PATIENCE_S", 0.0)
    monkeypatch.setattr(jobs.stages, "acquire", lambda path: acquire(path, 0.0))
    with acquire(bench.run_dir), pytest.raises(LeaseHeld):
        bench.run()


def test_shards_may_be_behind_a_url_and_count_by_content(bench):
    urls = {"data__train": "s3://bucket/train", "data__val": "s3://bucket/val"}
    assert bench.run(**urls) == ALL
    assert bench.run(**{**urls, "data__train": "https://mirror/train"}) == []


def test_a_url_with_a_password_is_refused_before_anything_is_written(bench):
    with pytest.raises(BadInput, match="password") as raised:
        bench.run(data__val="https://me:secret@host/val")
    assert "secret" not in str(raised.value) and not bench.run_dir.exists()


def test_the_resolved_config_is_kept_with_the_run(bench):
    bench.run()
    text = (bench.run_dir / "config.yaml").read_text()
    assert "keep_checkpoints: 3" in text and "alpha: 1.0" in text


def test_a_report_written_in_between_does_not_stop_a_run(bench):
    bench.broken["refine"] = RuntimeError("killed")
    with pytest.raises(RuntimeError):
        bench.run()
    bench.write("report/report.md", "of what there is")
    del bench.broken["refine"]
    assert bench.run() == ["refine", "control", "evaluate", "report"]


def test_other_images_under_the_same_list_are_named(bench, tmp_path):
    bench.run()
    (tmp_path / "a.jpg").write_bytes(b"12345")
    for split in ("train", "val"):
        bench.write(f"shards/{split}/source_images.json", json.dumps([["a.jpg", 5]]))
    assert bench.run() == []
    (tmp_path / "a.jpg").write_bytes(b"1234567")
    with pytest.raises(BadInput, match=r"a\.jpg: is not the image that .* --redo shard"):
        bench.run()


def test_a_source_may_be_deleted_once_it_is_sharded(bench, tmp_path):
    bench.run()
    (tmp_path / "train.json").unlink()
    assert bench.run() == []
    with pytest.raises(BadInput, match=r"train\.json: cannot be read"):
        bench.run(redo="shard")


def test_a_password_is_not_kept_with_the_run(bench):
    bench.run(tracking__uri="http://me:secret@host")
    assert not [path for path in bench.run_dir.rglob("*") if path.is_file() and "secret" in path.read_text()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__norm": "frozen_bn"}, "model.norm=group"),
        ({"model__weights": "nowhere.pth"}, "nowhere.pth: cannot be read"),
        ({"model__weights": "https://me:secret@host/r50.pth"}, r"me:\*\*\*@host/r50.pth: is a URL"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_runs(bench, changes, said):
    with pytest.raises((BadInput, ConfigError), match=said):
        bench.run(**changes)
    assert bench.did == [] and not bench.run_dir.exists()


def test_one_process_has_one_worker(bench):
    with pytest.raises(BadInput, match="--launcher local has one"):
        run_pipeline(parse_config(bench.tree), bench.run_dir, workers=2, launcher="local")


@pytest.mark.parametrize(
    ("launcher", "address", "there"),
    [("ray", "auto", True), ("ray", None, False), ("torchrun", None, False), ("local", "auto", False)],
)
def test_a_run_on_a_cluster_shards_there_too(bench, monkeypatch, launcher, address, there):
    seen = []
    monkeypatch.setattr("jobs.launching.ray_tasks.ray_tasks", lambda *cluster: cluster)
    monkeypatch.setattr("shards.write.write_shards", lambda *_, spreading, **__: seen.append(spreading))
    monkeypatch.setattr(jobs.stages, "showing_findings", nullcontext)
    monkeypatch.setattr(jobs.stages, "check_splits", lambda *_: None)
    config = parse_config(bench.tree, "test")
    jobs.stages.shard(SimpleNamespace(config=config, path=bench.run_dir, launcher=launcher, address=address))
    assert seen == [("auto", None) if there else None] * 2


def test_a_driver_that_was_replaced_writes_no_report(bench, monkeypatch):
    monkeypatch.setattr("pipeline.report.document.write_report", lambda *_: pytest.fail("written"))
    for _ in range(2):
        with acquire(bench.run_dir):
            pass
    run = jobs.stages.Run(None, bench.run_dir, 1, 1, "local", None, (1,), None, None)
    with pytest.raises(StaleAttempt, match="attempt 2"):
        jobs.stages.report(run)


@pytest.mark.parametrize("killed", [False, True])
def test_stages_that_are_done_are_noted_again_until_all_are_when_the_outbox_has_lost_them(
    bench, monkeypatch, killed
):
    bench.run()
    noted = []

    class Forgetful(SilentTracker):
        def has_lost_events(self):
            return True

        def stage_started(self, stage, attempt, inputs):
            if killed and stage == "refine":
                raise KeyboardInterrupt
            noted.append((stage, inputs == Ledger.load(bench.run_dir).tree["stages"][stage]["input_hash"]))

        def noted_anew(self):
            noted.append("all")

    @contextmanager
    def tracking(*_):
        yield Forgetful()

    monkeypatch.setattr(jobs.stages, "tracking", tracking)
    with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
        assert bench.run() == []
    every = [(stage, True) for stage in ALL]
    assert noted == (every[:2] if killed else [*every, "all"])
