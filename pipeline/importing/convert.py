"""From a checkpoint of another program to a weights file of ours: every tensor once, nothing unsaid."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Model, Sara, Test
from pipeline.importing.architecture import read_classes, read_sizes
from pipeline.importing.categories import Category, numbered_categories
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.files import Checkpoint, read_checkpoint
from pipeline.importing.maskrcnn_benchmark_source import MASKRCNN_BENCHMARK
from pipeline.importing.source import CLASS_LAYERS, Source, to_ours
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.model import build_model
from pipeline.network.anchors import cell_anchors
from pipeline.network.boxes import last_pixels
from pipeline.network.weights import save_weights
from shards.errors import BadInput

SOURCES = (DETECTRON2, MASKRCNN_BENCHMARK, TORCHVISION)
CELL_ANCHORS = re.compile(r"anchor_generator\.cell_anchors\.(\d)$")
ANCHOR_TOLERANCE = 1e-3
OFFSET_PARTS = (".conv2.offset.", ".conv2_offset.")
REINIT_SEED = 0


@dataclass(frozen=True)
class Imported:
    """What an import read and wrote.

    Attributes:
        source: the program; checkpoint: its file.
        model: architecture and profile.
        taken: our name -> (the source's name, its shape).
        left: the source's name -> why it was not read.
        tensors: ours, by name.
        categories: of label 1, 2, ...
        fresh: names of the class layers that were initialised anew.
    """

    source: Source
    checkpoint: Checkpoint
    model: Model
    taken: dict[str, tuple[str, list[int]]]
    left: dict[str, str]
    tensors: dict[str, Tensor]
    categories: list[Category]
    fresh: list[str]


@dataclass(frozen=True)
class Lookup:
    """Finds a checkpoint's tensor by our name of it."""

    checkpoint: Checkpoint
    source: Source

    def __call__(self, ours: str) -> tuple[str, Tensor] | None:
        """Return (the source's name, tensor), or None."""
        for name in self.names(ours):
            if name in self.checkpoint.tensors:
                return name, self.checkpoint.tensors[name]
        return None

    def names(self, ours: str) -> list[str]:
        """Return what the source calls our tensor: now, and formerly."""
        return self.source.names(ours, self._deformable)

    @cached_property
    def _deformable(self) -> bool:
        return any(part in name for name in self.checkpoint.tensors for part in OFFSET_PARTS)


def import_weights(
    path: str | Path,
    out: str | Path,
    categories: list[Category] | None = None,
    num_classes: int | None = None,
    keep_classes: bool = False,
    adjust: Callable[[Model], Model] | None = None,
) -> Imported:
    """Read a torchvision, detectron2 or maskrcnn-benchmark Mask R-CNN and write it as a weights file.

    Args:
        path: .pth or .pkl; told apart by content.
        out: the .safetensors file to write.
        categories: of one's own data: the class layers are initialised anew for them.
        num_classes: as `categories`, for that many without names; background is not counted.
        keep_classes: the class layers are of `categories`, in this order, and are kept.
        adjust: from the model that was found to the one that is meant, for checkpoints of a changed setup.

    Raises:
        BadInput: no such checkpoint; one of another architecture or number of classes; a key too few, too
            many, or of another shape. The key is named, and nothing is written.
    """
    checkpoint = read_checkpoint(path)
    source = recognise(checkpoint)
    found = convert(checkpoint, source, categories if keep_classes else None, adjust)
    if num_classes is not None:
        found = with_fresh_classes(found, numbered_categories(num_classes))
    elif categories is not None and not keep_classes:
        found = with_fresh_classes(found, categories)
    elif not found.categories:
        raise _unknown_classes(found)
    save_weights(out, found.tensors, describe(found))
    return found


def recognise(checkpoint: Checkpoint) -> Source:
    """Return the program that a checkpoint is of, by its names."""
    for source in SOURCES:
        if source.mark in checkpoint.tensors:
            return source
    first = next(iter(checkpoint.tensors), "nothing")
    marks = ", ".join(f"{source.mark} ({source.name})" for source in SOURCES)
    raise BadInput(
        f"{checkpoint.path}: holds {first} and {max(0, len(checkpoint.tensors) - 1)} more, but none of "
        f"{marks}; give a Mask R-CNN of one of these (an ImageNet trunk is used as model.weights as it is)"
    )


def convert(
    checkpoint: Checkpoint,
    source: Source,
    categories: list[Category] | None = None,
    adjust: Callable[[Model], Model] | None = None,
) -> Imported:
    """Return a checkpoint under our names; `categories` is empty if the class rows are of unknown meaning."""
    find = Lookup(checkpoint, source)
    sizes = read_sizes(find, str(checkpoint.path))
    model = source.describe(checkpoint.tensors, sizes)
    model = model if adjust is None else adjust(model)
    classes = read_classes(find, str(checkpoint.path))
    known = categories or (source.coco if classes == len(source.coco) + 1 else [])
    if categories and len(categories) != classes - 1:
        raise BadInput(
            f"{checkpoint.path}: {find(CLASS_LAYERS[0])[0]} has {classes} classes with background, "
            f"--categories names {len(categories)}; give as many, or leave out --keep-classes"
        )
    taken, tensors, read = {}, {}, set()
    for name, target in _targets(model, classes).items():
        theirs, tensor = _one(find, name)
        taken[name] = theirs, list(tensor.shape)
        tensors[name] = _fitting(to_ours(name, tensor, source, model.profile), target, theirs, checkpoint)
        read.add(theirs)
    assert len(read) == len(taken), "two of our tensors have one source: a rule is wrong"
    left = _left(checkpoint, source, read)
    _check_anchors(checkpoint, model)
    return Imported(source, checkpoint, model, taken, left, tensors, known, [])


def with_fresh_classes(found: Imported, categories: list[Category]) -> Imported:
    """Return an import whose class layers are initialised anew, the same every time, for other categories."""
    generator = torch.Generator().manual_seed(REINIT_SEED)
    tensors = dict(found.tensors)
    for name, target in _targets(found.model, len(categories) + 1).items():
        if name in CLASS_LAYERS:
            tensors[name] = _fresh(name, target.shape, generator)
    return replace(found, tensors=tensors, categories=categories, fresh=list(CLASS_LAYERS))


def describe(found: Imported) -> dict[str, Any]:
    """Return what the weights file says of itself."""
    origin = {"name": found.source.name, "file_sha256": found.checkpoint.sha256, "fresh": found.fresh}
    return {
        "format": 1,
        "model": found.model.model_dump(mode="json", exclude={"weights"}),
        "sara": Sara().model_dump(mode="json"),
        "refine": None,
        "categories": found.categories,
        "source": origin,
    }


def _targets(model: Model, classes: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_model(model, classes, None, Sara(), Test()).state_dict()


def _one(find: "Lookup", ours: str) -> tuple[str, Tensor]:
    found = find(ours)
    if found is None:
        raise BadInput(
            f"{find.checkpoint.path}: lacks {find.names(ours)[0]}; the file is cut or of another "
            "architecture: give a whole Mask R-CNN with a feature pyramid, frozen norms and two box layers"
        )
    return found


def _fitting(tensor: Tensor, target: Tensor, name: str, checkpoint: Checkpoint) -> Tensor:
    if tensor.shape != target.shape:
        raise BadInput(
            f"{checkpoint.path}: {name} makes {list(tensor.shape)} here, where {list(target.shape)} fits; "
            "the file is of another architecture or mixes numbers of classes"
        )
    tensor = tensor.to(torch.float32).contiguous()
    if not tensor.isfinite().all():
        raise BadInput(f"{checkpoint.path}: {name} is not finite; fetch the file again")
    return tensor


def _left(checkpoint: Checkpoint, source: Source, taken: set[str]) -> dict[str, str]:
    left = {}
    for name in checkpoint.tensors:
        if name in taken:
            continue
        reasons = [reason for pattern, reason in source.left if re.search(pattern, name)]
        if not reasons:
            raise BadInput(
                f"{checkpoint.path}: has {name}, for which this Mask R-CNN has no place; "
                "the file is of another architecture"
            )
        left[name] = reasons[0]
    return left


def _check_anchors(checkpoint: Checkpoint, model: Model) -> None:
    ours = cell_anchors(model.anchor_sizes, model.profile)
    for name, tensor in checkpoint.tensors.items():
        level = CELL_ANCHORS.search(name)
        if not level:
            continue
        place = int(level[1])
        expected = last_pixels(ours[place], model.profile.legacy_boxes) if place < len(ours) else None
        if (
            expected is None
            or tensor.shape != expected.shape
            or (tensor.float() - expected).abs().max() > ANCHOR_TOLERANCE
        ):
            raise BadInput(
                f"{checkpoint.path}: {name} is not the anchors of sizes {list(model.anchor_sizes)}; "
                "say which they are with --set model.anchor_sizes=[...]"
            )


def _fresh(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    tensor = torch.zeros(shape)
    if name.endswith("bias"):
        return tensor
    if "mask" in name:
        return nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
    # The widths that Fast R-CNN starts its two layers with.
    return nn.init.normal_(tensor, std=0.01 if "cls_score" in name else 0.001, generator=generator)


def _unknown_classes(found: Imported) -> BadInput:
    name, shape = found.taken[CLASS_LAYERS[0]]
    return BadInput(
        f"{found.checkpoint.path}: {name} has {shape[0]} classes with background, COCO models of "
        f"{found.source.name} have {len(found.source.coco) + 1}; name them in their order with "
        "--categories FILE --keep-classes, or start new ones with --categories FILE or --num-classes N"
    )
