"""CUDA tensors of more than 2^31 elements: offsets that 32 bits do not hold."""

import pytest
import torch

from ops import backend_info, sa_roi_align
from tests.ops.cases import boxes_inside, features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("cuda" not in backend_info()["backend"], reason="the reference needs far more memory"),
    pytest.mark.usefixtures("much_memory"),
]


@pytest.fixture
def much_memory():
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free device memory")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_more_than_2_to_the_31_elements_of_output(layout):
    k, near_end = 45_000, slice(44_990, 45_000)
    feature = features(1, 256, 25, 34, dtype=torch.bfloat16).contiguous(memory_format=layout).cuda()
    feature.requires_grad_()
    boxes = boxes_inside(k, 1, 100, 136, dtype=torch.float32).cuda()
    mask = torch.rand(k, 28, 28, device="cuda", requires_grad=True)
    out = sa_roi_align(feature, boxes, mask, 14, 0.25)
    assert out.numel() > 2**31
    alone = sa_roi_align(feature, boxes[near_end], mask[near_end], 14, 0.25)
    assert torch.equal(out[near_end], alone)
    # Only the last boxes have a gradient, so theirs must be the whole.
    grad = torch.zeros_like(out)
    grad[near_end] = 1
    got = torch.autograd.grad(out, (feature, mask), grad)
    expected = torch.autograd.grad(alone, (feature, mask), grad[near_end])
    torch.testing.assert_close(got, expected)


def test_more_than_2_to_the_31_elements_of_features():
    feature = torch.zeros(9, 256, 1000, 1000, dtype=torch.bfloat16, device="cuda")
    feature = feature.contiguous(memory_format=torch.channels_last)
    assert feature.numel() > 2**31
    last = features(1, 256, 1000, 1000, dtype=torch.bfloat16).cuda()
    feature[8:].copy_(last)
    boxes = boxes_inside(50, 1, 4000, 4000, dtype=torch.float32).cuda()
    mask = torch.rand(50, 28, 28, device="cuda", requires_grad=True)
    last = last.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = sa_roi_align(last, boxes, mask, 7, 0.25)
    grad = features(*expected.shape, seed=8, dtype=torch.bfloat16).cuda()
    expected_grads = torch.autograd.grad(expected, (last, mask), grad)
    boxes[:, 0] = 8
    out = sa_roi_align(feature.requires_grad_(), boxes, mask, 7, 0.25)
    grad_feature, grad_mask = torch.autograd.grad(out, (feature, mask), grad)
    assert torch.equal(out, expected)
    assert torch.equal(grad_feature[8:], expected_grads[0])
    assert torch.equal(grad_mask, expected_grads[1])
    assert not grad_feature[:8].any()
