"""Deformable 3x3 convolutions: every output pixel chooses where its nine samples are read."""

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

# A pair (dy, dx) for each of the nine samples.
OFFSETS = 18


class DeformableConv(DeformConv2d):
    """A convolution without bias whose offsets are computed from its own input; version 1, one group.

    `weight` keeps the name and the shape of the convolution it stands for, so that its trained weights fit.
    `offset` starts at zero: an ordinary convolution.

    Source: "Deformable Convolutional Networks", section 2.1.
    """

    def __init__(self, like: nn.Conv2d):
        super().__init__(
            like.in_channels, like.out_channels, 3, like.stride, like.padding, like.dilation, bias=False
        )
        self.offset = nn.Conv2d(like.in_channels, OFFSETS, 3, like.stride, like.padding, like.dilation)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        with torch.no_grad():
            self.weight.copy_(like.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C', H', W'] of [N, C, H, W]; in float32 at least, whatever autocast says.

        The operator knows no bfloat16, and places a fraction of a pixel apart need more than 8 bits.
        """
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            found = deform_conv2d(
                wide, self.offset(wide), self.weight, self.bias, self.stride, self.padding, self.dilation
            )
        return found.to(x.dtype)
