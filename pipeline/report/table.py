"""A sweep's report: the paper's table with our numbers, how sure each difference is, curves and pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.curves import HUDDLEDNESS, draw_gains, draw_huddledness, draw_key
from pipeline.report.extremes import EXTREMES_RULE, draw_extremes, extremes
from pipeline.report.page import Block, Figure, Heading, Table, Text, to_html, to_markdown
from pipeline.scoring.analysis import MEASURES, RESAMPLES, resampled_of
from pipeline.scoring.bootstrap import Interval, paired_interval
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.storage.files import write_atomic

# The paper's columns: the kind and the column of metrics.json, and what that is called here.
PAPER_MEASURES = {
    "AP_b": ("bbox", "AP", "box AP"),
    "AP_b50": ("bbox", "AP50", "box AP50"),
    "AP_b75": ("bbox", "AP75", "box AP75"),
    "AP_m": ("segm", "AP", "mask AP"),
    "AP_m50": ("segm", "AP50", "mask AP50"),
    "AP_m75": ("segm", "AP75", "mask AP75"),
}
HUDDLED = {"huddled box AP": "bbox", "huddled mask AP": "segm"}
# What the paper has of a measure that we have intervals of.
PAPER_OF = {"box AP": "AP_b", "mask AP": "AP_m"}
LEGEND = (
    "AP is COCO's, in percent. Each cell is ours, and in brackets the paper's and how much ours is above it. "
    "Huddled AP, which the paper has not, counts only instances whose box overlaps another instance's box "
    "(of any category) at IoU 0.3 or more; the others are ignored."
)
SURENESS = (
    f"Intervals are 95% paired bootstrap intervals over the held-out images ({RESAMPLES} resamples): they "
    "speak of the choice of images, not of the training seed. An interval that holds 0 does not tell two "
    "rows apart. Each stands alone: of rows that do not differ, one in twenty leaves 0 out by chance."
)


# Up to so many rows of a group every difference is drawn, not only those with the first row.
SMALL_GROUP = 4
GAINS = (
    "What rows have more than others, in points of AP, with 95% intervals: every two rows of a group of at "
    f"most {SMALL_GROUP}, in larger groups each row and the first one."
)
Pairs = dict[tuple[str, str], dict[str, Interval]]


@dataclass(frozen=True)
class TableRow:
    """One row of a sweep.

    Attributes:
        name: what the row is called.
        cells: under the sweep's columns.
        group: rows of one group differ in what the table is about; only they are paired.
        folder: metrics.json, analysis.json, coco_results.json, source.json, or the server's archive.
        config: the resolved config, flat.
        paper: the paper's row, {} if it has none.
        failed: one line, None if nothing did.
    """

    name: str
    cells: tuple[str, ...]
    group: str
    folder: Path | None
    config: dict[str, Any]
    paper: dict[str, Any]
    failed: str | None = None

    def read(self, name: str) -> Any:
        """Return a JSON file of the row's folder, None if it is not there."""
        path = None if self.folder is None else self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None

    @property
    def archives(self) -> list[Path]:
        """The row's archives for the COCO server; [] where there are annotations."""
        return [] if self.folder is None else sorted(self.folder.glob("detections_*.zip"))


@dataclass(frozen=True)
class TableForm:
    """What a sweep file says of its report: title, columns, measures, curve, pictures, and a note."""

    title: str
    columns: tuple[str, ...]
    measures: tuple[str, ...]
    curve: str | None
    pictures: tuple[str, str] | None
    note: str


def write_table(form: TableForm, rows: list[TableRow], out: Path) -> dict[str, Any]:
    """Return the table's numbers by row; writes report.md, report.html, summary.json and figures/ to `out`.

    Rows that failed are in it by name and reason.
    """
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    values = {row.name: row_values(row) for row in rows}
    pairs = _pairs(rows)
    blocks: list[Block] = [Heading(form.title, 1), *_warnings(form, rows), Text(LEGEND), _main(form, rows)]
    blocks += _archives(rows) + _differences(rows, pairs, figures)
    blocks += _curve(form, rows, figures) + _huddledness(rows, figures) + _pictures(form, rows, figures)
    blocks += _settings(rows)
    summary = {
        "title": form.title,
        "rows": {row.name: values[row.name] | {"failed": row.failed} for row in rows},
        "differences": [
            {"row": b, "minus": a, "measure": measure, **vars(interval)}
            for (a, b), found in pairs.items()
            for measure, interval in found.items()
        ],
    }
    write_atomic(out / "report.md", to_markdown(blocks, out).encode())
    write_atomic(out / "report.html", to_html(blocks, form.title).encode())
    write_atomic(out / "summary.json", json.dumps(summary, indent=1).encode() + b"\n")
    return summary


