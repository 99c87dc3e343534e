"""The trunk: a torchvision ResNet, also a deformable one, with a feature pyramid."""

from functools import partial

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from configs.schema import Model
from pipeline.network.deformable import DeformableConv
from shards.errors import BadInput

GROUPS = 16
DEFORMABLE = "_dcn"


def build_backbone(config: Model) -> BackboneWithFPN:
    """Return the trunk: images [N, 3, H, W] to {"0": P2, "1": P3, "2": P4, "3": P5, "pool": P6}.

    Strides are 4, 8, 16, 32 and 64, every map has `config.fpn_channels` channels. Parameter names
    are torchvision's, so that its checkpoints load as they are.

    Raises:
        BadInput: `stride_in_1x1` with a trunk whose blocks have no 1x1 convolution.
    """
    trunk = getattr(resnet, config.backbone.removesuffix(DEFORMABLE))(weights=None, norm_layer=_norm(config))
    if config.stride_in_1x1:
        _move_strides(trunk, config.backbone)
    if config.backbone.endswith(DEFORMABLE):
        _deform(trunk)
    _freeze(trunk, config.trainable_layers)
    channels = [trunk.inplanes // 8 * 2**i for i in range(4)]
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(trunk, layers, channels, config.fpn_channels, LastLevelMaxPool())


def _norm(config: Model):
    if config.norm == "group":
        return partial(nn.GroupNorm, GROUPS)
    return partial(FrozenBatchNorm2d, eps=config.norm_eps)


def _move_strides(trunk: nn.Module, name: str) -> None:
    # The original ResNets (Caffe2, maskrcnn-benchmark) halve in the 1x1, torchvision's in the 3x3.
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        block = layer[0]
        if not hasattr(block, "conv3"):
            raise BadInput(f"model.stride_in_1x1: {name} has no 1x1 convolutions to stride; set it to false")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _deform(trunk: nn.Module) -> None:
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        for block in layer:
            block.conv2 = DeformableConv(block.conv2)


def _freeze(trunk: nn.Module, trainable_layers: int) -> None:
    trained = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    if trainable_layers == 5:
        trained.append("bn1")
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained)) if trained else False)
