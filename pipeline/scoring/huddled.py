"""Which instances of a data set huddle together: the ones this project exists for."""

from collections import defaultdict
from typing import Any

from shards.boxes import huddled


def huddled_ids(annotations: list[dict[str, Any]]) -> set[int]:
    """Return the ids of annotations that huddle, see `shards.boxes.huddled`: they count in `huddled` AP."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    return {
        annotation["id"]
        for members in by_image.values()
        for annotation, huddles in zip(members, huddled(members), strict=True)
        if huddles
    }
