"""What the terminal shows of a data set: kept and found, one row a kind, refused or not."""

import io
import json
import sys

import pytest

from jobs.cli import main
from jobs.console import show_table
from jobs.summary import show_findings, show_statistics, showing_findings
from shards.errors import BadInput
from shards.synthetic.synth import write_synthetic


@pytest.fixture
def damaged(tmp_path):
    """Two synthetic images, an annotation with a wrong area and one without a mask."""
    write_synthetic(tmp_path, 2, seed=0, size=64)
    path = tmp_path / "annotations/instances_train2017.json"
    tree = json.loads(path.read_text())
    tree["annotations"][0]["area"] += 1000
    tree["annotations"][1]["segmentation"] = []
    path.write_text(json.dumps(tree))
    return tmp_path


def shard(root, *options):
    source = ["--images", str(root / "train2017"), "--annotations"]
    annotations = str(root / "annotations/instances_train2017.json")
    with pytest.raises(SystemExit) as ended:
        main(["shard", *source, annotations, "--out", str(root / "out"), "--workers", "1", *options])
    return ended.value.code or 0


def row(printed, kind):
    return next(line.split() for line in printed.splitlines() if kind in line)


def test_a_refused_data_set_is_shown_as_a_table_before_the_one_line(capsys, damaged):
    assert shard(damaged) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "has no segmentation" in shown.err
    missing = "error segmentation_missing 1 annotation 2 annotation dropped"
    assert row(shown.out, "segmentation_missing") == missing.split()
    disagrees = "warning area_disagrees 1 annotation 1 area taken from the mask"
    assert row(shown.out, "area_disagrees") == disagrees.split()
    assert f"errors are refused; each is listed in {damaged / 'out/report.json'}" in shown.out
    assert "0 of 2 images" in shown.out


def test_what_repair_did_is_shown(capsys, damaged):
    assert shard(damaged, "--repair") == 0
    shown = capsys.readouterr().out
    assert "annotation dropped" in " ".join(row(shown, "segmentation_missing"))
    assert "2 of 2 images" in shown
    assert "done" in shown and "errors are" not in shown


def test_what_became_of_one_kind_in_two_ways_has_a_row_each(capsys, damaged):
    """One of these is dropped, the other loses a line beside its polygon; neither may speak for both."""
    path = damaged / "annotations/instances_train2017.json"
    tree = json.loads(path.read_text())
    tree["annotations"][0]["segmentation"] = [[0, 0, 9, 0, 9, 9], [1, 2, 3, 4]]
    tree["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(tree))
    assert shard(damaged, "--on-bad", "skip") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [" ".join(line) for line in shown if "polygon_short" in line]
    assert rows == [
        "error polygon_short 1 annotation 2 annotation dropped",
        "error polygon_short 1 annotation 1 polygons of fewer than 3 points left out, the others kept",
    ]


def test_the_name_of_a_finding_is_whole_on_a_terminal_of_80_columns(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    done = "polygons of fewer than 3 points left out, the others kept"
    show_table("", ["", "finding", "done"], [["error", "duplicate_annotation_id", done + ", " + done]])
    lines = terminal.getvalue().splitlines()
    assert "duplicate_annotation_id" in terminal.getvalue() and max(map(len, lines)) <= 80


def test_a_table_on_a_terminal_is_drawn_and_takes_brackets_as_text(capsys, damaged, monkeypatch):
    shard(damaged)
    report = damaged / "out/report.json"
    report.write_text(report.read_text().replace("annotation dropped", "[red]dropped[/red]"))
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    show_findings(damaged / "out")
    assert "│" in terminal.getvalue() and "[red]dropped[/red]" in terminal.getvalue()


def test_a_category_whose_name_would_clear_the_terminal_is_shown_as_its_characters(capsys):
    show_statistics({"images": 1, "damaged": [], "complaints": [], "categories": {"a\x1b[2J": 3, "b": 1}})
    shown = capsys.readouterr().out
    assert "'a\\x1b[2J'  3" in shown and "\x1b" not in shown


def test_an_old_report_is_not_shown_for_another_fault(capsys, damaged):
    shard(damaged)
    capsys.readouterr()
    with pytest.raises(BadInput, match="other"), showing_findings(damaged / "out"):
        raise BadInput("other")
    assert capsys.readouterr().out == ""


def test_the_cap_of_pixels_is_an_option(capsys, damaged):
    assert shard(damaged, "--max-pixels", "4095") == 2
    assert "image_pixels" in capsys.readouterr().out


def test_a_table_without_headings_has_no_line_for_them(capsys):
    show_table("shards", ["", ""], [["images", "3"], ["crowds", "12"]])
    assert capsys.readouterr().out == "shards\n  images  3\n  crowds  12\n"
