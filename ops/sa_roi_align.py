"""The public functions of Shape-aware RoIAlign: arguments checked here, work done by `torch.ops.mrrcnn`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ops import torch_op  # noqa: F401  (defines torch.ops.mrrcnn)
from ops.reference import HALF_PIXEL, MAX_ADAPTIVE_GRID, PAPER

_MASK_MODES = {"half_pixel": HALF_PIXEL, "paper": PAPER}
_CANONICAL_SIZE, _CANONICAL_LEVEL, _LEVEL_EPS = 224, 4, 1e-6


def sa_roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    masks: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    mask_mode: str = "half_pixel",
) -> Tensor:
    """Returns the features pooled from every box and weighted by its mask, [K, C, h, w].

    Every bin averages `F(sample) * P(sample)` over its sampling points: the feature map at the point, by
    bilinear interpolation and RoIAlign's border rule, times the box's mask at the same relative place, by
    bilinear interpolation with its border replicated. It is plain RoIAlign with `masks=None`, and with masks
    of ones.

    Args:
        features: Feature map [N, C, H, W], floating point. The result has its dtype and its memory format;
            channels_last needs no copy. Products accumulate in float32 (float64 for float64).
        boxes: [K, 5] rows of (batch index, x1, y1, x2, y2), or a list of N tensors [L, 4] xyxy; in input
            pixels. Any floating dtype, but half precision loses whole pixels above 256. A box with NaN or
            infinite coordinates pools to zeros. Boxes get no gradient.
        masks: One mask a box, [K, Hp, Wp] (typically 28 x 28 probabilities), floating point, or None.
        output_size: (h, w) bins, or one number for both.
        spatial_scale: Feature pixels per input pixel (1 / stride).
        sampling_ratio: Sampling points a bin and side; 0 or less adapts to the box as torchvision does,
            ceil(size / bins), and pools a box that needs more than 4096 to zeros.
        aligned: Shift boxes by half a feature pixel, and leave those smaller than a feature pixel so.
        mask_mode: "half_pixel" reads a mask cell's value at the cell's centre. "paper" is the formula as
            printed, which reads half a cell towards the bottom right.

    Returns:
        [K, C, h, w]; empty, and still differentiable, for K = 0. Gradients flow to features and masks, once:
        differentiating twice raises RuntimeError.

    Raises:
        ValueError: An argument has the wrong shape, type, device or range.
        RuntimeError: A batch index is outside the batch.

    Source: Mask Refining R-CNN, Shape-aware RoIAlign, eq. (3)-(5), with eq. (5)'s H read as the height of the
    RoI in feature pixels: it is the only reading in which mask and RoI are aligned.
    """
    return multiscale_sa_roi_align(
        [features], boxes, masks, output_size, [spatial_scale], None, sampling_ratio, aligned, mask_mode
    )


def multiscale_sa_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    masks: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    levels: Tensor | None = None,
    sampling_ratio: int = 2,
    aligned: bool = False,
    mask_mode: str = "half_pixel",
) -> Tensor:
    """Returns the features pooled from every box at its pyramid level and weighted by its mask, [K, C, h, w].

    Args:
        features: Feature maps [N, C, Hl, Wl], finest first; same N, C, dtype and device.
        boxes: As in `sa_roi_align`.
        masks: As in `sa_roi_align`.
        output_size: As in `sa_roi_align`.
        spatial_scales: Feature pixels per input pixel of every map, e.g. [1/4, 1/8, 1/16, 1/32].
        levels: The map each box is pooled from, integers [K] counted from 0. None assigns by size as
            torchvision's LevelMapper does: floor(4 + log2(sqrt(area) / 224) + 1e-6), limited to these maps.
        sampling_ratio: As in `sa_roi_align`.
        aligned: As in `sa_roi_align`.
        mask_mode: As in `sa_roi_align`.

    Returns:
        As `sa_roi_align`. A map that no box uses gets a gradient of zeros.

    Raises:
        ValueError: An argument has the wrong shape, type, device or range.
        RuntimeError: A batch index or a level is out of range.

    Source: levels as in Feature Pyramid Networks, eq. (1); the rest as `sa_roi_align`.
    """
    features = _check_features(features, spatial_scales)
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    rois = _check_boxes(boxes, features[0]).to(dtype)
    if masks is not None:
        _check_masks(masks, rois)
    pooled_h, pooled_w = _check_output_size(output_size)
    if not isinstance(sampling_ratio, int) or sampling_ratio > MAX_ADAPTIVE_GRID:
        raise ValueError(f"sampling_ratio is {sampling_ratio!r}, expected a whole number up to 4096")
    if mask_mode not in _MASK_MODES:
        raise ValueError(f"mask_mode is {mask_mode!r}, expected one of {', '.join(_MASK_MODES)}")
    if levels is None and len(features) > 1:
        levels = assign_levels(rois[:, 1:], spatial_scales)
    if levels is not None:
        levels = _check_levels(levels, rois)
    return torch.ops.mrrcnn.sa_roi_align(
        features,
        rois.detach(),
        masks,
        levels,
        [float(s) for s in spatial_scales],
        pooled_h,
        pooled_w,
        max(sampling_ratio, 0),
        bool(aligned),
        _MASK_MODES[mask_mode],
    )


def assign_levels(boxes: Tensor, spatial_scales: Sequence[float]) -> Tensor:
    """Returns the pyramid level of every box by its own area, int64 [K], counted from 0.

    Args:
        boxes: [K, 4] xyxy in input pixels. A box without a defined area is put on level 0.
        spatial_scales: Of the maps, each half of the one before; the first and the last set the limits.

    Source: torchvision.ops.poolers.LevelMapper.
    """
    lowest, highest = -math.log2(spatial_scales[0]), -math.log2(spatial_scales[-1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = _CANONICAL_LEVEL + torch.log2(area.sqrt() / _CANONICAL_SIZE) + _LEVEL_EPS
    level = torch.nan_to_num(level.floor(), nan=lowest).clamp(lowest, highest)
    return level.to(torch.int64) - int(lowest)


def _check_features(features, spatial_scales):
    features = list(features)
    if not features:
        raise ValueError("features is empty, expected at least one map [N, C, H, W]")
    if len(features) != len(spatial_scales):
        raise ValueError(f"{len(features)} feature maps but {len(spatial_scales)} spatial scales")
    if not all(0 < s < math.inf for s in spatial_scales):
        raise ValueError(f"spatial scales are {list(spatial_scales)}, expected positive numbers")
    first = features[0]
    for one in features:
        if one.dim() != 4 or not one.is_floating_point():
            raise ValueError(f"features are {_describe(one)}, expected floating point [N, C, H, W]")
        if one.shape[2] == 0 or one.shape[3] == 0:
            raise ValueError(f"features are {_describe(one)}, expected maps of at least one pixel")
        if one.shape[:2] != first.shape[:2] or one.dtype != first.dtype or one.device != first.device:
            raise ValueError(f"maps differ in N, C, dtype or device: {_describe(first)}, {_describe(one)}")
    return features


def _check_boxes(boxes, feature):
    if not isinstance(boxes, Tensor):
        boxes = _join_boxes(boxes, feature)
    if boxes.dim() != 2 or boxes.shape[1] != 5 or not boxes.is_floating_point():
        raise ValueError(f"boxes are {_describe(boxes)}, expected floating point [K, 5] or a list of [L, 4]")
    if boxes.device != feature.device:
        raise ValueError(f"boxes are on {boxes.device}, features on {feature.device}")
    return boxes


def _join_boxes(boxes, feature):
    if len(boxes) != feature.shape[0]:
        raise ValueError(
            f"boxes is a list of {len(boxes)}, expected one tensor per image: {feature.shape[0]}"
        )
    for one in boxes:
        if one.dim() != 2 or one.shape[1] != 4 or not one.is_floating_point():
            raise ValueError(f"boxes of an image are {_describe(one)}, expected floating point [L, 4]")
    if not boxes:
        return feature.new_zeros((0, 5), dtype=torch.float32)
    # float32 first: a batch index above 256 does not survive bfloat16.
    wide = [one if one.dtype == torch.float64 else one.float() for one in boxes]
    return torch.cat([torch.cat([torch.full_like(one[:, :1], i), one], 1) for i, one in enumerate(wide)])


def _check_masks(masks, rois):
    if masks.dim() != 3 or not masks.is_floating_point() or 0 in masks.shape[1:]:
        raise ValueError(f"masks are {_describe(masks)}, expected floating point [K, Hp, Wp]")
    if masks.shape[0] != rois.shape[0]:
        raise ValueError(f"{masks.shape[0]} masks for {rois.shape[0]} boxes")
    if masks.device != rois.device:
        raise ValueError(f"masks are on {masks.device}, features on {rois.device}")


def _check_levels(levels, rois):
    if levels.shape != rois.shape[:1] or levels.is_floating_point() or levels.dtype == torch.bool:
        raise ValueError(f"levels are {_describe(levels)}, expected integers [{rois.shape[0]}]")
    if levels.device != rois.device:
        raise ValueError(f"levels are on {levels.device}, features on {rois.device}")
    return levels.to(torch.int64)


def _check_output_size(output_size):
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ValueError(f"output_size is {output_size!r}, expected a positive integer or two of them")
    return size


def _describe(tensor):
    return f"{tensor.dtype} {list(tensor.shape)}"
