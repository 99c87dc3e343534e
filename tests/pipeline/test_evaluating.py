"""The evaluating process leaves results and the best weights; that of an earlier start leaves nothing."""

import shutil
from dataclasses import asdict

import pytest

from pipeline import evaluating, evaluations
from pipeline.evaluations import BEST, BEST_BEFORE, result_file, snapshots
from pipeline.lease import Superseded, claim_stage
from pipeline.network.weights import load_weights
from tests.pipeline.test_evaluations import checkpoint, damage, names, standing


@pytest.fixture
def evaluated(monkeypatch):
    """An evaluation that takes as long as a test says, with the AP that it says, or 0.5."""
    meanwhile, aps = [], {}

    def evaluate(weights, order, alive):
        step = int(load_weights(weights)[0]["a"][0])
        for happen in meanwhile:
            happen()
        return {"segm": {"AP": aps.get(step, 0.5)}}

    monkeypatch.setattr(evaluating, "_evaluated", evaluate)
    return meanwhile, aps


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage with snapshots of steps 3, 6 and 9, and what its evaluating process is told."""
    claim = claim_stage(tmp_path, "baseline", 1, 0)
    for step in (3, 6, 9):
        checkpoint(tmp_path / "baseline", step)
    with standing(tmp_path / "baseline", monkeypatch):
        pass
    order = {"meta": {"format": 1}, "claim": {**asdict(claim), "run_dir": str(tmp_path)}}
    return tmp_path / "baseline", order


def test_an_evaluating_process_of_an_earlier_start_leaves_nothing(stage, evaluated):
    (folder, order), (meanwhile, _) = stage, evaluated
    place = folder / "evaluations" / "step-000000003"

    def again():
        return claim_stage(folder.parent, "baseline", 1, 0)

    meanwhile.append(again)
    with pytest.raises(Superseded):
        evaluating.evaluate_snapshot(place.parent, place, order)
    assert not (folder / "best.safetensors").exists()
    assert not result_file(place.parent, 3).exists() and place.exists()
    meanwhile.clear()
    order["claim"]["token"] = again().token
    evaluating.evaluate_snapshot(place.parent, place, order)
    assert (folder / "best.safetensors").exists() and not place.exists()
    assert not [*folder.glob(".*.tmp-*")]


def test_damaged_weights_are_not_evaluated_but_deleted(stage, evaluated, caplog):
    (folder, order), _ = stage, evaluated
    place = folder / "evaluations" / "step-000000003"
    damage(place)
    newer = claim_stage(folder.parent, "baseline", 1, 0)
    with pytest.raises(Superseded):
        evaluating.evaluate_snapshot(place.parent, place, order)
    assert place.exists(), "the newer start may have linked it again meanwhile"
    order["claim"]["token"] = newer.token
    evaluating.evaluate_snapshot(place.parent, place, order)
    assert not place.exists() and not result_file(place.parent, 3).exists()
    assert not (folder / "best.safetensors").exists()
    assert "step-000000003 is broken: weights.safetensors differ from the manifest" in caplog.text


@pytest.mark.parametrize("order_of_steps", [(3, 6, 9), (9, 3, 6), (6, 9, 3)])
@pytest.mark.parametrize(("aps", "best"), [((0.1, 0.3, 0.2), 6), ((0.2, 0.2, 0.2), 3), ((0.1, 0.2, 0.3), 9)])
def test_the_best_is_the_first_of_the_best_also_when_one_is_evaluated_late(
    stage, evaluated, order_of_steps, aps, best
):
    (folder, order), (_, given) = stage, evaluated
    given.update(zip((3, 6, 9), aps, strict=True))
    for step in order_of_steps:
        evaluating.evaluate_snapshot(
            folder / "evaluations", folder / "evaluations" / f"step-{step:09d}", order
        )
    assert load_weights(folder / "best.safetensors")[0]["a"][0] == best


def test_what_was_measured_by_other_settings_is_not_compared_with(stage, evaluated, monkeypatch, caplog):
    (folder, order), (_, given) = stage, evaluated
    given.update({3: 0.9, 6: 0.8, 9: 0.7})
    for place in snapshots(folder / "evaluations"):
        evaluating.evaluate_snapshot(place.parent, place, order)
    shutil.rmtree(folder / "checkpoints" / "step-000000003")
    with standing(folder, monkeypatch):
        assert len(evaluations.results_of(folder)) == 3 and not caplog.records
    with standing(folder, monkeypatch, test={"score": 0.5}):
        assert evaluations.results_of(folder) == []
        assert names(folder) == ["step-000000006", "step-000000009"], "step 3 has no checkpoint any more"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("test.score changed: 3 evaluations") and line.endswith("best-before.safetensors")
    given.update({6: 0.1, 9: 0.2})
    for place in snapshots(folder / "evaluations"):
        evaluating.evaluate_snapshot(place.parent, place, order)
    found = [load_weights(folder / name)[0]["a"][0] for name in (BEST, BEST_BEFORE)]
    assert found == [9, 3]
    with standing(folder, monkeypatch, test={"score": 0.5}):
        assert [result["step"] for result in evaluations.results_of(folder)] == [6, 9]
