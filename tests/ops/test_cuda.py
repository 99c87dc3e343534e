"""CUDA tensors: compiled kernels where they are built, else the reference; the numbers of the CPU."""

import importlib.util

import pytest
import torch
from torch.library import opcheck

from ops import backend_info, multiscale_sa_roi_align, sa_roi_align
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks
from tests.ops.cuda_on_cpu.kernels import compiler
from tests.ops.test_torch_op import ALL, CONFIGURATIONS, arguments, compiled_inputs, pyramid_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
H, W = 25, 34
COMPILED = "cuda" in backend_info()["backend"]
SCALES = [1 / 4, 1 / 8]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
compiled_only = pytest.mark.skipif(not COMPILED, reason="the reference waits for the device")


def inputs(device, dtype=torch.float32, layout=torch.channels_last, channels=64):
    """Returns two maps, boxes of all kinds, a mask and a level each."""
    infinite = torch.tensor([[0, 1, 1, float("inf"), 9]])
    boxes = torch.cat([boxes_inside(40, 2, 4 * H, 4 * W), awkward_boxes(4 * H, 4 * W), infinite])
    maps = [features(2, channels, *size, seed=i, dtype=dtype) for i, size in enumerate([(H, W), (13, 17)])]
    maps = [one.contiguous(memory_format=layout).to(device).requires_grad_() for one in maps]
    mask = masks(len(boxes), 28, 20).to(device).requires_grad_()
    levels = (torch.arange(len(boxes)) % 2).to(device)
    return maps, boxes.to(device), mask, levels


def differentiate(out, *wanted):
    """Returns the output and the gradients of a weighted sum of it."""
    weight = features(*out.shape, seed=8, dtype=out.dtype).to(out.device)
    return out, *torch.autograd.grad((weight * out).sum(), wanted)


def pool(device, size=(7, 5), ratio=2, aligned=False, mode="half_pixel", **kinds):
    maps, boxes, mask, levels = inputs(device, **kinds)
    out = multiscale_sa_roi_align(maps, boxes, mask, size, SCALES, levels, ratio, aligned, mode)
    return differentiate(out, *maps, mask)


