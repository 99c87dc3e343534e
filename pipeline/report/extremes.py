"""Figure 5: the images on which one network gains most and loses most against another, chosen by a rule."""

from pathlib import Path
from typing import Any

from pipeline.report.overlay import draw_instances, side_by_side
from shards.read import ShardDataset

SHOWN = 3
EXTREMES_RULE = (
    f"The {SHOWN} held-out images on which the second network gains most over the first, and the {SHOWN} on "
    "which it loses most. The rule: COCO's mask AP of each image alone (over the categories of its ground "
    "truth), second minus first; the largest differences, then the smallest; the lower image id first among "
    "equals. Drawn are each network's surest detections, as many as the image has instances."
)
Gain = tuple[int, float, float]


def extremes(
    before: dict[str, float | None], after: dict[str, float | None], number: int = SHOWN
) -> tuple[list[Gain], list[Gain]]:
    """Return (gained, lost), each (image id, AP before, AP after), the largest change first.

    Args:
        before: image id -> mask AP of the image alone, None without ground truth.
        after: the same images by the other network.
        number: at most so many of each; an image that changes nothing is neither.
    """
    gains = [
        (int(image), value, after[image])
        for image, value in before.items()
        if value is not None and after.get(image) is not None
    ]
    rising = sorted((g for g in gains if g[2] > g[1]), key=lambda g: (g[1] - g[2], g[0]))
    falling = sorted((g for g in gains if g[2] < g[1]), key=lambda g: (g[2] - g[1], g[0]))
    return rising[:number], falling[:number]


def draw_extremes(
    dataset: ShardDataset,
    results: list[tuple[str, list[dict[str, Any]]]],
    gained: list[Gain],
    lost: list[Gain],
    path: Path,
) -> None:
    """Draw each network's results and the ground truth side by side on the chosen images, at least one.

    Args:
        dataset: the held-out shards.
        results: (name, COCO results) of both networks.
        gained, lost: of `extremes`.
        path: PNG to write.
    """
    places = {entry["image_id"]: place for place, entry in enumerate(dataset.entries)}
    names = {category["id"]: category["name"] for category in dataset.categories}
    rows = []
    for word, chosen in (("gains", gained), ("loses", lost)):
        for image, before, after in chosen:
            sample = dataset[places[image]]
            columns = [surest(items, image, sample.annotations) for _, items in results]
            columns.append(sample.annotations)
            pictures = [draw_instances(sample.image, items, names, score=0.0) for items in columns]
            caption = f"image {image} {word}: mask AP {100 * before:.0f} -> {100 * after:.0f}"
            rows.append((caption, pictures))
    side_by_side(rows, [*(name for name, _ in results), "Ground truth"]).save(path, optimize=True)


def surest(
    results: list[dict[str, Any]], image: int, annotations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return an image's results of the highest scores, as many as it has instances, crowds left out.

    Not those above a score: what a score means is another thing for every network.
    """
    number = sum(not item.get("iscrowd", 0) for item in annotations)
    members = [item for item in results if item["image_id"] == image]
    return sorted(members, key=lambda item: -item["score"])[:number]
