"""Half precision: features keep their type, boxes and masks keep theirs, and sums are made in float32."""

import pytest
import torch

from ops import sa_roi_align
from tests.ops.cases import boxes_inside, features, masks, pool_by_reference

H, W = 25, 34


def rois(dtype=torch.float32):
    return boxes_inside(12, 2, 4 * H, 4 * W, dtype=dtype)


def run(pool, feature, mask, boxes):
    feature, mask = feature.detach().requires_grad_(), mask.detach().requires_grad_()
    out = pool(feature, boxes, mask, 7, 0.25)
    weight = features(*out.shape, seed=8).bfloat16().to(out.dtype)
    return out, *torch.autograd.grad((weight * out).sum(), (feature, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_loses_only_its_last_rounding(dtype, mask_dtype):
    feature, mask = features(2, 24, H, W, dtype=dtype), masks(12, 28, 28, dtype=mask_dtype)
    got = run(sa_roi_align, feature, mask, rois())
    assert [one.dtype for one in got] == [dtype, dtype, mask_dtype]
    exact = run(pool_by_reference, feature.double(), mask.double(), rois().double())
    for one, expected in zip(got, exact, strict=True):
        assert (one - expected).norm() < 4e-3 * expected.norm()


def test_sums_are_float32():
    """2048 equal RoIs: a sum kept in bfloat16 would stop growing at 256 times its first term."""
    feature = torch.ones(1, 2, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    boxes = torch.tensor([[0, 8.0, 8, 24, 24]]).repeat(2048, 1)
    sa_roi_align(feature, boxes, None, 2, 0.25).sum().backward()
    total = 2048 * 4
    assert abs(feature.grad[0, 0].double().sum() - total) < 0.01 * total


def test_a_batch_index_above_256_survives_bfloat16_boxes():
    feature = torch.arange(300.0).reshape(300, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    boxes = [torch.tensor([[0.0, 0, 2, 2]], dtype=torch.bfloat16)] * 300
    out = sa_roi_align(feature, boxes, None, 1)
    assert torch.equal(out.flatten(), torch.arange(300.0))


def test_boxes_keep_their_precision_beside_bfloat16_features():
    """257 is no bfloat16 number: rounded boxes would pool another pixel."""
    feature = torch.arange(512, dtype=torch.float32).expand(1, 1, 4, 512).bfloat16()
    box = torch.tensor([[0, 257.0, 0, 258, 1]])
    out = sa_roi_align(feature, box, None, 1)
    assert out.item() == sa_roi_align(feature.float(), box, None, 1).bfloat16().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_nothing_forward_or_backward(dtype):
    feature, mask = features(2, 8, H, W, dtype=dtype), masks(12, 28, 28, dtype=torch.float32)
    plain = run(sa_roi_align, feature, mask, rois())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(sa_roi_align, feature, mask, rois())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(cast, plain, strict=True))
