"""Normalisation, resizing and batching of images of any size."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.network.boxes import Size, at_least_a_pixel, rescale_boxes
from pipeline.network.gt_masks import GroundTruthMasks, resize_masks

WHITE = 255


def build_transform(config: Model) -> "ImageTransform":
    """Return torchvision's transform at one scale, with the normalisation of the weights' source."""
    return ImageTransform(config.min_size, config.max_size, config.profile)


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's transform by the rules of a profile, and without its two surprises.

    It draws the scale from the global RNG even if there is only one, and it rounds the short side
    of a very long image to 0.
    """

    def __init__(self, min_size: int, max_size: int, profile: SourceProfile):
        super().__init__(min_size, max_size, list(profile.pixel_mean), list(profile.pixel_std))
        self.profile = profile

    def normalize(self, image: Tensor) -> Tensor:
        """Return a float image [3, H, W] in 0..1 normalised; Pillow's resizing must come first."""
        return image if self.profile.resize == "pillow" else self._normalised(image)

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Return image and target at the network's scale, at least 1 pixel a side.

        Pillow takes 8 bits a colour: an image of other values than n / 255 is rounded to them.
        """
        size = image.shape[-2:]
        new_size = network_size(size, self.min_size[0], self.max_size, self.profile.size_rounding)
        if self.profile.resize == "pillow":
            image = self._normalised(_resize_bytes(image, new_size))
        else:
            image = F.interpolate(image[None], size=new_size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            legacy = self.profile.legacy_boxes
            boxes = rescale_boxes(at_least_a_pixel(target["boxes"], legacy), size, new_size, legacy)
            target = {**target, "boxes": boxes, "masks": _resize(target["masks"], new_size)}
        return image, target

    def _normalised(self, image: Tensor) -> Tensor:
        return super().normalize(image if self.profile.pixel_range == 1 else image * self.profile.pixel_range)


def network_size(size: Size, short: int, long: int, rounding: str) -> Size:
    """Return the (height, width) at which an image (height, width) enters the network.

    The short side becomes `short`, or less if the long side would exceed `long`; both as the program
    rounds, see `SourceProfile.size_rounding`.
    """
    height, width = size
    if rounding == "legacy":
        height, width = _truncated(size, short, long)
    elif rounding == "half_up":
        height, width = (int(side + 0.5) for side in _scaled(size, short, long))
    else:
        scale = min(short / min(height, width), long / max(height, width))
        height, width = int(height * scale), int(width * scale)
    return max(1, height), max(1, width)


def _scaled(size: Size, short: int, long: int) -> tuple[float, float]:
    height, width = size
    scale = short / min(size)
    sides = (short, scale * width) if height < width else (scale * height, short)
    if max(sides) <= long:
        return sides
    scale = long / max(sides)
    return sides[0] * scale, sides[1] * scale


def _truncated(size: Size, short: int, long: int) -> Size:
    height, width = size
    smaller, larger = float(min(size)), float(max(size))
    if larger / smaller * short > long:
        short = round(long * smaller / larger)
    if smaller == short:
        return size
    return (int(short * height / width), short) if width < height else (short, int(short * width / height))


def _resize_bytes(image: Tensor, size: Size) -> Tensor:
    pixels = (image * WHITE).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    resized = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).to(image.device).permute(2, 0, 1).float() / WHITE


def _resize(masks: Tensor | GroundTruthMasks, size: Size) -> Tensor | GroundTruthMasks:
    return masks.resize(size) if isinstance(masks, GroundTruthMasks) else resize_masks(masks, size)
