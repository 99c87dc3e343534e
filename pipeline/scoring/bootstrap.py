"""How sure a difference of AP is: the paired bootstrap over images.

Two results on the same images are compared on the same resamples of those images (drawn with
replacement, as many as there are), so what both share (hard images, rare categories) cancels out. The
state is estimated once: every image is matched once per result; a resample only weighs the images'
detections and ground truths anew, which gives exactly the AP of a set that holds each image as often
as it was drawn. A category without ground truth in a resample is left out of its mean, as COCO does.
The interval is the percentile interval of the resampled differences. It speaks of the choice of
images, not of the training seed.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.scoring.coco_ap import Kind, ignore_uncounted

ALL_AREAS = (0.0, 1e10)
TOP = 100
RECALLS = np.linspace(0.0, 1.0, 101)
Annotations = list[dict[str, Any]]


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


@dataclass(frozen=True)
class Resampled:
    """AP of the whole set (None if undefined) and of resamples of its images, [R] with NaN for None."""

    whole: float | None
    drawn: np.ndarray
    seed: int


@dataclass(frozen=True)
class Interval:
    """A difference of AP (b - a, fractions), its 95% interval, and how both were obtained."""

    difference: float | None
    low: float | None
    high: float | None
    resamples: int
    seed: int


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
    evaluator = _evaluator(coco, results, kind)
    ignore_uncounted(list(evaluator.cocoGt.anns.values()), counted)
    images, categories = evaluator.params.imgIds, evaluator.params.catIds
    return [_match_category(evaluator, images, category) for category in categories]


def average_precision(categories: list[Matches], weights: np.ndarray | None = None) -> float | None:
    """Return AP (mean over IoU 0.50:0.95 and categories) of a set that holds image i weights[i] times.

    None where no category has a ground truth that counts. Without weights it is the library's AP.
    """
    values = [_category_ap(category, weights) for category in categories]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def resample(matches: list[Matches], resamples: int = 500, seed: int = 0) -> Resampled:
    """Return AP of the set and of `resamples` resamples of it; equal seeds draw equal images."""
    num_images = len(matches[0].truths)
    generator = np.random.default_rng(seed)
    draws = (generator.multinomial(num_images, np.full(num_images, 1 / num_images)) for _ in range(resamples))
    drawn = [average_precision(matches, weights) for weights in draws]
    return Resampled(average_precision(matches), np.array(drawn, dtype=np.float64), seed)


def paired_interval(a: Resampled, b: Resampled) -> Interval:
    """Return AP(b) - AP(a) with its 95% interval; None where no image has a ground truth that counts.

    Raises:
        ValueError: the two were not resampled alike.
    """
    resamples = len(b.drawn)
    if (a.seed, len(a.drawn)) != (b.seed, resamples):
        raise ValueError("results that were resampled differently are not paired")
    if a.whole is None or b.whole is None:
        return Interval(None, None, None, resamples, b.seed)
    low, high = np.nanpercentile(b.drawn - a.drawn, [2.5, 97.5])
    return Interval(b.whole - a.whole, float(low), float(high), resamples, b.seed)


def paired_bootstrap(a: list[Matches], b: list[Matches], resamples: int = 500, seed: int = 0) -> Interval:
    """Return AP(b) - AP(a) with its 95% interval over resamples of the images that both share."""
    return paired_interval(resample(a, resamples, seed), resample(b, resamples, seed))


def _category_ap(matches: Matches, weights: np.ndarray | None) -> float | None:
    of_image = np.ones(len(matches.truths), np.int32) if weights is None else weights.astype(np.int32)
    truths = int(matches.truths @ of_image)
    if truths == 0:
        return None
    if matches.image.size == 0:
        return 0.0
    # An image drawn n times repeats each of its detections n times in a row: only the last of them can
    # be a peak of precision, so a weighted cumulative sum gives the same curve.
    of_detection = of_image[matches.image]
    hits = np.cumsum(matches.hit * of_detection, axis=1)
    misses = np.cumsum(matches.miss * of_detection, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return float(
        np.mean([_interpolate(row, found / truths) for row, found in zip(envelope, hits, strict=True)])
    )


def _interpolate(envelope: np.ndarray, recall: np.ndarray) -> float:
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(envelope, 0.0)[places].mean()


def _evaluator(coco: dict[str, Any], results: Annotations, kind: Kind) -> COCOeval:
    truth = COCO()
    truth.dataset = {**coco, "annotations": [dict(annotation) for annotation in coco["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = _found(truth, results)
        evaluator = COCOeval(truth, found, kind)
    evaluator._prepare()
    return evaluator


def _found(truth: COCO, results: Annotations) -> COCO:
    if results:
        return truth.loadRes([dict(result) for result in results])
    # pycocotools' loadRes looks at the first result.
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _match_category(evaluator: COCOeval, images: list[int], category: int) -> Matches:
    thresholds = len(evaluator.params.iouThrs)
    truths = np.zeros(len(images), dtype=np.int64)
    scores, places = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    found, forgiven = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for place, image_id in enumerate(images):
        evaluator.ious[image_id, category] = evaluator.computeIoU(image_id, category)
        matched = evaluator.evaluateImg(image_id, category, ALL_AREAS, TOP)
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
