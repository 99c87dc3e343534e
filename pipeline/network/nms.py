"""Non-maximum suppression within groups, and what is too thin to take part."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, how: str) -> Tensor:
    """Return the rows that no better box of their group overlaps by more than `iou`, best first.

    Args:
        boxes: [n, 4] xyxy; n may be 0.
        scores: [n].
        groups: integers [n].
        iou: the largest overlap.
        how: "joint" is torchvision's, which moves the groups apart where boxes are few, and so rounds
            their coordinates; "separate" is exact.
    """
    if how == "joint":
        return batched_nms(boxes, scores, groups, iou)
    kept = [boxes.new_zeros(0, dtype=torch.int64)]
    for group in groups.unique():
        rows = torch.where(groups == group)[0]
        kept.append(rows[nms(boxes[rows], scores[rows], iou)])
    rows = torch.cat(kept)
    return rows[scores[rows].argsort(descending=True, stable=True)]


def sides_at_least(boxes: Tensor, least: float | None) -> Tensor:
    """Return bool [n]: both sides of boxes [n, 4] are `least` px or more, and above 0; null asks nothing.

    A box with NaN or infinite corners is never enough.
    """
    if least is None:
        return boxes.isfinite().all(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    return ((sides >= least) & (sides > 0)).all(1)
