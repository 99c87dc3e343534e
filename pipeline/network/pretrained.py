"""Starting weights: our own files, torchvision's Mask R-CNN, or an ImageNet trunk."""

import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.network.weights import fill, load_weights
from shards.errors import BadInput

# What the unpickler stumbles over in a file that is no pickle.
_DAMAGED = (ValueError, LookupError, AttributeError, TypeError, struct.error)
CLASSES = "roi_heads.box_predictor.cls_score.weight"


def load_pretrained(
    model: nn.Module, path: str | Path, categories: list[dict[str, Any]] | None = None
) -> str:
    """Load weights into a model of `build_model`, told apart by content; return one line for the log.

    A safetensors file of a run, or a PyTorch file holding a torchvision Mask R-CNN state dict (whole,
    every name matched) or that of a torchvision ResNet (into the trunk; its classifier is left out).
    Half precision is widened. The refining module of an MR R-CNN may be absent and is left alone.

    Args:
        model: a model of `build_model`.
        path: the file.
        categories: for weights that are used as they are, the data set's categories: a trunk alone is
            then refused, and so is a run's file that was trained on other categories.

    Raises:
        BadInput: anything else, or weights of another model; key and remedy are named.
    """
    if _is_safetensors(path):
        tensors, meta = load_weights(path)
        name = "MR R-CNN" if meta["refine"] else "Mask R-CNN"
    else:
        tensors, name, meta = _load_torch(path), "torchvision Mask R-CNN", None
    if "layer1.0.conv1.weight" in tensors:
        if categories is not None:
            raise BadInput(
                f"{path}: holds a trunk without heads, which is no trained Mask R-CNN; "
                "set train.baseline.iters above 0, or model.weights to a whole Mask R-CNN"
            )
        return _fill_trunk(model, tensors, path)
    if CLASSES not in tensors:
        key = next(iter(tensors), "nothing")
        raise BadInput(
            f"{path}: holds {key}, which is neither a torchvision Mask R-CNN nor a torchvision ResNet; "
            "set model.weights to one of these"
        )
    _check_classes(model, tensors, path)
    if categories is not None and meta:
        _check_categories(meta["categories"], categories, path)
    fill(model, tensors, str(path), may_lack="refine.")
    return f"{path}: {name}, {len(tensors)} tensors"


def _fill_trunk(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> str:
    trunk = {k: v for k, v in tensors.items() if not k.startswith("fc.")}
    if model.config.norm != "frozen_bn":
        raise BadInput(
            f"{path}: bn1.running_mean has no place in a trunk with model.norm={model.config.norm}; "
            "an ImageNet trunk needs model.norm=frozen_bn"
        )
    fill(model.backbone.body, trunk, str(path))
    return f"{path}: ImageNet trunk, {len(trunk)} tensors"


def _check_categories(learnt: list[dict[str, Any]], wanted: list[dict[str, Any]], path: str | Path) -> None:
    for ours, theirs in zip(learnt, wanted, strict=True):
        if (ours["id"], ours["name"]) != (theirs["id"], theirs["name"]):
            raise BadInput(
                f"{path}: has learnt category {ours['id']} {ours['name']!r} where data.train has "
                f"{theirs['id']} {theirs['name']!r}; give weights of the same categories, or train them on "
                "with train.baseline.iters above 0"
            )


def _check_classes(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    found = len(tensors[CLASSES])
    if found != model.num_classes:
        raise BadInput(
            f"{path}: {CLASSES} has {found} classes with background, the data have {model.num_classes}; "
            "take weights trained on the same categories, or only an ImageNet trunk"
        )


def _is_safetensors(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            # A length of 8 bytes, then the JSON header.
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); correct model.weights") from None


def _load_torch(path: str | Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, *_DAMAGED) as error:
        # torch's own words for an unpickling error advise to switch the safety off.
        told = str(error) and not isinstance(error, pickle.UnpicklingError)
        reason = str(error).splitlines()[0] if told else type(error).__name__
        raise BadInput(
            f"{path}: is neither safetensors nor a PyTorch file of tensors alone ({reason}); "
            "save model.state_dict() with torch.save and give that file"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadInput(
            f"{path}: holds no state dict (names with tensors); save model.state_dict() and give that file"
        )
    return content
