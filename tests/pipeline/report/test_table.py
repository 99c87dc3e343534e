"""A sweep's report: which differences stand first, what a failed row costs, and Figure 5 on real shards."""

import json
import warnings

import pytest

from pipeline.evaluate import measure
from pipeline.report import table
from pipeline.report.table import TableForm, TableRow, write_table
from pipeline.scoring.analysis import MEASURES, analyse
from pipeline.scoring.bootstrap import Interval
from pipeline.scoring.coco_ap import prepare_annotations
from shards.read import ShardDataset
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards
from tests.pipeline.coco_cases import random_case

COCO, RESULTS = random_case(31, images=4)
FORM = TableForm("t", ("row",), ("AP_b",), None, None, "")
PAPER = {"id": "r", "AP_b": 39.5, "AP_m": 35.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a row leaves behind."""
    place = tmp_path_factory.mktemp("row")
    save(place, COCO, RESULTS, "gone")
    return place


def save(place, coco, results, shards):
    trees = {
        "metrics": measure(coco, results),
        "coco_results": results,
        "source": {"shards": str(shards)},
        "analysis": analyse(prepare_annotations(coco), results, 5),
    }
    for name, tree in trees.items():
        (place / f"{name}.json").write_text(json.dumps(tree))


def rows_of(folder, number, failed=(), group="g", paper=None):
    return [
        TableRow(f"r{n}", (f"r{n}",), group, None, {}, paper or {}, "no luck")
        if n in failed
        else TableRow(f"r{n}", (f"r{n}",), group, folder, {"test.alpha": float(n)}, paper or {})
        for n in range(number)
    ]


def drawn_and_shown(monkeypatch, rows, out):
    """Return (the pairs that are drawn, those of the first table, those of the second)."""
    drawn = []
    draw = table.draw_gains
    monkeypatch.setattr(table, "draw_gains", lambda pairs, path: (drawn.extend(pairs), draw(pairs, path)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_table(FORM, rows, out)
    first, _, second = (out / "report.md").read_text().partition("### Every other difference")
    return set(drawn), pairs_in(first), pairs_in(second)


def pairs_in(text):
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| r") and "[" in line]
    return {(line[1], line[0].removeprefix("| ")) for line in lines}


def test_of_many_rows_the_differences_to_the_first_stand_first_and_none_is_left_out(
    folder, tmp_path, monkeypatch
):
    drawn, first, second = drawn_and_shown(monkeypatch, rows_of(folder, 12), tmp_path)
    assert drawn == first == {("r0", f"r{n}") for n in range(1, 12)}
    assert second == {(f"r{a}", f"r{b}") for b in range(12) for a in range(1, b)}


def test_of_few_rows_every_difference_is_drawn(folder, tmp_path, monkeypatch):
    drawn, first, second = drawn_and_shown(monkeypatch, rows_of(folder, 3), tmp_path)
    assert drawn == first == {("r0", "r1"), ("r0", "r2"), ("r1", "r2")} and not second


def test_where_the_first_row_failed_the_next_takes_its_place(folder, tmp_path, monkeypatch):
    rows = rows_of(folder, 7, failed=[0], paper=PAPER)
    drawn, first, _ = drawn_and_shown(monkeypatch, rows, tmp_path)
    assert drawn == first == {("r1", f"r{n}") for n in range(2, 7)}
    assert "| r0 | - (39.5) | - | - |" in (tmp_path / "report.md").read_text()


def test_rows_on_other_images_are_not_paired(folder, tmp_path, monkeypatch):
    coco, results = random_case(5, images=3)
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", coco, results, "gone")
    rows = [*rows_of(folder, 2), TableRow("r2", ("r2",), "g", tmp_path / "other", {}, {})]
    drawn, first, _ = drawn_and_shown(monkeypatch, rows, tmp_path / "out")
    assert drawn == first == {("r0", "r1")}


def test_two_readings_of_one_row_of_the_paper_have_no_difference_in_it(folder, tmp_path):
    readings, other = rows_of(folder, 2, paper=PAPER), {**PAPER, "id": "s", "AP_b": 39.1, "AP_m": 35.4}
    write_table(FORM, [*readings, TableRow("r2", ("r2",), "g", folder, {}, other)], tmp_path)
    lines = {
        pair: line for line in (tmp_path / "report.md").read_text().splitlines() for pair in pairs_in(line)
    }
    assert "(-0.4)" in lines["r0", "r2"] and "(+0.0)" in lines["r0", "r2"]
    assert "(" not in lines["r0", "r1"]


def test_each_group_has_its_own_curve(folder, tmp_path):
    rows = [*rows_of(folder, 2), *[row for row in rows_of(folder, 4, group="h")[2:]]]
    write_table(TableForm("t", ("row",), ("AP_b",), "test.alpha", None, ""), rows, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "![g: AP of all and of the huddled against test.alpha" in report
    assert "![h: AP of all and of the huddled against test.alpha" in report
    assert len(list((tmp_path / "figures").glob("curve-*.png"))) == 2


def test_twenty_rows_are_told_apart_in_the_curves(folder, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("pipeline.report.curves.save_figure", lambda figure, _: figures.append(figure))
    curve = json.loads((folder / "analysis.json").read_text())["huddledness"]
    table.draw_huddledness({f"r{n}": curve for n in range(20)}, tmp_path / "f.png")
    styles = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(styles) == 20
    assert len(figures[0].legends[0].get_texts()) == 20 and not figures[0].axes[1].get_legend()


def test_no_legend_lies_on_an_interval(folder, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("pipeline.report.curves.save_figure", lambda figure, _: figures.append(figure))
    interval = Interval(0.01, -0.9, 0.9, 5, 0)
    found = {name: interval for name, _, _ in MEASURES}
    table.draw_gains({("a", "b"): found, ("a", "c"): found}, tmp_path / "f.png")
    figures[0].draw_without_rendering()
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["all instances", "the huddled ones"]
    for axis in figures[0].axes:
        assert axis.get_legend() is None and len(axis.lines) == 9
        assert not legend.get_window_extent().overlaps(axis.get_window_extent())


def test_a_difference_that_rounds_to_nothing_has_no_minus(folder, tmp_path):
    ours = 100 * measure(COCO, RESULTS)["bbox"]["AP"]
    write_table(FORM, rows_of(folder, 1, paper={"id": "r", "AP_b": ours + 0.01}), tmp_path)
    assert f"({ours + 0.01:.1f}, +0.0)" in (tmp_path / "report.md").read_text()


def test_figure_5_shows_the_rows_that_it_names(tmp_path):
    write_synthetic(tmp_path / "data", images=1, seed=3)
    annotations = tmp_path / "data/annotations/instances_val2017.json"
    write_shards(tmp_path / "data/val2017", annotations, tmp_path / "shards")
    coco = ShardDataset(tmp_path / "shards").to_coco()
    found = [
        {key: item[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for item in coco["annotations"]
    ]
    rows = []
    for name, results in (("before", found[::2]), ("after", found)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, coco, results, tmp_path / "shards")
        rows.append(TableRow(name, (name,), "g", tmp_path / name, {}, {}))
    write_table(TableForm("t", ("row",), ("AP_b",), None, ("before", "after"), ""), rows, tmp_path / "out")
    assert (tmp_path / "out/figures/figure5.png").is_file()
    report = (tmp_path / "out/report.md").read_text()
    assert "Figure 5: where the rows differ most" in report and "The rule: COCO's mask AP" in report
    write_table(TableForm("t", ("row",), ("AP_b",), None, ("before", "gone"), ""), rows, tmp_path / "other")
    assert "Figure 5" not in (tmp_path / "other/report.md").read_text()


def test_rows_without_public_annotations_name_their_archives_and_the_papers_numbers(tmp_path):
    row = TableRow("MR R-CNN", ("MR R-CNN",), "g", tmp_path / "row", {}, PAPER)
    row.folder.mkdir()
    (row.folder / "detections_test-dev2017_MR-R-CNN_results.zip").write_bytes(b"")
    write_table(FORM, [row], tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    assert "| MR R-CNN | - (39.5) | - | - |" in report
    where = str(row.archives[0]).replace("_", "\\_")
    assert where.endswith("MR-R-CNN\\_results.zip") and f"| MR R-CNN | {where} |" in report
    assert "Differences between rows" not in report and "huddledness" not in report
