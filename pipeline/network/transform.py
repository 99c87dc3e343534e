"""Normalisation, resizing and batching of images of any size."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from configs.schema import Model
from pipeline.network.gt_masks import GroundTruthMasks, resize_masks

MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]


def build_transform(config: Model) -> "ImageTransform":
    """Return torchvision's transform at one scale, with ImageNet's normalisation."""
    return ImageTransform(config.min_size, config.max_size, MEAN, STD)


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's transform without its two surprises.

    It draws the scale from the global RNG even if there is only one, and it rounds the short side
    of a very long image to 0.
    """

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Return image and target at the network's scale: torchvision's sizes, at least 1 pixel a side."""
        height, width = image.shape[-2:]
        scale = min(self.min_size[0] / min(height, width), self.max_size / max(height, width))
        size = max(1, int(height * scale)), max(1, int(width * scale))
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            boxes = resize_boxes(target["boxes"], (height, width), size)
            target = {**target, "boxes": boxes, "masks": _resize(target["masks"], size)}
        return image, target


def _resize(masks: Tensor | GroundTruthMasks, size: tuple[int, int]) -> Tensor | GroundTruthMasks:
    return masks.resize(size) if isinstance(masks, GroundTruthMasks) else resize_masks(masks, size)
