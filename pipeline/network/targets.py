"""What each RoI should predict: its ground truth, its label, its regression and mask targets.

RoIs of a batch are one tensor [n, 5]: image index, then xyxy in pixels of the network's input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from pipeline.network.boxes import DeltaCoder, clip_boxes, last_pixels
from pipeline.network.sampling import balanced_sample, sample_generator

MASK_SIZE = 28
MIN_SIDE = 1e-2
POSITIVE_FRACTION = 0.25
BASE_IOU = 0.5


@dataclass(frozen=True)
class Assigned:
    """RoIs with their ground truth.

    rois: [n, 5]; labels: int64 [n], 0 is background; matched: int64 [n], the ground truth's row in
    its own image (0 where there is none); is_gt: bool [n], rows that are ground truth boxes.
    """

    rois: Tensor
    labels: Tensor
    matched: Tensor
    is_gt: Tensor

    def take(self, rows: Tensor) -> "Assigned":
        """Return the given rows."""
        return Assigned(self.rois[rows], self.labels[rows], self.matched[rows], self.is_gt[rows])

    def positives(self) -> "Assigned":
        """Return the rows that have an object."""
        return self.take(torch.where(self.labels > 0)[0])


def to_rois(boxes: list[Tensor]) -> Tensor:
    """Return [n, 5] of one box tensor [n_i, 4] an image; images without boxes add no rows."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)])


def has_area(rois: Tensor) -> Tensor:
    """Return bool [n]: both sides are at least a hundredth of a pixel."""
    return ((rois[:, 3:] - rois[:, 1:3]) >= MIN_SIDE).all(1)


def sample_rois(proposals: list[Tensor], targets: list[dict], seed: int, size: int) -> Assigned:
    """Return at most `size` RoIs an image out of proposals and ground truth, a quarter positive.

    The draw is a function of (seed, target["position"]) alone.
    """
    rois = to_rois([torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets, strict=True)])
    is_gt = torch.cat([_gt_flags(p, t) for p, t in zip(proposals, targets, strict=True)])
    labels, matched = match(rois, targets, BASE_IOU)
    assigned = Assigned(rois, labels, matched, is_gt)
    return assigned.take(resample(assigned, targets, seed, size, "roi"))


def resample(assigned: Assigned, targets: list[dict], seed: int, size: int, stage: str) -> Tensor:
    """Return the row indices of a balanced sample of each image, in increasing order."""
    picked = []
    for image, target in enumerate(targets):
        rows = torch.where(assigned.rois[:, 0] == image)[0]
        generator = sample_generator(seed, target["position"], stage)
        drawn = balanced_sample(assigned.labels[rows], size, POSITIVE_FRACTION, generator)
        picked.append(rows[torch.cat(drawn).sort().values])
    return torch.cat(picked)


def match(rois: Tensor, targets: list[dict], iou: float) -> tuple[Tensor, Tensor]:
    """Return labels [n] and matched ground-truth rows [n] of the object that overlaps most.

    Label 0 below the threshold, in images without objects, and for boxes that are not finite.
    """
    labels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    matched = torch.zeros_like(labels)
    for image, target in enumerate(targets):
        rows = torch.where(rois[:, 0] == image)[0]
        if len(target["boxes"]) and len(rows):
            best, index = box_iou(target["boxes"], rois[rows, 1:]).max(0)
            labels[rows] = torch.where(best >= iou, target["labels"][index], 0)
            matched[rows] = torch.where(best >= iou, index, 0)
    return labels, matched


def box_targets(coder: BoxCoder, assigned: Assigned, targets: list[dict]) -> Tensor:
    """Return regression targets [n, 4]; rows of background or without area are not meaningful."""
    boxes = assigned.rois[:, 1:]
    matched_boxes = boxes.clone()
    for image, target in enumerate(targets):
        rows = torch.where((assigned.rois[:, 0] == image) & (assigned.labels > 0))[0]
        matched_boxes[rows] = target["boxes"][assigned.matched[rows]]
    return coder.encode_single(matched_boxes, boxes)


def mask_targets(assigned: Assigned, targets: list[dict], legacy: bool = False) -> Tensor:
    """Return the matched masks cropped at the RoIs, float [n, 28, 28] in 0..1; with inclusive ends if legacy.

    Only masks that a RoI is matched to are looked at, each once: see `GroundTruthMasks`.
    """
    cropped = assigned.rois.new_zeros(len(assigned.rois), MASK_SIZE, MASK_SIZE)
    for image, target in enumerate(targets):
        rows = torch.where(assigned.rois[:, 0] == image)[0]
        if len(rows):
            boxes = last_pixels(assigned.rois[rows, 1:], legacy)
            used, index = assigned.matched[rows].unique(return_inverse=True)
            masks = target["masks"][used].to(boxes.device)
            cropped[rows] = project_masks_on_boxes(masks, boxes, index, MASK_SIZE)
    return cropped


def decode_boxes(coder: DeltaCoder, deltas: Tensor, rois: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Return boxes [n, C, 4] xyxy of deltas [n, C, 4], clipped to each RoI's image, without gradient.

    Args:
        coder: turns deltas into boxes, and says how they are clipped.
        deltas: [n, C, 4], one prediction a class.
        rois: [n, 5].
        sizes: (height, width) of each image in the network's input, before padding.
    """
    boxes = coder.decode_single(deltas.detach().flatten(1), rois[:, 1:]).view(deltas.shape)
    limits = boxes.new_tensor([[w, h, w, h] for h, w in sizes])[rois[:, 0].long()]
    return clip_boxes(boxes, limits[:, None], coder.legacy)


def decode_rois(coder: DeltaCoder, deltas: Tensor, rois: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Return RoIs [n, 5] moved by one delta each, [n, 4]; as `decode_boxes` otherwise."""
    return torch.cat([rois[:, :1], decode_boxes(coder, deltas[:, None], rois, sizes)[:, 0]], 1)


def _gt_flags(proposals: Tensor, target: dict) -> Tensor:
    flags = torch.zeros(len(proposals) + len(target["boxes"]), dtype=torch.bool, device=proposals.device)
    flags[len(proposals) :] = True
    return flags
