"""The public functions of Shape-aware RoIAlign: arguments checked here, work done by `torch.ops.mrrcnn`."""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ops import torch_op  # noqa: F401  (defines torch.ops.mrrcnn)
from ops.reference import HALF_PIXEL, MAX_ADAPTIVE_GRID, PAPER

_MASK_MODES = {"half_pixel": HALF_PIXEL, "paper": PAPER}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOATS = "floating point (16, 32 or 64 bits)"
_MAX_BINS = 32767  # a side; csrc/arguments.h has the same number
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
        features: Feature map [N, C, H, W], float16, bfloat16, float32 or float64; at most 2^31 - 1 numbers an
            image. The result has its dtype and its memory format; channels_last needs no copy. Products
            accumulate in float32 (float64 for float64). The map is kept for the backward: changing it in
            place before that raises RuntimeError, whatever needs a gradient.
        boxes: [K, 5] rows of (batch index, x1, y1, x2, y2), or a list of N tensors [L, 4] xyxy; in input
            pixels. Any of these dtypes, but half precision loses whole pixels above 256. A box with NaN or
            infinite coordinates pools to zeros. Boxes get no gradient.
        masks: One mask a box, [K, Hp, Wp] (typically 28 x 28 probabilities), any of these dtypes, or None.
        output_size: (h, w) bins, or one number for both; at most 32767 a side.
        spatial_scale: Feature pixels per input pixel (1 / stride).
        sampling_ratio: Sampling points a bin and side; 0 or less adapts to the box as torchvision does,
            ceil(size / bins), and pools a box that needs more than 4096 to zeros.
        aligned: Shift boxes by half a feature pixel, and leave those smaller than a feature pixel so.
        mask_mode: "half_pixel" reads a mask cell's value at the cell's centre. "paper" is the formula as
            printed, which reads half a cell towards the bottom right.

    Returns:
        [K, C, h, w]; empty, and still differentiable, for K = 0. Gradients flow to features and masks, once
        and backwards: differentiating twice, forward-mode AD and torch.func (vmap, grad) raise RuntimeError.

    Raises:
        ValueError: An argument has the wrong shape, type, device or range.
        RuntimeError: A batch index is outside the batch. The compiled CUDA kernels cannot raise it without
            waiting for the GPU: there such a box pools to NaN, its mask's gradient is zeros, and features get
            none from it. Also where an image's map, a mask or a box's output has 2^31 numbers or more: the
            compiled kernels refuse them.

    Source: Mask Refining R-CNN, Shape-aware RoIAlign, eq. (3)-(5), with eq. (5)'s H read as the height of the
    RoI in feature pixels: it is the only reading in which mask and RoI are aligned.
    """
    if not isinstance(features, Tensor):
        raise ValueError(f"features are a {_kind(features)}, expected a tensor [N, C, H, W]")
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
        features: Feature maps [N, C, Hl, Wl], finest first; same N, C, dtype and device. On CUDA at most 8.
        boxes, masks, output_size: As in `sa_roi_align`.
        spatial_scales: Feature pixels per input pixel of every map, e.g. [1/4, 1/8, 1/16, 1/32].
        levels: The map each box is pooled from, integers [K] counted from 0. None assigns by size as
            torchvision's LevelMapper does: floor(4 + log2(sqrt(area) / 224) + 1e-6), limited to these maps.
            That needs scales that halve from map to map, finest first; each is taken for the nearest power
            of two, as torchvision does, so measured ones (200 / 799) will do.
        sampling_ratio, aligned, mask_mode: As in `sa_roi_align`.

    Returns:
        As `sa_roi_align`. A map that no box uses gets a gradient of zeros.

    Raises:
        ValueError: An argument has the wrong shape, type, device or range.
        RuntimeError: A batch index or a level is out of range (on CUDA NaN instead), or numbers are too many,
            as in `sa_roi_align`.

    Source: levels as in Feature Pyramid Networks, eq. (1); the rest as `sa_roi_align`.
    """
    spatial_scales = _check_scales(spatial_scales)
    features = _check_features(features, spatial_scales)
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    rois = _check_boxes(boxes, features[0]).to(dtype)
    _check_masks(masks, rois)
    _refuse_tangents(features, masks)
    pooled_h, pooled_w = _check_output_size(output_size)
    _check_sampling(sampling_ratio, mask_mode)
    if levels is None and len(features) > 1:
        _check_halving(spatial_scales)
        levels = assign_levels(rois[:, 1:], spatial_scales)
    if levels is not None:
        levels = _check_levels(levels, rois)
    return torch.ops.mrrcnn.sa_roi_align(
        features,
        rois.detach(),
        masks,
        levels,
        spatial_scales,
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
        spatial_scales: Of the maps, each half of the one before; the first and the last set the limits, taken
            for the nearest powers of two.

    Source: torchvision.ops.poolers.LevelMapper.
    """
    lowest, highest = _level_of(spatial_scales[0]), _level_of(spatial_scales[-1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = _CANONICAL_LEVEL + torch.log2(area.sqrt() / _CANONICAL_SIZE) + _LEVEL_EPS
    level = torch.nan_to_num(level.floor(), nan=lowest).clamp(lowest, highest)
    return level.to(torch.int64) - lowest


def _level_of(scale):
    return round(-math.log2(scale))


def _check_halving(scales):
    levels = [_level_of(one) for one in scales]
    if levels != list(range(levels[0], levels[0] + len(levels))):
        raise ValueError(f"spatial scales are {scales}: pass levels, or scales that halve, finest first")


def _check_scales(scales):
    if not isinstance(scales, Sequence | Tensor) or isinstance(scales, str):
        raise ValueError(f"spatial scales are {scales!r}, expected a positive number per map")
    if not all(isinstance(s, numbers.Real | Tensor) for s in scales):
        raise ValueError(f"spatial scales are {list(scales)}, expected positive numbers")
    scales = [float(s) for s in scales]
    if not all(0 < s < math.inf for s in scales):
        raise ValueError(f"spatial scales are {scales}, expected positive numbers")
    return scales


def _refuse_tangents(features, masks):
    """Raises where forward-mode AD is at work: torch would go on with a tangent of zeros."""
    if torch.compiler.is_compiling():
        return
    tensors = features if masks is None else [*features, masks]
    if any(forward_ad.unpack_dual(one).tangent is not None for one in tensors):
        raise RuntimeError(
            "sa_roi_align has no forward-mode derivative (jvp, jacfwd); use torch.autograd.grad"
        )


def _check_features(features, spatial_scales):
    if isinstance(features, dict):
        raise ValueError("features are a dict, expected a list of maps: list(features.values())")
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise ValueError(f"features are a {_kind(features)}, expected a list of maps [N, C, H, W]")
    features = list(features)
    if not features:
        raise ValueError("features is empty, expected at least one map [N, C, H, W]")
    if len(features) != len(spatial_scales):
        raise ValueError(f"{len(features)} feature maps but {len(spatial_scales)} spatial scales")
    first = features[0]
    for one in features:
        if not _is_floats(one, 4):
            raise ValueError(f"features are {_describe(one)}, expected {_FLOATS} [N, C, H, W]")
        if one.shape[2] == 0 or one.shape[3] == 0:
            raise ValueError(f"features are {_describe(one)}, expected maps of at least one pixel")
        if one.shape[:2] != first.shape[:2] or one.dtype != first.dtype or one.device != first.device:
            raise ValueError(f"maps differ in N, C, dtype or device: {_describe(first)}, {_describe(one)}")
    return features


def _check_boxes(boxes, feature):
    if not isinstance(boxes, Tensor):
        boxes = _join_boxes(boxes, feature)
    if not _is_floats(boxes, 2) or boxes.shape[1] != 5:
        raise ValueError(f"boxes are {_describe(boxes)}, expected {_FLOATS} [K, 5] or a list of [L, 4]")
    _check_device("boxes", boxes, feature)
    return boxes


def _join_boxes(boxes, feature):
    if not isinstance(boxes, Sequence):
        raise ValueError(f"boxes are {_describe(boxes)}, expected a tensor [K, 5] or a list of [L, 4]")
    if len(boxes) != feature.shape[0]:
        raise ValueError(
            f"boxes is a list of {len(boxes)}, expected one tensor per image: {feature.shape[0]}"
        )
    for one in boxes:
        if not _is_floats(one, 2) or one.shape[1] != 4:
            raise ValueError(f"boxes of an image are {_describe(one)}, expected {_FLOATS} [L, 4]")
        _check_device("boxes", one, feature)
    if not boxes:
        return feature.new_zeros((0, 5), dtype=torch.float32)
    # float32 first: a batch index above 256 does not survive bfloat16.
    wide = [one if one.dtype == torch.float64 else one.float() for one in boxes]
    return torch.cat([torch.cat([torch.full_like(one[:, :1], i), one], 1) for i, one in enumerate(wide)])


def _check_masks(masks, rois):
    if masks is None:
        return
    if not _is_floats(masks, 3) or 0 in masks.shape[1:]:
        raise ValueError(f"masks are {_describe(masks)}, expected {_FLOATS} [K, Hp, Wp]")
    if masks.shape[0] != rois.shape[0]:
        raise ValueError(f"{masks.shape[0]} masks for {rois.shape[0]} boxes")
    _check_device("masks", masks, rois)


def _check_levels(levels, rois):
    if not isinstance(levels, Tensor):
        raise ValueError(f"levels are {_describe(levels)}, expected a tensor of integers [{rois.shape[0]}]")
    if levels.shape != rois.shape[:1] or levels.is_floating_point() or levels.dtype == torch.bool:
        raise ValueError(f"levels are {_describe(levels)}, expected integers [{rois.shape[0]}]")
    _check_device("levels", levels, rois)
    return levels.to(torch.int64)


def _check_output_size(output_size):
    size = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(size) != 2 or not all(isinstance(n, int) and 1 <= n <= _MAX_BINS for n in size):
        raise ValueError(f"output_size is {output_size!r}, expected an integer from 1 to {_MAX_BINS}, or two")
    return size


def _check_sampling(sampling_ratio, mask_mode):
    if not isinstance(sampling_ratio, int) or sampling_ratio > MAX_ADAPTIVE_GRID:
        raise ValueError(f"sampling_ratio is {sampling_ratio!r}, expected a whole number up to 4096")
    if mask_mode not in _MASK_MODES:
        raise ValueError(f"mask_mode is {mask_mode!r}, expected one of {', '.join(_MASK_MODES)}")


def _check_device(name, tensor, feature):
    if tensor.device != feature.device:
        raise ValueError(f"{name} are on {tensor.device}, features on {feature.device}")


def _is_floats(tensor, dimensions):
    return isinstance(tensor, Tensor) and tensor.dim() == dimensions and tensor.dtype in _DTYPES


def _describe(what):
    return f"{what.dtype} {list(what.shape)}" if isinstance(what, Tensor) else f"a {_kind(what)}"


def _kind(what):
    return type(what).__name__
