"""Shape-aware RoIAlign in plain torch: what the compiled kernels must equal, and what runs without them.

The grid of samples is separable: row r of a RoI sits at one height of the feature map and at one height of
its mask, column s likewise. So a RoI needs the bilinear taps of its rows and of its columns only, and

    out[i, j] = 1/N * sum over rows r of bin i and columns s of bin j of  F(r, s) * P(r, s)

with N the samples of a bin. Both products are linear in F and in P; the backward is their transpose.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# An adaptive grid beyond this many samples a bin and side belongs to a box far larger than any feature map.
# Such a box pools to zeros, as a box that is not finite does; csrc/geometry.h has the same number.
MAX_ADAPTIVE_GRID = 4096
HALF_PIXEL, PAPER = 0, 1
# Samples times channels handled at once: bounds the scratch memory to a few hundred MB whatever K is.
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Taps:
    """Bilinear taps of S sample positions on one axis of K RoIs: indices, weights, and what is on the map."""

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Grid:
    """The samples of K RoIs that share a grid: taps on F, taps [1, S] on P, the bins of rows and columns."""

    batch: Tensor
    rows: Taps
    columns: Taps
    row_bin: Tensor
    column_bin: Tensor
    mask_rows: Taps | None
    mask_columns: Taps | None
    samples_per_bin: int


def forward(
    features, rois, prob, level, spatial_scales, pooled_h, pooled_w, sampling_ratio, aligned, prob_mode
):
    """Returns the pooled features [K, C, pooled_h, pooled_w]; autograd can differentiate it.

    The arguments are those of `torch.ops.mrrcnn.sa_roi_align`.
    """
    dtype = _compute_dtype(features[0])
    pooled = features[0].new_zeros((len(rois), pooled_h, pooled_w, features[0].shape[1]), dtype=dtype)
    members_of, values_of = [], []
    with torch.autocast(features[0].device.type, enabled=False):
        for one, scale, members in _by_level(features, rois, level, spatial_scales):
            pixels = _pixels(one, dtype)
            arguments = (rois, members, scale, (pooled_h, pooled_w), sampling_ratio, aligned)
            for chosen, grid in _grids(one, prob, *arguments, prob_mode):
                values = _sample(pixels, one.shape, grid)
                if prob is not None:
                    values = values * _sample_mask(prob[chosen].to(dtype), grid)
                values_of.append(_sum_bins(values, grid, pooled_h, pooled_w) / grid.samples_per_bin)
                members_of.append(chosen)
    if members_of:
        pooled = pooled.index_copy(0, torch.cat(members_of), torch.cat(values_of))
    pooled = pooled.permute(0, 3, 1, 2).to(features[0].dtype)
    return pooled.clone(memory_format=memory_format(features[0]))


def backward(
    grad,
    features,
    rois,
    prob,
    level,
    spatial_scales,
    pooled_h,
    pooled_w,
    sampling_ratio,
    aligned,
    prob_mode,
    need_f,
    need_p,
):
    """Returns (gradients of the features, gradient of prob); what is not needed has no elements."""
    dtype = _compute_dtype(features[0])
    grad = grad.permute(0, 2, 3, 1).to(dtype)
    need_p = need_p and prob is not None
    grad_prob = torch.zeros_like(prob, dtype=dtype, memory_format=torch.contiguous_format) if need_p else None
    grad_features = []
    with torch.autocast(features[0].device.type, enabled=False):
        for one, scale, members in _by_level(features, rois, level, spatial_scales):
            pixels = _pixels(one, dtype)
            grad_pixels = torch.zeros_like(pixels) if need_f else None
            arguments = (rois, members, scale, (pooled_h, pooled_w), sampling_ratio, aligned)
            for chosen, grid in _grids(one, prob, *arguments, prob_mode):
                spread = grad[chosen][:, grid.row_bin][:, :, grid.column_bin] / grid.samples_per_bin
                spread = _on_map(spread, grid)
                if need_p:
                    products = (spread * _sample(pixels, one.shape, grid)).sum(-1)
                    grad_prob[chosen] = _spread_on_mask(products, prob.shape, grid)
                if need_f:
                    if prob is not None:
                        spread = spread * _sample_mask(prob[chosen].to(dtype), grid)
                    _add_samples(grad_pixels, spread, one.shape, grid)
            grad_features.append(_feature_gradient(grad_pixels, one))
    return grad_features, grad_prob.to(prob.dtype) if need_p else features[0].new_empty(0)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Returns channels_last only for a [N, C, H, W] tensor that is not plainly contiguous as well."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _compute_dtype(feature):
    return torch.float64 if feature.dtype == torch.float64 else torch.float32


def _pixels(feature, dtype):
    """[N, C, H, W] -> [N * H * W, C]: a sample's channels side by side."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2).to(dtype)


