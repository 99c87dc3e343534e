"""The operator as torch sees it: schema, fake kernels, autograd, torch.compile, threads."""

import pytest
import torch
from torch.library import opcheck

from ops import multiscale_sa_roi_align, sa_roi_align
from tests.ops.cases import boxes_inside, features, masks

ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SHAPES = [(16, 20), (8, 10), (4, 5), (2, 3)]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
CONFIGURATIONS = {
    "one level": {},
    "four levels": {"levels": 4},
    "no mask": {"mask": False},
    "no mask, four levels, channels_last": {"mask": False, "levels": 4, "layout": torch.channels_last},
    "gradient of the mask only": {"feature_grad": False},
    "gradient of the features only": {"mask_grad": False},
    "channels_last": {"layout": torch.channels_last},
    "one channel, channels_last": {"channels": 1, "layout": torch.channels_last},
    "no boxes": {"k": 0},
    "no boxes, channels_last": {"k": 0, "layout": torch.channels_last},
    "adaptive": {"ratio": 0},
    "bfloat16 features": {"dtype": torch.bfloat16},
}


def arguments(
    levels=1,
    mask=True,
    feature_grad=True,
    mask_grad=True,
    layout=torch.contiguous_format,
    channels=3,
    k=5,
    ratio=2,
    dtype=torch.float32,
):
    maps = [
        features(2, channels, *size, seed=i, dtype=dtype).contiguous(memory_format=layout)
        for i, size in enumerate(SHAPES[:levels])
    ]
    maps = [one.requires_grad_(feature_grad) for one in maps]
    prob = masks(k, 6, 6, dtype=torch.float32).requires_grad_(mask_grad) if mask else None
    rois = boxes_inside(k, 2, 64, 80, dtype=torch.float32)
    level = torch.arange(k) % levels if levels > 1 else None
    return maps, rois, prob, level, SCALES[:levels], 2, 3, ratio, False, 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_opcheck_forward(name):
    opcheck(torch.ops.mrrcnn.sa_roi_align.default, arguments(**CONFIGURATIONS[name]), test_utils=ALL)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("need_f", "need_p"), [(True, True), (True, False), (False, True)])
def test_opcheck_backward(name, need_f, need_p):
    maps, *rest = arguments(**CONFIGURATIONS[name])
    maps = [one.detach() for one in maps]
    rest[1] = None if rest[1] is None else rest[1].detach()
    grad = torch.ops.mrrcnn.sa_roi_align(maps, *rest)
    backward = torch.ops.mrrcnn.sa_roi_align_backward.default
    opcheck(backward, (grad, maps, *rest, need_f, need_p), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fake_tensors_have_the_real_strides(name):
    """opcheck forgives the strides of dimensions of size 1; here they have to agree."""
    maps, *rest = arguments(**CONFIGURATIONS[name])
    real = torch.ops.mrrcnn.sa_roi_align(maps, *rest)
    with torch._subclasses.FakeTensorMode() as mode:
        fake_maps = [mode.from_tensor(one) for one in maps]
        fake_rest = [mode.from_tensor(one) if isinstance(one, torch.Tensor) else one for one in rest]
        fake = torch.ops.mrrcnn.sa_roi_align(fake_maps, *fake_rest)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def pyramid_loss(first, second, rois, mask):
    pooled = multiscale_sa_roi_align([first * 1.5, second], rois, mask.sigmoid(), 7, SCALES[:2])
    return pooled.square().mean()


def compiled_inputs(k, layout=torch.contiguous_format):
    maps = [
        features(2, 4, *size, dtype=torch.float32).contiguous(memory_format=layout) for size in SHAPES[:2]
    ]
    mask = masks(k, 28, 28, dtype=torch.float32)
    boxes = boxes_inside(k, 2, 64, 80, dtype=torch.float32)
    return maps[0].requires_grad_(), maps[1].requires_grad_(), boxes, mask.requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compile_fullgraph_equals_eager(layout):
    torch._dynamo.reset()
    compiled = torch.compile(pyramid_loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (pyramid_loss, compiled):
        first, second, rois, mask = compiled_inputs(9, layout)
        loss = function(first, second, rois, mask)
        results.append([loss, *torch.autograd.grad(loss, (first, second, mask))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_inductor_equals_eager():
    torch._dynamo.reset()
    results = []
    for function in (pyramid_loss, torch.compile(pyramid_loss, fullgraph=True)):
        first, second, rois, mask = compiled_inputs(9, torch.channels_last)
        loss = function(first, second, rois, mask)
        results.append([loss, *torch.autograd.grad(loss, (first, second, mask))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


def test_compile_serves_any_number_of_boxes_without_recompiling():
    torch._dynamo.reset()
    compiled = torch.compile(pyramid_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(*compiled_inputs(11))  # 11 is no other size here: equal sizes would be taken for one
    with torch._dynamo.config.patch(error_on_recompile=True):
        for k in (5, 9, 30):
            inputs = compiled_inputs(k)
            torch.testing.assert_close(compiled(*inputs), pyramid_loss(*inputs))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(threads, dtype):
    maps = [features(2, 40, *size, seed=i, dtype=dtype).requires_grad_() for i, size in enumerate(SHAPES[:2])]
    mask = masks(60, 28, 28, dtype=torch.float32).requires_grad_()
    rois = boxes_inside(60, 2, 64, 80, dtype=torch.float32)
    weight = features(60, 40, 7, 7, dtype=dtype)
    results = []
    for count in (1, 2, 5):
        threads(count)
        out = multiscale_sa_roi_align(maps, rois, mask, 7, SCALES[:2])
        results.append([out, *torch.autograd.grad((weight * out).sum(), (*maps, mask))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_two_runs_give_the_same_bits():
    first, second, rois, mask = compiled_inputs(9)
    one, two = (
        torch.autograd.grad(pyramid_loss(first, second, rois, mask), (first, second, mask)) for _ in "ab"
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_inference_mode_and_no_grad():
    feature, rois = features(2, 3, 16, 20), boxes_inside(5, 2, 64, 80)
    expected = sa_roi_align(feature, rois, None, 7, 0.25)
    for guard in (torch.inference_mode, torch.no_grad):
        with guard():
            out = sa_roi_align(feature.requires_grad_(), rois, None, 7, 0.25)
        assert torch.equal(out, expected)
        assert not out.requires_grad
        feature.requires_grad_(False)
