"""Which instances of a data set huddle together: the ones this project exists for."""

from collections import defaultdict
from typing import Any

from shards.boxes import HUDDLED_IOU, largest_overlap


def huddled_ids(annotations: list[dict[str, Any]]) -> set[int]:
    """Return the ids of annotations that huddle, see `shards.boxes.huddled`: they count in `huddled` AP."""
    return ids_from(huddledness(annotations), HUDDLED_IOU)


def huddledness(annotations: list[dict[str, Any]]) -> dict[int, float]:
    """Return by annotation id the largest IoU of its box with another's in its image; a crowd has 0."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    return {
        annotation["id"]: float(overlap)
        for members in by_image.values()
        for annotation, overlap in zip(members, largest_overlap(members), strict=True)
    }


def ids_from(overlaps: dict[int, float], least: float) -> set[int]:
    """Return the ids whose huddledness is at least `least`."""
    return {identity for identity, overlap in overlaps.items() if overlap >= least}
