"""Scaling a recipe: what the linear rule says, what a user gave by hand, and what is told."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import dump_config, load_config, parse_config
from configs.scaling import scale_schedules

HERE = Path(__file__).parents[2] / "configs"
PAPER = ("coco_r50", "coco_r101", "coco_x101", "coco_r101_dcn")


def run(schedule, given=()):
    config = parse_config({"data": {"train": "a", "val": "b"}, "train": {"refine": schedule}})
    scaled, lines = scale_schedules(config, given)
    return scaled.train.refine, lines


RECIPE = {"iters": 9000, "reference_batch": 16, "lr": 0.002, "steps": [6000], "warmup": 500}


@given(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
def test_a_batch_trains_on_as_many_images_at_a_rate_in_proportion(batch):
    found, _ = run({**RECIPE, "batch": batch})
    assert found.lr / batch == pytest.approx(0.002 / 16)
    assert abs(found.iters * batch - 9000 * 16) <= batch / 2
    assert abs(found.steps[0] * batch - 6000 * 16) <= batch / 2
    assert abs(found.warmup * batch - 500 * 16) <= batch / 2


def test_the_batch_of_the_recipe_changes_nothing_and_is_said():
    found, lines = run({**RECIPE, "batch": 16})
    assert (found.iters, found.lr, found.steps, found.warmup) == (9000, 0.002, (6000,), 500)
    assert lines[0].endswith("the recipe as written")


def test_a_schedule_without_reference_stays_and_says_nothing():
    found, lines = run({"iters": 10, "batch": 2, "lr": 0.5, "steps": [7]})
    assert (found.iters, found.lr, found.steps, lines) == (10, 0.5, (7,), [])


def test_steps_never_scale_away_and_none_stay_none():
    """No steps take the weights as they are: a batch four times as large does not ask for that."""
    few, lines = run({"iters": 1, "reference_batch": 16, "lr": 0.1, "steps": [], "batch": 64})
    assert few.iters == 1 and "1 steps" in lines[0]
    none, lines = run({"iters": 0, "reference_batch": 16, "lr": 0.1, "steps": [], "batch": 64})
    assert none.iters == 0 and lines == ["train.refine: no steps"]
    config = load_config(HERE / "coco_r50.yaml", ["train.baseline.iters=0"], notes := [])
    assert config.train.baseline.iters == 0
    assert notes[0] == "train.baseline: no steps; model.weights is taken as it is"


def test_what_is_set_by_hand_stays():
    overrides = [f"train.refine.{part}" for part in ("batch=8", "iters=20", "steps=[15]")]
    notes = []
    config = load_config(HERE / "coco_r50.yaml", overrides, notes)
    assert config.train.refine.lr == 0.001 and config.train.refine.warmup == 1000
    assert (config.train.refine.iters, config.train.refine.steps) == (20, (15,))
    assert (
        "scaled from batch 16, but as set by hand: iters, steps" in notes[1]
        and "global batch 8, lr 0.001, 20 steps" in notes[1]
    )


@pytest.mark.parametrize("name", PAPER)
def test_a_resolved_config_is_not_scaled_again(name, tmp_path):
    config = load_config(HERE / f"{name}.yaml", ["train.refine.batch=4"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.train.refine.iters == 36000 and config.train.refine.reference_batch is None


FOUR = ("val-{}-base", "val-{}-rm-sara", "testdev-{}-base", "testdev-{}-rm-sara")
STATED = {
    "coco_r50": [row.format("R-50-FPN") for row in FOUR],
    "coco_r101": [row.format("R-101-FPN") for row in FOUR],
    "coco_x101": [row.format("X-101-32x8d-FPN") for row in FOUR],
    "coco_r101_dcn": ["testdev-R-101-DCN-FPN-rm-sara"],
}


@pytest.mark.parametrize("name", PAPER)
def test_a_head_states_the_ap_that_the_paper_reports(name):
    rows = json.loads((HERE / "tables" / "paper.json").read_text())["rows"]
    reported = {row["id"]: (row["AP_b"], row["AP_m"]) for row in rows}
    head = (HERE / f"{name}.yaml").read_text().partition("# Expect")[2].partition("For comparison")[0]
    stated = re.findall(r"(\d+\.\d) / (\d+\.\d)", head.partition("This project")[0])
    assert [tuple(map(float, pair)) for pair in stated] == [reported[row] for row in STATED[name]]


@pytest.mark.parametrize("name", PAPER)
def test_a_config_of_the_paper_says_in_its_head_what_a_run_needs(name):
    head = (HERE / f"{name}.yaml").read_text().partition("seed:")[0]
    for word in ("Weights", "Command", "Needs", "Hours", "Expect", "Scaling", "Baseline"):
        assert f"# {word}" in head
    assert f"mrrcnn run configs/{name}.yaml" in head
