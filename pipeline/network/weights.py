"""Weights files: safetensors with one metadata key, written atomically, the same bytes every time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shards.errors import BadInput
from shards.storage.files import LOST, flush_path, rename_durably, temporary_beside

# With several metadata keys safetensors writes them in hash order: the bytes would differ.
KEY = "mrrcnn"
FORMAT = 1


def save_weights(path: str | Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write tensors and their description; the file appears whole or not at all.

    Args:
        path: the file to write, in an existing directory.
        tensors: by name; copied to the CPU, shared storage is written twice.
        meta: JSON values; equal meta and tensors give equal bytes.
    """
    path = Path(path)
    partial = temporary_beside(path)
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        save_file({name: _plain(tensor) for name, tensor in tensors.items()}, partial, metadata={KEY: text})
        flush_path(partial)
        rename_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Return tensors (on the CPU) and description of a file written by `save_weights`.

    Raises:
        BadInput: missing, damaged, or a safetensors file of somebody else.
        OSError: it cannot be read just now (a server that is away, a stale handle, no right to).
    """
    with _opened(path) as file:
        meta = _meta((file.metadata() or {}).get(KEY), path)
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


def load_meta(path: str | Path) -> dict:
    """Return the description alone of a file written by `save_weights`; it may be large.

    Raises:
        BadInput, OSError: as `load_weights`.
    """
    with _opened(path) as file:
        return _meta((file.metadata() or {}).get(KEY), path)


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as safetensors files do: a length of 8 bytes, then a JSON header.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        # To safe_open a file that it cannot open is not there, whatever the reason.
        open(path, "rb").close()
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in LOST:
            raise
        raise BadInput(
            f"{path}: cannot be read as safetensors ({error}); give a weights file of a run"
        ) from None


def _meta(text: str | None, path: str | Path) -> dict[str, Any]:
    meta = _parsed(text, path)
    if meta.get("format") != FORMAT:
        found = f"format {meta['format']}" if meta else "no description"
        raise BadInput(
            f"{path}: has {found} under the metadata key {KEY!r}; "
            f"this version reads format {FORMAT} as written by a run"
        )
    return meta


def _parsed(text: str | None, path: str | Path) -> dict[str, Any]:
    try:
        meta = json.loads(text) if text else {}
    except ValueError as error:
        raise BadInput(
            f"{path}: its description is damaged ({error}); give a weights file of a run"
        ) from None
    if not isinstance(meta, dict):
        raise BadInput(f"{path}: its description is no JSON object; give a weights file of a run")
    return meta


def fill(module: nn.Module, tensors: dict[str, Tensor], name: str, may_lack: str | None = None) -> None:
    """Copy tensors into a module, every one of them and nothing left out.

    Args:
        module: changed in place; half-precision tensors are widened.
        tensors: by parameter or buffer name.
        name: what the tensors came from, for messages.
        may_lack: prefix of names that may keep their present values.

    Raises:
        BadInput: a name too few, one too many, or another shape; the first one is named.
    """
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise BadInput(
            f"{name}: {_last_line(error)}; use the model config these weights were made with"
        ) from None
    missing = [key for key in missing if may_lack is None or not key.startswith(may_lack)]
    for keys, what in ((missing, "lacks"), (unexpected, "has, unlike the model,")):
        if keys:
            raise BadInput(
                f"{name}: {what} {keys[0]} (and {len(keys) - 1} more); "
                "set model.backbone, model.norm and the refining module to what these weights were made with"
            )


def _last_line(error: RuntimeError) -> str:
    return str(error).splitlines()[-1].strip().rstrip(".")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
