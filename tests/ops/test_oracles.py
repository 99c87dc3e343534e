"""The definition of Shape-aware RoIAlign: golden vectors and the identities O1 to O14 that follow from it."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d
from torchvision.ops import roi_align

from tests.ops.cases import awkward_boxes, boxes_inside, features, masks

GOLDEN = json.loads(Path(__file__).with_name("oracles.json").read_text())
MODES = {"half": "half_pixel", "literal": "paper"}
H, W, STRIDE = 25, 34, 4
SCALE = 1 / STRIDE
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def everywhere():
    return torch.cat([boxes_inside(12, 1, H * STRIDE, W * STRIDE), awkward_boxes(H * STRIDE, W * STRIDE)])


def well_inside(k=8):
    return boxes_inside(k, 1, H * STRIDE - 12, W * STRIDE - 12, smallest=8) + torch.tensor([0, 4.0, 4, 4, 4])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['roi']}-{c['aligned']}-{c['mode']}")
def test_golden_cases(pool, case):
    c, i, j = torch.meshgrid(*(torch.arange(n).double() for n in (3, H, W)), indexing="ij")
    feature = torch.sin(0.1 * (c + 1) * i + 0.2 * j)[None]
    m, n = torch.meshgrid(torch.arange(28).double(), torch.arange(28).double(), indexing="ij")
    mask = (0.5 + 0.5 * torch.cos(0.3 * m) * torch.sin(0.2 * n))[None]
    roi = torch.tensor([[0.0, *case["roi"]]], dtype=torch.float64)
    plain = case["mode"] == "roialign"
    mode = "half_pixel" if plain else MODES[case["mode"]]
    out = pool(feature, roi, None if plain else mask, 7, SCALE, 2, case["aligned"], mode)[0]
    got = [out.sum(), out.square().sum(), out[0, 0, 0], out[1, 3, 4], out[2, 6, 6]]
    want = [case[key] for key in ("sum", "sumsq", "e000", "e134", "e266")]
    torch.testing.assert_close(
        torch.stack(got), torch.tensor(want, dtype=torch.float64), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("name", ["roialign", "half", "literal", "half_aligned"])
def test_o13_golden_vector(pool, name):
    small = GOLDEN["small"]
    feature = torch.arange(48, dtype=torch.float64).reshape(1, 1, 6, 8)
    roi = torch.tensor([[0.0, *small["roi"]]], dtype=torch.float64)
    mask = None if name == "roialign" else torch.tensor([small["P"]], dtype=torch.float64)
    mode = "paper" if name == "literal" else "half_pixel"
    out = pool(feature, roi, mask, 2, 1.0, 2, name == "half_aligned", mode)
    torch.testing.assert_close(out[0], torch.tensor(small[name], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 5])
def test_o1_mask_of_ones_is_roi_align(pool, aligned, ratio):
    feature, rois = features(1, 4, H, W), everywhere()
    out = pool(feature, rois, torch.ones(len(rois), 28, 28, dtype=torch.float64), 7, SCALE, ratio, aligned)
    torch.testing.assert_close(out, roi_align(feature, rois, 7, SCALE, ratio, aligned), **EXACT)


@pytest.mark.parametrize("aligned", [False, True])
def test_o1_in_float32_on_a_full_size_map(pool, aligned):
    feature = features(1, 4, 200, 334, dtype=torch.float32)
    rois = boxes_inside(40, 1, 800, 1333, dtype=torch.float32)
    out = pool(feature, rois, torch.ones(40, 28, 28), 7, 0.25, 2, aligned)
    exact = roi_align(feature.double(), rois.double(), 7, 0.25, 2, aligned)
    assert (out - exact).abs().max() < 2e-4 * feature.abs().max()


def test_o2_constant_mask_scales_roi_align(pool):
    feature, rois = features(1, 3, H, W), everywhere()
    plain = roi_align(feature, rois, 7, SCALE, 2)
    for k in (0.0, 0.3, 2.5):
        out = pool(feature, rois, torch.full((len(rois), 14, 9), k, dtype=torch.float64), 7, SCALE)
        torch.testing.assert_close(out, k * plain, **EXACT)


@pytest.mark.parametrize("mode", ["half_pixel", "paper"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_o3_linear_in_features_and_in_masks(pool, mode, ratio):
    rois = everywhere()
    f, g = features(1, 3, H, W, seed=1), features(1, 3, H, W, seed=2)
    p, q = masks(len(rois), 28, 28, seed=3), masks(len(rois), 28, 28, seed=4)

    def run(feature, mask):
        return pool(feature, rois, mask, 7, SCALE, ratio, mask_mode=mode)

    torch.testing.assert_close(run(2 * f - 3 * g, p), 2 * run(f, p) - 3 * run(g, p), **EXACT)
    torch.testing.assert_close(run(f, 2 * p - 3 * q), 2 * run(f, p) - 3 * run(f, q), **EXACT)
    torch.testing.assert_close(run(f, p) + run(f, 1 - p), roi_align(f, rois, 7, SCALE, ratio), **EXACT)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "paper"])
def test_o4_euler_identities_of_the_gradients(pool, ratio, mode):
    rois = everywhere()
    feature, mask = features(1, 3, H, W).requires_grad_(), masks(len(rois), 28, 28).requires_grad_()
    weight = features(len(rois), 3, 7, 7, seed=5)
    loss = (weight * pool(feature, rois, mask, 7, SCALE, ratio, mask_mode=mode)).sum()
    grad_feature, grad_mask = torch.autograd.grad(loss, (feature, mask))
    torch.testing.assert_close((grad_feature * feature).sum(), loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((grad_mask * mask).sum(), loss, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "paper"])
def test_o5_gradcheck(pool, ratio, mode):
    rois = torch.tensor([[0, 1.0, 2, 17, 20], [1, -6, 3, 11, 29], [1, 9, 9, 9.5, 9.5]], dtype=torch.float64)
    feature, mask = features(2, 2, 6, 7).requires_grad_(), masks(3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, p: pool(f, rois, p, (3, 2), SCALE, ratio, mask_mode=mode), (feature, mask)
    )


def test_o6_constant_features_average_the_mask(pool):
    rois = well_inside()
    mask = masks(len(rois), 28, 28)
    out = pool(torch.full((1, 2, H, W), 3.0, dtype=torch.float64), rois, mask, 7, SCALE)
    torch.testing.assert_close(out, (3 * avg_pool2d(mask[:, None], 4)).expand(-1, 2, 7, 7), **EXACT)


def test_o7_monotone_in_the_mask(pool):
    rois = everywhere()
    feature, p = features(1, 3, H, W).abs(), masks(len(rois), 28, 28)
    q = p + masks(len(rois), 28, 28, seed=9)
    assert (pool(feature, rois, p, 7, SCALE) <= pool(feature, rois, q, 7, SCALE) + 1e-15).all()


def flipped(rois, aligned):
    edge = W * STRIDE if aligned else (W - 1) * STRIDE
    return torch.stack([rois[:, 0], edge - rois[:, 3], rois[:, 2], edge - rois[:, 1], rois[:, 4]], 1)


@pytest.mark.parametrize("aligned", [False, True])
def test_o8_flip_equivariance_holds_half_pixel_and_fails_literally(pool, aligned):
    feature, rois = features(1, 3, H, W), well_inside()
    mask = masks(len(rois), 28, 28)

    def difference(mode):
        straight = pool(feature, rois, mask, 7, SCALE, 2, aligned, mode)
        mirrored = pool(feature.flip(3), flipped(rois, aligned), mask.flip(2), 7, SCALE, 2, aligned, mode)
        return (straight - mirrored.flip(3)).abs().max()

    assert difference("half_pixel") < 1e-12
    assert difference("paper") > 1e-2


def test_o9_order_and_chunks_of_rois_do_not_matter(pool):
    feature, rois = features(3, 5, H, W), boxes_inside(20, 3, H * STRIDE, W * STRIDE)
    mask = masks(20, 28, 28)
    whole = pool(feature, rois, mask, 7, SCALE)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool(feature, rois[order], mask[order], 7, SCALE), whole[order])
    parts = [pool(feature, rois[k : k + 7], mask[k : k + 7], 7, SCALE) for k in range(0, 20, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_o9_never_reads_another_image(pool):
    feature, rois = features(3, 5, H, W), boxes_inside(20, 3, H * STRIDE, W * STRIDE)
    mask = masks(20, 28, 28)
    whole = pool(feature, rois, mask, 7, SCALE)
    for image in range(3):
        alone = torch.full_like(feature, float("nan"))
        alone[image] = feature[image]
        mine = rois[:, 0] == image
        assert torch.equal(pool(alone, rois[mine], mask[mine], 7, SCALE), whole[mine])


def test_o10_no_rois(pool):
    feature = features(2, 256, H, W).requires_grad_()
    mask = masks(0, 28, 28).requires_grad_()
    out = pool(feature, torch.zeros(0, 5, dtype=torch.float64), mask, 7, SCALE)
    assert out.shape == (0, 256, 7, 7)
    (out.sum() + 0 * feature.sum()).backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))


def test_o11_integer_translation(pool):
    feature, rois = features(1, 3, H, W), well_inside()
    rois[:, 1:] = rois[:, 1:] * 0.6 + 8
    mask = masks(len(rois), 28, 28)
    shift = torch.tensor([0.0, 3 * STRIDE, 2 * STRIDE, 3 * STRIDE, 2 * STRIDE])
    moved = pool(feature.roll((2, 3), (2, 3)), rois + shift, mask, 7, SCALE)
    torch.testing.assert_close(moved, pool(feature, rois, mask, 7, SCALE), **EXACT)


@pytest.mark.parametrize(("mode", "offset"), [("half_pixel", 0.0), ("paper", 1 / 56)])
def test_o12_ramp_is_read_where_it_is(pool, mode, offset):
    ramp = ((torch.arange(28).double() + 0.5) / 28).expand(1, 28, 28)
    roi = torch.tensor([[0.0, 20, 20, 90, 80]], dtype=torch.float64)
    out = pool(torch.ones(1, 1, H, W, dtype=torch.float64), roi, ramp, 7, SCALE, mask_mode=mode)
    expected = (torch.arange(7).double() + 0.5) / 7 + offset
    torch.testing.assert_close(out[0, 0], expected.expand(7, 7), **EXACT)
    turned = pool(torch.ones(1, 1, H, W, dtype=torch.float64), roi, ramp.mT, 7, SCALE, mask_mode=mode)
    torch.testing.assert_close(turned[0, 0], expected[:, None].expand(7, 7), **EXACT)


def test_o14_autocast_rounds_nothing(pool):
    feature, rois = features(1, 3, H, W, dtype=torch.float32), everywhere().float()
    mask = masks(len(rois), 28, 28, dtype=torch.float32)
    plain = pool(feature, rois, mask, 7, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = pool(feature, rois, mask, 7, SCALE)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