def row_values(row: TableRow) -> dict[str, dict[str, float | None]]:
    """Return {"ours", "paper", "difference"}, each measure -> percent; None where there is no number."""
    metrics = row.read("metrics.json")
    ours = {name: _percent(metrics and metrics[kind][column]) for name, (kind, column, _) in _measures()}
    paper = {name: row.paper.get(key) for key, (_, _, name) in PAPER_MEASURES.items()}
    difference = {
        name: None if ours[name] is None or paper[name] is None else ours[name] - paper[name]
        for name in paper
    }
    for name, kind in HUDDLED.items():
        ours[name] = _percent(metrics and metrics["huddled"][kind]["AP"])
    return {"ours": ours, "paper": paper, "difference": difference}


def _measures():
    return [(name, (kind, column, key)) for key, (kind, column, name) in PAPER_MEASURES.items()]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _warnings(form: TableForm, rows: list[TableRow]) -> list[Block]:
    found: list[Block] = [Text(form.note, warning=True)] if form.note else []
    return found + [Text(f"Not done: {row.name}: {row.failed}", warning=True) for row in rows if row.failed]


def _main(form: TableForm, rows: list[TableRow]) -> Table:
    names = [PAPER_MEASURES[key][2] for key in form.measures]
    lines = []
    for row in rows:
        values = row_values(row)
        cells = [_cell(*(values[part][name] for part in ("ours", "paper", "difference"))) for name in names]
        lines.append([*row.cells, *cells, *(_number(values["ours"][name]) for name in HUDDLED)])
    return Table([*form.columns, *names, *HUDDLED], lines)


def _cell(ours: float | None, paper: float | None, difference: float | None) -> str:
    if paper is None:
        return _number(ours)
    beside = "" if difference is None else f", {difference:+z.1f}"
    return f"{_number(ours)} ({paper:.1f}{beside})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _archives(rows: list[TableRow]) -> list[Block]:
    found = [[row.name, str(archive)] for row in rows for archive in row.archives]
    if not found:
        return []
    text = "These images have no public annotations. The COCO evaluation server takes these archives:"
    return [Heading("For the COCO server"), Text(text), Table(["row", "archive"], found)]


def _pairs(rows: list[TableRow]) -> Pairs:
    """Return (row, later row of its group) -> measure -> what the later one has more."""
    known = {row.name: row.read("analysis.json") for row in rows}
    drawn = {
        name: {measure: resampled_of(analysis, measure) for measure in analysis["resampled"]}
        for name, analysis in known.items()
        if analysis is not None
    }
    return {
        (a.name, b.name): {
            measure: paired_interval(drawn[a.name][measure], drawn[b.name][measure])
            for measure in drawn[a.name]
        }
        for place, b in enumerate(rows)
        for a in rows[:place]
        if a.group == b.group and a.name in drawn and b.name in drawn
        # Rows may set other data: resamples of other images are no pairs.
        if known[a.name]["images"].keys() == known[b.name]["images"].keys()
    }


def _differences(rows: list[TableRow], pairs: Pairs, figures: Path) -> list[Block]:
    if not pairs:
        return []
    main = _main_pairs(rows, pairs)
    rest = {pair: found for pair, found in pairs.items() if pair not in main}
    path = figures / "gains.png"
    draw_gains(main, path)
    blocks = [Heading("Differences between rows"), Text(SURENESS), _difference_table(rows, main)]
    blocks.append(Figure(path, GAINS))
    return blocks + ([Heading("Every other difference", 3), _difference_table(rows, rest)] if rest else [])


def _main_pairs(rows: list[TableRow], pairs: Pairs) -> Pairs:
    """Return those with the first row of their group that has numbers, and all of a small group."""
    compared = {name for pair in pairs for name in pair}
    groups = [[row.name for row in group if row.name in compared] for group in _groups(rows).values()]
    group_of = {name: group for group in groups for name in group}
    return {
        (a, b): found
        for (a, b), found in pairs.items()
        if a == group_of[a][0] or len(group_of[a]) <= SMALL_GROUP
    }


