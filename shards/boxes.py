"""Boxes of masks, and which of an image's instances huddle."""

import numpy as np

HUDDLED_IOU = 0.3


def box_of(mask: np.ndarray) -> np.ndarray:
    """Return the box `[4]` float xyxy in pixels around a mask `[H, W]`; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def box_iou(boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes `[G, 4]` xyxy with each other, `[G, G]`, 0 on the diagonal and without area."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = areas[:, None] + areas[None] - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    np.fill_diagonal(iou, 0)
    return iou


def largest_overlap(annotations: list[dict]) -> np.ndarray:
    """Return the largest IoU of each annotation's box with another's in the image, float `[A]`, 0 if alone.

    Whatever the categories; a crowd has 0, and is nobody's other.
    """
    result = np.zeros(len(annotations))
    single = np.flatnonzero([not annotation.get("iscrowd", 0) for annotation in annotations])
    if len(single) < 2:
        return result
    boxes = np.array([annotations[place]["bbox"] for place in single], float)
    boxes[:, 2:] += boxes[:, :2]
    result[single] = box_iou(boxes).max(1)
    return result


def huddled(annotations: list[dict]) -> np.ndarray:
    """Return which annotations of one image huddle, bool `[A]`: their largest overlap is 0.3 or more."""
    return largest_overlap(annotations) >= HUDDLED_IOU
