"""The layers that detectron2 and maskrcnn-benchmark share, written plainly: a ResNet, a pyramid, four heads.

A reader `get` gives a tensor by a short name; each program's file translates it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

Get = Callable[[str], Tensor]


def norm(x: Tensor, get: Get, name: str, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    mean, var, weight, bias = (
        get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")
    )
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (var + eps).sqrt().view(shape) * weight.view(shape) + bias.view(shape)


def bottleneck(
    x: Tensor, get: Get, place: str, stride: int, in_1x1: bool, eps: float, has: Callable
) -> Tensor:
    """1x1, 3x3 (grouped or deformable), 1x1, and the shortcut; the stride is in the first or the second."""
    first, second = (stride, 1) if in_1x1 else (1, stride)
    out = F.relu(norm(F.conv2d(x, get(f"{place}.conv1.weight"), stride=first), get, f"{place}.bn1", eps))
    weight = get(f"{place}.conv2.weight")
    if has(f"{place}.offset.weight"):
        offset = F.conv2d(out, get(f"{place}.offset.weight"), get(f"{place}.offset.bias"), second, 1)
        out = deform_conv2d(out, offset, weight, None, (second, second), (1, 1))
    else:
        out = F.conv2d(out, weight, None, second, 1, groups=out.shape[1] // weight.shape[1])
    out = F.relu(norm(out, get, f"{place}.bn2", eps))
    out = norm(F.conv2d(out, get(f"{place}.conv3.weight")), get, f"{place}.bn3", eps)
    if has(f"{place}.shortcut.weight"):
        x = F.conv2d(x, get(f"{place}.shortcut.weight"), stride=stride)
        x = norm(x, get, f"{place}.shortcut_norm", eps)
    return F.relu(out + x)


def pyramid(image: Tensor, get: Get, has: Callable, blocks: tuple, in_1x1: bool, eps: float) -> list[Tensor]:
    """Return P2 to P6 of a padded image [1, 3, H, W]."""
    x = F.conv2d(image, get("stem.weight"), None, 2, 3)
    x = F.max_pool2d(F.relu(norm(x, get, "stem_norm", eps)), 3, 2, 1)
    stages = []
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            stride = 2 if stage > 1 and not block else 1
            x = bottleneck(x, get, f"{stage}.{block}", stride, in_1x1, eps, has)
        stages.append(x)
    inner, maps = None, []
    for level in (4, 3, 2, 1):
        lateral = F.conv2d(stages[level - 1], get(f"lateral{level}.weight"), get(f"lateral{level}.bias"))
        inner = lateral if inner is None else lateral + F.interpolate(inner, scale_factor=2.0, mode="nearest")
        maps.insert(0, F.conv2d(inner, get(f"output{level}.weight"), get(f"output{level}.bias"), 1, 1))
    return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def rpn_head(x: Tensor, get: Get) -> tuple[Tensor, Tensor]:
    """Return logits [A] and deltas [A, 4] of a map, in the order row, column, anchor."""
    hidden = F.relu(F.conv2d(x, get("rpn_conv.weight"), get("rpn_conv.bias"), 1, 1))
    logits = F.conv2d(hidden, get("rpn_logits.weight"), get("rpn_logits.bias"))
    deltas = F.conv2d(hidden, get("rpn_deltas.weight"), get("rpn_deltas.bias"))
    height, width = x.shape[-2:]
    deltas = deltas.view(3, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    return logits[0].permute(1, 2, 0).reshape(-1), deltas


def box_head(pooled: Tensor, get: Get) -> tuple[Tensor, Tensor]:
    """Return class logits and deltas of pooled features [n, C, 7, 7]."""
    x = F.relu(F.linear(pooled.flatten(1), get("fc1.weight"), get("fc1.bias")))
    x = F.relu(F.linear(x, get("fc2.weight"), get("fc2.bias")))
    return F.linear(x, get("scores.weight"), get("scores.bias")), F.linear(
        x, get("deltas.weight"), get("deltas.bias")
    )


def mask_head(pooled: Tensor, get: Get) -> Tensor:
    """Return mask logits [n, classes, 28, 28] of pooled features [n, C, 14, 14]."""
    for index in range(1, 5):
        pooled = F.relu(F.conv2d(pooled, get(f"mask{index}.weight"), get(f"mask{index}.bias"), 1, 1))
    x = F.relu(F.conv_transpose2d(pooled, get("deconv.weight"), get("deconv.bias"), 2))
    return F.conv2d(x, get("mask_logits.weight"), get("mask_logits.bias"))


def padded(image: Tensor) -> Tensor:
    """Return [1, 3, H, W] with sides that 32 divides, zeros below and to the right."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % 32, 0, -height % 32))[None]


def per_level(levels: Tensor, pool: Callable, like: Tensor) -> Tensor:
    """Return what `pool(level, rows)` gives, put back in the order of the rows."""
    out = torch.zeros(len(levels), *like.shape[1:])
    for level in levels.unique().tolist():
        rows = torch.where(levels == level)[0]
        out[rows] = pool(level, rows)
    return out
