"""A sweep trains once what rows share, does nothing twice, and lets no row stop another: with stand-ins."""

import json

import pytest
import yaml

import jobs.sweeping.rows
from configs.load import parse_config
from jobs.errors import JobFailed, Stopped
from jobs.ledger import Ledger
from jobs.stages import EVALUATED
from jobs.sweeping.rows import RowJob, _evaluate
from jobs.sweeping.sweep import run_sweep
from pipeline.evaluate import measure
from pipeline.lease import LeaseHeld, acquire
from pipeline.scoring.analysis import analyse
from pipeline.scoring.coco_ap import prepare_annotations
from shards.errors import BadInput
from tests.pipeline.coco_cases import random_case

COCO, RESULTS = random_case(31, images=4)
ROWS = [
    {"name": "base", "cells": ["base"], "network": "baseline", "paper": "val-R-50-FPN-base"},
    {"name": "mr", "cells": ["mr"], "paper": "val-R-50-FPN-alpha1"},
    {"name": "alpha 2", "cells": ["mr"], "set": {"test.alpha": 2.0}, "paper": "val-R-50-FPN-alpha2"},
    {"name": "rm", "cells": ["rm"], "set": {"refine.use_sara": False}},
    {"name": "control", "cells": ["control"], "network": "control"},
]


class SilentTracker:
    def __init__(self, *_):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name, args))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


