"""detectron2's .pkl files: pickles of numpy arrays, read without admitting anything else.

Whatever a pickle names, numpy's own classes too, is replaced by a stand-in here: theirs can be called with
more than a pickle of arrays needs, and would give memory that the file has not filled.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.network.torch_files import DAMAGED
from shards.errors import BadInput


def load_arrays(path: str | Path) -> Any:
    """Return the plain values of a pickle, and `Stored` for its numpy arrays; nothing in it can run.

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


class Stored:
    """A numpy array of a pickle; `content` is read-only, its bytes are those that the file was read into."""

    content = np.zeros(0, np.float32)

    def __setstate__(self, state: tuple) -> None:
        """Take the content as numpy writes it: version, shape, type, whether columns come first, bytes."""
        _, shape, numbers, fortran, buffer = state
        # Python 2 wrote text.
        buffer = buffer.encode("latin1") if isinstance(buffer, str) else buffer
        self.content = _array_of(buffer, numbers, shape, "F" if fortran else "C").content


class _Numbers:
    """A type of numbers, in the byte order of all machines with GPUs."""

    def __init__(self, code: str, *_: bool):
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"it asks for an array of {code}")
        self.dtype = np.dtype(code).newbyteorder("<")

    def __setstate__(self, state: tuple) -> None:
        """Take what numpy says further of the type: version, byte order, and things that numbers have not."""
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(f"it asks for numbers of byte order {state[1]}")


def _empty_array(kind: type, *_: Any) -> Stored:
    # The shape comes with the content; a huge one here would only take memory.
    if kind is not Stored:
        raise pickle.UnpicklingError("it asks for a kind of array that is not numpy's own")
    return Stored()


def _array_of(buffer: Any, numbers: _Numbers, shape: tuple[int, ...], order: str) -> Stored:
    stored = Stored()
    stored.content = np.frombuffer(buffer, numbers.dtype).reshape(shape, order=order)
    return stored


def _scalar(numbers: _Numbers, content: bytes) -> np.generic:
    return np.frombuffer(content, numbers.dtype)[0]


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
    ("numpy", "ndarray"): Stored,
    ("numpy", "dtype"): _Numbers,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encoded,
}
