"""Inputs and the two implementations that the tests of the operator share."""

import torch

from ops import reference, sa_roi_align
from ops.reference import HALF_PIXEL, PAPER

MASK_MODES = {"half_pixel": HALF_PIXEL, "paper": PAPER}


def pool_by_reference(
    features,
    boxes,
    masks,
    output_size,
    spatial_scale=1.0,
    sampling_ratio=2,
    aligned=False,
    mask_mode="half_pixel",
):
    """`sa_roi_align` without torch's dispatcher: ops/reference.py, differentiated by autograd itself."""
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    settings = (sampling_ratio, aligned, MASK_MODES[mask_mode])
    return reference.forward([features], boxes, masks, None, [spatial_scale], *size, *settings)


IMPLEMENTATIONS = {"operator": sa_roi_align, "reference": pool_by_reference}


def features(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masks(*shape, seed=1, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def boxes_inside(k, images, height, width, seed=2, dtype=torch.float64, smallest=1.0):
    """[K, 5] boxes of all sizes inside the picture."""
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(k, 2, generator=g, dtype=torch.float64) * 0.8
    size = smallest + size * (torch.tensor([width, height]) - smallest)
    start = torch.rand(k, 2, generator=g, dtype=torch.float64) * (torch.tensor([width, height]) - size)
    image = torch.randint(images, (k, 1), generator=g).double()
    return torch.cat([image, start, start + size], 1).to(dtype)


def awkward_boxes(height, width, dtype=torch.float64):
    """[K, 5] for one image: tiny, empty, over every border, beyond it, inverted, exactly on pixel limits."""
    h, w = float(height), float(width)
    rows = [
        [5, 5, 5.3, 5.2],
        [7, 9, 7, 9],
        [-20, -20, 10, 12],
        [w - 10, h - 10, w + 30, h + 40],
        [-40, -40, -20, -20],
        [w + 20, h + 20, w + 50, h + 60],
        [-30, -30, w + 30, h + 30],
        [20, 22, 8, 6],
        [0, 0, w, h],
        [-4, -4, w - 4, h - 4],
        [0, 0, 4, 4],
    ]
    return torch.tensor([[0.0, *row] for row in rows], dtype=dtype)
