"""The models by name: built from a config, or loaded from a weights file."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from configs.schema import Model, Refine, Sara, Test
from pipeline.network.folding import fold_frozen_norms
from pipeline.network.maskrcnn import MaskRCNN
from pipeline.network.mrrcnn import MRRCNN
from pipeline.network.weights import fill, load_weights
from shards.errors import BadInput


def build_model(
    config: Model, num_classes: int, refine: Refine | None, sara: Sara, test: Test
) -> MaskRCNN | MRRCNN:
    """Return Mask R-CNN, or with `refine` Mask Refining R-CNN, with random weights.

    Args:
        config: sizes, trunk, anchors; `config.weights` is not read here.
        num_classes: K + 1, background included.
        refine: None for the plain model.
        sara: read with `refine` only.
        test: inference settings, also replaceable later as `model.test`.
    """
    if refine is None:
        return MaskRCNN(config, num_classes, test)
    return MRRCNN(config, num_classes, refine, sara, test)


def load_model(
    path: str | Path,
    score_threshold: float | None = None,
    detections_per_image: int | None = None,
    test: Test | None = None,
) -> nn.Module:
    """Return the model of a weights file, in eval mode, on the CPU.

    Called with a list of uint8 RGB tensors [3, H, W] of any sizes, it returns a list of
    {"boxes" [D, 4] xyxy in the image's own pixels, "labels" [D] category ids as in the training data,
    "scores" [D], "masks" [D, H, W] bool}. `model.categories` lists {"id", "name"}, `model.meta` all
    that the file says. Frozen norms are folded into their convolutions: for inference alone.

    Args:
        path: a safetensors file written by this project; nothing else is needed.
        score_threshold: overrides `test.score`.
        detections_per_image: overrides `test.topk`.
        test: inference settings; by default those of `configs.schema.Test`, with masks pasted as the program
            does that the weights come from. A weights file has no other settings.

    Raises:
        BadInput: the file cannot be read, is not one of ours, or does not hold what it says.
    """
    tensors, meta = load_weights(path)
    test = test or own_settings(meta)
    changes = {"score": score_threshold, "topk": detections_per_image}
    test = Test(**{**test.model_dump(), **{k: v for k, v in changes.items() if v is not None}})
    try:
        refine = None if meta["refine"] is None else Refine(**meta["refine"])
        config, sara = Model(**meta["model"]), Sara(**meta["sara"])
    except (ValidationError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: describes a model that this version does not know ({reason})") from None
    model = build_model(config, len(meta["categories"]) + 1, refine, sara, test)
    fill(model, tensors, str(path))
    fold_frozen_norms(model.backbone.body)
    model.categories, model.meta = meta["categories"], meta
    model.category_ids = [c["id"] for c in meta["categories"]]
    return model.eval()


def own_settings(meta: dict[str, Any]) -> Test:
    """Return the inference settings that a weights file is meant for: the default, but its source's paste."""
    paste = meta.get("model", {}).get("profile", {}).get("paste")
    return Test() if paste is None else Test(paste=paste)
