"""The operator's benchmark times nothing that gives other numbers than its peers."""

import pytest
import torch

from benchmarks import ops, pooling
from benchmarks.pooling import NHWC, SCALES, STRIDES, Inputs, check, draw_boxes, touched_bytes

SIZE = 7


@pytest.fixture
def x():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 8, 256 // stride, 320 // stride, generator=g) for stride in STRIDES]
    small, boxes = draw_boxes(g, 12, 256, 320, 24, 112), draw_boxes(g, 12, 256, 320, 24, 250)
    last = [m.contiguous(memory_format=NHWC) for m in maps]
    return Inputs(maps, last, small, boxes, torch.rand(12, 28, 28, generator=g), (256, 320))


def test_equal_contenders_are_timed(x):
    check(x, (SIZE,))
    ops.check_timed(x, (SIZE,))


@pytest.mark.parametrize("contender", ["ours", "our_pyramid", "composition", "torchvisions"])
def test_a_contender_that_differs_is_refused(x, contender, monkeypatch):
    right = getattr(pooling, contender)
    monkeypatch.setattr(pooling, contender, lambda *a, **k: right(*a, **k) * (1 + 1e-9))
    with pytest.raises(SystemExit, match=r"differ by 1\.0e-09 of the norm"):
        check(x, (SIZE,))


@pytest.mark.parametrize(
    ("contender", "dtype", "error", "said"),
    [
        ("ours", torch.float32, 1e-3, r"\(forward, channels_last\) differ"),
        ("ours", torch.bfloat16, 0.05, r"\(forward, bfloat16\) differ"),
        ("our_pyramid", torch.float32, 1e-3, r"\(FPN forward, channels_last\) differ"),
    ],
)
def test_a_timed_call_that_differs_is_refused(x, contender, dtype, error, said, monkeypatch):
    """Also where it is right in double precision, and without a mask."""
    right = getattr(ops, contender)

    def wrong(features, boxes, masks, size):
        first = features[0] if isinstance(features, list) else features
        factor = 1 + error * (first.dtype == dtype and masks is not None)
        return right(features, boxes, masks, size) * factor

    monkeypatch.setattr(ops, contender, wrong)
    with pytest.raises(SystemExit, match=said):
        ops.check_timed(x, (SIZE,))


def test_a_timed_backward_that_differs_is_refused(x, monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, masks):
            return masks.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.001

    right = ops.ours
    monkeypatch.setattr(ops, "ours", lambda f, boxes, masks, size: right(f, boxes, Wrong.apply(masks), size))
    with pytest.raises(SystemExit, match=r"\(backward to features and mask\) differ by 1\.0e-03"):
        ops.check_timed(x, (SIZE,))


@pytest.mark.parametrize(("size", "aligned"), [(7, False), (7, True), (2, False)])
def test_the_floor_counts_the_pixels_of_the_timed_call(size, aligned):
    """A 16 x 16 box is 4 x 4 pixels of the first map: by hand, the samples' neighbours."""
    maps, boxes = [torch.zeros(1, 1, 64, 64)], torch.tensor([[0, 64.0, 64, 80, 80]])
    start = 64 * SCALES[0] - (0.5 if aligned else 0)
    places = [start + (i + 0.5) * 4 / (2 * size) for i in range(2 * size)]
    touched = {int(p) for p in places} | {int(p) + 1 for p in places if p != int(p)}
    assert touched_bytes(maps, boxes, size, aligned) == len(touched) ** 2 * pooling.CHANNELS * 4
