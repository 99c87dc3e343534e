"""Evaluation while training goes on changes no weight, keeps the best, and stops at the same step always."""

import json
import os
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError, parse_config
from configs.schema import Schedule
from pipeline import evaluating, evaluations
from pipeline.evaluations import EvaluationFailed, Evaluations, out_of_patience, result_file
from pipeline.lease import Superseded, claim_stage
from pipeline.network.weights import load_weights, save_weights
from pipeline.notice import Notice, Preempted, no_notice
from shards.storage.files import sha256_of
from tests.pipeline.test_train import run, shards  # noqa: F401


class StandIn:
    """A process that does nothing, or dies at once."""

    def __init__(self, dies):
        self.dead = dies
        self.wait = lambda: None

    def poll(self):
        return 1 if self.dead else None

    def kill(self):
        self.dead = True


def standing(tmp_path, monkeypatch, dies=False, ask=no_notice, **schedule):
    monkeypatch.setattr(evaluations.subprocess, "Popen", lambda *_, **__: StandIn(dies))
    schedule = {"iters": 12, "eval_every": 3, "steps": (9,), **schedule}
    return Evaluations(tmp_path, Schedule(**schedule), {"meta": {}}, 0, ask)


def leave(tmp_path, step, ap):
    folder = tmp_path / "evaluations"
    folder.mkdir(exist_ok=True)
    result_file(folder, step).write_text(json.dumps({"step": step, "segm": {"AP": ap}}))


def test_every_so_many_steps_and_the_last_are_due(tmp_path, monkeypatch):
    due = standing(tmp_path, monkeypatch, iters=13).due
    assert [step for step in range(14) if due(step)] == [3, 6, 9, 12, 13]
    assert not any(map(standing(tmp_path, monkeypatch, eval_every=0).due, range(14)))


