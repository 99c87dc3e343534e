"""From a checkpoint file of another program to a weights file of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import Model, Sara
from pipeline.importing.categories import Category, numbered_categories
from pipeline.importing.class_layers import with_fresh_classes
from pipeline.importing.convert import Imported, convert, recognise
from pipeline.importing.files import read_checkpoint
from pipeline.importing.source import SCORES
from pipeline.network.weights import save_weights
from shards.errors import BadInput


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
    save_weights(out, found.tensors, _description(found))
    return found


def _description(found: Imported) -> dict[str, Any]:
    origin = {"name": found.source.name, "file_sha256": found.checkpoint.sha256, "fresh": found.fresh}
    return {
        "format": 1,
        "model": found.model.model_dump(mode="json", exclude={"weights"}),
        "sara": Sara().model_dump(mode="json"),
        "refine": None,
        "categories": found.categories,
        "source": origin,
    }


def _unknown_classes(found: Imported) -> BadInput:
    name, shape = found.taken[SCORES[0]]
    return BadInput(
        f"{found.checkpoint.path}: {name} has {shape[0]} classes with background, COCO models of "
        f"{found.source.name} have {len(found.source.coco) + 1}; name them in their order with "
        "--categories FILE --keep-classes, or start new ones with --categories FILE or --num-classes N"
    )
