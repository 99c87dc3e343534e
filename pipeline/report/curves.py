"""Figures of several rows: gains with intervals, AP against a config key, AP against huddledness."""

import math
from pathlib import Path
from typing import Any

from pipeline.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    draw_interval,
    figure_of,
    legend_below,
    save_figure,
)
from pipeline.scoring.bootstrap import Interval

KINDS = {"bbox": "box", "segm": "mask"}
# There are ten colours; rows of a long table that share one differ in these.
DASHES, LEGEND_COLUMNS = ("-", "--", ":"), 5
HUDDLEDNESS = (
    "AP of the instances whose largest box IoU with another instance is at least x; the others are ignored. "
    "At 0 it is AP, at 0.3 huddled AP. The number below x is that of the instances."
)


def draw_gains(pairs: dict[tuple[str, str], dict[str, Interval]], path: Path) -> None:
    """Draw what rows have more than others: {(other, row): {measure: Interval}}, plain beside huddled."""
    figure, axes = figure_of(2, height=0.5 * len(pairs) + 1.6)
    for axis, kind in zip(axes, KINDS.values(), strict=True):
        for offset, name, colour in ((-0.12, f"{kind} AP", BLUE), (0.12, f"huddled {kind} AP", ORANGE)):
            for place, found in enumerate(pairs.values()):
                interval = found.get(name)
                if interval is not None and interval.difference is not None:
                    draw_interval(axis, place + offset, interval, colour)
        axis.axvline(0, color=GREY, linewidth=1)
        axis.set(title=f"{kind} AP", xlabel="difference, points", ylim=(len(pairs) - 0.5, -0.5))
    legend_below(figure, {"all instances": BLUE, "the huddled ones": ORANGE})
    axes[0].set_yticks(range(len(pairs)), [f"{row}\n- {other}" for other, row in pairs], fontsize=8)
    axes[1].set_yticks(range(len(pairs)), [])
    save_figure(figure, path)


def draw_key(key: str, points: list[tuple[float, dict[str, Any]]], path: Path) -> None:
    """Draw box and mask AP, plain and huddled, and the paper's, against a config key's values."""
    figure, axes = figure_of(2, height=4.2)
    places = range(len(points))
    for axis, title, prefix in ((axes[0], "all", ""), (axes[1], "huddled", "huddled ")):
        for kind, colour in zip(KINDS.values(), (BLUE, ORANGE), strict=True):
            name = f"{prefix}{kind} AP"
            axis.plot(places, [values["ours"][name] for _, values in points], "o-", color=colour, label=name)
            theirs = [values["paper"].get(name) for _, values in points]
            if any(value is not None for value in theirs):
                axis.plot(places, theirs, "s--", color=colour, alpha=0.5, label=f"{name}, paper")
        # Evenly spaced: the paper's values run from 0 to 10 in steps that double.
        axis.set_xticks(places, [f"{x:g}" for x, _ in points])
        axis.set(title=title, xlabel=key)
        # Below: the paper's AP and a small model's lie far apart, and nowhere between is surely free.
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    axes[0].set_ylabel("AP")
    save_figure(figure, path)


def draw_huddledness(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw each row's AP against how huddled an instance has to be to count."""
    figure, axes = figure_of(2, height=4 + 0.2 * math.ceil(len(curves) / LEGEND_COLUMNS))
    for axis, (kind, name) in zip(axes, KINDS.items(), strict=True):
        for place, (row, points) in enumerate(curves.items()):
            known = [(point["least"], 100 * point[kind]) for point in points if point[kind] is not None]
            style = {"color": f"C{place % 10}", "linestyle": DASHES[place // 10 % len(DASHES)]}
            axis.plot([x for x, _ in known], [y for _, y in known], "o", markersize=3, label=row, **style)
        axis.set(title=f"{name} AP", xlabel="least IoU with another instance's box", ylim=(0, None))
    axes[0].set_ylabel("AP")
    shown = axes[0].get_legend_handles_labels()
    figure.legend(*shown, fontsize=8, frameon=False, loc="outside lower center", ncols=LEGEND_COLUMNS)
    first = next(iter(curves.values()))
    counts = [f"{point['least']:g}\n{point['instances']}" for point in first]
    for axis in axes:
        axis.set_xticks([point["least"] for point in first], counts, fontsize=8)
    axes[0].set_xlabel("least IoU with another instance's box; instances that count")
    save_figure(figure, path)
