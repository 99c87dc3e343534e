"""Checkpoint files of any source: opened safely, as names with tensors."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.importing.unpickle import Stored, load_arrays
from pipeline.network.torch_files import load_torch, state_dict_of, unwrapped
from shards.errors import BadInput
from shards.storage.files import sha256_of

ZIP = b"PK\x03\x04"
# The number that torch.save began with before its files were zip archives.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLE = b"\x80"
SAFETENSORS_AT = slice(8, 9)
PARALLEL = "module."


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by their own names, what else it holds, and its sha256."""

    path: Path
    tensors: dict[str, Tensor]
    others: list[str]
    sha256: str


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return a checkpoint; a pickle (.pkl) or a file of torch.save (.pth) by its first bytes.

    The names may stand under `model`, and all of them after `module.`, as data-parallel training
    writes them.

    Raises:
        BadInput: missing, cut, damaged, unsafe, or no names with dense tensors of numbers.
    """
    path = Path(path)
    content = _load(path)
    state = unwrapped(content)
    others = [] if state is content else [str(key) for key in content if key != "model"]
    tensors = state_dict_of(_as_tensors(state), path)
    if tensors and all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, tensors, others, sha256_of(path))


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from None
    if start.startswith((ZIP, LEGACY)):
        return load_torch(path)
    if start.startswith(PICKLE):
        return load_arrays(path)
    if start[SAFETENSORS_AT] == b"{":
        raise BadInput(f"{path}: is safetensors already; use it as model.weights, or give a .pkl or .pth")
    raise BadInput(f"{path}: is neither a pickle nor a file of torch.save; fetch the checkpoint again")


def _as_tensors(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return {name: _as_tensor(value) for name, value in state.items()}


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, Stored):
        return value
    with warnings.catch_warnings():
        # Nothing writes to it; a copy for every name would let a small file take all memory.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(value.content)
