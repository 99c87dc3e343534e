"""PyTorch files opened without running anything that is in them."""

import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import BadInput

# What the unpickler stumbles over in a file that is no pickle.
DAMAGED = (ValueError, LookupError, AttributeError, TypeError, struct.error, EOFError, OverflowError)


def load_torch(path: str | Path) -> Any:
    """Return what torch.save wrote, on the CPU; tensors and plain values alone are admitted.

    Raises:
        BadInput: not such a file, a cut one, or one that holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, *DAMAGED) as error:
        # torch's own words for an unpickling error advise to switch the safety off.
        told = str(error) and not isinstance(error, pickle.UnpicklingError)
        reason = str(error).splitlines()[0] if told else type(error).__name__
        raise BadInput(
            f"{path}: is neither safetensors nor a PyTorch file of tensors alone ({reason}); "
            "save model.state_dict() with torch.save and give that file"
        ) from None


def state_dict_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the names with tensors that a file holds, by themselves or under `model`.

    Raises:
        BadInput: it holds something else.
    """
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadInput(
            f"{path}: holds no state dict (names with tensors); save model.state_dict() and give that file"
        )
    return content
