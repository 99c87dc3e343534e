"""Without masks the operator is torchvision's RoIAlign, on one map and on a pyramid, gradients included."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from benchmarks.pooling import composition, ours
from ops import multiscale_sa_roi_align, sa_roi_align
from ops.sa_roi_align import assign_levels
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks

H, W = 25, 34
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
SIZES = [(1, 1), (7, 7), (14, 14), (5, 9)]


def rois(dtype=torch.float64):
    awkward = awkward_boxes(4 * H, 4 * W, dtype)
    return torch.cat([boxes_inside(12, 2, 4 * H, 4 * W, dtype=dtype), awkward])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_roi_align(pool, size, ratio, aligned):
    feature = features(2, 3, H, W)
    expected = roi_align(feature, rois(), size, 0.25, ratio, aligned)
    torch.testing.assert_close(
        pool(feature, rois(), None, size, 0.25, ratio, aligned), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_equals_roi_align_in_float32(pool, ratio, aligned):
    feature = features(2, 3, H, W, dtype=torch.float32)
    boxes = boxes_inside(30, 2, 4 * H, 4 * W, dtype=torch.float32)
    expected = roi_align(feature, boxes, 7, 0.25, ratio, aligned)
    torch.testing.assert_close(
        pool(feature, boxes, None, 7, 0.25, ratio, aligned), expected, rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradient_equals_roi_align(pool, size, ratio):
    feature = features(2, 3, H, W).requires_grad_()
    weight = features(len(rois()), 3, *size, seed=8)

    def gradient(out):
        return torch.autograd.grad((weight * out).sum(), feature)[0]

    expected = gradient(roi_align(feature, rois(), size, 0.25, ratio))
    got = gradient(pool(feature, rois(), None, size, 0.25, ratio))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [7, 14])
def test_equals_the_composition_of_roi_align_and_resized_masks(size):
    """What the benchmark times as its equal: one sample a bin, times the resized mask, averaged."""
    inputs = features(2, 3, H, W).requires_grad_(), masks(len(rois()), 28, 28).requires_grad_()
    results = []
    for pool in (ours, composition):
        out = pool(inputs[0], rois(), inputs[1], size)
        weight = features(*out.shape, seed=8)
        results.append([out, *torch.autograd.grad((weight * out).sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_list_of_boxes_is_the_tensor_of_boxes():
    feature, boxes = features(3, 4, H, W), boxes_inside(9, 3, 4 * H, 4 * W)
    boxes[:, 0] = torch.tensor([0.0, 0, 0, 0, 2, 2, 2, 2, 2])
    as_list = [boxes[boxes[:, 0] == i, 1:] for i in range(3)]
    assert torch.equal(
        sa_roi_align(feature, as_list, None, 7, 0.25), sa_roi_align(feature, boxes, None, 7, 0.25)
    )


def pyramid(dtype=torch.float64):
    maps = [features(2, 3, 256 // s, 320 // s, seed=s, dtype=dtype) for s in (4, 8, 16, 32)]
    # Sizes from 4 px to 1000 px put boxes on every level, and the limits to work.
    side = torch.logspace(0.6, 3, 24, dtype=dtype)
    start = torch.linspace(0, 60, 24, dtype=dtype)
    boxes = torch.stack([start, start / 2, start + side, start / 2 + 0.8 * side], 1)
    return maps, [boxes[::2], boxes[1::2]]


@pytest.mark.parametrize("ratio", [0, 2])
def test_pyramid_equals_multi_scale_roi_align(ratio):
    maps, boxes = pyramid()
    named = {str(i): one for i, one in enumerate(maps)}
    # Pictures of 256 x 320 make torchvision infer the same scales.
    expected = MultiScaleRoIAlign(list(named), 7, ratio)(named, boxes, [(256, 320)] * 2)
    out = multiscale_sa_roi_align(maps, boxes, None, 7, SCALES, sampling_ratio=ratio)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_levels_are_torchvisions():
    _, boxes = pyramid(torch.float32)
    exact = torch.tensor([[0, 0, s, s] for s in (28.0, 56, 111.9, 112, 224, 448, 896, 2000)])
    for one in (*boxes, exact):
        assert torch.equal(assign_levels(one, SCALES), LevelMapper(2, 5)([one]))
        assert torch.equal(assign_levels(one, SCALES[1:3]), LevelMapper(3, 4)([one]))
        for width in (799, 801):  # maps measured, as torchvision measures them before it rounds
            measured = [side / width for side in (200, 100, 50, 25)]
            assert torch.equal(assign_levels(one, measured), LevelMapper(2, 5)([one]))


def test_given_levels_are_used():
    maps, boxes = pyramid()
    levels = torch.arange(24) % 4
    out = multiscale_sa_roi_align(maps, boxes, None, 7, SCALES, levels)
    flat = torch.cat([torch.cat([torch.full((12, 1), float(i)), b], 1) for i, b in enumerate(boxes)])
    for k in range(24):
        level = int(levels[k])
        alone = sa_roi_align(maps[level], flat[k : k + 1], None, 7, SCALES[level])
        assert torch.equal(out[k : k + 1], alone)