def _difference_table(rows: list[TableRow], pairs: Pairs) -> Table:
    papers = {row.name: row.paper for row in rows}
    names = [name for name, _, _ in MEASURES]
    header = ["row", "minus", *(f"{name}{' (paper)' if name in PAPER_OF else ''}" for name in names)]
    lines = [
        [b, a, *(_gain(found.get(name), _paper_gain(papers[a], papers[b], name)) for name in names)]
        for (a, b), found in pairs.items()
    ]
    return Table(header, lines)


def _gain(interval: Interval | None, paper: float | None) -> str:
    if interval is None or interval.difference is None:
        return "-"
    low, middle, high = (100 * value for value in (interval.low, interval.difference, interval.high))
    beside = "" if paper is None else f" ({paper:+z.1f})"
    return f"{middle:+z.1f} [{low:+z.1f}, {high:+z.1f}]{beside}"


def _paper_gain(a: dict[str, Any], b: dict[str, Any], name: str) -> float | None:
    # Two readings of one row of the paper: it has no difference between them.
    same = bool(a) and a.get("id") == b.get("id")
    before, after = (None if same else row.get(PAPER_OF.get(name, "")) for row in (a, b))
    return None if before is None or after is None else after - before


def _curve(form: TableForm, rows: list[TableRow], figures: Path) -> list[Block]:
    blocks: list[Block] = []
    for number, (group, members) in enumerate(_groups(rows).items()):
        points = [
            (row.config[form.curve], row_values(row))
            for row in members
            if form.curve in row.config and row.read("metrics.json") is not None
        ]
        if len({x for x, _ in points}) > 1:
            path = figures / f"curve-{number}.png"
            draw_key(form.curve, sorted(points, key=lambda point: point[0]), path)
            caption = f"{group}: AP of all and of the huddled against {form.curve}; dashed: the paper's."
            blocks.append(Figure(path, caption))
    return [Heading(f"AP against {form.curve}"), *blocks] if blocks else []


def _huddledness(rows: list[TableRow], figures: Path) -> list[Block]:
    blocks: list[Block] = []
    for number, (group, members) in enumerate(_groups(rows).items()):
        known = [(row.name, row.read("analysis.json")) for row in members]
        curves = {name: analysis["huddledness"] for name, analysis in known if analysis is not None}
        if curves:
            path = figures / f"huddledness-{number}.png"
            draw_huddledness(curves, path)
            blocks.append(Figure(path, f"{group}: {HUDDLEDNESS}"))
    return [Heading("AP against huddledness"), *blocks] if blocks else []


def _groups(rows: list[TableRow]) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _pictures(form: TableForm, rows: list[TableRow], figures: Path) -> list[Block]:
    by_name = {row.name: row for row in rows}
    chosen = [by_name[name] for name in form.pictures or () if name in by_name]
    analyses = [row.read("analysis.json") for row in chosen]
    if len(chosen) < 2 or None in analyses:
        return []
    path = figures / "figure5.png"
    gained, lost = extremes(*(analysis["images"] for analysis in analyses))
    results = [(row.name, row.read("coco_results.json")) for row in chosen]
    source = chosen[0].read("source.json")
    if not gained + lost:
        return []
    try:
        draw_extremes(ShardDataset(source["shards"]), results, gained, lost, path)
    except (BadInput, OSError) as error:
        return [Text(f"No Figure 5: the held-out images cannot be read ({error}).", warning=True)]
    return [Heading("Figure 5: where the rows differ most"), Figure(path, EXTREMES_RULE)]


def _settings(rows: list[TableRow]) -> list[Block]:
    keys = sorted({key for row in rows for key in row.config if not key.startswith("tracking.")})
    differing = [key for key in keys if len({str(row.config.get(key)) for row in rows}) > 1]
    common = [[key, str(rows[0].config.get(key))] for key in keys if key not in differing]
    blocks: list[Block] = [Heading("Settings")]
    if differing:
        lines = [[key, *(str(row.config.get(key, "-")) for row in rows)] for key in differing]
        blocks += [Text("That differ:"), Table(["key", *(row.name for row in rows)], lines)]
    return [*blocks, Text("That are the same in every row:"), Table(["key", "value"], common)]
