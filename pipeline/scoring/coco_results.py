"""Detections of one image as COCO results: what evaluation, prediction and the COCO server read."""

from typing import Any

import numpy as np
from pycocotools import mask as rle

Result = dict[str, Any]


def coco_results(detections: dict[str, Any], image_id: int) -> list[Result]:
    """Return one COCO result a detection, in the order the model gave them; [] without detections.

    Args:
        detections: `boxes` [D, 4] xyxy px, `labels` [D] category ids, `scores` [D] and `masks` bool
            [D, H, W] of one image, as `load_model` returns them, or run lengths in a list [D].
        image_id: goes into every result.

    Returns:
        Dicts of image_id, category_id, bbox [x, y, width, height] in pixels of the image, score, and
        segmentation as compressed RLE whose `counts` is a string.
    """
    boxes = detections["boxes"].detach().cpu().double()
    sizes = boxes[:, 2:] - boxes[:, :2]
    rows = zip(
        boxes[:, :2].tolist(),
        sizes.tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        detections["masks"],
        strict=True,
    )
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": [*corner, *size],
            "score": score,
            "segmentation": mask if isinstance(mask, dict) else encode_mask(mask.cpu().numpy()),
        }
        for corner, size, label, score, mask in rows
    ]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask [H, W] (any nonzero value is inside) as compressed RLE with string counts."""
    encoded = rle.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
