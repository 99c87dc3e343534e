"""The CUDA kernels themselves, run on the CPU thread by thread: the same numbers as the reference.

What a GPU alone can show is in test_cuda.py: the binding, streams, speed.
"""

import signal

import pytest
import torch

from ops import reference
from tests.ops.cases import MASK_MODES, awkward_boxes, boxes_inside, features, masks
from tests.ops.cuda_on_cpu.kernels import Kernels, build, compiler
from tests.ops.test_backend import run_python

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler to compile the CUDA kernels with")
H, W = 25, 34
SIZES = [(1, 1), (7, 7), (14, 14), (5, 9)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda_on_cpu"))


@pytest.fixture
def kernels(library):
    return Kernels(library)


def sum_type(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem(
    dtype=torch.float64,
    channels=3,
    size=(7, 7),
    ratio=2,
    aligned=False,
    mode="half_pixel",
    levels=2,
    scale=0.25,
    k=8,
):
    """Returns the arguments of ops.reference.forward: boxes of all kinds on one or more small maps."""
    shapes = [(H, W), (13, 17), (7, 9)][:levels]
    maps = [features(2, channels, *shape, seed=n, dtype=dtype) for n, shape in enumerate(shapes)]
    rois = torch.cat([boxes_inside(k, 2, H / scale, W / scale), awkward_boxes(H / scale, W / scale)])
    rois = rois.to(sum_type(dtype))
    level = torch.arange(len(rois)) % levels if levels > 1 else None
    prob = None if mode is None else masks(len(rois), 28, 20, dtype=sum_type(dtype))
    scales = [scale / 2**n for n in range(levels)]
    return maps, rois, prob, level, scales, *size, ratio, aligned, MASK_MODES[mode or "half_pixel"]


def run(kernels, arguments, layout=None):
    """Returns the output, the gradients of the maps and, with masks, the gradient of the masks."""
    prob = arguments[2]
    output = kernels.forward(*arguments, layout=layout)
    grad = features(*output.shape, seed=8, dtype=output.dtype)
    results = [output, *kernels.backward_features(grad, *arguments, layout=layout)]
    return results if prob is None else [*results, kernels.backward_masks(grad, *arguments)]


def expected(arguments):
    """Same, by the reference."""
    output = reference.forward(*arguments)
    grad = features(*output.shape, seed=8, dtype=output.dtype)
    grad_maps, grad_prob = reference.backward(grad, *arguments, True, True)
    return [output, *grad_maps] if arguments[2] is None else [output, *grad_maps, grad_prob]


def assert_near(got, wanted, dtype):
    assert len(got) == len(wanted)
    for one, exact in zip(got, wanted, strict=True):
        assert one.isfinite().all()
        difference = (one.double() - exact.double()).norm()
        assert difference <= TOLERANCE[dtype] * exact.double().norm()


def assert_same_bits(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize(("aligned", "mode"), [(False, None), (False, "half_pixel"), (True, "paper")])
@pytest.mark.parametrize(("dtype", "channels"), [(torch.float64, 3), (torch.float32, 8)])
def test_equal_the_reference(kernels, dtype, channels, aligned, mode, ratio, size):
    arguments = problem(dtype, channels, size, ratio, aligned, mode)
    assert_near(run(kernels, arguments), expected(arguments), dtype)
    assert kernels.vectors == (dtype == torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 40, 64, 264])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_all_types_any_number_of_channels(kernels, dtype, channels, layout):
    arguments = problem(dtype, channels, levels=3)
    assert_near(run(kernels, arguments, layout), expected(arguments), dtype)
    per_access = {torch.float64: 0, torch.float32: 4}.get(dtype, 8)
    assert kernels.vectors == bool(per_access and channels % per_access == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unaligned_base_takes_the_scalar_path(library, dtype):
    arguments = problem(dtype, 64)
    kernels = Kernels(library, shift=1)
    assert_near(run(kernels, arguments), expected(arguments), dtype)
    assert not kernels.vectors


@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_samples_than_fit_into_shared_memory(kernels, dtype, ratio):
    """Boxes of 160 pixels of the map take 23 samples a bin; 30 x 31 bins of three are too many as well."""
    arguments = problem(dtype, 4, (7, 7) if ratio == 0 else (30, 31), ratio, scale=1.0)
    arguments[1][:, 1:] *= 3
    assert_near(run(kernels, arguments), expected(arguments), dtype)


def test_a_bin_of_more_samples_than_a_window(kernels):
    arguments = problem(torch.float32, 4, (1, 2), 70, levels=1)
    assert_near(run(kernels, arguments), expected(arguments), torch.float32)


def test_a_box_at_the_limit_of_adaptive_sampling(kernels):
    maps, rois, *rest = problem(torch.float64, 1, (1, 1), 0, levels=1, scale=1.0)
    rois = torch.tensor([[0, -2000, -2000, 2096, 2096], [1, -2000, -2000, 2097, 9]], dtype=torch.float64)
    arguments = (maps, rois, masks(2, 5, 6), *rest[1:])
    got = run(kernels, arguments)
    assert_near(got, expected(arguments), torch.float64)
    assert got[0][0].abs().sum() > 0
    assert got[0][1].abs().sum() == 0


@pytest.mark.parametrize("k", [0, 700, 1300])
def test_more_boxes_on_a_tile_than_are_listed_at_once(kernels, k):
    arguments = problem(torch.float32, 4, (2, 1), 1, k=k, mode=None, scale=1.0)
    maps, rois, prob, level, *rest = arguments
    rois[:, 0], level = 0, torch.zeros_like(level)
    arguments = (maps, rois, prob, level, *rest)
    assert_near(run(kernels, arguments), expected(arguments), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "ratio", "layout"),
    [
        (torch.float32, 0, torch.contiguous_format),
        (torch.float32, 2, torch.channels_last),
        (torch.bfloat16, 0, torch.channels_last),
        (torch.bfloat16, 2, torch.contiguous_format),
    ],
)
def test_neither_a_second_run_nor_the_schedule_changes_a_bit(library, dtype, ratio, layout):
    """Nor what shared memory held before. Large boxes do not fit the tables; ten reach a tile at once."""
    maps, rois, *rest = problem(dtype, 40, ratio=ratio, k=12)
    rois = torch.cat([rois, rois * torch.tensor([1, 3, 3, 3, 3])])
    arguments = (maps, rois, masks(len(rois), 28, 20, dtype=torch.float32), rest[1].repeat(2), *rest[2:])
    first = run(Kernels(library), arguments, layout)
    for downwards in (False, True):
        for ahead in (False, True):
            kernels = Kernels(library, downwards, ahead, poison=True)
            assert_same_bits(first, run(kernels, arguments, layout))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes_that_are_not_finite_pool_to_zeros(kernels, dtype):
    maps, rois, prob, level, *rest = problem(dtype, 8)
    for k, value in enumerate([torch.nan, torch.inf, -torch.inf]):
        rois[k, 1 + k] = value
    arguments = (maps, rois, prob, level, *rest)
    output, *grads = run(kernels, arguments)
    assert torch.equal(output[:3], torch.zeros_like(output[:3]))
    assert torch.equal(grads[-1][:3], torch.zeros_like(prob[:3]))
    assert_near([output, *grads], expected(arguments), dtype)


@pytest.mark.parametrize("index", [-1, 2, 1e6, -1e30, torch.nan, torch.inf])
def test_an_image_out_of_range_is_never_read(kernels, index):
    maps, rois, prob, level, *rest = problem(torch.float32, 8)
    rois[[1, 4], 0] = index
    check_out_of_range(kernels, (maps, rois, prob, level, *rest), [1, 4])


@pytest.mark.parametrize("index", [-1, 2, 7, 8, 2**40, -(2**40)])
def test_a_level_out_of_range_is_never_read(kernels, index):
    maps, rois, prob, level, *rest = problem(torch.float32, 8)
    level[[1, 4]] = index
    check_out_of_range(kernels, (maps, rois, prob, level, *rest), [1, 4])


def check_out_of_range(kernels, arguments, wrong):
    maps, rois, prob, level, *rest = arguments
    right = [k for k in range(len(rois)) if k not in wrong]
    output, *grad_maps, grad_prob = run(kernels, arguments)
    assert output[wrong].isnan().all()
    assert torch.equal(grad_prob[wrong], torch.zeros_like(prob[wrong]))
    kept = (maps, rois[right], prob[right], level[right], *rest)
    grad = features(*output.shape, seed=8, dtype=output.dtype)[right]
    wanted_maps, wanted_prob = reference.backward(grad, *kept, True, True)
    wanted = [reference.forward(*kept), *wanted_maps, wanted_prob]
    assert_near([output[right], *grad_maps, grad_prob[right]], wanted, torch.float32)


def test_pixels_that_no_sample_needs_are_not_read(kernels):
    """All else is NaN: the other image, the rows above and below the box, the columns beside it."""
    one = torch.full((2, 4, H, W), torch.nan)
    one[1, :, 5:12, 10:20] = features(4, 7, 10, dtype=torch.float32)
    rois = torch.tensor([[1, 10.0, 5, 19, 11]])
    arguments = ([one], rois, masks(1, 28, 28, dtype=torch.float32), None, [1.0], 7, 7, 2, False, 0)
    output, grad_map, grad_prob = run(kernels, arguments)
    assert output.isfinite().all()
    assert grad_prob.isfinite().all()
    assert grad_map[0].abs().sum() == 0


def test_a_map_without_boxes_and_no_boxes_at_all_give_zeros(kernels):
    maps, rois, prob, level, *rest = problem(torch.float32, 8)
    arguments = (maps, rois, prob, torch.ones_like(level), *rest)
    _, first, second, _ = run(kernels, arguments)
    assert torch.equal(first, torch.zeros_like(first))
    assert second.abs().sum() > 0
    none = (maps, rois[:0], prob[:0], level[:0], *rest)
    grads = kernels.backward_features(torch.zeros(0, 8, 7, 7), *none)
    assert all(torch.equal(one, torch.zeros_like(one)) for one in grads)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (4, 8), (5, 9)])
