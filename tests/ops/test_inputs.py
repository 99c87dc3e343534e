"""What the operator does with odd layouts, odd boxes and wrong arguments."""

import pytest
import torch

from ops import multiscale_sa_roi_align, sa_roi_align
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks

H, W = 25, 34
NAN, INF = float("nan"), float("inf")


def rois(k=12, images=2):
    return boxes_inside(k, images, 4 * H, 4 * W)


def run(feature, boxes, mask):
    """The output and both gradients."""
    feature, mask = feature.detach().requires_grad_(), mask.detach().requires_grad_()
    out = sa_roi_align(feature, boxes, mask, 7, 0.25)
    weight = features(*out.shape, seed=3, dtype=out.dtype)
    return out, *torch.autograd.grad((weight * out).sum(), (feature, mask))


LAYOUTS = {
    "channels_last": lambda f: f.contiguous(memory_format=torch.channels_last),
    "sliced channels": lambda f: torch.cat([f, f + 1], 1)[:, : f.shape[1]],
    "offset rows": lambda f: torch.cat([f[:, :, :3], f], 2)[:, :, 3:],
    "transposed": lambda f: f.mT.contiguous().mT,
    "every second": lambda f: f.repeat_interleave(2, 3)[..., ::2],
    "sliced channels_last": lambda f: torch.cat([f.movedim(1, 3)] * 2, 3)[..., : f.shape[1]].movedim(3, 1),
}


