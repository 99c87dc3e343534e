"""The box and mask heads of both stages, out of torchvision's parts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from configs.schema import Model, Refine

BOX_SIZE = 7
HIDDEN_SIZE = 14


class Heads(nn.Module):
    """A box head and a mask head; parameter names are those of torchvision's `roi_heads`."""

    def __init__(self, config: Model, num_classes: int):
        super().__init__()
        channels, mask_channels = config.fpn_channels, config.mask_head_channels
        self.box_head = TwoMLPHead(channels * BOX_SIZE**2, config.box_head_dim)
        self.box_predictor = FastRCNNPredictor(config.box_head_dim, num_classes)
        self.mask_head = MaskRCNNHeads(channels, (mask_channels,) * 4, 1)
        self.mask_predictor = MaskRCNNPredictor(mask_channels, mask_channels, num_classes)

    def boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [n, K+1] and deltas [n, K+1, 4], float32, of features [n, C, 7, 7]."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float().unflatten(1, (logits.shape[1], 4))

    def mask_hidden(self, pooled: Tensor) -> Tensor:
        """Return the output of the four convolutions [n, M, 14, 14] on features [n, C, 14, 14]."""
        return self.mask_head(pooled)

    def mask_logits(self, hidden: Tensor, channels: Tensor) -> Tensor:
        """Return the logits [n, c, 28, 28], float32, of the classes `channels` [n, c] only.

        The last layer is a 1x1 convolution, so its rows can be gathered before the product: the same
        numbers, without K+1 maps a RoI.
        """
        up = self.mask_predictor.relu(self.mask_predictor.conv5_mask(hidden))
        last = self.mask_predictor.mask_fcn_logits
        logits = last.weight.flatten(1)[channels] @ up.flatten(2) + last.bias[channels][..., None]
        return logits.unflatten(2, up.shape[2:]).float()


class RefiningHeads(Heads):
    """The refining module's heads: those of the base, and a 1x1 convolution for its mask features.

    Source: section 3.3 of "Shape-aware Feature Extraction for Instance Segmentation".
    """

    def __init__(self, config: Model, num_classes: int, refine: Refine):
        super().__init__(config, num_classes)
        self.conv_res = nn.Conv2d(config.mask_head_channels, config.fpn_channels, 1)
        self.rectify = refine.conv_res_act == "relu"
        self.coder, self.base_coder = refine.coder, config.profile.box_coder
        _init_conv_res(self.conv_res, refine.conv_res_init)

    def residual(self, hidden: Tensor) -> Tensor:
        """Return F^- [n, C, 14, 14], which is added to the mask features, of hidden [n, M, 14, 14]."""
        residual = self.conv_res(hidden)
        return F.relu(residual) if self.rectify else residual

    @torch.no_grad()
    def copy_from(self, base: Heads, gain: float) -> None:
        """Copy every tensor that has a counterpart in the base; `conv_res` has none.

        Args:
            base: trained heads of the same sizes.
            gain: mean of the factor that shape guidance multiplies features with; fc6 is divided by
                it, so that the copied head sees inputs of the magnitude it was trained on. 1 is a copy.
        """
        source = base.state_dict()
        for name, tensor in self.state_dict().items():
            if name in source:
                tensor.copy_(source[name])
        self.box_head.fc6.weight /= gain
        # Deltas are in units of the coder: other units, same boxes.
        weight = self.conv_res.weight
        units = weight.new_tensor(self.coder) / weight.new_tensor(self.base_coder)
        regressor = self.box_predictor.bbox_pred
        regressor.weight.view(-1, 4, regressor.in_features).mul_(units[:, None])
        regressor.bias.view(-1, 4).mul_(units)


def _init_conv_res(conv: nn.Conv2d, init: str) -> None:
    nn.init.zeros_(conv.bias)
    if init == "zero":
        nn.init.zeros_(conv.weight)
    elif init == "identity":
        nn.init.dirac_(conv.weight)
    else:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
