"""The report: right numbers, plain words about what is missing, one HTML file that can load nothing."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.evaluate import measure
from pipeline.report.data import read_run
from pipeline.report.document import _gain, write_report
from pipeline.report.figures import most_huddled
from pipeline.report.page import Figure, Heading, Table, Text, to_html, to_markdown
from pipeline.scoring.bootstrap import Interval
from pipeline.scoring.coco_results import encode_mask
from shards.errors import BadInput
from shards.masks import decode_mask
from shards.read import ShardDataset
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards

NOISE_PX = {"baseline": 3.0, "control": 2.0, "refined": 0.5}


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """Shards of 50 synthetic images."""
    folder = tmp_path_factory.mktemp("synth")
    write_synthetic(folder / "data", images=1, seed=3)
    annotations = folder / "data/annotations/instances_val2017.json"
    write_shards(folder / "data/val2017", annotations, folder / "shards")
    return folder / "shards"


def shifted_results(coco, noise, seed=0):
    """Return the ground truth as results whose boxes are off by `noise` px."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    return [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": [float(value + rng.normal(0, noise)) for value in item["bbox"]],
            "score": float(rng.uniform(0.3, 1)),
            "segmentation": encode_mask(
                np.roll(decode_mask(item["segmentation"], *sizes[item["image_id"]]), round(noise), axis=1)
            ),
        }
        for item in coco["annotations"]
        if not item.get("iscrowd", 0)
    ]


def write_model(run, name, held_out, noise, alpha=1.0, weights="w"):
    coco = ShardDataset(held_out).to_coco()
    results = shifted_results(coco, noise)
    source = {
        "weights_sha256": weights,
        "dataset": "d",
        "test": {"alpha": alpha, "score": 0.05},
        "shards": str(held_out),
    }
    folder = run / "evaluate" / name
    folder.mkdir(parents=True)
    for file, tree in (("metrics", measure(coco, results)), ("coco_results", results), ("source", source)):
        (folder / f"{file}.json").write_text(json.dumps(tree))


@pytest.fixture(scope="session")
def run_dir(held_out, tmp_path_factory):
    """A whole run directory: three models, two more alphas, curves, config and ledger."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    for name, noise in NOISE_PX.items():
        write_model(run, name, held_out, noise, weights=name)
    for alpha in (0.0, 0.5):
        write_model(run, f"alpha={alpha}", held_out, 2 - alpha, alpha, weights="refined")
    rng = np.random.default_rng(0)
    for stage, steps in (("baseline", 400), ("refine", 150), ("control", 150)):
        (run / stage).mkdir()
        rows = []
        for step in range(20, steps + 1, 20):
            terms = {
                f"loss_{k}": float(rng.uniform(0.8, 1) * 20 / (step + 20)) for k in ("mask", "classifier")
            }
            rows.append({"step": step, "lr": 0.01, **terms, "loss": sum(terms.values()), "images_per_s": 9.0})
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"seed": 0, "model": {"backbone": "resnet18", "norm": "group"}, "test": {"alpha": 1.0}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    stages = {stage: {"state": "done", "attempt": 1} for stage in ("shard", "baseline", "refine", "control")}
    (run / "ledger.json").write_text(json.dumps({"stages": stages}))
    return run


@pytest.fixture(scope="session")
def report(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.document.RESAMPLES", 40)
        write_report([run_dir], out)
    return out


def test_summary_has_the_metrics_and_intervals_of_the_right_sign(report, run_dir):
    summary = json.loads((report / "summary.json").read_text())["demo"]
    assert summary["missing"] == []
    for model in NOISE_PX:
        assert summary["metrics"][model] == json.loads(
            (run_dir / f"evaluate/{model}/metrics.json").read_text()
        )
    for against in ("control", "baseline"):
        gain = summary["differences"][against]["huddled box AP"]
        assert 0 < gain["low"] < gain["difference"] < gain["high"]
        metrics = summary["metrics"]
        plain = metrics["refined"]["segm"]["AP"] - metrics[against]["segm"]["AP"]
        assert summary["differences"][against]["mask AP"]["difference"] == pytest.approx(plain, abs=1e-10)


SHOWN = ("differences", "pictures", "extremes", "huddledness", "alpha", "losses")


def test_markdown_shows_every_model_and_figures_that_exist(report, run_dir):
    text = (report / "report.md").read_text()
    ap = json.loads((run_dir / "evaluate/refined/metrics.json").read_text())["bbox"]["AP"]
    assert f"| MR R-CNN | {100 * ap:.1f} |" in text
    assert "Not in this report" not in text
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert figures == [f"figures/{name}.png" for name in SHOWN]
    for figure in figures:
        assert min(Image.open(report / figure).size) > 150


def test_html_needs_nothing_beside_it(report):
    page = (report / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == len(SHOWN)
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|<script|<link|@import""", page)
    assert "default-src 'none'" in page


