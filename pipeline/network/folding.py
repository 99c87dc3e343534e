"""Frozen batch norms folded into the convolutions before them: the same network with less to do."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d


@torch.no_grad()
def fold_frozen_norms(trunk: nn.Module) -> int:
    """Replace every frozen norm of a ResNet by a bias and scaled weights of its convolution; return how many.

    Results differ by rounding only. For inference: the trunk's parameters then have other names.
    """
    pairs = [(trunk, "conv1", "bn1")]
    for block in trunk.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            pairs += [(block, f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"bn{i}")]
            pairs += [(block.downsample, "0", "1")] if block.downsample is not None else []
    folded = [pair for pair in pairs if isinstance(getattr(pair[0], pair[2]), FrozenBatchNorm2d)]
    for parent, conv, norm in folded:
        _fold(getattr(parent, conv), *_affine(getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())
    return len(folded)


def _affine(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _fold(conv: nn.Module, scale: Tensor, shift: Tensor) -> None:
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(shift.clone(), requires_grad=False)
