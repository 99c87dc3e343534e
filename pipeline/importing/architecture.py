"""Which Mask R-CNN a checkpoint is of, read from the shapes of its tensors."""

from configs.schema import Model
from pipeline.importing.lookup import Lookup
from pipeline.importing.source import SCORES
from pipeline.network.deformable import OFFSETS
from shards.errors import BadInput

DEPTHS = {6: "resnet50", 23: "resnet101"}
PLAIN_WIDTH, GROUPED_WIDTH = (64, 64, 3, 3), (256, 8, 3, 3)
OFFSET = "backbone.body.layer2.0.conv2.offset.weight"


def read_sizes(find: Lookup) -> Model:
    """Return trunk and widths of a checkpoint; what its program decides is not set.

    Raises:
        BadInput: a tensor that tells is missing or has the shape of another architecture; it is named.
    """

    def width(ours: str) -> int:
        return len(find.read(ours)[1])

    return Model(
        backbone=_backbone(find),
        fpn_channels=width("backbone.fpn.inner_blocks.0.0.weight"),
        box_head_dim=width("roi_heads.box_head.fc6.weight"),
        mask_head_channels=width("roi_heads.mask_head.0.0.weight"),
    )


def read_classes(find: Lookup) -> int:
    """Return the number of classes with background, of the score layer.

    Raises:
        BadInput: there is no such layer.
    """
    return len(find.read(SCORES[0])[1])


def _backbone(find: Lookup) -> str:
    blocks = 0
    while find(f"backbone.body.layer3.{blocks}.conv1.weight"):
        blocks += 1
    name, _ = find.read("backbone.body.layer3.0.conv1.weight")
    if blocks not in DEPTHS:
        raise _other(find, name, f"is one of {blocks} blocks of that stage, where a ResNet has 6 or 23")
    name, first = find.read("backbone.body.layer1.0.conv2.weight")
    deformable = find(OFFSET) is not None
    if tuple(first.shape) == GROUPED_WIDTH and blocks == 23 and not deformable:
        return "resnext101_32x8d"
    if tuple(first.shape) != PLAIN_WIDTH:
        raise _other(find, name, f"is {list(first.shape)}, which is no ResNet and no ResNeXt-101-32x8d")
    if not deformable:
        return DEPTHS[blocks]
    name, offsets = find.read(OFFSET)
    if len(offsets) != OFFSETS:
        raise _other(find, name, f"has {len(offsets)} channels: modulated or grouped deformable convolutions")
    return DEPTHS[blocks] + "_dcn"


def _other(find: Lookup, name: str, what: str) -> BadInput:
    return BadInput(
        f"{find.checkpoint.path}: {name} {what}; "
        "importable are ResNet-50, ResNet-101 (both also deformable) and ResNeXt-101-32x8d with FPN"
    )
