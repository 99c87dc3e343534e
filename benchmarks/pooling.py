"""What is compared: Shape-aware RoIAlign, its peers, and the inputs that they share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from ops import multiscale_sa_roi_align, sa_roi_align

CHANNELS, RATIO = 256, 2
CHECKED = 72  # channels compared: more than the kernels take at once, and few enough to be soon done
STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Of the norm. In float32 a sample's place 300 pixels from the border is rounded by 1e-5 of a pixel and more,
# and these maps are noise: PyTorch's own composition is then 1.1e-5 to 1.4e-5 away from the one in double.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-3}


@dataclass(frozen=True)
class Inputs:
    """One set: a pyramid in both layouts, boxes of one level and of all, masks."""

    pyramid: list[Tensor]
    pyramid_last: list[Tensor]
    small: Tensor
    boxes: Tensor
    masks: Tensor
    image_size: tuple[int, int]


def draw(device: str, seed: int) -> Inputs:
    """Return random inputs: a CPU's are 512 RoIs on two images, a GPU's 1024 on two larger ones."""
    g = torch.Generator().manual_seed(seed)
    height, width, count = (800, 1344, 1024) if device == "cuda" else (800, 1216, 512)
    maps = [
        torch.randn(2, CHANNELS, height // stride, width // stride, generator=g).to(device)
        for stride in STRIDES
    ]
    small = draw_boxes(g, count, height, width, 24, 112)
    boxes = draw_boxes(g, count, height, width, 24, 640)
    masks = torch.rand(count, 28, 28, generator=g)
    last = [m.contiguous(memory_format=NHWC) for m in maps]
    return Inputs(maps, last, small.to(device), boxes.to(device), masks.to(device), (height, width))


def draw_boxes(g: torch.Generator, count: int, height: int, width: int, low: int, high: int) -> Tensor:
    """Return boxes [count, 5], batch index in order, log-uniform sides from low to high, aspect 1/2 to 2."""
    side = low * (high / low) ** torch.rand(count, generator=g)
    aspect = 2 ** (2 * torch.rand(count, generator=g) - 1)
    w, h = (side * aspect.sqrt()).clamp(max=width), (side / aspect.sqrt()).clamp(max=height)
    x, y = torch.rand(count, generator=g) * (width - w), torch.rand(count, generator=g) * (height - h)
    image = torch.arange(count) * 2 // count
    return torch.stack([image, x, y, x + w, y + h], 1)


def composition(
    feature: Tensor,
    boxes: Tensor,
    masks: Tensor,
    size: int,
    scale: float = SCALES[0],
    aligned: bool = True,
) -> Tensor:
    """Return Shape-aware RoIAlign as a user of PyTorch would write it."""
    fine = size * RATIO
    pooled = roi_align(feature, boxes, fine, scale, sampling_ratio=1, aligned=aligned)
    resized = interpolate(masks[:, None], (fine, fine), mode="bilinear", align_corners=False)
    return avg_pool2d(pooled * resized, RATIO)


def composed_pyramid(maps: list[Tensor], boxes: Tensor, masks: Tensor, size: int) -> Tensor:
    """Return the composition level by level, levels and alignment as MultiScaleRoIAlign has them."""
    levels = LevelMapper(2, 5)([boxes[:, 1:].float()])
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size)
    for level, (feature, scale) in enumerate(zip(maps, SCALES, strict=True)):
        on = levels == level
        out[on] = composition(feature, boxes[on], masks[on], size, scale, aligned=False)
    return out


def ours(feature: Tensor, boxes: Tensor, masks: Tensor | None, size: int) -> Tensor:
    """Return Shape-aware RoIAlign on one level."""
    return sa_roi_align(feature, boxes, masks, size, SCALES[0], RATIO, aligned=True)


def torchvisions(feature: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return torchvision's RoIAlign on one level: no mask."""
    return roi_align(feature, boxes, size, SCALES[0], RATIO, aligned=True)


def our_pyramid(maps: list[Tensor], boxes: Tensor, masks: Tensor | None, size: int) -> Tensor:
    """Return Shape-aware RoIAlign on all levels, one call."""
    return multiscale_sa_roi_align(maps, boxes, masks, size, SCALES, sampling_ratio=RATIO)


