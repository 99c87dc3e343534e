"""From scores and boxes of every class to the detections of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Test
from pipeline.network.nms import sides_at_least, suppress

OWN = SourceProfile()


@dataclass(frozen=True)
class Detections:
    """What was found in a batch: rois [d, 5], labels [d] from 1, scores [d], rows [d].

    `rows` says which of the scored RoIs each detection came from. Images follow each other, and the
    detections of an image are in order of decreasing score.
    """

    rois: Tensor
    labels: Tensor
    scores: Tensor
    rows: Tensor


def select_detections(
    probabilities: Tensor, boxes: Tensor, image_of: Tensor, test: Test, profile: SourceProfile = OWN
) -> Detections:
    """Return the detections above the score threshold after per-class NMS, the best `topk` an image.

    Args:
        probabilities: [n, K+1], column 0 is background.
        boxes: [n, K+1, 4] xyxy, one a class.
        image_of: float [n], increasing image indices.
        test: its `score`, `nms` and `topk` are used.
        profile: says which boxes are too thin, and what becomes of ties.
    """
    rows, labels = torch.where(probabilities[:, 1:] > test.score)
    labels = labels + 1
    rois = torch.cat([image_of[rows, None], boxes[rows, labels]], 1)
    kept = torch.where(sides_at_least(rois[:, 1:], profile.detection_min_side))[0]
    rows, labels, rois = rows[kept], labels[kept], rois[kept]
    scores = probabilities[rows, labels]
    kept = torch.cat(
        [_of_image(rois, labels, scores, image, test, profile) for image in rois[:, 0].unique()] or [kept]
    )
    return Detections(rois[kept], labels[kept], scores[kept], rows[kept])


def _of_image(rois: Tensor, labels: Tensor, scores: Tensor, image: Tensor, test: Test, profile) -> Tensor:
    rows = torch.where(rois[:, 0] == image)[0]
    kept = rows[suppress(rois[rows, 1:], scores[rows], labels[rows], test.nms, profile.nms)]
    if profile.keep_ties and len(kept) > test.topk:
        return kept[scores[kept] >= scores[kept[test.topk - 1]]]
    return kept[: test.topk]
