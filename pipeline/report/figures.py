"""The report's figures: loss curves, AP differences with their intervals, AP against alpha, pictures."""

from pathlib import Path
from typing import Any

from pipeline.report.data import MODELS, RunData
from pipeline.report.overlay import draw_instances, side_by_side
from pipeline.scoring.bootstrap import Interval
from pipeline.scoring.huddled import huddled_ids

NOT_LOSSES = {"step", "epoch", "samples", "lr", "images_per_s", "loss", "quarantined"}
BLUE, ORANGE, GREY = "#0a5fb4", "#d95f02", "#8a939c"


def draw_curves(run: RunData, path: Path) -> None:
    """Draw every stage's loss, the sum and its terms, against the step; needs at least one curve."""
    figure, axes = figure_of(len(run.curves))
    for axis, (stage, lines) in zip(axes, run.curves.items(), strict=True):
        steps = [line["step"] for line in lines]
        terms = sorted({key for line in lines for key in line} - NOT_LOSSES)
        for term in terms:
            axis.plot(steps, [line.get(term) for line in lines], linewidth=1, alpha=0.75, label=_short(term))
        axis.plot(steps, [line.get("loss") for line in lines], color="black", linewidth=2, label="sum")
        axis.set(title=stage, xlabel="step", ylim=(0, None))
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("loss")
    save_figure(figure, path)


def draw_differences(intervals: dict[str, dict[str, Interval]], path: Path) -> None:
    """Draw the 95% intervals of AP differences: rows are measures, colours what MR R-CNN is compared with."""
    measures = list(next(iter(intervals.values())))
    figure, (axis,) = figure_of(1, height=0.55 * len(measures) + 1.4, width=8)
    colours = dict(zip(intervals, (BLUE, ORANGE), strict=False))
    for offset, (against, colour) in zip((-0.13, 0.13), colours.items(), strict=False):
        for place, measure in enumerate(measures):
            if intervals[against][measure].difference is not None:
                draw_interval(axis, place + offset, intervals[against][measure], colour)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set(yticks=range(len(measures)), yticklabels=measures, xlabel="difference of AP, points")
    axis.invert_yaxis()
    legend_below(figure, {f"MR R-CNN - {against}": colour for against, colour in colours.items()})
    save_figure(figure, path)


def draw_alpha(sweep: list[tuple[float, dict[str, Any]]], path: Path) -> None:
    """Draw box and mask AP, plain and huddled, against alpha."""
    alphas = [alpha for alpha, _ in sweep]
    figure, axes = figure_of(2)
    for axis, title, pick in ((axes[0], "all", lambda m: m), (axes[1], "huddled", lambda m: m["huddled"])):
        for kind, name, colour in (("bbox", "box", BLUE), ("segm", "mask", ORANGE)):
            values = [pick(metrics)[kind]["AP"] for _, metrics in sweep]
            points = [None if value is None else 100 * value for value in values]
            axis.plot(alphas, points, "o-", color=colour, label=f"{name} AP")
        axis.set(title=title, xlabel="alpha")
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("AP")
    save_figure(figure, path)


def draw_pictures(run: RunData, coco: dict[str, Any], image_ids: list[int], score: float, path: Path) -> None:
    """Draw baseline, MR R-CNN and ground truth side by side on the given held-out images."""
    places = {entry["image_id"]: place for place, entry in enumerate(run.shards.entries)}
    names = {category["id"]: category["name"] for category in run.shards.categories}
    columns = [
        (MODELS[model], run.models[model].results) for model in ("baseline", "refined") if model in run.models
    ]
    columns.append(("Ground truth", coco["annotations"]))
    rows = []
    for image_id in image_ids:
        sample = run.shards[places[image_id]]
        of_image = ([item for item in items if item["image_id"] == image_id] for _, items in columns)
        pictures = [draw_instances(sample.image, items, names, score) for items in of_image]
        rows.append((f"image {image_id}  ({sample.file_name})", pictures))
    side_by_side(rows, [title for title, _ in columns]).save(path, optimize=True)


def most_huddled(coco: dict[str, Any], number: int) -> list[int]:
    """Return the ids of the images with the most huddled instances, the lower id first among equals.

    The rule looks at the ground truth alone, so no model's successes are picked.
    """
    huddled = huddled_ids(coco["annotations"])
    counts = {image["id"]: 0 for image in coco["images"]}
    for annotation in coco["annotations"]:
        counts[annotation["image_id"]] += annotation["id"] in huddled
    return sorted(counts, key=lambda image_id: (-counts[image_id], image_id))[:number]


def figure_of(number: int, height: float = 3.6, width: float = 11.0) -> tuple[Any, list[Any]]:
    """Return (figure, its `number` axes beside each other); sizes in inches."""
    # Figure without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, number, place + 1) for place in range(number)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x" if number == 1 else "y", color="#e4e7ea", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def draw_interval(axis: Any, y: float, interval: Interval, colour: str) -> None:
    """Draw a difference that is defined and its interval, in points, at the height y."""
    low, middle, high = (100 * value for value in (interval.low, interval.difference, interval.high))
    axis.plot([low, high], [y, y], color=colour, linewidth=2)
    axis.plot([middle], [y], "o", color=colour, markersize=5)


def legend_below(figure: Any, colours: dict[str, str]) -> None:
    """Say below the axes what colours mean: between intervals there is no place that is surely free."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=colour, marker="o", label=label) for label, colour in colours.items()]
    figure.legend(handles=marks, fontsize=8, frameon=False, loc="outside lower center", ncols=len(marks))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    # Without matplotlib's version in it the file is the same wherever it is drawn.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _short(term: str) -> str:
    return term.removeprefix("loss_").replace("_", " ")
