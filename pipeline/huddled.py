"""Which instances huddle together: the ones this project exists for."""

from collections import defaultdict
from typing import Any

import numpy as np
from pycocotools import mask as rle

HUDDLED_IOU = 0.3


def huddled_ids(annotations: list[dict[str, Any]], threshold: float = HUDDLED_IOU) -> set[int]:
    """Return the ids of annotations that huddle: the ones that count in `huddled` AP.

    A non-crowd annotation huddles if its box (xywh) overlaps the box of another non-crowd annotation of
    the same image, of any category, at IoU >= `threshold`. Crowds never huddle and make nobody huddle.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if not annotation.get("iscrowd", 0):
            by_image[annotation["image_id"]].append(annotation)
    return {
        annotation["id"]
        for members in by_image.values()
        for annotation, overlap in zip(members, _largest_overlap(members), strict=True)
        if overlap >= threshold
    }


def _largest_overlap(members: list[dict[str, Any]]) -> np.ndarray:
    boxes = np.array([member["bbox"] for member in members], dtype=np.float64).reshape(-1, 4)
    ious = np.array(rle.iou(boxes, boxes, [0] * len(boxes)))
    np.fill_diagonal(ious, 0.0)
    # Two boxes of zero area give 0/0; neither overlaps anything.
    return np.nan_to_num(ious).max(axis=1)
