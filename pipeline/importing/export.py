"""Back from a weights file of ours to the names of torchvision or detectron2."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import Model
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.source import Source, to_theirs
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.network.weights import load_weights
from shards.errors import BadInput
from shards.storage.files import write_atomic

TARGETS = {"torchvision": TORCHVISION, "detectron2": DETECTRON2}
SUFFIXES = {"torchvision": (".pth",), "detectron2": (".pth", ".pkl")}
REFINING = "refine."


def export_weights(path: str | Path, target: str, out: str | Path) -> Model:
    """Write a weights file's Mask R-CNN for another program and return its model, whose rules that one needs.

    torchvision: a state dict for `load_state_dict` (.pth). detectron2: its own format (.pkl), or {"model":
    state dict} (.pth). Values are copied bit for bit; colours and classes take the target's order.

    Raises:
        BadInput: no weights file of ours, a refining module in it, norms that are not frozen, or a suffix
            that the target does not read.
    """
    tensors, meta = load_weights(path)
    model, source, out = Model(**meta["model"]), TARGETS[target], Path(out)
    _check(tensors, model, path, target, out)
    deformable = model.backbone.endswith("_dcn")
    theirs = {
        source.names(name, deformable)[0]: _exported(name, tensor, source, model)
        for name, tensor in tensors.items()
    }
    write_atomic(out, _pickled(theirs) if out.suffix == ".pkl" else _saved(theirs, target))
    return model


def _check(tensors: dict[str, Tensor], model: Model, path: str | Path, target: str, out: Path) -> None:
    refining = next((name for name in tensors if name.startswith(REFINING)), None)
    if refining:
        raise BadInput(
            f"{path}: holds {refining}, for which {target} has no place; export the run's baseline or control"
        )
    if model.norm != "frozen_bn":
        raise BadInput(f"{path}: model.norm={model.norm}, but {target}'s model has frozen batch norms")
    if out.suffix not in SUFFIXES[target]:
        raise BadInput(f"--out {out}: {target} reads {' or '.join(SUFFIXES[target])}; give it that ending")


def _exported(name: str, tensor: Tensor, source: Source, model: Model) -> Tensor:
    # torchvision always gives its trunk RGB.
    keeps = source is TORCHVISION
    profile = model.profile.model_copy(update={"channels": "rgb"}) if keeps else model.profile
    return to_theirs(name, tensor, source, profile).contiguous()


def _saved(theirs: dict[str, Tensor], target: str) -> bytes:
    buffer = BytesIO()
    content: Any = theirs if target == "torchvision" else {"model": theirs}
    torch.save(content, buffer)
    return buffer.getvalue()


def _pickled(theirs: dict[str, Tensor]) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in theirs.items()}
    # The author's name tells detectron2 that the names are its own.
    return pickle.dumps({"model": arrays, "__author__": "mrrcnn"}, protocol=4)
