"""Sweep files: what they say is checked before anything runs, and the tables are the paper's."""

import re
from pathlib import Path

import pytest
import yaml

from configs.load import ConfigError
from configs.sweep import load_sweep, paper_rows, row_config, settings_name

TABLES = Path(__file__).resolve().parents[2] / "configs" / "tables"
PAPER = paper_rows(TABLES / "paper.json")
FILES = sorted(TABLES.glob("*.yaml"))
BACKBONES = {
    "R-50-FPN": "resnet50",
    "R-101-FPN": "resnet101",
    "X-101-32x8d-FPN": "resnext101_32x8d",
    "R-101-DCN-FPN": "resnet101_dcn",
}
TREE = {
    "title": "t",
    "columns": ["network"],
    "measures": ["AP_b"],
    "configs": {"base": {"file": "base.yaml", "set": {"test.topk": 50}}},
    "rows": [
        {"name": "a", "cells": ["A"], "config": "base", "network": "baseline", "paper": "val-R-50-FPN-base"},
        {"name": "b", "cells": ["B"], "config": "base", "set": {"refine.iou": 0.6, "seed": 3}},
    ],
    "presets": {"mini": {"file": "small.yaml", "rows": ["b"], "set": {"seed": 7, "test.nms": 0.4}}},
}


@pytest.fixture
def write(tmp_path):
    for name in ("base", "small"):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{train: {name}, val: {name}}}\n")

    def written(**changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**TREE, **changes}))
        return path

    return written


def configs_of(path, overrides=(), data=None):
    sweep, keys = load_sweep(path, overrides)
    return {row.name: row_config(sweep, path, row, keys, data) for row in sweep.chosen_rows}


def test_a_row_is_its_config_with_its_keys_and_the_command_line_has_the_last_word(write):
    found = configs_of(write(), ["train.refine.iters=5"])
    assert [(name, config.seed, config.refine.iou) for name, config in found.items()] == [
        ("a", 0, 0.5),
        ("b", 3, 0.6),
    ]
    assert {(config.train.refine.iters, config.test.topk) for config in found.values()} == {(5, 50)}
    assert configs_of(write(), ["seed=9"])["b"].seed == 9


def test_a_recipe_is_scaled_to_the_batch_but_for_what_is_set(write, tmp_path):
    recipe = "{batch: 16, reference_batch: 16, iters: 100, lr: 0.2, steps: [60], warmup: 10}"
    (tmp_path / "base.yaml").write_text(f"data: {{train: t, val: v}}\ntrain: {{refine: {recipe}}}\n")
    scaled = configs_of(write(), ["train.refine.batch=8", "train.refine.warmup=3"])["a"].train.refine
    assert (scaled.iters, scaled.lr, scaled.steps, scaled.warmup) == (200, 0.1, (120,), 3)


def test_a_preset_replaces_configs_and_data_keeps_the_rows_keys_and_chooses_rows(write):
    found = configs_of(write(), ["preset=mini"], data=Path("/d"))
    assert list(found) == ["b"]
    mini = found["b"]
    assert (mini.seed, mini.refine.iou, mini.test.nms, mini.test.topk) == (3, 0.6, 0.4, 100)
    assert found["b"].data.val.annotations == "/d/annotations/instances_val2017.json"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": []}, "rows: .*at least 1 item"),
        ({"rows": [*TREE["rows"], TREE["rows"][0]]}, "two rows are called 'a'"),
        ({"rows": [{**TREE["rows"][0], "name": "pipeline"}]}, "cannot be called 'pipeline'"),
        ({"presets": {"mini": {"file": "small.yaml", "rows": []}}}, "presets.mini.rows: .*at least 1 item"),
        ({"curve": "test.alhpa"}, "curve: test.alhpa is no config key .*did you mean test.alpha"),
        ({"curve": "test.order"}, "curve: test.order is no config key that holds a number"),
        ({"curve": "refine.use_sara"}, "curve: refine.use_sara is no config key that holds a number"),
        ({"columns": ["x", "y"]}, "'a' has 1 cells for 2 columns"),
        ({"configs": {}}, "'a': there is no config 'base'"),
        ({"pictures": ["a", "z"]}, "no row 'z'"),
        ({"preset": "maxi"}, r"no preset 'maxi' here \(known: mini\)"),
        ({"titel": "t"}, "unknown key titel; did you mean title"),
        ({"measures": ["AP"]}, "measures.0"),
        ({"rows": [{"name": "it's", "cells": ["A"], "config": "base"}]}, "rows.0.name"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_in_one_line(write, changes, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        load_sweep(write(**changes))
    assert "\n" not in str(refusal.value)


def test_what_a_file_lacks_is_not_said_to_be_a_config_key(write):
    path = write()
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("title")))
    with pytest.raises(ConfigError, match=r"title is missing; set it in the file$"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ([], ""),
        (["tracking.uri=http://a", "data.train=/b"], ""),
        (["seed=1"], "-seed=1"),
        (["test.alpha=2", "seed=1"], "-seed=1-test.alpha=2"),
        (["train.refine.steps=[3, 4]"], "-[0-9a-f]{12}"),
        (["model.weights=/a/b"], "-[0-9a-f]{12}"),
        ([f"train.refine.iters={'1' * 60}"], "-[0-9a-f]{12}"),
    ],
)
def test_a_table_with_other_keys_has_another_name(keys, name):
    assert re.fullmatch(name, settings_name(keys))
    assert settings_name(keys[::-1]) == settings_name(keys)


