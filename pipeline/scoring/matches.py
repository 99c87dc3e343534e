"""Every image matched once: what AP of any choice of the images, with any repeats, is made of.

The matching is pycocotools' own. A choice only weighs the images' detections and ground truths anew, which
gives exactly the AP of a set that holds each image as often as it was chosen. A category without ground
truth in the choice is left out of the mean, as COCO does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.scoring.evaluators import Annotations, Kind, evaluator, ignore_uncounted

ALL_AREAS = (0.0, 1e10)
TOP = 100
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """The detections of one category, best first, and what each was matched with.

    Attributes:
        image: [D] int, place of the detection's image among the set's images in increasing id.
        hit: [T, D] bool, matched with a ground truth that counts at IoU threshold t.
        miss: [T, D] bool, a false alarm; neither hit nor miss: forgiven.
        truths: [I] int, ground truths that count in each image.
    """

    image: np.ndarray
    hit: np.ndarray
    miss: np.ndarray
    truths: np.ndarray


def match_images(
    coco: dict[str, Any], results: Annotations, kind: Kind = "bbox", counted: set[int] | None = None
) -> list[Matches]:
    """Return the matches of every category, in increasing category id.

    Args:
        coco: ground truth from `coco_ap.prepare_annotations`; neither it nor `results` is changed.
        results: COCO results.
        kind: "bbox" or "segm".
        counted: ids of the annotations that count (`huddled_ids`); None: all count.
    """
    return match_countings(coco, results, kind, [counted])[0]


def match_countings(
    coco: dict[str, Any], results: Annotations, kind: Kind, countings: list[set[int] | None]
) -> list[list[Matches]]:
    """Return what `match_images` does for each counting; masks are compared once for all of them."""
    laid_out = evaluator(coco, results, kind, "pycocotools")
    laid_out._prepare()
    images, categories = laid_out.params.imgIds, laid_out.params.catIds
    laid_out.ious = {
        (image, category): laid_out.computeIoU(image, category) for image in images for category in categories
    }
    found = []
    for counted in countings:
        ignore_uncounted(list(laid_out.cocoGt.anns.values()), counted)
        found.append([_match_category(laid_out, images, category) for category in categories])
    return found


def average_precision(categories: list[Matches], weights: np.ndarray | None = None) -> float | None:
    """Return AP (mean over IoU 0.50:0.95 and categories) of a set that holds image i weights[i] times.

    None where no category has a ground truth that counts. Without weights it is the library's AP.
    """
    values = [_category_ap(category, weights) for category in categories]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def image_precisions(categories: list[Matches]) -> list[float | None]:
    """Return each image's AP as a set of its own [I]; None without a ground truth that counts.

    Only the categories of its ground truth take part: what is found of others is no false alarm.
    """
    if not categories:
        return []
    values: list[list[float]] = [[] for _ in categories[0].truths]
    for category in categories:
        # Stable: an image's detections stay in order of decreasing score.
        order = np.argsort(category.image, kind="stable")
        places = np.searchsorted(category.image[order], np.arange(len(values) + 1))
        for image in np.flatnonzero(category.truths):
            own = order[places[image] : places[image + 1]]
            values[image].append(_ap(category.hit[:, own], category.miss[:, own], category.truths[image]))
    return [float(np.mean(found)) if found else None for found in values]


def _category_ap(matches: Matches, weights: np.ndarray | None) -> float | None:
    of_image = np.ones(len(matches.truths), np.int32) if weights is None else weights.astype(np.int32)
    truths = int(matches.truths @ of_image)
    if truths == 0:
        return None
    # An image drawn n times repeats each of its detections n times in a row: only the last of them can
    # be a peak of precision, so a weighted cumulative sum gives the same curve.
    of_detection = of_image[matches.image]
    return _ap(matches.hit * of_detection, matches.miss * of_detection, truths)


def _ap(hit: np.ndarray, miss: np.ndarray, truths: int) -> float:
    if hit.shape[1] == 0:
        return 0.0
    hits, misses = np.cumsum(hit, axis=1), np.cumsum(miss, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return float(
        np.mean([_interpolate(row, found / truths) for row, found in zip(envelope, hits, strict=True)])
    )


def _interpolate(envelope: np.ndarray, recall: np.ndarray) -> float:
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(envelope, 0.0)[places].mean()


def _match_category(laid_out: Any, images: list[int], category: int) -> Matches:
    thresholds = len(laid_out.params.iouThrs)
    truths = np.zeros(len(images), dtype=np.int64)
    scores, places = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    found, forgiven = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for place, image_id in enumerate(images):
        matched = laid_out.evaluateImg(image_id, category, ALL_AREAS, TOP)
        if matched is None:
            continue
        truths[place] = np.count_nonzero(matched["gtIgnore"] == 0)
        scores.append(np.array(matched["dtScores"]))
        places.append(np.full(len(matched["dtScores"]), place))
        found.append(matched["dtMatches"] > 0)
        forgiven.append(matched["dtIgnore"].astype(bool))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit, ignored = np.concatenate(found, axis=1)[:, order], np.concatenate(forgiven, axis=1)[:, order]
    # What is forgiven at every threshold weighs nothing; of huddled matches that is most.
    counts = ~ignored.all(axis=0)
    hit, miss, place = hit & ~ignored, ~hit & ~ignored, np.concatenate(places)[order]
    return Matches(place[counts], hit[:, counts], miss[:, counts], truths)
