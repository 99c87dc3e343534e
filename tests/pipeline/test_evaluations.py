"""Evaluation while training goes on changes no weight, keeps the best, and stops at the same step always."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError, parse_config
from configs.schema import Schedule
from pipeline import evaluations
from pipeline.checkpoint import defects, save_checkpoint
from pipeline.evaluations import (
    BEST,
    EvaluationFailed,
    Evaluations,
    out_of_patience,
    result_file,
    snapshots,
)
from pipeline.network.weights import load_weights
from pipeline.notice import Preempted
from shards.storage.files import sha256_of, temporary_beside
from tests.pipeline.test_train import run, shards  # noqa: F401


class StandIn:
    """A process that does nothing, or dies at once."""

    # No process has it.
    pid = 2**22 + 1

    def __init__(self, dies):
        self.dead = dies
        self.wait = lambda: None

    def poll(self):
        return 1 if self.dead else None

    def kill(self):
        self.dead = True


def alone(step, lacking):
    """Of a world of one that is never asked to stop."""
    return lacking


def standing(tmp_path, monkeypatch, dies=False, test=None, **schedule):
    monkeypatch.setattr(evaluations.subprocess, "Popen", lambda *_, **__: StandIn(dies))
    schedule = {"iters": 12, "eval_every": 3, "steps": (9,), **schedule}
    return Evaluations(tmp_path, Schedule(**schedule), {"meta": {}, "test": test or {}}, 0)


def checkpoint(stage, step):
    content = {"a": torch.full((3,), float(step))}, {}, {"step": step}
    return save_checkpoint(stage / "checkpoints", step, *content)


def damage(folder):
    """Under the same names, but not in the files they are links of."""
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def names(stage):
    return [path.name for path in snapshots(stage / "evaluations")]


def leave(tmp_path, step, ap):
    folder = tmp_path / "evaluations"
    folder.mkdir(exist_ok=True)
    result_file(folder, step).write_text(json.dumps({"step": step, "segm": {"AP": ap}}))


def test_every_so_many_steps_and_the_last_are_due(tmp_path, monkeypatch):
    due = standing(tmp_path, monkeypatch, iters=13).due
    assert [step for step in range(14) if due(step)] == [3, 6, 9, 12, 13]
    assert not any(map(standing(tmp_path, monkeypatch, eval_every=0).due, range(14)))


@pytest.mark.parametrize("links", [True, False])
def test_only_what_is_due_and_not_done_is_linked_and_outlives_its_checkpoint(tmp_path, monkeypatch, links):
    def fail(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not links:
        monkeypatch.setattr(os, "link", fail)
    with standing(tmp_path, monkeypatch) as kept:
        leave(tmp_path, 6, 0.1)
        made = checkpoint(tmp_path, 3)
        content = (made / "weights.safetensors").read_bytes()
        for step in (2, 3, 3, 6):
            kept.keep(step, made)
        shutil.rmtree(made)
        (found,) = snapshots(tmp_path / "evaluations")
        assert found.name == "step-000000003"
        assert (found / "weights.safetensors").read_bytes() == content
        assert not defects(found, ("weights.safetensors",))


def test_a_start_links_what_a_kill_left_unlinked(tmp_path, monkeypatch):
    for step in (2, 3, 6, 9):
        checkpoint(tmp_path, step)
    leave(tmp_path, 6, 0.1)
    damage(tmp_path / "checkpoints" / "step-000000009")
    with standing(tmp_path, monkeypatch):
        assert names(tmp_path) == ["step-000000003"]


def test_a_damaged_snapshot_is_linked_again_where_its_checkpoint_is_whole(tmp_path, monkeypatch, caplog):
    made = [checkpoint(tmp_path, step) for step in (3, 6, 9)]
    with standing(tmp_path, monkeypatch):
        pass
    kept = snapshots(tmp_path / "evaluations")
    for place in kept[1:]:
        damage(place)
    shutil.rmtree(made[1])
    caplog.clear()
    with standing(tmp_path, monkeypatch) as again:
        assert names(tmp_path) == ["step-000000003", "step-000000009"]
        assert not any(defects(place, ("weights.safetensors",)) for place in kept[::2])
        # Training that goes on from step 3 comes to it again.
        again.keep(6, checkpoint(tmp_path, 6))
    assert names(tmp_path) == [place.name for place in kept]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    for place, line in zip(kept[1:], said, strict=True):
        assert f"{place} is broken: weights.safetensors differ from the manifest" in line


def test_a_damaged_snapshot_that_has_its_result_is_nobodys_loss(tmp_path, monkeypatch, caplog):
    checkpoint(tmp_path, 3)
    with standing(tmp_path, monkeypatch):
        leave(tmp_path, 3, 0.1)
    damage(tmp_path / "evaluations" / "step-000000003")
    with standing(tmp_path, monkeypatch):
        assert not caplog.records


def test_who_waits_for_lost_weights_is_told_what_to_do(tmp_path, monkeypatch):
    """Training is past the step, and its checkpoint is pruned: it would wait for ever."""
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    with (
        standing(tmp_path / "refine", monkeypatch, patience=1) as kept,
        pytest.raises(
            EvaluationFailed, match=r"step 3 were damaged.*step on away, .*--redo refine\nin step 6$"
        ),
    ):
        kept.stops(6, alone)


def test_a_lost_evaluation_that_nobody_waits_for_is_told_at_the_end(tmp_path, monkeypatch, caplog):
    with standing(tmp_path, monkeypatch) as kept:
        for step in (3, 9, 12):
            leave(tmp_path, step, 0.1)
        kept.finish(12, alone)
    assert "steps [6] are not evaluated" in caplog.text


def test_the_end_waits_until_the_evaluated_snapshot_is_deleted(tmp_path, monkeypatch):
    """The process deletes it, and weights of its own, after it has left the result."""
    looks = []

    def look(_):
        looks.append(names(tmp_path))
        if len(looks) == 1:
            leave(tmp_path, 12, 0.5)
        if len(looks) == 3:
            shutil.rmtree(snapshots(tmp_path / "evaluations")[0])

    monkeypatch.setattr(evaluations, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=look))
    checkpoint(tmp_path, 12)
    with standing(tmp_path, monkeypatch) as kept:
        kept.finish(12, alone)
    assert looks == [["step-000000012"]] * 3


@pytest.mark.parametrize("dies", [True, False])
def test_what_an_evaluating_process_leaves_half_written_is_deleted_when_it_is_dead(
    tmp_path, monkeypatch, dies
):
    """Killed at the end, or dead and replaced; an earlier start's may live on behind a broken network."""
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    weights, others = tmp_path / BEST, temporary_beside(tmp_path / BEST)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "getpid", lambda: StandIn.pid)
        half = temporary_beside(weights)
        left = [half, temporary_beside(half), temporary_beside(result_file(tmp_path / "evaluations", 12))]
    checkpoint(tmp_path, 12)
    with standing(tmp_path, monkeypatch, dies=dies) as kept:
        for path in (*left, others):
            path.touch()
        if dies:
            with pytest.raises(EvaluationFailed):
                kept.finish(12, alone)
            assert not any(path.exists() for path in left)
    assert not any(path.exists() for path in left) and others.exists()


