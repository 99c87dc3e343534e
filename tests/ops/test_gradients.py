"""The registered backward: right, complete, and never in silence wrong."""

import pytest
import torch
from torch.autograd import forward_ad

from ops import multiscale_sa_roi_align, sa_roi_align
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks, pool_by_reference

H, W = 25, 34
SCALES = [1 / 4, 1 / 8]


def everywhere(dtype=torch.float64):
    inside = boxes_inside(12, 2, 4 * H, 4 * W, dtype=dtype)
    return torch.cat([inside, awkward_boxes(4 * H, 4 * W, dtype)])


def gradients(pool, feature, mask, rois, **settings):
    feature, mask = feature.detach().requires_grad_(), mask.detach().requires_grad_()
    out = pool(feature, rois, mask, (5, 7), 0.25, **settings)
    weight = features(*out.shape, seed=8, dtype=out.dtype)
    return torch.autograd.grad((weight * out).sum(), (feature, mask))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["half_pixel", "paper"])
def test_equal_autograd_through_the_reference(ratio, aligned, mode):
    rois = everywhere()
    inputs = (features(2, 6, H, W), masks(len(rois), 28, 20), rois)
    settings = {"sampling_ratio": ratio, "aligned": aligned, "mask_mode": mode}
    got = gradients(sa_roi_align, *inputs, **settings)
    expected = gradients(pool_by_reference, *inputs, **settings)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_float32_gradients_near_the_float64_ones():
    rois = boxes_inside(20, 2, 4 * H, 4 * W, dtype=torch.float32)
    feature, mask = features(2, 20, H, W, dtype=torch.float32), masks(20, 28, 28, dtype=torch.float32)
    got = gradients(sa_roi_align, feature, mask, rois)
    expected = gradients(pool_by_reference, feature.double(), mask.double(), rois.double())
    for one, exact in zip(got, expected, strict=True):
        assert (one - exact).norm() < 1e-5 * exact.norm()


def test_gradcheck_on_a_pyramid():
    maps = [features(2, 2, 6, 7, seed=i).requires_grad_() for i in range(2)]
    mask = masks(3, 4, 5).requires_grad_()
    rois = torch.tensor([[0, 1.0, 2, 17, 20], [1, -6, 3, 11, 29], [1, 3, 9, 31, 25]], dtype=torch.float64)
    levels = torch.tensor([0, 1, 1])

    def pool(first, second, mask):
        return multiscale_sa_roi_align([first, second], rois, mask, 2, SCALES, levels)

    assert torch.autograd.gradcheck(pool, (*maps, mask))


def test_double_backward_raises():
    feature = features(2, 6, H, W).requires_grad_()
    mask = masks(12, 28, 28).requires_grad_()
    out = sa_roi_align(feature, boxes_inside(12, 2, 4 * H, 4 * W), mask, 7, 0.25)
    for one in (feature, mask):
        (gradient,) = torch.autograd.grad(out.square().sum(), one, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("which", [0, 1])
def test_forward_mode_raises(which):
    """torch would hand on a tangent of zeros."""
    inputs = [features(2, 6, H, W), masks(12, 28, 28)]

    def pool(one):
        feature, mask = one if which == 0 else inputs[0], one if which == 1 else inputs[1]
        return sa_roi_align(feature, boxes_inside(12, 2, 4 * H, 4 * W), mask, 7, 0.25)

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(pool, (inputs[which],), (inputs[which],))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"), forward_ad.dual_level():
        pool(forward_ad.make_dual(inputs[which], inputs[which]))


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_functional_transforms_raise(transform):
    feature, rois = features(2, 6, H, W), boxes_inside(12, 2, 4 * H, 4 * W)
    inputs = torch.stack([feature, feature]) if transform == "vmap" else feature
    with pytest.raises(RuntimeError, match=r"Batching rule not implemented|functorch transforms"):
        getattr(torch.func, transform)(lambda one: sa_roi_align(one, rois, None, 7, 0.25).sum())(inputs)


@pytest.mark.parametrize(("need_feature", "need_mask"), [(True, False), (False, True)])
def test_only_what_is_asked_for_gets_a_gradient(need_feature, need_mask):
    rois = everywhere().requires_grad_()
    feature = features(2, 6, H, W).requires_grad_(need_feature)
    mask = masks(len(rois), 28, 28).requires_grad_(need_mask)
    sa_roi_align(feature, rois, mask, 7, 0.25).sum().backward()
    assert (feature.grad is not None) == need_feature
    assert (mask.grad is not None) == need_mask
    assert rois.grad is None


def test_a_map_of_the_pyramid_may_need_no_gradient():
    maps = [features(2, 6, H, W).requires_grad_(), features(2, 6, H // 2, W // 2)]
    rois = boxes_inside(12, 2, 4 * H, 4 * W)
    multiscale_sa_roi_align(maps, rois, None, 7, SCALES, torch.arange(12) % 2).sum().backward()
    assert maps[0].grad.abs().sum() > 0
    assert maps[1].grad is None


def test_a_map_without_boxes_gets_zeros():
    maps = [features(2, 6, 25, 34).requires_grad_(), features(2, 6, 13, 17).requires_grad_()]
    rois = boxes_inside(12, 2, 4 * H, 4 * W)
    for used in (0, 1):
        levels = torch.full((12,), used)
        out = multiscale_sa_roi_align(maps, rois, None, 7, SCALES, levels)
        grads = torch.autograd.grad(out.sum(), maps)
        assert grads[used].abs().sum() > 0
        assert torch.equal(grads[1 - used], torch.zeros_like(maps[1 - used]))


def test_no_boxes_give_zeros():
    maps = [features(2, 6, 25, 34).requires_grad_(), features(2, 6, 13, 17).requires_grad_()]
    mask = masks(0, 28, 28).requires_grad_()
    multiscale_sa_roi_align(maps, torch.zeros(0, 5), mask, 7, SCALES).sum().backward()
    assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in maps)
    assert mask.grad.shape == (0, 28, 28)


def test_an_output_gradient_may_be_expanded_or_permuted():
    feature, mask, rois = features(2, 6, H, W), masks(len(everywhere()), 28, 28), everywhere()
    feature.requires_grad_()
    out = sa_roi_align(feature, rois, mask, 7, 0.25)
    (from_sum,) = torch.autograd.grad(out.sum(), feature, retain_graph=True)
    (from_dense,) = torch.autograd.grad(out, feature, torch.ones_like(out), retain_graph=True)
    assert torch.equal(from_sum, from_dense)
    weight = features(7, 7, 6, len(rois)).permute(3, 2, 1, 0)
    (strided,) = torch.autograd.grad(out, feature, weight, retain_graph=True)
    (dense,) = torch.autograd.grad(out, feature, weight.contiguous())
    assert torch.equal(strided, dense)


def test_gradients_have_the_layout_of_their_inputs():
    rois = boxes_inside(12, 2, 4 * H, 4 * W)
    for layout in (torch.contiguous_format, torch.channels_last):
        feature = features(2, 6, H, W).contiguous(memory_format=layout).requires_grad_()
        (gradient,) = torch.autograd.grad(sa_roi_align(feature, rois, None, 7, 0.25).sum(), feature)
        assert gradient.stride() == feature.stride()