class Bench:
    """Sweeps whose trainings and evaluations only leave what the real ones leave behind."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.did, self.broken, self.ranks = folder, [], {}, []
        (folder / "base.yaml").write_text(
            yaml.safe_dump(
                {"data": {"train": "shards/train", "val": "shards/val"}, "model": {"norm": "group"}}
            )
        )
        monkeypatch.setattr(jobs.sweeping.rows, "run_pipeline", self.train)
        monkeypatch.setattr(jobs.sweeping.rows, "_evaluate", self.evaluate)
        monkeypatch.setattr(jobs.sweeping.rows, "dataset_hash", lambda place, _: f"hash of {place}")
        self.trackers = []
        monkeypatch.setattr("pipeline.tracking.tracker.Tracker", self.tracker)

    def tracker(self, *_, **__):
        self.trackers.append(SilentTracker())
        return self.trackers[-1]

    def train(self, config, place, *ranks, min_workers, stages, lender):
        self.ranks.append((*ranks, min_workers))
        self.did.append(place.name.split("-")[0])
        for stage in stages[1:]:
            (place / stage).mkdir(parents=True, exist_ok=True)
            (place / stage / "weights.safetensors").write_bytes(b"w")
        assert (lender is None) == (stages[-1] == "baseline")
        ledger = Ledger.load(place)
        for stage in stages:
            ledger.begin(stage, {}, 1)
            if stage in self.broken:
                raise self.broken[stage]
            ledger.finish(stage, {})

    def evaluate(self, job, weights):
        assert weights.is_file() and weights.parent.name == EVALUATED[job.network]
        self.did.append(job.name)
        if job.name in self.broken:
            raise self.broken[job.name]
        folder = jobs.sweeping.rows.evaluated_dir(job)
        folder.mkdir(parents=True)
        truth = prepare_annotations(COCO)
        trees = {
            "metrics": measure(COCO, RESULTS),
            "coco_results": RESULTS,
            "source": {"shards": "gone"},
            "analysis": analyse(truth, RESULTS, 5),
        }
        for name, tree in trees.items():
            (folder / f"{name}.json").write_text(json.dumps(tree))

    def write(self, rows, name="table", **changes):
        tree = {"title": "t", "columns": ["network"], "measures": ["AP_b", "AP_m"]}
        tree["configs"] = {"base": {"file": "base.yaml"}}
        rows = [{"config": "base", **row} for row in rows]
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tree, "rows": rows, **changes}))
        return str(path)

    def sweep(self, rows=ROWS, name="table", *overrides, **changes):
        path, self.did = self.write(rows, name, **changes), []
        return run_sweep(path, list(overrides), self.folder / "runs", 1, "local", None, None)


def test_what_rows_share_is_trained_once_and_nothing_is_done_twice(bench):
    assert bench.sweep() == 0
    assert bench.did == [
        *("baseline", "base"),
        *("refine", "mr", "alpha 2"),
        *("refine", "rm", "control", "control"),
    ]
    assert bench.sweep() == 0
    assert bench.did == []


def test_another_table_in_the_same_folder_shares_and_another_setting_does_not(bench):
    bench.sweep()
    assert (
        bench.sweep([{"name": "alpha=5", "cells": ["5"], "set": {"test.alpha": 5.0}}, ROWS[1]], "other") == 0
    )
    assert bench.did == ["alpha=5"]
    before = (bench.folder / "runs/table/summary.json").read_bytes()
    bench.sweep(ROWS[:2], "table", "seed=1")
    assert bench.did == ["baseline", "base", "refine", "mr"]
    assert (bench.folder / "runs/table/summary.json").read_bytes() == before
    assert (bench.folder / "runs/table-seed=1/summary.json").is_file()
    tables = {args[1].get("mrrcnn.table") for name, args in bench.trackers[-1].told if name == "log_tags"}
    assert tables == {None, "table-seed=1"}


def test_what_is_held_out_changes_a_training_only_where_it_decides_when_to_stop(bench):
    rows = [ROWS[1], {"name": "other", "cells": ["o"], "set": {"data.val": "shards/other"}}]
    bench.sweep(rows)
    assert bench.did == ["baseline", "refine", "mr", "other"]
    bench.sweep(rows, "table", "train.refine.eval_every=10", "train.refine.patience=2")
    assert bench.did == ["refine", "mr", "refine", "other"]


def test_a_failed_row_is_said_in_one_line_stops_no_other_and_is_tried_again(bench, capsys):
    bench.broken = {"refine": JobFailed("no\nluck"), "control": KeyError("ours")}
    assert bench.sweep() == 1
    assert bench.did == ["baseline", "base", "refine", "refine", "refine", "control"]
    said = capsys.readouterr().err.splitlines()
    assert "mrrcnn: row mr: no luck" in said
    assert len(said) == 4 and "control.traceback.txt" in said[3]
    report = (bench.folder / "runs/table/report.md").read_text()
    assert "Not done: mr: no luck" in report and "| base |" in report
    tags = {args[0]: args[1] for name, args in bench.trackers[-1].told if name == "log_tags"}
    assert tags["pipeline"]["mrrcnn.failed"] == "mr | alpha 2 | rm | control"
    bench.broken = {}
    assert bench.sweep() == 0
    assert bench.did == ["refine", "mr", "alpha 2", "refine", "rm", "control", "control"]


def test_data_or_weights_that_are_missing_fail_their_row_alone(bench, capsys):
    rows = [ROWS[0], {"name": "other", "cells": ["o"], "set": {"model.weights": "/nowhere.pt"}}]
    assert bench.sweep(rows) == 1
    assert bench.did == ["baseline", "base"]
    assert "row other: /nowhere.pt: cannot be read" in capsys.readouterr().err


def test_weights_at_a_url_are_refused_before_anything_shows_them(bench):
    rows = [{**ROWS[0], "set": {"model.weights": "https://me:sentinel@host/r50.pth"}}]
    with pytest.raises(BadInput, match=r"me:\*\*\*@host/r50.pth: is a URL"):
        bench.sweep(rows)
    assert bench.did == [] and not (bench.folder / "runs").exists()


def test_a_table_is_told_whole_at_every_attempt_so_that_nothing_stays_lost(bench):
    bench.sweep(ROWS[:1])
    names = [name for name, _ in bench.trackers[-1].told]
    assert names.index("noted_anew") > max(names.index("stage_finished"), names.index("log_artifact"))


def test_being_asked_to_stop_stops_the_sweep(bench):
    bench.broken = {"baseline": Stopped("asked to stop")}
    with pytest.raises(Stopped):
        bench.sweep()
    assert bench.did == ["baseline"]


def test_bad_usage_is_refused_before_anything_runs(bench):
    with pytest.raises(ValueError, match="val-nothing is no row of"):
        bench.sweep([{**ROWS[0], "paper": "val-nothing"}])
    bench.did, path = [], bench.folder / "table.yaml"
    path.write_text(path.read_text().replace("val-nothing", "val-R-50-FPN-base"))
    with pytest.raises(BadInput, match="--workers 3: does not divide"):
        run_sweep(str(path), [], bench.folder / "runs", 3, "torchrun", None, None)
    with pytest.raises(ValueError, match="shards is the name of a folder that tables share"):
        bench.sweep(name="shards")
    with pytest.raises(ValueError, match="--parallel 2: rows run beside each other over Ray"):
        run_sweep(str(path), [], bench.folder / "runs", 1, "local", None, 2)
    with acquire(bench.folder / "runs"), pytest.raises(LeaseHeld):
        bench.sweep()
    assert bench.did == []


def test_rows_of_a_cluster_may_go_on_with_fewer_workers_and_run_in_turn(bench, monkeypatch):
    path, root = bench.write(ROWS[:1]), bench.folder / "runs"
    assert run_sweep(path, [], root, 4, "ray", "auto", None, 2) == 0
    assert bench.ranks == [(4, "ray", "auto", 2)]
    detected = []
    monkeypatch.setattr("jobs.evaluation.launch", lambda *asked: detected.append(asked[-4:]))
    monkeypatch.setattr("pipeline.evaluate.score", lambda *_: {})
    config = parse_config({"data": {"train": "t", "val": "v"}})
    _evaluate(RowJob("r", config, "baseline", root, "v", 4, "ray", "auto", None, 2), root / "w")
    assert detected == [(4, "ray", "auto", (2, 4))]


@pytest.mark.parametrize(
    ("launcher", "address", "parallel", "least", "said"),
    [
        ("ray", None, None, 1, "give its --address too"),
        ("torchrun", None, None, 1, "is for a Ray cluster"),
        ("ray", "auto", None, 3, "--min-workers 3: does not divide"),
        ("ray", "auto", None, 8, "--min-workers 8: is more than --workers 4"),
        ("ray", "auto", 2, 2, "with --min-workers rows run in turn"),
    ],
)
def test_fewer_workers_are_refused_as_run_does(bench, launcher, address, parallel, least, said):
    with pytest.raises(ValueError, match=said):
        run_sweep(bench.write(ROWS[:1]), [], bench.folder / "runs", 4, launcher, address, parallel, least)
    assert bench.did == [] and not (bench.folder / "runs").exists()


def test_report_and_mlflow_have_ours_the_papers_and_the_difference(bench):
    bench.sweep(curve="test.alpha")
    ours = 100 * measure(COCO, RESULTS)["bbox"]["AP"]
    summary = json.loads((bench.folder / "runs/table/summary.json").read_text())
    assert summary["rows"]["base"]["ours"]["box AP"] == pytest.approx(ours)
    assert summary["rows"]["base"]["difference"]["box AP"] == pytest.approx(ours - 37.8)
    assert len(summary["differences"]) == 10 * 4
    plain = [item for item in summary["differences"] if not item["measure"].startswith("huddled")]
    assert {item["difference"] for item in plain} == {0}
    report = (bench.folder / "runs/table/report.md").read_text()
    assert f"| base | {ours:.1f} (37.8, {ours - 37.8:+.1f}) |" in report
    assert "figures/curve-0.png" in report and "figures/huddledness-0.png" in report
    told = bench.trackers[-1].told
    tags = {args[0]: args[1] for name, args in told if name == "log_tags"}
    assert tags["mr"]["column.network"] == "mr" and tags["mr"]["mrrcnn.table"] == "table"
    assert tags["mr"]["mrrcnn.columns"] == "network" and tags["pipeline"]["mrrcnn.failed"] == ""
    metrics = {args[0]: args[1] for name, args in told if name == "log_metrics"}
    assert metrics["base"]["minus_paper_box_AP"] == pytest.approx(ours - 37.8)


def test_where_archives_for_the_coco_server_are_is_printed(bench, capsys, monkeypatch):
    def evaluate(job, weights):
        folder = jobs.sweeping.rows.evaluated_dir(job)
        folder.mkdir(parents=True)
        (folder / "detections_test-dev2017_base_results.zip").write_bytes(b"")

    monkeypatch.setattr(jobs.sweeping.rows, "_evaluate", evaluate)
    assert bench.sweep(ROWS[:1]) == 0
    (archive,) = bench.folder.glob("runs/evaluated/*/*.zip")
    assert f"for the COCO server: {archive}" in capsys.readouterr().out
