"""Losses as (sum, count), so that they are normalised over the global batch, whatever the ranks.

Every function returns a differentiable zero with count 0 on empty input: each head then gets zero
gradients, not missing ones, and all ranks reduce the same parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = tuple[Tensor, Tensor]


def class_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Return the cross entropy of logits [n, K+1] with labels [n], and the number of rows."""
    return F.cross_entropy(logits.float(), labels, reduction="sum"), _count(logits, len(labels))


def objectness_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Return the binary cross entropy of logits [n] with labels [n] of 0 or 1, and n."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum")
    return loss, _count(logits, len(labels))


def box_loss(deltas: Tensor, targets: Tensor, labels: Tensor, beta: float) -> Loss:
    """Return smooth L1 over the positive rows, and the number of all rows.

    Args:
        deltas: class-specific predictions [n, K+1, 4].
        targets: regression targets [n, 4]; only those of positive rows are read.
        labels: [n], 0 is background.
        beta: where the loss turns from quadratic to linear.
    """
    rows = torch.where(labels > 0)[0]
    loss = F.smooth_l1_loss(deltas[rows, labels[rows]].float(), targets[rows], beta=beta, reduction="sum")
    return loss, _count(deltas, len(labels))


def mask_loss(logits: Tensor, targets: Tensor) -> Loss:
    """Return the binary cross entropy of logits [p, 28, 28] with soft targets, and the element count."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return loss, _count(logits, targets.numel())


def _count(like: Tensor, number: int) -> Tensor:
    return torch.tensor(float(number), device=like.device)
