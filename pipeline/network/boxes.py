"""What a box means where programs differ: its units, where it is cut off, pooled and resized.

Boxes are xyxy with exclusive ends everywhere. maskrcnn-benchmark has inclusive ones: x2 here is its x2 + 1,
with which all formulas of areas, overlaps and deltas are the usual ones, and only these functions differ.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import resize_boxes

from configs.profile import SourceProfile

Size = tuple[int, int]
LAST_PIXEL = (0.0, 0.0, 1.0, 1.0)


class DeltaCoder(BoxCoder):
    """torchvision's coder, which also knows how its boxes are clipped."""

    def __init__(self, weights: tuple[float, float, float, float], profile: SourceProfile):
        super().__init__(weights, profile.delta_clip)
        self.legacy = profile.legacy_boxes


def clip_boxes(boxes: Tensor, limits: Tensor, legacy: bool) -> Tensor:
    """Return boxes [..., 4] inside of images.

    Args:
        boxes: xyxy.
        limits: (width, height, width, height), broadcast to the boxes.
        legacy: both ends stay on a pixel of the image, so that no box is without area.
    """
    if not legacy:
        return boxes.clamp(min=0).minimum(limits)
    ends = boxes.new_tensor(LAST_PIXEL)
    return boxes.maximum(ends).minimum(limits - 1 + ends)


def image_limits(size: Size, like: Tensor) -> Tensor:
    """Return (width, height, width, height) of an image (height, width)."""
    height, width = size
    return like.new_tensor([width, height, width, height])


def last_pixels(boxes: Tensor, legacy: bool) -> Tensor:
    """Return what RoIAlign and pasting take for boxes [..., 4] or RoIs [..., 5]: inclusive ends if legacy."""
    if not legacy:
        return boxes
    ends = boxes.new_tensor(LAST_PIXEL)
    return boxes - (ends if boxes.shape[-1] == 4 else torch.cat([ends[:1], ends]))


def rescale_boxes(boxes: Tensor, size: Size, new_size: Size, legacy: bool) -> Tensor:
    """Return boxes [n, 4] of an image (height, width) in the pixels of that image at a new size."""
    if not legacy:
        return resize_boxes(boxes, size, new_size)
    return resize_boxes(last_pixels(boxes, True), size, new_size) + boxes.new_tensor(LAST_PIXEL)


def at_least_a_pixel(boxes: Tensor, legacy: bool) -> Tensor:
    """Return ground truth boxes [n, 4] as the program reads them: if legacy, at least a pixel wide."""
    if not legacy:
        return boxes
    return torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2] + 1)], 1)