def _feature_gradient(grad_pixels, feature):
    if grad_pixels is None:
        return feature.new_empty(0)
    n, c, h, w = feature.shape
    gradient = grad_pixels.reshape(n, h, w, c).permute(0, 3, 1, 2).to(feature.dtype)
    return gradient.clone(memory_format=memory_format(feature))


def _by_level(features, rois, level, spatial_scales):
    """Yields every level's map and scale with the indices of its RoIs."""
    _check_range(rois[:, 0], features[0].shape[0], "batch index")
    if level is None:
        yield features[0], spatial_scales[0], torch.arange(len(rois), device=rois.device)
        return
    _check_range(level, len(features), "level")
    for index, (one, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        yield one, scale, (level == index).nonzero().squeeze(1)


def _check_range(values, size, what):
    wrong = ~((values >= 0) & (values < size))
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise RuntimeError(f"sa_roi_align: RoI {k} has {what} {values[k].item():g}, expected 0 to {size - 1}")


def _grids(feature, prob, rois, members, scale, bins, sampling_ratio, aligned, prob_mode):
    """Yields (indices of RoIs, their Grid): many RoIs at once for a fixed sampling ratio, else one by one."""
    boxes = _scaled_boxes(rois, scale, aligned)
    finite = torch.isfinite(boxes).all(1)
    members = members[finite[members]]
    mask_size = prob.shape[1:] if prob is not None else None
    if sampling_ratio > 0:
        samples = bins[0] * bins[1] * sampling_ratio**2
        size = max(1, _CHUNK_ELEMENTS // (samples * max(1, feature.shape[1])))
        for chosen in members.split(size):
            counts = (sampling_ratio, sampling_ratio)
            yield chosen, _grid(feature, rois, boxes, chosen, bins, counts, mask_size, prob_mode)
        return
    for k in members.tolist():
        counts = [math.ceil(boxes[k, 2 + axis] / bins[axis]) for axis in (0, 1)]
        if min(counts) < 1 or max(counts) > MAX_ADAPTIVE_GRID:
            continue
        chosen = torch.tensor([k], device=rois.device)
        yield chosen, _visible(_grid(feature, rois, boxes, chosen, bins, counts, mask_size, prob_mode))


def _scaled_boxes(rois, scale, aligned):
    """[K, 5] -> [K, 4] in feature pixels: y0, x0, height, width."""
    start = rois[:, [2, 1]] * scale
    size = rois[:, [4, 3]] * scale - start
    if aligned:
        return torch.cat([start - 0.5, size], 1)
    # Not clamp: a box that is not finite must stay so, not become one pixel.
    return torch.cat([start, torch.where(size.isfinite() & (size < 1), torch.ones_like(size), size)], 1)


def _grid(feature, rois, boxes, chosen, bins, counts, mask_size, prob_mode):
    taps, mask_taps, bin_of = [], [None, None], []
    for axis in (0, 1):
        index = torch.arange(bins[axis] * counts[axis], device=rois.device)
        bin_of.append(index // counts[axis])
        start, size = boxes[chosen, axis, None], boxes[chosen, 2 + axis, None]
        bin_size = size / bins[axis]
        within = ((index % counts[axis]).to(boxes.dtype) + 0.5) * bin_size / counts[axis]
        taps.append(_feature_taps(start + bin_of[axis] * bin_size + within, feature.shape[2 + axis]))
        if mask_size is not None:
            unit = (index.to(_compute_dtype(feature)) + 0.5) / len(index)
            mask_taps[axis] = _mask_taps(unit[None], mask_size[axis], prob_mode)
    return Grid(rois[chosen, 0].long(), *taps, *bin_of, *mask_taps, counts[0] * counts[1])


def _feature_taps(position, size):
    """RoIAlign's border rule: nothing more than a pixel outside, else clamped into the map."""
    visible = (position >= -1) & (position <= size)
    return _clamped_taps(torch.where(visible, position, torch.zeros_like(position)), size, visible)


def _clamped_taps(position, size, visible):
    position = position.clamp(0, size - 1)
    # Beyond 2^24 a float32 rounds `size - 1` up to `size`: behind the axis.
    low = torch.where(position < size - 1, position.long(), size - 1)
    fraction = position - low
    return Taps(low, (low + 1).clamp(max=size - 1), 1 - fraction, fraction, visible)


def _mask_taps(unit, size, prob_mode):
    """A mask's taps at positions `unit` in (0, 1), its border replicated."""
    position = unit * size - (0.5 if prob_mode == HALF_PIXEL else 0.0)
    return _clamped_taps(position, size, torch.ones_like(position, dtype=torch.bool))


def _visible(grid):
    """The same grid without rows and columns off the map: a large box then costs no more than the map."""

    def keep(taps, on_map):
        if taps is None:
            return None
        parts = (taps.low, taps.high, taps.weight_low, taps.weight_high, taps.visible)
        return Taps(*(part[:, on_map] for part in parts))

    rows, columns = grid.rows.visible[0], grid.columns.visible[0]
    return replace(
        grid,
        rows=keep(grid.rows, rows),
        columns=keep(grid.columns, columns),
        row_bin=grid.row_bin[rows],
        column_bin=grid.column_bin[columns],
        mask_rows=keep(grid.mask_rows, rows),
        mask_columns=keep(grid.mask_columns, columns),
    )


def _corners(shape, grid):
    """Yields (index into the pixels [K, R, S], weight [K, R, S]) of each of a sample's four corners."""
    _, _, height, width = shape
    rows, columns = grid.rows, grid.columns
    for y, weight_y in ((rows.low, rows.weight_low), (rows.high, rows.weight_high)):
        line = (grid.batch[:, None] * height + y) * width
        for x, weight_x in ((columns.low, columns.weight_low), (columns.high, columns.weight_high)):
            yield line[:, :, None] + x[:, None, :], weight_y[:, :, None] * weight_x[:, None, :]


def _sample(pixels, shape, grid):
    """F at every sample: [K, R, S, C]."""
    terms = (pixels[index] * weight[..., None].to(pixels.dtype) for index, weight in _corners(shape, grid))
    return _on_map(sum(terms), grid)


def _add_samples(grad_pixels, grad_samples, shape, grid):
    """The transpose of `_sample`, added to grad_pixels."""
    for index, weight in _corners(shape, grid):
        terms = grad_samples * weight[..., None].to(grad_pixels.dtype)
        grad_pixels.index_add_(0, index.flatten(), terms.flatten(0, 2))


def _sample_mask(prob, grid):
    """P at every sample: [K, R, S, 1]."""
    values = _interpolate(_interpolate(prob, grid.mask_rows, 1), grid.mask_columns, 2)
    return _on_map(values[..., None], grid)


def _interpolate(values, taps, axis):
    """Four cells a sample and no others: a matrix of weights would spread one NaN over all of them."""
    low, high = values.index_select(axis, taps.low[0]), values.index_select(axis, taps.high[0])
    return low * _along(axis, taps.weight_low) + high * _along(axis, taps.weight_high)


def _spread_on_mask(grad_values, shape, grid):
    """The transpose of `_sample_mask`: [K, R, S] -> [K, Hp, Wp]."""
    for axis, taps in ((2, grid.mask_columns), (1, grid.mask_rows)):
        size = list(grad_values.shape)
        size[axis] = shape[axis]
        low, high = (grad_values * _along(axis, w) for w in (taps.weight_low, taps.weight_high))
        spread = grad_values.new_zeros(size).index_add_(axis, taps.low[0], low)
        grad_values = spread.index_add_(axis, taps.high[0], high)
    return grad_values


def _along(axis, weight):
    """[1, S] -> [S, 1] for rows (axis 1), [1, S] for columns (axis 2)."""
    return weight.T if axis == 1 else weight


def _on_map(values, grid):
    """Values [K, R, S, *] with zeros off the map: a weight of zero would not do, since 0 * NaN is NaN."""
    visible = grid.rows.visible[:, :, None] & grid.columns.visible[:, None, :]
    return torch.where(visible[..., None], values, 0)


def _sum_bins(values, grid, pooled_h, pooled_w):
    """[K, R, S, C] -> [K, pooled_h, pooled_w, C]: the sum of every bin's samples."""
    k, _, columns, channels = values.shape
    values = values.new_zeros((k, pooled_h, columns, channels)).index_add(1, grid.row_bin, values)
    return values.new_zeros((k, pooled_h, pooled_w, channels)).index_add(2, grid.column_bin, values)
