"""detectron2's .pkl files: pickles of numpy arrays, read without admitting anything else."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.network.torch_files import DAMAGED
from shards.errors import BadInput


def load_arrays(path: str | Path) -> Any:
    """Return the plain values and numpy arrays of a pickle; nothing in it can run.

    Raises:
        BadInput: a cut or damaged file, or one that asks for anything but arrays; what it asks for is named.
    """
    try:
        with open(path, "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (pickle.UnpicklingError, OSError, MemoryError, *DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: is no whole pickle of numpy arrays alone ({reason}); fetch the file again, "
            "or give a file that you trust saved with torch.save"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 calls numpy.core numpy._core; both write what the other reads.
        asked = (module.replace("numpy._core", "numpy.core"), name)
        if asked not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[asked]


def _empty_array(kind: type, shape: Any, code: Any) -> np.ndarray:
    # The shape comes with the content; a huge one here would only take memory.
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it asks for a kind of array that is not numpy's own")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _array_of(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    if dtype.hasobject:
        raise pickle.UnpicklingError("it asks for a scalar object")
    return np.frombuffer(content, dtype=dtype)[0]


def _encoded(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes for Python 2.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How Python 3 writes b"" for Python 2: an array without elements.
    return b""


ADMITTED = {
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encoded,
}
