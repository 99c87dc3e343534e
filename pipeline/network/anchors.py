"""Anchor boxes by the rules of each program: see `SourceProfile.anchors` and `.anchor_strides`."""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from configs.profile import SourceProfile

ASPECT_RATIOS = (0.5, 1.0, 2.0)
STRIDES = (4, 8, 16, 32, 64)


class Anchors(AnchorGenerator):
    """torchvision's generator with the cell anchors and strides of a profile."""

    def __init__(self, sizes: tuple[int, ...], profile: SourceProfile):
        super().__init__(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))
        self.fixed = profile.anchor_strides == "fixed"
        if profile.anchors != "rounded":
            self.cell_anchors = cell_anchors(sizes, profile)

    def grid_anchors(self, grid_sizes: list, strides: list) -> list[Tensor]:
        """Return the anchors [height * width * 3, 4] of each map."""
        if self.fixed:
            strides = [(stride, stride) for stride in STRIDES]
        return super().grid_anchors(grid_sizes, strides)


def cell_anchors(sizes: tuple[int, ...], profile: SourceProfile) -> list[Tensor]:
    """Return the anchors of one cell of each map, float32 [3, 4] xyxy with exclusive ends."""
    if profile.anchors == "rounded":
        return AnchorGenerator(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes)).cell_anchors
    one_map = _exact if profile.anchors == "exact" else _legacy
    return [
        torch.tensor(one_map(size, stride), dtype=torch.float32)
        for size, stride in zip(sizes, STRIDES, strict=True)
    ]


def _exact(size: int, _: int) -> list[list[float]]:
    widths = [math.sqrt(size**2 / ratio) for ratio in ASPECT_RATIOS]
    sides = [(width, ratio * width) for width, ratio in zip(widths, ASPECT_RATIOS, strict=True)]
    return [[-width / 2, -height / 2, width / 2, height / 2] for width, height in sides]


def _legacy(size: int, stride: int) -> list[list[float]]:
    # Sides are rounded at the scale of one cell, halves to even, and only then enlarged.
    boxes = []
    for ratio in ASPECT_RATIOS:
        width = np.round(math.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        half_width, half_height = width * size / stride / 2, height * size / stride / 2
        boxes.append([-half_width, -half_height, half_width, half_height])
    return (np.array(boxes) + stride / 2).tolist()
