"""CUDA tensors: compiled kernels where they are built, else the reference; the numbers of the CPU."""

import pytest
import torch
from torch.library import opcheck

from ops import backend_info, multiscale_sa_roi_align, sa_roi_align
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks
from tests.ops.test_torch_op import ALL, CONFIGURATIONS, arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
H, W = 25, 34
COMPILED = "cuda" in backend_info()["backend"]
SCALES = [1 / 4, 1 / 8]


def run(device, dtype, layout, ratio, aligned, mode):
    infinite = torch.tensor([[0, 1, 1, float("inf"), 9]])
    boxes = torch.cat([boxes_inside(40, 2, 4 * H, 4 * W), awkward_boxes(4 * H, 4 * W), infinite])
    maps = [features(2, 37, *size, seed=i, dtype=dtype) for i, size in enumerate([(H, W), (13, 17)])]
    maps = [one.contiguous(memory_format=layout).to(device).requires_grad_() for one in maps]
    mask = masks(len(boxes), 28, 20).to(device).requires_grad_()
    levels = (torch.arange(len(boxes)) % 2).to(device)
    out = multiscale_sa_roi_align(maps, boxes.to(device), mask, (7, 5), SCALES, levels, ratio, aligned, mode)
    weight = features(*out.shape, seed=8, dtype=dtype).to(device)
    return out, *torch.autograd.grad((weight * out).sum(), (*maps, mask))


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("ratio", [0, 2, 3])
@pytest.mark.parametrize(("aligned", "mode"), [(False, "half_pixel"), (True, "paper")])
def test_cuda_equals_cpu(dtype, layout, ratio, aligned, mode):
    on_gpu = run("cuda", dtype, layout, ratio, aligned, mode)
    on_cpu = run("cpu", dtype, layout, ratio, aligned, mode)
    for got, expected in zip(on_gpu, on_cpu, strict=True):
        assert got.stride() == expected.stride()
        difference = (got.cpu().double() - expected.double()).norm()
        assert difference <= TOLERANCE[dtype] * expected.double().norm()


def test_two_runs_give_the_same_bits():
    settings = ("cuda", torch.float32, torch.channels_last, 2, False, "half_pixel")
    assert all(torch.equal(a, b) for a, b in zip(run(*settings), run(*settings), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_opcheck(name):
    maps, *rest = arguments(**CONFIGURATIONS[name])
    maps, rest = [on_gpu(one) for one in maps], [on_gpu(one) for one in rest]
    opcheck(torch.ops.mrrcnn.sa_roi_align.default, (maps, *rest), test_utils=ALL)


def on_gpu(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().cuda().requires_grad_(value.requires_grad)


def test_gradcheck():
    rois = torch.tensor([[0, 1.0, 2, 17, 20], [1, -6, 3, 11, 29]], dtype=torch.float64).cuda()
    feature, mask = features(2, 2, 6, 7).cuda().requires_grad_(), masks(2, 5, 4).cuda().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, p: sa_roi_align(f, rois, p, (3, 2), 0.25), (feature, mask))


def test_an_index_out_of_range_is_never_read():
    """A compiled kernel cannot raise without waiting for the device: it answers NaN. The reference raises."""
    feature = features(2, 4, H, W, dtype=torch.float32).cuda().requires_grad_()
    boxes = boxes_inside(3, 2, 4 * H, 4 * W, dtype=torch.float32).cuda()
    boxes[1, 0] = 1e6
    if not COMPILED:
        with pytest.raises(RuntimeError, match="batch index"):
            sa_roi_align(feature, boxes, None, 7, 0.25)
        return
    out = sa_roi_align(feature, boxes, None, 7, 0.25)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()
    out[[0, 2]].sum().backward()
    assert feature.grad.isfinite().all()


def test_no_boxes():
    feature = features(2, 4, H, W).cuda().requires_grad_()
    sa_roi_align(feature, torch.zeros(0, 5).cuda(), None, 7).sum().backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))


@pytest.mark.skipif(not COMPILED, reason="the reference waits for the device")
def test_compiled_kernels_never_wait_for_the_device():
    feature = features(2, 4, H, W, dtype=torch.float32).cuda().requires_grad_()
    boxes = boxes_inside(5, 2, 4 * H, 4 * W, dtype=torch.float32).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        multiscale_sa_roi_align([feature, feature], boxes, None, 7, SCALES).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