def test_a_wrong_key_of_a_row_names_row_and_file(write):
    path = write(rows=[{"name": "a", "cells": ["A"], "config": "base", "set": {"refine.iuo": 1}}], presets={})
    with pytest.raises(ConfigError, match=r"row a \(base.yaml\): unknown key refine.iuo.*refine.iou"):
        configs_of(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_sweep_is_legal_and_its_paper_rows_exist(path):
    sweep, _ = load_sweep(path)
    assert {row.paper for row in sweep.rows if row.paper} <= PAPER.keys()
    assert all(row_config(sweep, path, row, [], None) for row in sweep.rows)
    for preset in sweep.presets:
        small, keys = load_sweep(path, [f"preset={preset}"])
        assert all(row_config(small, path, row, keys, Path("/d")) for row in small.chosen_rows)


@pytest.mark.parametrize(("table", "mark"), [(f"table{n}", f"T{n}") for n in range(1, 6)])
def test_the_tables_have_the_papers_rows_and_switches(table, mark):
    """Each row of paper.json is in its table with the network and switches that it stands for."""
    path = TABLES / f"{table}.yaml"
    sweep, _ = load_sweep(path)
    expected = {key for key, row in PAPER.items() if mark in row["table"].split(",")}
    assert {row.paper for row in sweep.rows} == expected
    for row in sweep.rows:
        config, paper = row_config(sweep, path, row, [], None), PAPER[row.paper]
        assert (row.network == "refined") == bool(paper["rm"])
        assert config.model.backbone == BACKBONES[paper["backbone"]]
        assert (paper["split"] == "test-dev2017") == (sweep.evaluate_on is not None)
        if paper["rm"]:
            assert config.refine.use_sara == bool(paper["sara"])
            assert (config.test.cls, config.test.reg) == (bool(paper["cls"]), bool(paper["reg"]))
            # Without refined scores the paper's alpha is 0: the same computation.
            assert (config.test.alpha if config.test.cls else 0.0) == paper["alpha"]


@pytest.mark.parametrize("table", ["table1", "table3", "table4", "table5", "control"])
def test_the_twins_have_all_rows_of_one_backbone_and_train_jointly_as_the_table_does(table):
    path, found = TABLES / f"{table}.yaml", {}
    for preset in ("mini", "coco_real"):
        sweep, keys = load_sweep(path, [f"preset={preset}"])
        rows = {row.name: row_config(sweep, path, row, keys, None) for row in sweep.chosen_rows}
        found[preset] = list(rows)
        assert {row.config for row in sweep.chosen_rows} == {"R-50-FPN"}
        assert not any(config.refine.freeze_base for config in rows.values())
    assert found["mini"] == found["coco_real"]
    assert found["mini"] == [row.name for row in sweep.rows if row.config == "R-50-FPN"]


def test_the_register_of_ambiguities_is_in_its_order():
    path = TABLES / "ambiguities.yaml"
    sweep, _ = load_sweep(path)
    trained = {
        str(row_config(sweep, path, row, [], None).model_copy(update={"test": None})) for row in sweep.rows
    }
    assert f"trained {len(trained)} times" in path.read_text()
    readings = {row.paper for row in sweep.rows if row.network == "refined" and row.config == "R-50-FPN"}
    assert readings == {"val-R-50-FPN-rm-sara", "val-R-50-FPN-cls"}
    numbers = [int("".join(filter(str.isdigit, row.cells[0]))) for row in sweep.rows]
    assert numbers == sorted(numbers) and set(numbers) == set(range(1, 14))
    settings = [tuple(sorted(row.set.items(), key=str)) for row in sweep.rows if row.network == "refined"]
    assert len(set(map(str, settings))) == len(settings), "every reading is another one"
