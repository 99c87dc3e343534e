"""What the importer has to know of a program, as data: names, order of classes, profile."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.importing.categories import Category

Rules = tuple[tuple[str, str], ...]

STEM = "backbone.body.conv1.weight"
SCORES = tuple(f"roi_heads.box_predictor.cls_score.{kind}" for kind in ("weight", "bias"))
DELTAS = tuple(f"roi_heads.box_predictor.bbox_pred.{kind}" for kind in ("weight", "bias"))
MASKS = tuple(f"roi_heads.mask_predictor.mask_fcn_logits.{kind}" for kind in ("weight", "bias"))
CLASS_LAYERS = (*SCORES, *DELTAS, *MASKS)


@dataclass(frozen=True)
class Source:
    """A program whose checkpoints can be read and written.

    Attributes:
        name: as in its profile.
        mark: a name that only this program's checkpoints have.
        rules: (pattern, replacement) that turn our names, which are torchvision's, into its names.
        older_rules: further ones for names that it had once.
        deformable_rules: further ones for a deformable trunk.
        left: (pattern, reason) of names that are deliberately not read.
        coco: the categories of class row 1, 2, ... of its COCO models.
        background_last: the class scores end with the background, and it has neither box nor mask.
        statistics: tensors that are the profile's keys of the same name, in the order of its colours.
        offset: what only a deformable trunk's names have in them.
        profile: of the zoo's configuration files.
        describe: from the tensors and the model's sizes to the model with its profile.
    """

    name: str
    mark: str
    rules: Rules
    left: Rules
    coco: list[Category]
    background_last: bool
    profile: SourceProfile
    describe: Callable[[dict[str, Tensor], Model], Model]
    older_rules: Rules = ()
    deformable_rules: Rules = ()
    statistics: tuple[str, ...] = ()
    offset: str = ".conv2.offset."

    def names(self, ours: str, deformable: bool) -> list[str]:
        """Return what this program calls our tensor: now, and formerly."""
        rules = self.rules + (self.deformable_rules if deformable else ())
        present = _renamed(ours, rules)
        return list(dict.fromkeys((present, _renamed(present, self.older_rules))))


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def shifted(pattern: str, replacement: str, numbers: range, by: int) -> Rules:
    """Return a rule for each number: {n} in the pattern is the number, in the replacement `by` more."""
    return tuple((pattern.replace("{n}", str(n)), replacement.replace("{n}", str(n + by))) for n in numbers)


def to_ours(name: str, tensor: Tensor, source: Source, profile: SourceProfile) -> Tensor:
    """Return a source's tensor as ours: colours as RGB, background first, with zeros where it has none."""
    if name == STEM and profile.channels == "bgr":
        return tensor.flip(1)
    if not source.background_last:
        return tensor
    if name in SCORES:
        return torch.cat([tensor[-1:], tensor[:-1]])
    if name in DELTAS + MASKS:
        rows = 4 if name in DELTAS else 1
        return torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])
    return tensor


def to_theirs(name: str, tensor: Tensor, source: Source, profile: SourceProfile) -> Tensor:
    """Return our tensor as a source's; `to_ours` undoes it, but for what the source has no place for."""
    if name == STEM and profile.channels == "bgr":
        return tensor.flip(1)
    if not source.background_last:
        return tensor
    if name in SCORES:
        return torch.cat([tensor[1:], tensor[:1]])
    if name in DELTAS + MASKS:
        return tensor[4 if name in DELTAS else 1 :]
    return tensor