def torchvisions_pyramid(
    maps: list[Tensor], boxes: Tensor, size: int, images: list[tuple[int, int]]
) -> Tensor:
    """Return torchvision's pooling of a pyramid: no mask, boxes as it wants them."""
    names = [str(i) for i in range(len(maps))]
    pool = MultiScaleRoIAlign(names, size, RATIO)
    per_image = list(boxes[:, 1:].split(len(boxes) // 2))
    return pool(dict(zip(names, maps, strict=True)), per_image, images)


def check(x: Inputs, sizes: tuple[int, ...]) -> None:
    """Refuse to time what does not give the same numbers, gradients included, in double precision.

    On the first CHECKED channels, and of pyramids the forward only.
    """
    maps, last = ([m[:, :CHECKED].double() for m in p] for p in (x.pyramid, x.pyramid_last))
    small, boxes, masks = x.small.double(), x.boxes.double(), x.masks.double()
    images = [x.image_size] * 2
    for size in sizes:
        composed = results(composition, maps[0], small, masks, size)
        plain = results(torchvisions, maps[0], small, size)
        pyramid = [torchvisions_pyramid(maps, boxes, size, images)]
        masked = [composed_pyramid(maps, boxes, masks, size)]
        for own in (maps, last):
            refuse_unless_equal("composition", results(ours, own[0], small, masks, size), composed)
            refuse_unless_equal("roi_align", results(ours, own[0], small, None, size), plain)
            refuse_unless_equal("MultiScaleRoIAlign", [our_pyramid(own, boxes, None, size)], pyramid)
            refuse_unless_equal("composition", [our_pyramid(own, boxes, masks, size)], masked)


@dataclass(frozen=True)
class Exact:
    """What the timed calls are to give, in double precision: see `exact`."""

    pooled: Tensor
    pooled_pyramid: Tensor
    to_features: Tensor
    to_masks: Tensor


def exact(x: Inputs, size: int) -> Exact:
    """Return the composition in double precision: with masks, all channels, gradients for `output_gradient`.

    Some channels at a time: the composition's own tensors are many times larger than its result.
    """
    small, boxes, parts = x.small.double(), x.boxes.double(), []
    pieces = (one.split(CHECKED, 1) for one in (*x.pyramid, output_gradient(x, size)))
    for *maps, grad in zip(*pieces, strict=True):
        maps = [m.double() for m in maps]
        feature, masks = maps[0].requires_grad_(), x.masks.double().requires_grad_()
        pooled = composition(feature, small, masks, size)
        gradients = torch.autograd.grad(pooled, (feature, masks), grad.double())
        pyramid = composed_pyramid([m.detach() for m in maps], boxes, masks.detach(), size)
        parts.append((pooled.detach(), pyramid, *gradients))
    *by_channel, to_masks = zip(*parts, strict=True)
    return Exact(*(torch.cat(one, 1) for one in by_channel), sum(to_masks))


def output_gradient(x: Inputs, size: int) -> Tensor:
    """Return the gradient that the backward is timed with, float32 [K, C, size, size]."""
    shape = (len(x.small), x.pyramid[0].shape[1], size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(size)).to(x.small.device)


def results(pool: Callable, feature: Tensor, boxes: Tensor, *arguments: Tensor | int | None) -> list[Tensor]:
    """Return what a contender pools, and its gradients to features and masks."""
    feature = feature.detach().requires_grad_()
    arguments = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    out = pool(feature, boxes, *arguments)
    inputs = [feature, *(a for a in arguments if isinstance(a, Tensor))]
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def refuse_unless_equal(name: str, own: list[Tensor], theirs: list[Tensor]) -> None:
    """End the benchmark if a norm of differences is not a rounding error of our type."""
    for one, other in zip(own, theirs, strict=True):
        error = ((one.double() - other).norm() / other.norm()).item()
        if not error < TOLERANCE[one.dtype]:
            raise SystemExit(f"bench ops: ours and {name} differ by {error:.1e} of the norm")


def touched_bytes(maps: list[Tensor], boxes: Tensor, size: int, aligned: bool) -> int:
    """Return the bytes of the pixels that pooling reads: those that get a gradient."""
    probes = [torch.zeros_like(m[:, :1]).requires_grad_() for m in maps]
    pooled = multiscale_sa_roi_align(
        probes, boxes, None, size, SCALES[: len(maps)], sampling_ratio=RATIO, aligned=aligned
    )
    grads = torch.autograd.grad(pooled.sum(), probes)
    return sum(int((g != 0).sum()) for g in grads) * CHANNELS * maps[0].element_size()