def test_maps_of_all_shapes(kernels, shape):
    arguments = problem(torch.float64, 5, levels=1, scale=1.0)
    arguments = ([features(2, 5, *shape)], *arguments[1:])
    assert_near(run(kernels, arguments), expected(arguments), torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (112, 112)])
def test_masks_of_all_sizes(kernels, size):
    maps, rois, _, *rest = problem(torch.float64, 3)
    arguments = (maps, rois, masks(len(rois), *size), *rest)
    assert_near(run(kernels, arguments), expected(arguments), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 64, 8, 8), (3, 65, 9, 9), (2, 130, 1, 20), (1, 2, 7, 31)]
)
def test_channels_first_are_turned_to_channels_last(library, dtype, shape):
    feature = features(*shape, dtype=dtype)
    for kernels in (Kernels(library), Kernels(library, True, True, poison=True)):
        turned = kernels.turn(feature)
        assert turned.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(turned, feature)


FENCED = """
import sys
from tests.ops.test_cuda_on_cpu import *
for fence, layout in (("before", torch.contiguous_format), ("after", torch.channels_last)):
    kernels = Kernels(sys.argv[1], fence=fence)
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (40, 3):
            for ratio in (2, 0):
                maps, rois, prob, level, *rest = problem(dtype, channels, ratio=ratio, levels=3)
                rois[2, 0], rois[3, 0], rois[4, 3], level[5], level[6] = -1, 2, torch.nan, 3, -1
                run(kernels, (maps, rois, prob, level, *rest), layout)
        kernels.turn(features(2, 67, 9, 15, dtype=dtype))
print("done")
"""
OUTSIDE = """
import ctypes, sys
from tests.ops.test_cuda_on_cpu import *
fence = sys.argv[2]
address = Kernels(sys.argv[1], fence=fence).guarded(torch.zeros(4)).data_ptr()
assert ctypes.c_float.from_address(address + (12 if fence == "after" else 0)).value == 0
ctypes.c_float.from_address(address + (16 if fence == "after" else -4)).value
"""


def test_nothing_outside_inputs_and_results_is_touched(library):
    """A poor man's memcheck: right before or behind every tensor lies memory that ends the process."""
    done = run_python("-c", FENCED, str(library))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("fence", ["before", "after"])
def test_a_fence_ends_the_process(library, fence):
    assert run_python("-c", OUTSIDE, str(library), fence).returncode == -signal.SIGSEGV
