"""Back from a weights file of ours to the names of torchvision or detectron2."""

import json
import pickle
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.importing.categories import Category, numbered_categories
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.source import SCORES, Source, to_theirs
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.network.weights import load_weights
from shards.errors import BadInput
from shards.storage.files import write_atomic

TARGETS = {"torchvision": TORCHVISION, "detectron2": DETECTRON2}
SUFFIXES = {"torchvision": (".pth",), "detectron2": (".pth", ".pkl")}
REFINING = "refine."


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        model: whose rules the target has to compute by; colours are as they were written, mean and std in
            the target's units.
        categories: of the class rows, in their order; the background's row is none of them.
        first_row: the row of the first of them; the background is before it, or last.
        listing: the JSON file beside the weights that lists the categories.
    """

    model: Model
    categories: list[Category]
    first_row: int
    listing: Path


def export_weights(path: str | Path, target: str, out: str | Path) -> Exported:
    """Write a weights file's Mask R-CNN for another program, and beside it what its class rows stand for.

    torchvision: a state dict for `load_state_dict` (.pth). detectron2: its own format (.pkl), or {"model":
    state dict} (.pth). Values are copied bit for bit. There are as many classes as before, in the same order;
    only the background goes where the target has it. Colours take the target's order, unless the weights
    came from the target: then they stand as they came. detectron2's files get the mean and std of the pixels.

    Raises:
        BadInput: no weights file of ours, a refining module in it, norms that are not frozen, a deformable
            trunk for torchvision, or a suffix that the target does not read.
    """
    tensors, meta = load_weights(path)
    model, source, out = Model(**meta["model"]), TARGETS[target], Path(out)
    _check(tensors, model, path, target, out)
    model = model.model_copy(update={"profile": _as_configured(model.profile, source)})
    deformable = model.backbone.endswith("_dcn")
    theirs = {
        source.names(name, deformable)[0]: to_theirs(name, tensor, source, model.profile).contiguous()
        for name, tensor in tensors.items()
    }
    theirs |= _statistics(model.profile, source)
    write_atomic(out, _pickled(theirs) if out.suffix == ".pkl" else _saved(theirs, target))
    categories = meta.get("categories") or numbered_categories(len(tensors[SCORES[0]]) - 1)
    listing = out.with_suffix(".categories.json")
    write_atomic(listing, json.dumps(categories, indent=1).encode())
    return Exported(model, categories, 0 if source.background_last else 1, listing)


def _check(tensors: dict[str, Tensor], model: Model, path: str | Path, target: str, out: Path) -> None:
    refining = next((name for name in tensors if name.startswith(REFINING)), None)
    if refining:
        raise BadInput(
            f"{path}: holds {refining}, for which {target} has no place; export the run's baseline or control"
        )
    if model.norm != "frozen_bn":
        raise BadInput(f"{path}: model.norm={model.norm}, but {target}'s model has frozen batch norms")
    if model.backbone.endswith("_dcn") and target == "torchvision":
        raise BadInput(
            f"{path}: model.backbone={model.backbone}, but torchvision has no deformable Mask R-CNN; "
            "export it with --to detectron2"
        )
    if out.suffix not in SUFFIXES[target]:
        raise BadInput(f"--out {out}: {target} reads {' or '.join(SUFFIXES[target])}; give it that ending")


def _as_configured(profile: SourceProfile, source: Source) -> SourceProfile:
    if profile.name == source.name:
        return profile
    white = source.profile.pixel_range
    pixels = {
        key: tuple(float(f"{value / profile.pixel_range * white:.7g}") for value in getattr(profile, key))
        for key in ("pixel_mean", "pixel_std")
    }
    return profile.model_copy(update={"channels": source.profile.channels, "pixel_range": white, **pixels})


def _statistics(profile: SourceProfile, source: Source) -> dict[str, Tensor]:
    turn = 1 if profile.channels == "rgb" else -1
    # As the buffers that detectron2 has of them.
    return {key: torch.tensor(getattr(profile, key)[::turn]).view(3, 1, 1) for key in source.statistics}


def _saved(theirs: dict[str, Tensor], target: str) -> bytes:
    buffer = BytesIO()
    content: Any = theirs if target == "torchvision" else {"model": theirs}
    torch.save(content, buffer)
    return buffer.getvalue()


def _pickled(theirs: dict[str, Tensor]) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in theirs.items()}
    # The author's name tells detectron2 that the names are its own.
    return pickle.dumps({"model": arrays, "__author__": "mrrcnn"}, protocol=4)