def test_names_from_data_cannot_become_markup(run_dir, tmp_path):
    evil = "<script>alert(1)</script>|`x`[a](javascript:b)"
    run = tmp_path / "<img src=x onerror=y>"
    (run / "evaluate/refined").mkdir(parents=True)
    metrics = json.loads((run_dir / "evaluate/refined/metrics.json").read_text())
    next(iter(metrics["per_category"].values()))["name"] = evil
    (run / "evaluate/refined/metrics.json").write_text(json.dumps(metrics))
    write_report([run], tmp_path / "out")
    page, text = (tmp_path / "out/report.html").read_text(), (tmp_path / "out/report.md").read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    assert "<script" not in text and "<img" not in text and "[a](" not in text
    row = next(line for line in text.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_what_is_missing_is_said_and_the_rest_reported(run_dir, tmp_path):
    run = tmp_path / "half"
    (run / "baseline").mkdir(parents=True)
    (run / "baseline/metrics.jsonl").write_text((run_dir / "baseline/metrics.jsonl").read_text() + '{"torn')
    summary = write_report([run], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    for name in ("config.yaml", "ledger.json", "control/metrics.jsonl", "evaluate/refined/metrics.json"):
        assert f"{name} is not there" in text.replace("\\", "")
    assert "figures/losses.png" in text and summary["half"]["differences"] == {}


def test_vanished_shards_cost_the_pictures_not_the_report(run_dir, tmp_path):
    run = tmp_path / "moved"
    for model in NOISE_PX:
        (run / "evaluate" / model).mkdir(parents=True)
        for file in ("metrics", "coco_results"):
            (run / f"evaluate/{model}/{file}.json").write_text(
                (run_dir / f"evaluate/{model}/{file}.json").read_text()
            )
        (run / f"evaluate/{model}/source.json").write_text(json.dumps({"shards": str(tmp_path / "gone")}))
    write_report([run], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "the held-out shards cannot be read" in text.replace("\\", "") and "| MR R-CNN |" in text


def test_several_runs_stand_side_by_side_with_what_differs(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.report.document.RESAMPLES", 5)
    other = tmp_path / "other" / "demo"
    (other / "evaluate/refined").mkdir(parents=True)
    metrics = json.loads((run_dir / "evaluate/refined/metrics.json").read_text())
    (other / "evaluate/refined/metrics.json").write_text(json.dumps(metrics))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["test"]["alpha"] = 2.0
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    summary = write_report([run_dir, other], tmp_path / "out")
    assert set(summary) == {str(run_dir), str(other)}, "equal folder names are told apart by their paths"
    text = (tmp_path / "out/report.md").read_text()
    assert "| test.alpha | 1.0 | 2.0 |" in text and "| model.backbone | resnet18 | resnet18 |" not in text


def test_no_run_and_no_run_directory_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no run directory given"):
        write_report([], tmp_path / "out")
    with pytest.raises(BadInput, match="is no directory"):
        write_report([tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(BadInput, match="holds neither"):
        write_report([tmp_path], tmp_path / "out")


def test_sweep_takes_other_alphas_of_the_same_weights_and_settings_alone(run_dir, held_out, tmp_path):
    assert [alpha for alpha, _ in read_run(run_dir, "demo").sweep] == [0.0, 0.5, 1.0]
    write_model(tmp_path / "run", "refined", held_out, 1)
    write_model(tmp_path / "run", "other-weights", held_out, 1, alpha=0.5, weights="v")
    assert read_run(tmp_path / "run", "run").sweep == []


def test_pictures_are_of_the_most_huddled_images_whatever_the_results():
    box = {"bbox": [0, 0, 10, 10], "category_id": 1, "iscrowd": 0}
    coco = {
        "images": [{"id": 9}, {"id": 4}, {"id": 6}, {"id": 2}],
        "annotations": [{**box, "image_id": i} for i in (9, 9, 4, 4, 6, 6, 6, 2)],
    }
    coco["annotations"] = [{**item, "id": place} for place, item in enumerate(coco["annotations"], 1)]
    before = copy.deepcopy(coco)
    assert most_huddled(coco, 3) == [6, 4, 9]
    assert coco == before


def test_undefined_gain_is_a_dash():
    assert _gain(Interval(None, None, None, 10, 0)) == _gain(None) == "-"
    assert _gain(Interval(0.012, -0.001, 0.03, 10, 0)) == "+1.2 [-0.1, +3.0]"


def test_blocks_render_in_both_forms(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    blocks = [
        Heading("H & M", 1),
        Text("gone", warning=True),
        Table(["a", "b", "c"], [["x", "-1.5 (2.0, -3.5)", "1a y"], ["y", "- (2.0)", "-"]]),
        Figure(tmp_path / "a.png", "c"),
    ]
    assert to_markdown(blocks, tmp_path) == (
        "# H &amp; M\n\n> **gone**\n\n| a | b | c |\n| --- | ---: | --- |\n"
        "| x | -1.5 (2.0, -3.5) | 1a y |\n| y | - (2.0) | - |\n\n![c](a.png)\n\n*c*\n"
    )
    page = to_html(blocks, "t")
    assert "<h1>H &amp; M</h1>" in page and '<p class="warning">gone</p>' in page
    assert '<tr><td>y</td><td class="number">- (2.0)</td><td>-</td></tr>' in page
    assert Path(tmp_path / "a.png").exists()