@pytest.mark.parametrize("channels", [1, 3, 8, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_features_changes_no_number(layout, channels):
    feature, mask = features(2, channels, H, W), masks(12, 28, 28)
    laid_out = LAYOUTS[layout](feature)
    assert torch.equal(laid_out, feature)
    for got, expected in zip(run(laid_out, rois(), mask), run(feature, rois(), mask), strict=True):
        assert torch.equal(got, expected)


def test_expanded_features():
    image = features(1, 4, H, W)
    assert torch.equal(
        sa_roi_align(image.expand(2, -1, -1, -1), rois(), None, 7, 0.25),
        sa_roi_align(image.repeat(2, 1, 1, 1), rois(), None, 7, 0.25),
    )
    pixel = features(2, 4, 1, 1).expand(-1, -1, H, W)
    assert torch.equal(
        sa_roi_align(pixel, rois(), None, 7, 0.25), sa_roi_align(pixel.contiguous(), rois(), None, 7, 0.25)
    )


def test_masks_may_be_a_class_channel_of_a_larger_tensor():
    feature, every_class = features(2, 4, H, W), masks(12, 80, 28, 28)
    got, expected = (run(feature, rois(), m) for m in (every_class[:, 37], every_class[:, 37].contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    flipped = every_class[:, 0].mT
    assert torch.equal(
        sa_roi_align(feature, rois(), flipped, 7, 0.25),
        sa_roi_align(feature, rois(), flipped.contiguous(), 7, 0.25),
    )


def test_boxes_may_be_a_slice():
    feature, padded = features(2, 4, H, W), torch.cat([rois(), rois()], 1)
    assert torch.equal(
        sa_roi_align(feature, padded[:, :5], None, 7, 0.25), sa_roi_align(feature, rois(), None, 7, 0.25)
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_maps_one_pixel_wide(pool, height, width):
    feature = features(2, 5, height, width)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = pool(feature.contiguous(memory_format=layout), rois(), None, 3, 0.25)
        one_by_one = [pool(feature[:, c : c + 1], rois(), None, 3, 0.25) for c in range(5)]
        assert torch.equal(out, torch.cat(one_by_one, 1))


def test_a_mask_of_one_cell_scales(pool):
    feature, mask = features(2, 5, H, W), masks(12, 1, 1)
    expected = mask[:, :, :, None] * pool(feature, rois(), None, 7, 0.25)
    torch.testing.assert_close(pool(feature, rois(), mask, 7, 0.25), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [torch.contiguous_format, torch.channels_last])
def test_output_layout_follows_the_first_map(first):
    maps = [features(2, 4, H, W).contiguous(memory_format=first), features(2, 4, 12, 17)]
    out = multiscale_sa_roi_align(maps, rois(), None, 7, [1 / 4, 1 / 8], torch.arange(12) % 2)
    assert out.is_contiguous(memory_format=first)


@pytest.mark.parametrize("place", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("ratio", [0, 2])
def test_a_box_that_is_not_finite_pools_to_zeros(pool, ratio, value, place):
    feature, mask = features(2, 4, H, W).requires_grad_(), masks(12, 28, 28).requires_grad_()
    boxes = rois()
    boxes[3, place] = value
    out = pool(feature, boxes, mask, 7, 0.25, ratio)
    others = [k for k in range(12) if k != 3]
    assert torch.equal(out[3], torch.zeros_like(out[3]))
    assert torch.equal(out[others], pool(feature, boxes[others], mask[others], 7, 0.25, ratio))
    grad_feature, grad_mask = torch.autograd.grad(out.sum(), (feature, mask))
    assert grad_feature.isfinite().all()
    assert torch.equal(grad_mask[3], torch.zeros_like(grad_mask[3]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_box_that_is_not_finite_has_a_level_too(value):
    boxes = rois()
    boxes[3, 3] = value
    maps = [features(2, 4, H, W), features(2, 4, 12, 17)]
    out = multiscale_sa_roi_align(maps, boxes, None, 7, [1 / 4, 1 / 8])
    assert torch.equal(out[3], torch.zeros_like(out[3]))


@pytest.mark.parametrize("ratio", [0, 2])
def test_enormous_boxes_neither_hang_nor_crash(pool, ratio):
    feature = features(1, 4, H, W, dtype=torch.float32)
    sides = [1e5, 1e7, 1e20, 3e38]
    boxes = torch.tensor([[0, -side, -side, side, side] for side in sides])
    assert pool(feature, boxes, None, 7, 0.25, ratio).isfinite().all()


def test_an_adaptive_grid_too_fine_pools_to_zeros(pool):
    boxes = torch.tensor([[0, 0, 0, 4 * 4096.0, 50], [0, 0, 0, 4 * 4097.0, 50]])
    out = pool(features(1, 4, H, W, dtype=torch.float32), boxes, None, 1, 0.25, 0)
    assert (out[0] != 0).all()
    assert (out[1] == 0).all()


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e9, NAN, INF])
@pytest.mark.parametrize("backward", [False, True])
def test_a_batch_index_out_of_range_is_an_error(index, backward):
    boxes = rois()
    boxes[7, 0] = index
    feature = features(2, 4, H, W)
    with pytest.raises(RuntimeError, match=r"RoI 7 has batch index .*, expected 0 to 1"):
        if backward:
            arguments = ([feature], boxes, None, None, [0.25], 7, 7, 2, False, 0, True, False)
            torch.ops.mrrcnn.sa_roi_align_backward(features(12, 4, 7, 7), *arguments)
        else:
            sa_roi_align(feature, boxes, None, 7, 0.25)


@pytest.mark.parametrize("level", [-1, 2, 10**9])
def test_a_level_out_of_range_is_an_error(level):
    levels = torch.zeros(12, dtype=torch.int64)
    levels[5] = level
    maps = [features(2, 4, H, W), features(2, 4, 12, 17)]
    with pytest.raises(RuntimeError, match=r"RoI 5 has level .*, expected 0 to 1"):
        multiscale_sa_roi_align(maps, rois(), None, 7, [1 / 4, 1 / 8], levels)


def test_boxes_without_an_image_are_an_error():
    with pytest.raises(RuntimeError, match="batch index"):
        sa_roi_align(torch.zeros(0, 4, H, W), rois(), None, 7)


def test_an_empty_batch():
    feature = torch.zeros(0, 4, H, W, requires_grad=True)
    out = sa_roi_align(feature, torch.zeros(0, 5), None, 7)
    out.sum().backward()
    assert out.shape == (0, 4, 7, 7)
    assert feature.grad.shape == feature.shape
    assert sa_roi_align(feature, [], None, 7).shape == (0, 4, 7, 7)


@pytest.mark.parametrize("ratio", [0, 2])
def test_samples_off_the_map_read_nothing(pool, ratio):
    """They weigh nothing, but 0 * NaN would be NaN: neither the first pixel nor a gradient may leak in."""
    feature, mask = features(1, 4, H, W), masks(2, 28, 28)
    feature[:, :, 0, 0] = NAN
    feature.requires_grad_()
    mask.requires_grad_()
    boxes = torch.tensor([[0, 400.0, 400, 500, 500], [0, 40, 40, 150, 120]], dtype=torch.float64)
    out = pool(feature, boxes, mask, 7, 0.25, ratio)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert out.isfinite().all()
    grad = torch.ones_like(out)
    grad[0] = INF
    for one in torch.autograd.grad(out, (feature, mask), grad):
        assert one.isfinite().all()


@pytest.mark.parametrize("ratio", [0, 2])
def test_a_cell_of_a_mask_stays_where_it_is(pool, ratio):
    """Bins far from a NaN keep their numbers, and so do cells far from a gradient of NaN."""
    feature, mask = features(1, 4, H, W), masks(1, 28, 28)
    boxes = torch.tensor([[0, 8.0, 8, 120, 90]], dtype=torch.float64)
    mask[0, 0, 0] = NAN
    out = pool(feature, boxes, mask.requires_grad_(), 7, 0.25, ratio)
    assert out[..., 0, 0].isnan().all()
    assert out[..., 1:, :].isfinite().all()
    assert out[..., :, 1:].isfinite().all()
    grad = torch.ones_like(out)
    grad[..., 6, 6] = NAN
    (got,) = torch.autograd.grad(out, mask, grad)
    assert got[0, 27, 27].isnan()
    assert got[0, :20].isfinite().all()


FAR = 2**24 + 3  # float32 has no such number and rounds it up


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_end_of_a_map_too_long_for_float32(pool, dtype, upright):
    """The last pixel is the last that is read, though float32 puts the border one further."""
    feature = torch.zeros(1, 1, 1, FAR + 1, dtype=dtype)
    feature[..., -1] = 3
    box = torch.tensor([[0, 2.0**24, 0, 2.0**24 + 8, 1]])
    if upright:
        feature, box = feature.mT, box[:, [0, 2, 1, 4, 3]]
    feature.requires_grad_()
    out = pool(feature, box, None, 1, 1.0, 1)
    assert out.item() == 3
    (gradient,) = torch.autograd.grad(out.sum(), feature)
    assert gradient.flatten()[-1] == gradient.sum() == 1


@pytest.fixture
def poisoned_memory():
    """Fresh memory is filled with NaN, so whatever is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_element_is_written(poisoned_memory, layout, dtype):
    boxes = torch.cat([rois(12, 1), awkward_boxes(4 * H, 4 * W)])
    feature = features(1, 5, H, W, dtype=dtype).contiguous(memory_format=layout)
    mask = masks(len(boxes), 28, 28, dtype=torch.float32)
    assert all(one.isfinite().all() for one in run(feature, boxes, mask))


F, B, P = torch.zeros(2, 4, H, W), torch.zeros(3, 5), torch.zeros(3, 28, 28)
META = B.to("meta")
WRONG = {
    "features must be maps": ("expected floating point", (F[0], B, P, 7), {}),
    "features are not integers": ("expected floating point", (F.long(), B, P, 7), {}),
    "maps have pixels": ("at least one pixel", (F[:, :, :0], B, P, 7), {}),
    "boxes have five columns": ("boxes are", (F, B[:, :4], P, 7), {}),
    "boxes are a table": ("boxes are", (F, B[0], P, 7), {}),
    "boxes are not integers": ("boxes are", (F, B.long(), P, 7), {}),
    "a list has one entry an image": ("expected one tensor per image: 2", (F, [B[:, 1:]], P, 7), {}),
    "a list's boxes have four columns": ("boxes of an image", (F, [B, B], P, 7), {}),
    "a mask per box": ("2 masks for 3 boxes", (F, B, P[:2], 7), {}),
    "masks have no channels": ("masks are", (F, B, P[:, None], 7), {}),
    "masks are not booleans": ("masks are", (F, B, P.bool(), 7), {}),
    "masks have cells": ("masks are", (F, B, P[:, :0], 7), {}),
    "an output has bins": ("output_size is 0", (F, B, P, 0), {}),
    "an output has two sides": ("output_size is", (F, B, P, (7, 7, 7)), {}),
    "bins are counted": ("output_size is", (F, B, P, (7.5, 7)), {}),
    "bins have a limit": ("output_size is", (F, B, P, 2**70), {}),
    "a side has a limit": ("output_size is", (F, B, P, (1, 32768)), {}),
    "there is an output size": ("output_size is None", (F, B, P, None), {}),
    "one map is a tensor": ("features are a dict", ({"0": F}, B, P, 7), {}),
    "features have a dtype to compute with": ("float8", (F.to(torch.float8_e4m3fn), B, P, 7), {}),
    "masks have such a dtype": ("float8", (F, B, P.to(torch.float8_e4m3fn), 7), {}),
    "masks are a tensor": ("masks are a list", (F, B, [P[:1], P[1:]], 7), {}),
    "masks are no array": ("masks are a ndarray", (F, B, P.numpy(), 7), {}),
    "there are boxes": ("boxes are a NoneType", (F, None, P, 7), {}),
    "boxes are no array": ("boxes are a ndarray", (F, B.numpy(), P, 7), {}),
    "a list holds tensors": ("boxes of an image are a list", (F, [[1, 2], [3, 4]], P, 7), {}),
    "boxes of an image are where the map is": ("boxes are on meta", (F, [B[:, 1:], META[:, 1:]], P, 7), {}),
    "boxes are where the map is": ("boxes are on meta", (F, META, P, 7), {}),
    "there is a scale": ("spatial scales are", (F, B, P, 7, None), {}),
    "a scale is no text": ("spatial scales are", (F, B, P, 7, "a"), {}),
    "scales are positive": ("spatial scales are", (F, B, P, 7, 0.0), {}),
    "scales are numbers": ("spatial scales are", (F, B, P, 7, NAN), {}),
    "mask modes have names": ("mask_mode is 'literal'", (F, B, P, 7), {"mask_mode": "literal"}),
    "samples are counted": ("sampling_ratio is", (F, B, P, 7), {"sampling_ratio": 1.5}),
    "samples are limited": ("sampling_ratio is", (F, B, P, 7), {"sampling_ratio": 5000}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_value_errors(name):
    message, arguments, named = WRONG[name]
    with pytest.raises(ValueError, match=message):
        sa_roi_align(*arguments, **named)


WRONG_PYRAMIDS = {
    "there is a map": ("features is empty", ([], B, P, 7, []), {}),
    "a dict is hinted at": (r"list\(features.values\(\)\)", ({"0": F}, B, P, 7, [0.25]), {}),
    "maps come in a list": ("features are a Tensor", (F, B, P, 7, [0.25, 0.25]), {}),
    "maps are tensors": ("features are a NoneType", ([F, None], B, P, 7, [0.25, 0.125]), {}),
    "scales come in a list": ("spatial scales are", ([F], B, P, 7, 0.25), {}),
    "no level is left out": ("pass levels, or", ([F, F], B, P, 7, [1 / 4, 1 / 16]), {}),
    "the finest is first": ("pass levels, or", ([F, F], B, P, 7, [1 / 8, 1 / 4]), {}),
    "no level comes twice": ("pass levels, or", ([F, F], B, P, 7, [1 / 8, 1 / 8]), {}),
    "levels are a tensor": ("levels are a list", ([F, F], B, P, 7, [1 / 4, 1 / 8], [0, 1, 0]), {}),
    "a scale per map": ("2 feature maps but 1", ([F, F], B, P, 7, [0.25]), {}),
    "maps agree in channels": ("differ", ([F, F[:, :2]], B, P, 7, [0.25, 0.125]), {}),
    "maps agree in dtype": ("differ", ([F, F.double()], B, P, 7, [0.25, 0.125]), {}),
    "a level per box": ("levels are", ([F, F], B, P, 7, [0.25, 0.125], torch.zeros(2).long()), {}),
    "levels are integers": ("levels are", ([F, F], B, P, 7, [0.25, 0.125], torch.zeros(3)), {}),
}


@pytest.mark.parametrize("name", WRONG_PYRAMIDS)
def test_wrong_pyramids_are_value_errors(name):
    message, arguments, named = WRONG_PYRAMIDS[name]
    with pytest.raises(ValueError, match=message):
        multiscale_sa_roi_align(*arguments, **named)


def test_given_levels_allow_any_scales():
    maps = [features(2, 4, H, W), features(2, 4, H, W)]
    out = multiscale_sa_roi_align(maps, rois(), None, 7, [1 / 8, 1 / 3], torch.arange(12) % 2)
    assert torch.equal(out[::2], sa_roi_align(maps[0], rois()[::2], None, 7, 1 / 8))
    assert torch.equal(out[1::2], sa_roi_align(maps[1], rois()[1::2], None, 7, 1 / 3))