def test_only_what_is_due_and_not_done_is_linked_and_outlives_its_checkpoint(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoints" / "step-000000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.safetensors").write_bytes(b"w")
    with standing(tmp_path, monkeypatch) as kept:
        leave(tmp_path, 6, 0.1)
        for step in (2, 3, 3, 6):
            kept.keep(step, checkpoint)
        shutil.rmtree(checkpoint)
        found = [path for path in (tmp_path / "evaluations").glob("step-*") if path.is_dir()]
        assert [path.name for path in found] == ["step-000000003"]
        assert (found[0] / "weights.safetensors").read_bytes() == b"w"


def test_training_stops_by_the_evaluations_before_the_last_interval(tmp_path, monkeypatch):
    with standing(tmp_path, monkeypatch, patience=1) as kept:
        leave(tmp_path, 3, 0.2)
        assert not kept.stops(3) and not kept.stops(5) and not kept.stops(6)
        leave(tmp_path, 6, 0.2)
        assert kept.stops(9), "as good is no better"
        leave(tmp_path, 6, 0.3)
        assert not kept.stops(9)
        # What a later step has brought is no reason: another try might not have it yet.
        leave(tmp_path, 9, 0.1)
        assert not kept.stops(9) and not kept.stops(12), "the last step ends it anyway"
    with standing(tmp_path, monkeypatch) as kept:
        assert not kept.stops(9), "without patience nobody waits or stops"


def test_a_process_that_dies_again_and_again_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    with (
        standing(tmp_path, monkeypatch, dies=True) as kept,
        pytest.raises(EvaluationFailed, match=r"ended or stood still 4 times; see .*output\.log"),
    ):
        kept.finish(12)


@pytest.mark.parametrize("works", [True, False])
def test_a_process_that_stands_still_is_started_again_and_one_that_works_is_not(tmp_path, monkeypatch, works):
    """Each look is a quarter of an hour after the one before; the result comes at the twentieth."""
    looks = []

    def look(_):
        looks.append(len(looks))
        if works:
            os.utime(evaluations.alive_file(tmp_path / "evaluations"), (looks[-1], looks[-1]))
        if len(looks) == 20:
            leave(tmp_path, 12, 0.5)

    times = SimpleNamespace(monotonic=lambda: 900.0 * len(looks), sleep=look)
    monkeypatch.setattr(evaluations, "time", times)
    with standing(tmp_path, monkeypatch) as kept:
        if works:
            kept.finish(12)
        else:
            with pytest.raises(EvaluationFailed, match="stood still 4 times"):
                kept.finish(12)
    assert len(looks) == (20 if works else 12), "half an hour and one look, four times"


def test_sigterm_is_heard_while_an_evaluation_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    asked = iter([Notice(), Notice(save=True, stop=True)])
    with (
        standing(tmp_path, monkeypatch, ask=lambda: next(asked)) as kept,
        pytest.raises(Preempted, match="asked to stop while step 12 is evaluated"),
    ):
        kept.finish(12)


@pytest.fixture
def evaluated(monkeypatch):
    """An evaluation that takes as long as a test says, with an AP of 0.5."""
    meanwhile = []

    def evaluate(weights, order, alive):
        for happen in meanwhile:
            happen()
        return {"segm": {"AP": 0.5}}

    monkeypatch.setattr(evaluating, "_evaluated", evaluate)
    return meanwhile


def test_an_evaluating_process_of_an_earlier_start_leaves_nothing(tmp_path, evaluated):
    folder, step = tmp_path / "baseline" / "evaluations", "step-000000003"
    (folder / step).mkdir(parents=True)
    save_weights(folder / step / "weights.safetensors", {}, {"format": 1})
    claim = claim_stage(tmp_path, "baseline", 1, 0)
    order = {"meta": {"format": 1}, "claim": {**asdict(claim), "run_dir": str(tmp_path)}}
    evaluated.append(lambda: claim_stage(tmp_path, "baseline", 1, 0))
    with pytest.raises(Superseded):
        evaluating.evaluate_snapshot(folder, folder / step, order)
    assert not (tmp_path / "baseline" / "best.safetensors").exists()
    assert not result_file(folder, 3).exists() and (folder / step).exists()
    evaluated.clear()
    claim = claim_stage(tmp_path, "baseline", 1, 0)
    order["claim"]["token"] = claim.token
    evaluating.evaluate_snapshot(folder, folder / step, order)
    assert (tmp_path / "baseline" / "best.safetensors").exists() and not (folder / step).exists()
    assert not [*(tmp_path / "baseline").glob(".*.tmp-*")]


@given(st.lists(st.sampled_from([-1.0, 0.1, 0.2, 0.3]), max_size=8), st.integers(1, 4))
def test_patience_is_a_number_of_evaluations_without_a_better_one(values, patience):
    """The obvious way: go through them and count."""
    best, bad = -2.0, 0
    for value in values:
        best, bad = (value, 0) if value > best else (best, bad + 1)
    assert out_of_patience(values, patience) == (bool(values) and bad >= patience)


def test_patience_without_evaluations_is_refused():
    tree = {"data": {"train": "a", "val": "b"}, "train": {"refine": {"patience": 2}}}
    with pytest.raises(ConfigError, match=r"patience=2 counts evaluations, but eval_every is 0"):
        parse_config(tree)


@pytest.mark.slow
def test_evaluated_training_gives_the_same_weights_and_the_best_of_them(shards, tmp_path):  # noqa: F811
    plain = run(tmp_path / "plain", shards, world=1)
    more = {"schedule": {"eval_every": 3}, "test": {"score": 0.0, "topk": 5}}
    stage = run(tmp_path / "evaluated", shards, world=1, **more)
    assert sha256_of(stage / "weights.safetensors") == sha256_of(plain / "weights.safetensors")
    found = evaluations.results_of(stage)
    assert [result["step"] for result in found] == [3, 6]
    assert not [path for path in (stage / "evaluations").glob("step-*") if path.is_dir()]
    best = max(found, key=lambda result: (evaluations.mask_ap(result), -result["step"]))
    tensors, meta = load_weights(stage / "best.safetensors")
    last, last_meta = load_weights(stage / "weights.safetensors")
    assert meta == last_meta
    assert all(tensors[name].equal(last[name]) for name in last) == (best["step"] == 6)
    # The first decision with two evaluations behind it is at step 6, which is the last: so of 8 steps.
    more["schedule"] = {"eval_every": 2, "patience": 1, "iters": 8}
    stage = run(tmp_path / "early", shards, world=1, **more)
    aps = [evaluations.mask_ap(result) for result in evaluations.results_of(stage)]
    stopped = not aps[1] > aps[0]
    assert len(aps) == (3 if stopped else 4)
    steps = [json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == (6 if stopped else 8)
