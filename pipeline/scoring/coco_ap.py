"""COCO average precision, box and mask, plain and over some of the instances only.

The numbers are those of pycocotools on the same annotations and the same results file (so the area
of a detection is its box's, for both kinds, as pycocotools' `loadRes` has it); faster-coco-eval
computes them unless pycocotools is asked for.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools import mask as rle

from pipeline.scoring.evaluators import Annotations, Kind, Scorer, evaluator
from shards.masks import decode_mask

Summary = dict[str, float | None]
Scores = tuple[Summary, dict[int, float | None]]
ALL_AREAS, MAX_DETECTIONS = 0, 2
# An evaluator holds several objects a result, so it gets the results of some categories at a time.
RESULTS_AT_ONCE = 50_000


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
    coco: dict[str, Any],
    results: Annotations,
    kind: Kind,
    counted: set[int] | None = None,
    scorer: Scorer = "faster_coco_eval",
) -> Scores:
    """Return (summary, AP by category id): fractions from 0 to 1, None where undefined.

    Args:
        coco: ground truth from `prepare_annotations`; neither it nor `results` is changed.
        results: COCO results, in the order in which ties are broken.
        kind: "bbox" or "segm".
        counted: ids of the annotations that count; the others are set to ignore. None: all count.
        scorer: which library; they agree to 1e-10.
    """
    return evaluate_countings(coco, results, kind, [counted], scorer)[0]


def evaluate_countings(
    coco: dict[str, Any],
    results: Annotations,
    kind: Kind,
    countings: list[set[int] | None],
    scorer: Scorer = "faster_coco_eval",
) -> list[Scores]:
    """Return what `evaluate_kind` does for each counting; masks are compared once for all of them."""
    categories = sorted(category["id"] for category in coco["categories"])
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in countings]
    for truth, members in _blocks(coco, results, categories):
        block = evaluator(truth, members, kind, scorer)
        for scores, counted in zip(found, countings, strict=True):
            scores.append(block.score(counted))
    return [_scores(blocks, categories) for blocks in found]


def _blocks(
    coco: dict[str, Any], results: Annotations, categories: list[int]
) -> Iterator[tuple[dict[str, Any], Annotations]]:
    """Yield ground truth and results of some categories after the other; AP of a category is its own."""
    sizes = Counter(result["category_id"] for result in results)
    block: list[int] = []
    for place, category in enumerate(categories):
        block.append(category)
        if place + 1 == len(categories) or sum(sizes[c] for c in (*block, categories[place + 1])) > (
            RESULTS_AT_ONCE
        ):
            chosen = set(block)
            yield (
                {
                    **coco,
                    "categories": [item for item in coco["categories"] if item["id"] in chosen],
                    "annotations": [i for i in coco["annotations"] if i["category_id"] in chosen],
                },
                [result for result in results if result["category_id"] in chosen],
            )
            block = []


def _scores(blocks: list[tuple[np.ndarray, np.ndarray]], categories: list[int]) -> Scores:
    if not blocks:
        return _summary(np.zeros((10, 101, 0, 4, 3)), np.zeros((10, 0, 4, 3))), {}
    precision = np.concatenate([precision for precision, _ in blocks], axis=2)
    recall = np.concatenate([recall for _, recall in blocks], axis=1)
    return _summary(precision, recall), {
        category: _mean(precision[:, :, place, ALL_AREAS, MAX_DETECTIONS])
        for place, category in enumerate(categories)
    }


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
