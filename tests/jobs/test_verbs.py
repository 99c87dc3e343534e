"""Overrides for finished weights, the number of ranks, what is shown, and the demo's data."""

import json
import shutil
from pathlib import Path

import pytest

from configs.load import ConfigError
from configs.schema import Test
from jobs import demo
from jobs.console import following, say
from jobs.ledger import Ledger
from jobs.summary import show_statistics, show_summary
from jobs.verbs import default_workers, evaluate_checkpoint, test_settings
from pipeline.lease import acquire
from shards.errors import BadInput

test_settings.__test__ = False
AP = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"), 0.25)


def test_inference_settings_are_the_defaults_but_for_the_overrides():
    settings = test_settings(["test.alpha=2", "test.score=1e-3", "test.cls=false"])
    assert settings == Test(alpha=2.0, score=1e-3, cls=False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.refine.lr=1", "only test.KEY=VALUE"),
        ("test.alpha", "only test.KEY=VALUE"),
        ("test.alhpa=1", "unknown key test.alhpa; did you mean test.alpha"),
        ("test.alpha=-1", "test.alpha"),
    ],
)
def test_other_overrides_of_finished_weights_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        test_settings([override])


def test_the_number_of_ranks_follows_the_gpus_unless_asked_otherwise(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert [default_workers(3, "ray", 1), default_workers(None, "ray", 1)] == [3, 8]
    assert [default_workers(None, "ray", 2, most=2), default_workers(None, "local", 2)] == [2, 1]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_workers(None, "ray", 2, most=2) == 2


def test_the_summary_shows_ap_pictures_report_and_the_line_that_opens_mlflow(tmp_path, capsys):
    metrics = {"bbox": AP, "segm": AP, "huddled": {"bbox": {**AP, "AP": None}, "segm": AP}}
    for name in ("baseline", "control", "refined"):
        path = tmp_path / "evaluate" / name / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(metrics))
    for name in ("report.html", "figures/pictures.png"):
        path = tmp_path / "report" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Ledger.load(tmp_path).track({"uri": "sqlite:////home/me/mlflow.db", "runs": {}})
    show_summary(tmp_path)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if " 25.0" in line]
    assert [row[-6:] for row in rows] == [["25.0", "25.0", "25.0", "25.0", "-", "25.0"]] * 3
    assert "\nMLflow:  mlflow ui --backend-store-uri sqlite:////home/me/mlflow.db\n" in out
    assert f"{tmp_path}/report/report.html" in out and f"{tmp_path}/report/figures/pictures.png" in out


@pytest.fixture
def evaluating(tmp_path, monkeypatch):
    """Call `evaluate_checkpoint` with `work(scratch)` in place of detection, into tmp_path / "out"."""
    monkeypatch.setattr("jobs.verbs.test_settings", lambda *_: Test())
    monkeypatch.setattr("shards.read.ShardDataset", lambda *_, **__: None)

    monkeypatch.setattr("pipeline.evaluate.score", lambda *_: {})

    def evaluate(work, out=tmp_path / "out"):
        monkeypatch.setattr("jobs.evaluation.launch", lambda ask, payload, scratch, *_: work(scratch.parent))
        evaluate_checkpoint(Path("w.safetensors"), "shards", out, None, 1, "local", None)

    return evaluate


def test_evaluations_that_were_killed_leave_no_more_than_one_work_folder(tmp_path, evaluating):
    seen = []

    def killed(scratch):
        seen.append(scratch)
        # As SIGKILL does, it must leave what there is.
        shutil.copytree(tmp_path / "out", tmp_path / f"left-{len(seen)}")
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluating(killed)
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / f"left-{len(seen)}", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("parts")] == ["parts"]
    assert seen[0] != seen[1], "ranks of the first that live on would write into the second's"
    evaluating(lambda scratch: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_evaluations_do_not_write_to_one_folder(evaluating):
    def second(scratch):
        with pytest.raises(BadInput, match="another process is writing there"):
            evaluating(lambda scratch: pytest.fail("detects beside the first"))
        assert (scratch / "parts").exists()

    evaluating(second)


def test_an_evaluation_that_comes_back_late_does_not_delete_that_of_another(tmp_path, evaluating):
    """Its lock has passed to another machine's command meanwhile, as that of a lost machine does."""

    def late(scratch):
        (scratch.parent / "of-the-other").mkdir()

    evaluating(late)
    assert [path.name for path in (tmp_path / "out/.evaluate").iterdir()] == ["of-the-other"]


@pytest.mark.parametrize("mark", ["ledger.json", "lease.json", ".claim"])
def test_the_folder_of_a_run_is_not_evaluated_into_but_folders_in_it_are(tmp_path, evaluating, mark):
    run, seen = tmp_path / "run", []
    run.mkdir()
    half = run / ".weights.safetensors.tmp-host-1"
    for path in (run / mark, half):
        path.touch()
    with pytest.raises(BadInput, match=rf"^--out {run}: is a run's own folder \(it holds {mark}\); give"):
        evaluating(seen.append, run)
    assert half.exists() and not seen
    for out in (run / "evaluate" / "mine", run / "again"):
        evaluating(seen.append, out)
    assert len(seen) == 2


def test_a_runs_own_results_are_not_evaluated_into(tmp_path, evaluating):
    """The run would take for its own what it finds there, whatever weights and settings it is of."""
    out = tmp_path / "run" / "evaluate" / "refined"
    out.mkdir(parents=True)
    (out.parent / ".claim").touch()
    with pytest.raises(BadInput, match=rf"^--out {out}: is a run's own folder"):
        evaluating(pytest.fail, out)


def test_the_demos_data_are_whole_or_absent_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "IMAGES", 1)
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "left-by-a-kill").touch()
    demo.make_data(tmp_path)
    annotations = tmp_path / "data" / "annotations" / "instances_train2017.json"
    first = annotations.stat().st_mtime_ns
    assert not (tmp_path / "data" / "left-by-a-kill").exists()
    demo.make_data(tmp_path)
    assert annotations.stat().st_mtime_ns == first
    with acquire(tmp_path, 0) as lease:
        assert lease.attempt == 2


def test_lines_that_workers_append_are_all_shown_also_the_last(tmp_path, capsys):
    path = tmp_path / "progress.log"
    with following(path), path.open("a") as file:
        for number in range(50):
            file.write(f"step {number}/50\n")
            file.flush()
        say("driver")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != "driver"] == [f"  step {number}/50" for number in range(50)]


def test_the_statistics_name_the_largest_categories_and_count_the_others(capsys):
    counts = {f"kind {number}": number for number in range(40)}
    show_statistics({"images": 3, "categories": counts, "damaged": ["a.tar: is missing"], "complaints": []})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [lines[4], lines[33], lines[34]] == ["kind 39 39", "kind 10 10", "10 more 45"]
    assert lines[-1] == "a.tar: is missing"
