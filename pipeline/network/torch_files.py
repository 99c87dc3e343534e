"""PyTorch files opened without running anything that is in them."""

import errno
import pickle
import struct
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import BadInput
from shards.storage.files import LOST

# What the unpickler stumbles over in a file that is no pickle.
DAMAGED = (
    zipfile.BadZipFile,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
    EOFError,
    OverflowError,
)
# A damaged file may send its reader to a place before its begin, which is an invalid argument.
NO_FILE = LOST | {errno.EINVAL}

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
NUMBERS |= {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def load_torch(path: str | Path) -> Any:
    """Return what torch.save wrote, on the CPU; tensors and plain values alone are admitted.

    An argparse.Namespace is one: torchvision's training script leaves its arguments beside the weights.

    Raises:
        BadInput: not such a file, a cut one, one that unpacks to more than its size, or one that holds
            anything else.
        OSError: it cannot be read just now.
    """
    try:
        _check_size(path)
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except (pickle.UnpicklingError, RuntimeError, OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno not in NO_FILE:
            raise
        # torch's own words for an unpickling error advise to switch the safety off.
        told = str(error) and not isinstance(error, pickle.UnpicklingError)
        reason = str(error).splitlines()[0] if told else type(error).__name__
        raise BadInput(
            f"{path}: is neither safetensors nor a PyTorch file of tensors alone ({reason}); "
            "save model.state_dict() with torch.save and give that file"
        ) from None


def _check_size(path: str | Path) -> None:
    # torch.save compresses nothing; torch.load unpacks whatever a small file blows up to.
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        held = sum(member.file_size for member in archive.infolist())
    if held > Path(path).stat().st_size:
        raise BadInput(
            f"{path}: unpacks to {held} bytes, more than its size, which torch.save never writes; "
            "fetch the file again, or save model.state_dict() with torch.save"
        )


def unwrapped(content: Any) -> Any:
    """Return what a file holds under `model`, or all of it."""
    wrapped = isinstance(content, dict) and isinstance(content.get("model"), dict)
    return content["model"] if wrapped else content


def state_dict_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return names with plain tensors, which no file that is not as large makes large.

    Raises:
        BadInput: it is something else; the first tensor that is not plain is named.
    """
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(
            f"{path}: holds no state dict (names with tensors); save model.state_dict() and give that file"
        )
    for name, tensor in content.items():
        if tensor.layout is not torch.strided or tensor.dtype not in NUMBERS or tensor.is_meta:
            raise BadInput(
                f"{path}: {name} is no dense tensor of floating-point numbers or integers ({tensor.dtype}); "
                "save model.state_dict() of the plain model and give that file"
            )
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise BadInput(
                f"{path}: {name} repeats its numbers, {list(tensor.shape)} out of fewer; "
                "save its clone() and give that file"
            )
    return content
