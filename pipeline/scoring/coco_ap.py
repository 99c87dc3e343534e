"""COCO average precision, box and mask, plain and over huddled instances only.

The numbers are those of pycocotools on the same annotations and the same results file (so the area
of a detection is its box's, for both kinds, as pycocotools' `loadRes` has it); faster-coco-eval
computes them.
"""

from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as rle

from shards.masks import decode_mask

Kind = Literal["bbox", "segm"]
Summary = dict[str, float | None]
ALL_AREAS, MAX_DETECTIONS = 0, 2


def prepare_annotations(coco: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a COCO ground truth on which evaluation is well defined.

    Annotation ids become 1..N, because evaluators take id 0 for "unmatched"; `iscrowd` and `area` are
    filled in where they are missing; an empty segmentation becomes an empty mask. Nothing is dropped.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    annotations = [
        _complete({**annotation, "id": number}, *sizes[annotation["image_id"]])
        for number, annotation in enumerate(coco.get("annotations", []), 1)
    ]
    return {**coco, "annotations": annotations}


def evaluate_kind(
    coco: dict[str, Any], results: list[dict[str, Any]], kind: Kind, counted: set[int] | None = None
) -> tuple[Summary, dict[int, float | None]]:
    """Return (summary, AP by category id): fractions from 0 to 1, None where undefined.

    Args:
        coco: ground truth from `prepare_annotations`; neither it nor `results` is changed.
        results: COCO results, in the order in which ties are broken.
        kind: "bbox" or "segm".
        counted: ids of the annotations that count; the others are set to ignore. None: all count.
    """
    truth = COCO({**coco, "annotations": [dict(annotation) for annotation in coco["annotations"]]})
    found = truth.loadRes([dict(result) for result in results])
    evaluator = _Evaluator(truth, found, kind, rle_iou_max_workers=1)
    evaluator.counted = counted
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    categories = sorted(category["id"] for category in coco["categories"])
    return _summary(precision, recall), {
        category: _mean(precision[:, :, place, ALL_AREAS, MAX_DETECTIONS])
        for place, category in enumerate(categories)
    }


def ignore_uncounted(annotations: list[dict[str, Any]], counted: set[int] | None) -> None:
    """Set `ignore` of prepared annotations that do not count; `iscrowd` stays as it is.

    To be called after an evaluator's own preparation, which overwrites `ignore` with `iscrowd`.
    """
    if counted is not None:
        for annotation in annotations:
            annotation["ignore"] = int(bool(annotation["ignore"]) or annotation["id"] not in counted)


class _Evaluator(COCOeval_faster):
    counted: set[int] | None = None

    def _prepare(self) -> None:
        super()._prepare()
        ignore_uncounted(self.cocoGt.dataset["annotations"], self.counted)


def _complete(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
    if not annotation.get("segmentation"):
        empty = rle.encode(np.zeros((height, width), np.uint8, order="F"))
        annotation["segmentation"] = {"size": [height, width], "counts": empty["counts"].decode("ascii")}
    if annotation.get("area") is None:
        annotation["area"] = float(decode_mask(annotation["segmentation"], height, width).sum())
    return annotation


def _summary(precision: np.ndarray, recall: np.ndarray) -> Summary:
    # precision is [iou threshold, recall, category, area, detections], recall the same without recall.
    best = precision[..., MAX_DETECTIONS]
    return {
        "AP": _mean(best[..., ALL_AREAS]),
        "AP50": _mean(best[0, ..., ALL_AREAS]),
        "AP75": _mean(best[5, ..., ALL_AREAS]),
        "APs": _mean(best[..., 1]),
        "APm": _mean(best[..., 2]),
        "APl": _mean(best[..., 3]),
        "AR100": _mean(recall[:, :, ALL_AREAS, MAX_DETECTIONS]),
    }


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None
