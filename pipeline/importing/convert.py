"""A checkpoint of another program under our names: every tensor once, nothing unsaid."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model, Sara, Test
from pipeline.importing.architecture import read_classes, read_sizes
from pipeline.importing.categories import Category
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.files import Checkpoint
from pipeline.importing.lookup import Lookup
from pipeline.importing.maskrcnn_benchmark_source import MASKRCNN_BENCHMARK
from pipeline.importing.source import SCORES, Source, to_ours, to_theirs
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.model import build_model
from pipeline.network.anchors import cell_anchors
from pipeline.network.boxes import last_pixels
from shards.errors import BadInput

SOURCES = (DETECTRON2, MASKRCNN_BENCHMARK, TORCHVISION)
CELL_ANCHORS = re.compile(r"anchor_generator\.cell_anchors\.(\d)$")
ANCHOR_TOLERANCE = 1e-3


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
    """Return a checkpoint under our names; `categories` is empty if the class rows are of unknown meaning.

    Raises:
        BadInput: a key too few, too many, or of another shape, or not finite; it is named.
    """
    find = Lookup(checkpoint, source)
    model = _described(find, adjust or (lambda model: model))
    classes = read_classes(find)
    if categories and len(categories) != classes - 1:
        raise BadInput(
            f"{checkpoint.path}: {find.read(SCORES[0])[0]} has {classes} classes with background, "
            f"--categories names {len(categories)}; give as many, or leave out --keep-classes"
        )
    known = categories or (source.coco if classes == len(source.coco) + 1 else [])
    taken, tensors = {}, {}
    for name, target in _targets(model, classes).items():
        theirs, tensor = find.read(name)
        _check_shape(theirs, tensor, to_theirs(name, target, source, model.profile), checkpoint)
        taken[name] = theirs, list(tensor.shape)
        tensors[name] = _widened(to_ours(name, tensor, source, model.profile), theirs, checkpoint)
    read = {theirs for theirs, _ in taken.values()}
    if len(read) != len(taken):
        raise RuntimeError(f"two of our tensors have one source in {source.name}'s names: a rule is wrong")
    left = _left(checkpoint, source, read)
    _check_anchors(checkpoint, model)
    return Imported(source, checkpoint, model, taken, left, tensors, known, [])


def _described(find: Lookup, adjust: Callable[[Model], Model]) -> Model:
    checkpoint, source = find.checkpoint, find.source
    model = adjust(source.describe(checkpoint.tensors, read_sizes(find)))
    pixels = {}
    for key in source.statistics:
        if key in checkpoint.tensors:
            # To the seven digits that a float32 has.
            values = tuple(float(f"{value:.7g}") for value in checkpoint.tensors[key].flatten().tolist())
            pixels[key] = values if model.profile.channels == "rgb" else values[::-1]
    try:
        profile = SourceProfile(**{**model.profile.model_dump(), **pixels})
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        raise BadInput(
            f"{checkpoint.path}: {key} is {list(pixels[key])}, no value for each colour; fetch the file again"
        ) from None
    # Again, for what was said is above what the file says.
    return adjust(model.model_copy(update={"profile": profile}))


def _targets(model: Model, classes: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_model(model, classes, None, Sara(), Test()).state_dict()


def _check_shape(name: str, tensor: Tensor, expected: Tensor, checkpoint: Checkpoint) -> None:
    if tensor.shape != expected.shape:
        raise BadInput(
            f"{checkpoint.path}: {name} is {list(tensor.shape)}, where {list(expected.shape)} fits; "
            "the file is of another architecture or mixes numbers of classes"
        )


def _widened(tensor: Tensor, name: str, checkpoint: Checkpoint) -> Tensor:
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
    expected = [
        last_pixels(cells, model.profile.legacy_boxes)
        for cells in cell_anchors(model.anchor_sizes, model.profile)
    ]
    for name, tensor in checkpoint.tensors.items():
        level = CELL_ANCHORS.search(name)
        if level and not _equal_anchors(tensor, expected[int(level[1]) :][:1]):
            raise BadInput(
                f"{checkpoint.path}: {name} is not the anchors of sizes {list(model.anchor_sizes)}; "
                "say which they are with --set model.anchor_sizes=[...]"
            )


def _equal_anchors(tensor: Tensor, expected: list[Tensor]) -> bool:
    if not expected or tensor.shape != expected[0].shape:
        return False
    return bool((tensor.float() - expected[0]).abs().max() <= ANCHOR_TOLERANCE)
