"""New class layers, for fine-tuning on other categories."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.importing.categories import Category
from pipeline.importing.convert import Imported
from pipeline.importing.source import CLASS_LAYERS, DELTAS

SEED = 0


def with_fresh_classes(found: Imported, categories: list[Category]) -> Imported:
    """Return an import whose class layers are initialised anew, the same every time, for other categories."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = dict(found.tensors)
    for name in CLASS_LAYERS:
        rows = (len(categories) + 1) * (4 if name in DELTAS else 1)
        tensors[name] = _fresh(name, (rows, *tensors[name].shape[1:]), generator)
    return replace(found, tensors=tensors, categories=categories, fresh=list(CLASS_LAYERS))


def _fresh(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    tensor = torch.zeros(shape)
    if name.endswith("bias"):
        return tensor
    if "mask" in name:
        return nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
    # The widths that Fast R-CNN starts its two layers with.
    return nn.init.normal_(tensor, std=0.01 if "cls_score" in name else 0.001, generator=generator)
