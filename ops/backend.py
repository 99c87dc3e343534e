"""Which implementation of the operator this process uses, and why.

`setup.py` builds `_C_cpu` and `_C_cuda` into this folder. They are two libraries because one that is linked
with CUDA does not load in a torch without it. Whatever they do not cover runs on `reference.py`.
"""

import ctypes
import os
import warnings
from pathlib import Path

import torch

from ops.sources import digest

_DISABLE = "MRRCNN_REFERENCE"
_info = {"backend": "reference", "library": None, "cuda_library": None, "reason": "not loaded"}


def load() -> None:
    """Loads the compiled kernels that are there; they take over from the reference at once."""
    if os.environ.get(_DISABLE, "0") not in ("", "0"):
        _info["reason"] = f"{_DISABLE} is set"
        return
    _info["library"], _info["reason"] = _load("_C_cpu.so")
    if _info["library"]:
        _info["backend"] = "cpu"
    if torch.version.cuda is None:
        return
    _info["cuda_library"], cuda_reason = _load("_C_cuda.so")
    if _info["cuda_library"]:
        _info["backend"] = "cpu+cuda" if _info["library"] else "cuda"
        _info["reason"] = _info["reason"] or cuda_reason
    elif torch.cuda.is_available():
        _info["reason"] = _info["reason"] or f"CUDA tensors use the reference: {cuda_reason}"


def backend_info() -> dict:
    """Returns what runs the operator: keys backend, library, cuda_library, reason.

    With MRRCNN_REFERENCE=1 in the environment no library is loaded, and the reference runs everything.
    A library that is older than the sources beside it is used all the same, and `reason` says so.
    `backend` is "cpu", "cpu+cuda" or "reference" ("cuda" if only that library is there); `library` and
    `cuda_library` are the paths of what was loaded, or None; `reason` says in one line why something that
    could be faster is not in use, or is None.
    """
    return dict(_info)


def _load(name):
    path = Path(__file__).with_name(name)
    if not path.exists():
        return None, f"{name} is not built (python setup.py build_ext --inplace)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = f"{name} does not load in torch {torch.__version__}: {error}"
        warnings.warn(f"mrrcnn: {reason}; the plain torch reference is used instead", stacklevel=3)
        return None, reason
    stale = _why_stale(path)
    if stale:
        warnings.warn(f"mrrcnn: {stale}", stacklevel=3)
    return str(path), stale


def _why_stale(library):
    """Returns why a library that was loaded is not what the sources beside it say, or None."""
    csrc = library.with_name("csrc")
    if not csrc.exists():
        return None
    built_from = getattr(ctypes.CDLL(str(library)), "mrrcnn_sources", None)
    if built_from is not None:
        built_from.restype = ctypes.c_char_p
        if built_from() == digest(csrc, library.stem.removeprefix("_C_")).encode():
            return None
    return f"{library.name} was built from other sources than ops/csrc (python setup.py build_ext --inplace)"
