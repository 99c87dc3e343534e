"""The compiled CPU kernels: any channels, layout, type and instruction set give the reference's numbers."""

import pytest
import torch

from ops import backend_info, multiscale_sa_roi_align
from ops.reference import HALF_PIXEL, forward
from tests.ops.cases import awkward_boxes, boxes_inside, features, masks
from tests.ops.test_backend import ROOT, run_python

pytestmark = pytest.mark.skipif(backend_info()["library"] is None, reason="no compiled CPU library")

SIZES, SCALES = ((33, 47), (17, 24)), (0.25, 0.125)
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Below and beyond a vector, a run of vectors and a slab of channels, for float and for double.
CHANNELS = (1, 3, 8, 33, 64, 100, 130)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def pyramid(channels, layouts, dtype):
    maps = [features(2, channels, *size, seed=i, dtype=dtype) for i, size in enumerate(SIZES)]
    return [m.to(memory_format=f).requires_grad_() for m, f in zip(maps, layouts, strict=True)]


def rois(dtype=torch.float32):
    """[43, 5]: on both images, of all sizes, awkward ones among them."""
    return torch.cat([boxes_inside(32, 2, 132, 188, dtype=dtype), awkward_boxes(132, 188, dtype=dtype)])


def run(pool, maps, boxes, mask, ratio, grad_layout=NCHW):
    mask = mask.detach().requires_grad_()
    levels = torch.arange(len(boxes)) % 2
    out = pool(maps, boxes, mask, levels, ratio)
    # In bfloat16 already, so that every type gets the very same gradient.
    grad = features(*out.shape, seed=8).bfloat16().to(out.dtype).contiguous(memory_format=grad_layout)
    return out, *torch.autograd.grad(out, (*maps, mask), grad)


def by_operator(maps, boxes, mask, levels, ratio):
    return multiscale_sa_roi_align(maps, boxes, mask, (5, 7), SCALES, levels, sampling_ratio=ratio)


def by_operator_aligned(maps, boxes, mask, levels, ratio):
    return multiscale_sa_roi_align(
        maps, boxes, mask, (5, 7), SCALES, levels, sampling_ratio=ratio, aligned=True
    )


def by_reference(maps, boxes, mask, levels, ratio):
    return forward(maps, boxes, mask, levels, SCALES, 5, 7, ratio, False, HALF_PIXEL)


def assert_close(got, expected, dtype):
    for one, other in zip(got, expected, strict=True):
        assert (one.double() - other).norm() <= TOLERANCE[dtype] * other.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layouts", [(NCHW, NCHW), (NHWC, NHWC), (NHWC, NCHW)], ids=["NCHW", "NHWC", "mixed"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_kernels_equal_the_reference(channels, layouts, dtype):
    maps, mask = pyramid(channels, layouts, dtype), masks(43, 28, 28, dtype=torch.float32)
    exact = [m.detach().double().requires_grad_() for m in maps]
    expected = run(by_reference, exact, rois().double(), mask.double(), 2)
    boxes = rois().to(torch.float64 if dtype == torch.float64 else torch.float32)
    for grad_layout in (NCHW, NHWC):
        got = run(by_operator, maps, boxes, mask.to(boxes.dtype), 2, grad_layout)
        assert_close(got, expected, dtype)


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_every_sampling_ratio(ratio):
    maps, mask = pyramid(33, (NHWC, NCHW), torch.float64), masks(43, 9, 14)
    boxes = rois(torch.float64)
    assert_close(
        run(by_operator, maps, boxes, mask, ratio), run(by_reference, maps, boxes, mask, ratio), torch.float64
    )


def test_layout_changes_no_bit_of_output_and_feature_gradient():
    """A slab of channels adds in the same order as all of them at once; only grad . F is summed otherwise."""
    results = []
    for layout in (NCHW, NHWC):
        maps = pyramid(130, (layout, layout), torch.float32)
        results.append(run(by_operator, maps, rois(), masks(43, 28, 28, dtype=torch.float32), 2)[:-1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("upside_down", [False, True])
def test_number_of_threads_changes_no_bit(upside_down):
    """Also for boxes whose rows go upwards: every row has one owner."""
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        maps = pyramid(100, (NHWC, NCHW), torch.float32)
        boxes = rois()[:, [0, 3, 4, 1, 2]] if upside_down else rois()
        pool = by_operator_aligned if upside_down else by_operator
        results.append(run(pool, maps, boxes, masks(43, 28, 28, dtype=torch.float32), 2))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


DIGEST = """
import hashlib, torch
from tests.ops import test_cpu as t
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    maps = t.pyramid(100, (t.NHWC, t.NCHW), dtype)
    for one in t.run(t.by_operator, maps, t.rois(), t.masks(43, 28, 28, dtype=torch.float32), 2):
        digest.update(one.detach().double().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_instruction_set_changes_no_bit():
    """Machines of one cluster may differ; ATEN_CPU_CAPABILITY is torch's own switch."""
    plain = run_python("-c", DIGEST, ATEN_CPU_CAPABILITY="default")
    best = run_python("-c", DIGEST)
    assert plain.returncode == best.returncode == 0, plain.stderr + best.stderr
    assert plain.stdout == best.stdout


def huge(*shape):
    """Zeros of that shape that need no memory."""
    return torch.zeros(1).expand(shape)


LIMITS = {
    "output size must be": {"pooled_w": 2**15},
    "the output size must be 1 to 32767 bins": {"pooled_h": 2**32 + 7},
    "sampling_ratio": {"sampling_ratio": 2**32 + 2},
    "prob_mode": {"prob_mode": 2},
    "one image's feature map has more than 2": {"features": [huge(1, 1, 2**16, 2**16)]},
    "one image's feature map has more": {"features": [huge(1, 2**15, 2**8, 2**8)]},
    "one RoI's output has more than 2": {
        "features": [huge(1, 3, 1, 1)],
        "pooled_h": 32767,
        "pooled_w": 32767,
    },
    "a mask has more than 2": {"prob": huge(43, 2**16, 2**15)},
}


@pytest.mark.parametrize("message", LIMITS)
def test_the_kernels_refuse_what_their_integers_cannot_hold(message):
    """Also without the checks in Python; and no message tells where the library was built."""
    usual = {
        "features": [torch.zeros(2, 1, 33, 47)],
        "rois": rois(),
        "prob": None,
        "level": None,
        "spatial_scales": [0.25],
        "pooled_h": 7,
        "pooled_w": 7,
        "sampling_ratio": 2,
        "aligned": False,
        "prob_mode": 0,
    }
    with pytest.raises(RuntimeError, match=message) as caught:
        torch.ops.mrrcnn.sa_roi_align(**{**usual, **LIMITS[message]})
    assert str(ROOT) not in str(caught.value)
