"""The statistics of a data set as one picture: sizes, instances, areas, huddledness, categories."""

from pathlib import Path
from typing import Any

import numpy as np

from shards.boxes import HUDDLED_IOU
from shards.inspection.tally import MEDIUM_PX, SMALL_PX, Tally

MOST_CATEGORIES = 30
NAME_LENGTH = 28
BINS = 40
BLUE, ORANGE, GREY = "#0a5fb4", "#d95f02", "#6b747c"


def draw_charts(rows: np.ndarray, tally: Tally, path: Path) -> str:
    """Return the path of a PNG.

    Args:
        rows: of the index, for the sizes of images and the annotations of each.
        tally: of the samples that are whole.
        path: the file; its folder exists.
    """
    # Figure without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3)
    figure.suptitle(f"{_many(len(rows))} images, {_many(tally.instances)} instances", fontsize=15)
    _sizes(figure.add_subplot(grid[0, 0]), rows)
    _annotations_an_image(figure.add_subplot(grid[0, 1]), rows["num_instances"])
    _areas(figure.add_subplot(grid[1, 0]), np.array(tally.areas))
    _overlaps(figure.add_subplot(grid[1, 1]), np.array(tally.overlaps))
    _categories(figure.add_subplot(grid[:, 2]), tally.by_name())
    # Without matplotlib's version in it the file is the same wherever it is drawn.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return str(path)


def _sizes(axis: Any, rows: np.ndarray) -> None:
    low = min(rows["width"].min(), rows["height"].min())
    high = max(rows["width"].max(), rows["height"].max())
    sides = ("width", "height")
    labels = [f"{side}, median {np.median(rows[side]):g}" for side in sides]
    # Side by side: where most images are of one size, the one would hide the other.
    axis.hist([rows[side] for side in sides], _edges(low, high), color=(BLUE, ORANGE), label=labels)
    _finish(axis, "Image sizes", "pixels", "images")
    # Whole numbers: a set of one size has no 127.6 to show.
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.margins(y=0.2)
    axis.legend(frameon=False, ncols=2, loc="upper center")


def _annotations_an_image(axis: Any, counts: np.ndarray) -> None:
    axis.hist(counts, _edges(0, counts.max()), color=BLUE)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    title = f"Annotations an image, crowds too (median {np.median(counts):g})"
    _finish(axis, title, "annotations", "images")


def _areas(axis: Any, areas: np.ndarray) -> None:
    if _nothing(axis, areas):
        return
    # An instance without area stands with the smallest: a logarithm has no place for 0.
    shown = np.maximum(areas, 1)
    axis.hist(shown, np.geomspace(1, max(shown.max(), 10) * 1.001, BINS), color=BLUE)
    axis.set_xscale("log")
    for bound in (SMALL_PX, MEDIUM_PX):
        axis.axvline(bound, color=GREY, linestyle="--", linewidth=1)
    small, below_large = (areas < SMALL_PX).mean(), (areas < MEDIUM_PX).mean()
    title = f"Areas: small {small:.0%}, medium {below_large - small:.0%}, large {1 - below_large:.0%}"
    _finish(axis, title, "pixels of the instance, logarithmic", "instances")


def _overlaps(axis: Any, overlaps: np.ndarray) -> None:
    if _nothing(axis, overlaps):
        return
    axis.hist(overlaps, np.linspace(0, 1, BINS + 1), color=BLUE)
    axis.axvline(HUDDLED_IOU, color=ORANGE, linestyle="--", linewidth=1.5)
    # Most instances of most data sets touch nothing; on a linear scale that bar hides the others.
    axis.set_yscale("log")
    axis.set(xlim=(0, 1), ylim=(0.7, None))
    title = f"Huddledness: {(overlaps >= HUDDLED_IOU).mean():.1%} have {HUDDLED_IOU} or more"
    _finish(axis, title, "largest IoU with another box of the image", "instances, logarithmic")


def _categories(axis: Any, counts: dict[str, int]) -> None:
    order = sorted(counts, key=lambda name: (-counts[name], name))
    shown = order[:MOST_CATEGORIES]
    places = range(len(shown))
    axis.barh(places, [counts[name] for name in shown], color=BLUE)
    # A $ would begin a formula.
    axis.set_yticks(places, [_shortened(name).replace("$", r"\$") for name in shown], fontsize=9)
    for place, name in zip(places, shown, strict=True):
        axis.annotate(
            f" {_many(counts[name])}", (counts[name], place), va="center", fontsize=8, annotation_clip=False
        )
    axis.set_ylim(max(len(shown), 6) - 0.4, -0.6)
    axis.margins(x=0.12)
    hidden = sum(counts[name] for name in order[MOST_CATEGORIES:])
    title = f"{len(shown)} of {len(order)} categories; {len(order) - len(shown)} more hold {_many(hidden)}"
    _finish(axis, title if len(order) > len(shown) else "Categories", "instances", None)


def _edges(low: int, high: int) -> np.ndarray:
    """Return bins of whole numbers, all of one width, at most BINS of them; single numbers in the middle."""
    width = max(1, -(-int(high - low + 1) // BINS))
    return np.arange(low, high + width + 1, width) - 0.5


def _nothing(axis: Any, values: np.ndarray) -> bool:
    if not len(values):
        axis.text(0.5, 0.5, "no instances", transform=axis.transAxes, ha="center", color=GREY)
        axis.set_axis_off()
    return not len(values)


def _finish(axis: Any, title: str, x: str, y: str | None) -> None:
    axis.set_title(title, fontsize=11)
    axis.set(xlabel=x, ylabel=y or "")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y" if y else "x", color="#e4e7ea", linewidth=0.8)
    axis.set_axisbelow(True)


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _many(count: int) -> str:
    return f"{count:,}"
