"""Which Mask R-CNN a checkpoint is of, read from the shapes of its tensors."""

from typing import Protocol

from torch import Tensor

from configs.schema import Model
from shards.errors import BadInput

DEPTHS = {6: "resnet50", 23: "resnet101"}
PLAIN_WIDTH, GROUPED_WIDTH = (64, 64, 3, 3), (256, 8, 3, 3)
OFFSET = "backbone.body.layer2.0.conv2.offset.weight"
OFFSET_CHANNELS = 18


class Lookup(Protocol):
    """Finds a checkpoint's tensor by our name of it."""

    def __call__(self, ours: str) -> tuple[str, Tensor] | None:
        """Return (the source's name, tensor), or None."""

    def names(self, ours: str) -> list[str]:
        """Return what the source calls our tensor."""


def read_sizes(find: Lookup, path: str) -> Model:
    """Return trunk and widths of a checkpoint; what its program decides is not set.

    Args:
        find: gives (the source's name, tensor) of one of our names, or None.
        path: for messages.

    Raises:
        BadInput: a tensor that tells is missing or has the shape of another architecture; it is named.
    """

    def width(ours: str, axis: int = 0) -> int:
        return _present(find, ours, path)[1].shape[axis]

    return Model(
        backbone=_backbone(find, path),
        fpn_channels=width("backbone.fpn.inner_blocks.0.0.weight"),
        box_head_dim=width("roi_heads.box_head.fc6.weight"),
        mask_head_channels=width("roi_heads.mask_head.0.0.weight"),
    )


def read_classes(find: Lookup, path: str) -> int:
    """Return the number of classes with background, of the score layer."""
    return len(_present(find, "roi_heads.box_predictor.cls_score.weight", path)[1])


def _backbone(find: Lookup, path: str) -> str:
    blocks = 0
    while find(f"backbone.body.layer3.{blocks}.conv1.weight"):
        blocks += 1
    name, first = _present(find, "backbone.body.layer3.0.conv1.weight", path)
    if blocks not in DEPTHS:
        raise _other(path, name, f"is one of {blocks} blocks of that stage, where a ResNet has 6 or 23")
    name, first = _present(find, "backbone.body.layer1.0.conv2.weight", path)
    offsets = find(OFFSET)
    if tuple(first.shape) == GROUPED_WIDTH and blocks == 23 and not offsets:
        return "resnext101_32x8d"
    if tuple(first.shape) != PLAIN_WIDTH:
        raise _other(path, name, f"is {list(first.shape)}, which is no ResNet and no ResNeXt-101-32x8d")
    if offsets and len(offsets[1]) != OFFSET_CHANNELS:
        raise _other(
            path, offsets[0], f"has {len(offsets[1])} channels: modulated or grouped deformable convolutions"
        )
    return DEPTHS[blocks] + ("_dcn" if offsets else "")


def _present(find: Lookup, ours: str, path: str) -> tuple[str, Tensor]:
    found = find(ours)
    if found is None or not found[1].dim():
        raise BadInput(
            f"{path}: lacks {find.names(ours)[0]}; "
            "give a whole Mask R-CNN with a feature pyramid, and fetch the file again if it is one"
        )
    return found


def _other(path: str, name: str, what: str) -> BadInput:
    return BadInput(
        f"{path}: {name} {what}; "
        "importable are ResNet-50, ResNet-101 (both also deformable) and ResNeXt-101-32x8d with FPN"
    )