def assert_near(got, expected, tolerance):
    for one, exact in zip(got, expected, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (exact.shape, exact.stride(), exact.dtype)
        difference = (one.cpu().double() - exact.cpu().double()).norm()
        assert difference <= tolerance * exact.cpu().double().norm()


def assert_same_bits(first, second):
    if not COMPILED:  # the reference adds in no fixed order on a GPU
        assert_near(first, second, 1e-5)
        return
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("channels", [1, 37, 64, 264])
@pytest.mark.parametrize("ratio", [0, 2, 3])
@pytest.mark.parametrize(("aligned", "mode"), [(False, "half_pixel"), (True, "paper")])
def test_cuda_equals_cpu(dtype, layout, channels, ratio, aligned, mode):
    settings = {"ratio": ratio, "aligned": aligned, "mode": mode}
    kinds = {"dtype": dtype, "layout": layout, "channels": channels}
    assert_near(pool("cuda", **settings, **kinds), pool("cpu", **settings, **kinds), TOLERANCE[dtype])


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (5, 9), (30, 31)], ids=str)
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_cuda_equals_cpu_at_every_output_size(size, ratio):
    assert_near(pool("cuda", size, ratio), pool("cpu", size, ratio), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ratio", [0, 2])
def test_samples_on_a_border_are_the_cpus(dtype, ratio):
    """Rounded otherwise, a sample would leave the map or its bin would take one more."""
    scale, size = 0.3, (7, 5)
    step = torch.arange(12.0).repeat_interleave(2) / scale
    on_border = torch.stack([-step, -step, step * size[1], step * size[0]], 1)
    past_border = torch.stack([W / scale - step, H / scale - step, W / scale + step, H / scale + step], 1)
    boxes = torch.cat([on_border, past_border]).to(dtype)
    results = []
    for device in ("cuda", "cpu"):
        feature, mask = features(1, 8, H, W, dtype=dtype), masks(len(boxes), 28, 28, dtype=dtype)
        feature, mask = feature.to(device).requires_grad_(), mask.to(device).requires_grad_()
        out = sa_roi_align(feature, [boxes.to(device)], mask, size, scale, ratio)
        results.append(differentiate(out, feature, mask))
    assert_near(*results, TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_without_masks(layout, ratio):
    results = []
    for device in ("cuda", "cpu"):
        maps, boxes, _, levels = inputs(device, layout=layout)
        out = multiscale_sa_roi_align(maps, boxes, None, 7, SCALES, levels, ratio)
        results.append(differentiate(out, *maps))
    assert_near(*results, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_of_another_type(dtype, mask_dtype):
    results = []
    for device in ("cuda", "cpu"):
        maps, boxes, mask, levels = inputs(device, dtype)
        mask = mask.detach().to(mask_dtype).requires_grad_()
        out = multiscale_sa_roi_align(maps, boxes, mask, 7, SCALES, levels)
        results.append(differentiate(out, *maps, mask))
    assert_near(*results, TOLERANCE[dtype])


def test_a_sum_of_many_boxes_is_float32():
    feature = torch.ones(1, 8, 8, 8, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    boxes = torch.tensor([[0, 8.0, 8, 24, 24]], device="cuda").repeat(3000, 1)
    sa_roi_align(feature, boxes, None, 2, 0.25).sum().backward()
    total = 3000 * 4
    assert abs(feature.grad[0, 0].double().sum().item() - total) < 0.01 * total


def views(device):
    """Yields (name, feature [2, 64, 25, 34]) of every layout that is neither of the two plain ones."""
    wide = features(2, 72, H, W, dtype=torch.float32).to(device)
    yield "slice of channels", wide[:, 8:]
    yield "slice of channels, channels_last", wide.contiguous(memory_format=torch.channels_last)[:, 4:68]
    yield "slice of a batch", features(3, 64, H, W, dtype=torch.float32).to(device)[1:]
    yield "transposed", features(2, 64, W, H, dtype=torch.float32).to(device).transpose(2, 3)
    yield "expanded", features(1, 64, H, 1, dtype=torch.float32).to(device).expand(2, -1, -1, W)
    flat = features(1 + 2 * H * W * 64, dtype=torch.float32).to(device)[1:]
    yield "unaligned base", flat.view(2, H, W, 64).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", [name for name, _ in views("cpu")])
def test_features_of_any_strides(name):
    results = []
    for device in ("cuda", "cpu"):
        feature = dict(views(device))[name].requires_grad_()
        _, boxes, mask, _ = inputs(device)
        results.append(differentiate(sa_roi_align(feature, boxes, mask, 7, 0.25), feature, mask))
    assert_near(*results, 1e-5)


def test_masks_chosen_from_many_classes():
    results = []
    for device in ("cuda", "cpu"):
        maps, boxes, _, _ = inputs(device)
        every_class = masks(len(boxes), 5, 28, 28, dtype=torch.float32).to(device).requires_grad_()
        out = sa_roi_align(maps[0], boxes, every_class[:, 3], 7, 0.25)
        results.append(differentiate(out, maps[0], every_class))
    assert_near(*results, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_output_gradient_may_be_expanded_or_permuted(layout):
    maps, boxes, mask, levels = inputs("cuda", layout=layout)
    out = multiscale_sa_roi_align(maps, boxes, mask, (7, 5), SCALES, levels)
    wanted = (*maps, mask)
    from_sum = torch.autograd.grad(out.sum(), wanted, retain_graph=True)
    dense = torch.ones(out.shape, device="cuda")
    assert_same_bits(from_sum, torch.autograd.grad(out, wanted, dense, retain_graph=True))
    turned = torch.ones(out.shape[::-1], device="cuda").permute(3, 2, 1, 0)
    assert_same_bits(from_sum, torch.autograd.grad(out, wanted, turned))


def test_one_channel_and_one_pixel():
    """Such tensors are contiguous and channels_last at once."""
    for shape in ((2, 1, H, W), (2, 64, 1, 1), (2, 1, 1, 1)):
        results = []
        for device in ("cuda", "cpu"):
            feature = features(*shape, dtype=torch.float32).to(device).requires_grad_()
            _, boxes, mask, _ = inputs(device)
            results.append(differentiate(sa_roi_align(feature, boxes, mask, (2, 3), 0.25), feature, mask))
        assert_near(*results, 1e-5)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits_and_write_every_element(dtype):
    """In deterministic mode torch fills new tensors with NaN: whatever is not written shows."""
    first = pool("cuda", dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        second = pool("cuda", dtype=dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(one.isfinite().all() for one in second)
    assert_same_bits(first, second)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_opcheck(name):
    maps, *rest = arguments(**CONFIGURATIONS[name])
    maps, rest = [on_gpu(one) for one in maps], [on_gpu(one) for one in rest]
    opcheck(torch.ops.mrrcnn.sa_roi_align.default, (maps, *rest), test_utils=ALL)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("need_f", "need_p"), [(True, True), (True, False), (False, True)])
def test_opcheck_backward(name, need_f, need_p):
    maps, *rest = arguments(**CONFIGURATIONS[name])
    maps = [on_gpu(one).detach() for one in maps]
    rest = [on_gpu(one) for one in rest]
    rest[1] = None if rest[1] is None else rest[1].detach()
    grad = torch.ops.mrrcnn.sa_roi_align(maps, *rest)
    backward = torch.ops.mrrcnn.sa_roi_align_backward.default
    opcheck(backward, (grad, maps, *rest, need_f, need_p), test_utils=("test_schema", "test_faketensor"))


def on_gpu(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().cuda().requires_grad_(value.requires_grad)


def test_gradcheck():
    rois = torch.tensor([[0, 1.0, 2, 17, 20], [1, -6, 3, 11, 29]], dtype=torch.float64).cuda()
    feature, mask = features(2, 2, 6, 7).cuda().requires_grad_(), masks(2, 5, 4).cuda().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, p: sa_roi_align(f, rois, p, (3, 2), 0.25), (feature, mask))


@pytest.mark.parametrize("what", ["image", "level"])
@pytest.mark.parametrize("index", [-1, 2, 10**6])
def test_an_index_out_of_range_is_never_read(what, index):
    """A compiled kernel cannot raise without waiting for the device: it answers NaN. The reference raises."""
    maps, boxes, mask, levels = inputs("cuda")
    if what == "image":
        boxes[1, 0] = index
    else:
        levels[1] = index
    if not COMPILED:
        with pytest.raises(RuntimeError, match=r"batch index|level"):
            multiscale_sa_roi_align(maps, boxes, mask, 7, SCALES, levels)
        return
    out, *grad_maps, grad_mask = differentiate(
        multiscale_sa_roi_align(maps, boxes, mask, 7, SCALES, levels), *maps, mask
    )
    torch.cuda.synchronize()
    assert out[1].isnan().all()
    assert out[2:].isfinite().all()
    assert all(one.isfinite().all() for one in grad_maps)
    assert torch.equal(grad_mask[1], torch.zeros_like(grad_mask[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_boxes(layout):
    feature = features(2, 4, H, W).contiguous(memory_format=layout).cuda().requires_grad_()
    mask = masks(0, 28, 28).cuda().requires_grad_()
    out = sa_roi_align(feature, torch.zeros(0, 5).cuda(), mask, 7)
    assert out.shape == (0, 4, 7, 7)
    out.sum().backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))
    assert mask.grad.shape == mask.shape


@compiled_only
def test_no_images():
    feature = torch.zeros(0, 4, H, W, device="cuda", requires_grad=True)
    sa_roi_align(feature, torch.zeros(0, 5).cuda(), None, 7).sum().backward()
    assert feature.grad.shape == feature.shape


@compiled_only
def test_no_channels():
    feature = torch.zeros(2, 0, H, W, device="cuda", requires_grad=True)
    mask = torch.ones(3, 28, 28, device="cuda", requires_grad=True)
    sa_roi_align(feature, boxes_inside(3, 2, H, W).cuda(), mask, 7).sum().backward()
    assert torch.equal(mask.grad, torch.zeros_like(mask))


def test_autocast_casts_nothing():
    plain = pool("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cast = pool("cuda")
    assert [one.dtype for one in cast] == [one.dtype for one in plain]
    assert_same_bits(cast, plain)


@compiled_only
def test_kernels_never_wait_for_the_device():
    maps, boxes, mask, levels = inputs("cuda")
    weight = torch.ones(len(boxes), 64, 7, 7, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = multiscale_sa_roi_align(maps, boxes, mask, 7, SCALES, levels)
        torch.autograd.grad(out, (*maps, mask), weight)
        out = multiscale_sa_roi_align(maps, boxes, None, 7, SCALES)
        torch.autograd.grad(out, maps, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_work_goes_to_the_current_stream():
    """Another stream would not wait for the features, which come late here."""
    expected = pool("cuda")
    maps, boxes, mask, levels = inputs("cuda")
    late = [torch.zeros_like(one).requires_grad_() for one in maps]
    weight = features(len(boxes), 64, 7, 5, seed=8, dtype=torch.float32).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # about 50 ms
        with torch.no_grad():
            for one, value in zip(late, maps, strict=True):
                one.copy_(value)
        out = multiscale_sa_roi_align(late, boxes, mask, (7, 5), SCALES, levels)
        got = (out, *torch.autograd.grad((weight * out).sum(), (*late, mask)))
    stream.synchronize()
    assert_same_bits(got, expected)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_replays_forward_and_backward(dtype):
    maps, boxes, mask, levels = inputs("cuda", dtype)
    weight = features(len(boxes), 64, 7, 5, seed=8, dtype=dtype).cuda()

    def step():
        out = multiscale_sa_roi_align(maps, boxes, mask, (7, 5), SCALES, levels)
        return out, *torch.autograd.grad(out, (*maps, mask), weight)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for value in (*maps, mask, boxes):
            value.copy_(value.flip(0))
        for result in captured:
            result.fill_(torch.nan)
    expected = step()
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(captured, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_the_current_one():
    with torch.cuda.device(0):
        results = [pool("cuda:1"), pool("cuda:0")]
    assert all(one.device == torch.device("cuda:1") for one in results[0])
    assert_same_bits([one.cpu() for one in results[0]], [one.cpu() for one in results[1]])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile_fullgraph_serves_any_number_of_boxes(backend, layout):
    if backend == "inductor" and (compiler() is None or importlib.util.find_spec("triton") is None):
        pytest.skip("inductor needs triton and a C compiler")
    torch._dynamo.reset()
    compiled = torch.compile(pyramid_loss, fullgraph=True, backend=backend, dynamic=True)

    def run(function, k):
        first, second, rois, mask = (on_gpu(one) for one in compiled_inputs(k, layout))
        loss = function(first, second, rois, mask)
        return [loss, *torch.autograd.grad(loss, (first, second, mask))]

    run(compiled, 11)  # 11 is no other size here: equal sizes would be taken for one
    with torch._dynamo.config.patch(error_on_recompile=backend == "aot_eager"):
        for k in (5, 9, 30):
            for got, expected in zip(run(compiled, k), run(pyramid_loss, k), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