def test_a_link_that_a_kill_left_half_made_is_no_snapshot_and_is_deleted(tmp_path, monkeypatch):
    """Under a name of its own: a start behind a broken network may be linking the same step."""

    def killed(*_):
        raise KeyboardInterrupt

    with standing(tmp_path, monkeypatch) as kept:
        made = checkpoint(tmp_path, 3)
        monkeypatch.setattr(evaluations, "rename_durably", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.keep(3, made)
    folder = tmp_path / "evaluations"
    assert temporary_beside(folder / "step-000000003").is_dir() and not snapshots(folder)
    monkeypatch.undo()
    shutil.rmtree(made)
    with standing(tmp_path, monkeypatch):
        assert not [path for path in folder.iterdir() if path.is_dir()]


def test_training_stops_by_the_evaluations_before_the_last_interval(tmp_path, monkeypatch):
    with standing(tmp_path, monkeypatch, patience=1) as kept:
        leave(tmp_path, 3, 0.2)
        assert not any(kept.stops(step, alone) for step in (3, 5, 6))
        leave(tmp_path, 6, 0.2)
        assert kept.stops(9, alone), "as good is no better"
        leave(tmp_path, 6, 0.3)
        assert not kept.stops(9, alone)
        # What a later step has brought is no reason: another try might not have it yet.
        leave(tmp_path, 9, 0.1)
        assert not kept.stops(9, alone) and not kept.stops(12, alone), "the last step ends it anyway"
    with standing(tmp_path, monkeypatch) as kept:
        assert not kept.stops(9, alone), "without patience nobody waits or stops"


def test_a_process_that_dies_again_and_again_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    checkpoint(tmp_path, 12)
    with (
        standing(tmp_path, monkeypatch, dies=True) as kept,
        pytest.raises(EvaluationFailed, match=r"ended or stood still 4 times; see .*output\.log"),
    ):
        kept.finish(12, alone)


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
            shutil.rmtree(snapshots(tmp_path / "evaluations")[0])

    times = SimpleNamespace(monotonic=lambda: 900.0 * len(looks), sleep=look)
    monkeypatch.setattr(evaluations, "time", times)
    checkpoint(tmp_path, 12)
    with standing(tmp_path, monkeypatch) as kept:
        if works:
            kept.finish(12, alone)
        else:
            with pytest.raises(EvaluationFailed, match="stood still 4 times"):
                kept.finish(12, alone)
    assert len(looks) == (20 if works else 12), "half an hour and one look, four times"


def test_ranks_agree_at_every_look_while_an_evaluation_is_waited_for(tmp_path, monkeypatch):
    """Also those that lack nothing, and have no process: another may see the result later."""
    monkeypatch.setattr(evaluations, "POLL_S", 0)
    looks = []

    def agree(step, lacking):
        looks.append((step, lacking))
        if len(looks) == 2:
            leave(tmp_path, 12, 0.5)
        if len(looks) == 4:
            raise Preempted("asked to stop")
        return True

    waiting = Evaluations(tmp_path, Schedule(iters=12, eval_every=3), {}, 1)
    with waiting, pytest.raises(Preempted):
        waiting.finish(12, agree)
    assert looks == [(12, True), (12, True), (12, False), (12, False)]


def test_training_waits_only_after_steps_that_are_saved(tmp_path, monkeypatch):
    """So who is asked to save, or to stop, as it waits has done so."""
    after = []
    with standing(tmp_path, monkeypatch, patience=9) as kept:
        for step in (3, 6, 9):
            leave(tmp_path, step, 0.1)
        for step in range(13):
            kept.stops(step, lambda step, _: after.append(step))
        assert after == [3, 6, 9] and all(map(kept.due, after))


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


def test_weights_that_wait_are_given_up_when_nothing_is_to_be_evaluated_any_more(
    tmp_path, monkeypatch, caplog
):
    """Each is a link that keeps whole weights on the disk, and nobody would come for it."""
    checkpoint(tmp_path, 3)
    with standing(tmp_path, monkeypatch):
        assert len(snapshots(tmp_path / "evaluations")) == 1
    with standing(tmp_path, monkeypatch, eval_every=0):
        assert snapshots(tmp_path / "evaluations") == []
    assert "eval_every is 0 now: 1 evaluations that waited are left out" in caplog.text
