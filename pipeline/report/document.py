"""The report of one run or several: AP and how sure it is, curves, and pictures of baseline and MR R-CNN."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.report.curves import HUDDLEDNESS, draw_huddledness
from pipeline.report.data import MODELS, RunData, read_run
from pipeline.report.extremes import EXTREMES_RULE, draw_extremes, extremes
from pipeline.report.figures import draw_alpha, draw_curves, draw_differences, draw_pictures, most_huddled
from pipeline.report.page import Block, Figure, Heading, Table, Text, to_html, to_markdown
from pipeline.scoring.analysis import MEASURES, RESAMPLES, analyse, resampled_of
from pipeline.scoring.bootstrap import Interval, paired_interval
from pipeline.scoring.coco_ap import prepare_annotations
from pipeline.tracking.tracker import flatten
from shards.errors import BadInput
from shards.storage.files import write_atomic

log = logging.getLogger(__name__)
PICTURES, PICTURE_SCORE = 6, 0.5
KINDS = {"bbox": "box", "segm": "mask"}
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
# What tells runs apart at a glance, where configs have it.
SETTINGS = (
    "model.backbone",
    "model.norm",
    "model.min_size",
    "train.baseline.iters",
    "train.refine.iters",
    "train.refine.batch",
    "train.refine.lr",
    "refine.use_sara",
    "refine.freeze_base",
    "test.alpha",
    "seed",
)
Differences = dict[str, dict[str, Interval]]


def write_report(run_dirs: list[Path], out: Path) -> dict[str, Any]:
    """Return the report's numbers by run; writes report.md, report.html, summary.json and figures/ to `out`.

    What a run directory lacks is said in the report, and the rest is reported.

    Raises:
        BadInput: no run directory, or one that holds no run.
    """
    if not run_dirs:
        raise BadInput("report: no run directory given")
    figures = Path(out) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    names = _names([Path(path) for path in run_dirs])
    runs = [read_run(path, name) for path, name in names.items()]
    analyses = [_analyses(run) for run in runs]
    differences = [_differences(found) for found in analyses]
    title = f"mrrcnn: {', '.join(run.name for run in runs)}"
    blocks: list[Block] = [Heading(title, 1), Text(_legend())]
    if len(runs) > 1:
        blocks += _comparison(runs, differences)
    for place, (run, analysed, difference) in enumerate(zip(runs, analyses, differences, strict=True)):
        prefix = f"{place:02d}-" if len(runs) > 1 else ""
        blocks += _run_section(run, analysed, difference, figures, prefix)
    summary = {run.name: _summary(run, found) for run, found in zip(runs, differences, strict=True)}
    write_atomic(Path(out) / "report.md", to_markdown(blocks, Path(out)).encode())
    write_atomic(Path(out) / "report.html", to_html(blocks, title).encode())
    write_atomic(Path(out) / "summary.json", json.dumps(summary, indent=1).encode() + b"\n")
    return summary


def _names(paths: list[Path]) -> dict[Path, str]:
    # The folder's name where that tells the runs apart, else the path as given.
    short = [path.resolve().name for path in paths]
    return {
        path: name if short.count(name) == 1 else str(path) for path, name in zip(paths, short, strict=True)
    }


def _legend() -> str:
    return (
        "AP is COCO's, in percent, on held-out images. Huddled AP counts only instances whose box overlaps "
        "another instance's box (of any category) at IoU 0.3 or more; the others are ignored. The control is "
        "the baseline trained on for as many iterations as the refining module, on the same samples: what "
        "MR R-CNN gains over it is not due to longer training. Intervals are 95% paired bootstrap intervals "
        f"over images ({RESAMPLES} resamples): they speak of the choice of images, not of the training seed."
    )


def _comparison(runs: list[RunData], differences: list[Differences]) -> list[Block]:
    header = ["run", *(name for name, _, _ in MEASURES), "box AP - control", "huddled box AP - control"]
    rows = []
    for run, found in zip(runs, differences, strict=True):
        refined = run.models["refined"].metrics if "refined" in run.models else None
        gains = [_gain(found.get("control", {}).get(measure)) for measure in ("box AP", "huddled box AP")]
        rows.append([run.name, *(_ap(refined, huddled, kind) for _, huddled, kind in MEASURES), *gains])
    # Where MLflow is changes no result, and its address may hold a password.
    configs = [flatten({k: v for k, v in run.config.items() if k != "tracking"}) for run in runs]
    keys = sorted({key for config in configs for key in config})
    differing = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    settings = [[key, *(str(config.get(key, "-")) for config in configs)] for key in differing]
    blocks: list[Block] = [
        Heading("The runs beside each other"),
        Text("MR R-CNN of each run."),
        Table(header, rows),
    ]
    if settings:
        blocks += [Text("Settings that differ:"), Table(["key", *(run.name for run in runs)], settings)]
    return blocks


def _run_section(
    run: RunData, analyses: dict[str, dict[str, Any]], differences: Differences, figures: Path, prefix: str
) -> list[Block]:
    # The title names a run that is alone.
    blocks: list[Block] = [Heading(run.name)] if prefix else []
    if run.missing:
        blocks.append(Text("Not in this report: " + "; ".join(run.missing) + ".", warning=True))
    settings = flatten(run.config)
    shown = [[key, str(settings[key])] for key in SETTINGS if key in settings]
    if run.models:
        blocks += [Heading("Average precision", 3), _main_table(run)]
    if differences:
        path = figures / f"{prefix}differences.png"
        draw_differences(differences, path)
        caption = "What MR R-CNN gains, with 95% paired bootstrap intervals over images, in points of AP."
        blocks += [Heading("What refining gains", 3), _difference_table(differences), Figure(path, caption)]
    blocks += _pictures(run, figures / f"{prefix}pictures.png")
    blocks += _extremes(run, analyses, figures / f"{prefix}extremes.png")
    blocks += _huddledness(analyses, figures / f"{prefix}huddledness.png")
    for name, huddled, kind in MEASURES if run.models else ():
        blocks += [Heading(f"In detail: {name}", 3), _detail_table(run, huddled, kind)]
    if run.models:
        blocks += [Heading("By category", 3), _category_table(run)]
    if run.sweep:
        path = figures / f"{prefix}alpha.png"
        draw_alpha(run.sweep, path)
        blocks += [
            Heading("AP against alpha", 3),
            Figure(path, "The same weights; alpha weighs the refined scores."),
        ]
    if run.curves:
        path = figures / f"{prefix}losses.png"
        draw_curves(run, path)
        blocks += [Heading("Training", 3), Figure(path, "Loss terms and their sum, means over logged steps.")]
    if shown:
        blocks += [Heading("Settings", 3), Table(["key", "value"], shown)]
    if run.stages:
        rows = [
            [stage, entry.get("state", "-"), str(entry.get("attempt", "-"))]
            for stage, entry in run.stages.items()
        ]
        blocks.append(Table(["stage", "state", "attempt"], rows))
    return blocks


def _main_table(run: RunData) -> Table:
    header = ["model", *(name for name, _, _ in MEASURES)]
    rows = [
        [MODELS[model], *(_ap(item.metrics, huddled, kind) for _, huddled, kind in MEASURES)]
        for model, item in run.models.items()
    ]
    return Table(header, rows)


def _detail_table(run: RunData, huddled: bool, kind: str) -> Table:
    rows = [
        [MODELS[model], *(_ap(item.metrics, huddled, kind, column) for column in COLUMNS)]
        for model, item in run.models.items()
    ]
    return Table(["model", *COLUMNS], rows)


def _category_table(run: RunData) -> Table:
    header = ["category", *(f"{model}, {name}" for model in run.models for name in KINDS.values())]
    first = next(iter(run.models.values())).metrics["per_category"]
    rows = []
    for category, entry in first.items():
        entries = [item.metrics["per_category"].get(category, {}) for item in run.models.values()]
        rows.append([entry["name"], *(_percent(entry.get(kind)) for entry in entries for kind in KINDS)])
    return Table(header, rows)


def _difference_table(differences: Differences) -> Table:
    header = ["MR R-CNN minus", *(name for name, _, _ in MEASURES)]
    return Table(header, [[against, *map(_gain, found.values())] for against, found in differences.items()])


def _analyses(run: RunData) -> dict[str, dict[str, Any]]:
    """Return the analysis of every evaluated network; {} where the held-out images are not to be had."""
    if run.shards is None or not run.shards.has_annotations:
        return {}
    coco = prepare_annotations(run.shards.to_coco())
    return {model: analyse(coco, item.results, RESAMPLES) for model, item in run.models.items()}


def _differences(analyses: dict[str, dict[str, Any]]) -> Differences:
    """Return "control" and "baseline" -> measure -> what MR R-CNN has more; {} if it cannot be told."""
    if "refined" not in analyses:
        return {}
    return {
        model: {
            measure: paired_interval(
                resampled_of(analyses[model], measure), resampled_of(analyses["refined"], measure)
            )
            for measure, _, _ in MEASURES
        }
        for model in ("control", "baseline")
        if model in analyses
    }


def _pictures(run: RunData, path: Path) -> list[Block]:
    if run.shards is None or not run.models or not run.shards.has_annotations:
        return []
    coco = prepare_annotations(run.shards.to_coco())
    draw_pictures(run, coco, most_huddled(coco, PICTURES), PICTURE_SCORE, path)
    caption = (
        f"The {PICTURES} held-out images with the most huddled instances (the lower image id first among "
        f"equals; chosen by the ground truth alone). Detections of score {PICTURE_SCORE} or more."
    )
    return [Heading("Pictures", 3), Figure(path, caption)]


def _extremes(run: RunData, analyses: dict[str, dict[str, Any]], path: Path) -> list[Block]:
    if not {"baseline", "refined"} <= analyses.keys():
        return []
    gained, lost = extremes(analyses["baseline"]["images"], analyses["refined"]["images"])
    if not gained + lost:
        return []
    results = [(MODELS[model], run.models[model].results) for model in ("baseline", "refined")]
    draw_extremes(run.shards, results, gained, lost, path)
    return [Heading("Where MR R-CNN gains and loses most", 3), Figure(path, EXTREMES_RULE)]


def _huddledness(analyses: dict[str, dict[str, Any]], path: Path) -> list[Block]:
    if not analyses:
        return []
    draw_huddledness({MODELS[model]: found["huddledness"] for model, found in analyses.items()}, path)
    return [Heading("AP against huddledness", 3), Figure(path, HUDDLEDNESS)]


def _summary(run: RunData, differences: Differences) -> dict[str, Any]:
    return {
        "metrics": {model: item.metrics for model, item in run.models.items()},
        "differences": {
            against: {measure: asdict(interval) for measure, interval in found.items()}
            for against, found in differences.items()
        },
        "missing": run.missing,
    }


def _ap(metrics: dict[str, Any] | None, huddled: bool, kind: str, column: str = "AP") -> str:
    if metrics is None:
        return "-"
    return _percent((metrics["huddled"] if huddled else metrics)[kind][column])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _gain(interval: Interval | None) -> str:
    if interval is None or interval.difference is None:
        return "-"
    low, middle, high = (100 * value for value in (interval.low, interval.difference, interval.high))
    return f"{middle:+z.1f} [{low:+z.1f}, {high:+z.1f}]"
