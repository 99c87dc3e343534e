"""The CUDA kernels, compiled for the CPU and called with CPU tensors: the operator without its binding."""

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LEVELS = 8
_GUARD = 64  # elements of poison around every input


def compiler() -> list[str] | None:
    """Returns the system's C++ compiler, or None."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    return command if shutil.which(command[0]) else None


def build(folder: Path) -> ctypes.CDLL:
    """Returns the compiled kernels; raises CalledProcessError if they do not compile."""
    library = folder / "kernels.so"
    # longjmp between stacks is the point here, and fortified longjmp forbids it.
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-w"]
    include = Path(torch.__file__).parent / "include"
    command = [*compiler(), *flags, f"-I{include}", str(_HERE / "kernels.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


class _Call(ctypes.Structure):
    """`Call` of kernels.cpp."""

    _fields_ = (
        ("num_rois", ctypes.c_int64),
        ("num_images", ctypes.c_int64),
        ("strides", ctypes.c_int64 * 4 * _LEVELS),
        ("features", ctypes.c_void_p * _LEVELS),
        ("results", ctypes.c_void_p * _LEVELS),
        *((name, ctypes.c_void_p) for name in ("rois", "masks", "level", "grad")),
        ("scales", ctypes.c_double * _LEVELS),
        *((name, ctypes.c_int * _LEVELS) for name in ("heights", "widths")),
        *((name, ctypes.c_int) for name in ("type", "vectors", "downwards", "num_levels", "channels")),
        *((name, ctypes.c_int) for name in ("pooled_h", "pooled_w", "sampling_ratio", "aligned")),
        *((name, ctypes.c_int) for name in ("mask_h", "mask_w", "half_pixel")),
    )


class Kernels:
    """`forward` and `backward` as in ops.reference, by the CUDA kernels on the CPU.

    Args:
        library: What `build` returned.
        downwards: Whether the threads of a block take their turns from the last to the first.
        shift: Elements by which features and grad miss the alignment that the vector path needs.
    """

    def __init__(self, library: ctypes.CDLL, downwards: bool = False, shift: int = 0):
        self.library, self.downwards, self.shift = library, downwards, shift
        self.vectors = None  # whether the last call took the vector path

    def forward(self, features, rois, prob, level, scales, pooled_h, pooled_w, *settings, layout=None):
        output = poisoned((len(rois), features[0].shape[1], pooled_h, pooled_w), features[0].dtype, layout)
        self._run(
            "forward", features, rois, prob, level, scales, pooled_h, pooled_w, *settings, results=[output]
        )
        return output

    def backward_features(self, grad, features, *rest, layout=None):
        gradients = [poisoned(one.shape, one.dtype, layout) for one in features]
        self._run("backward_features", features, *rest, grad=grad, results=gradients)
        return gradients

    def backward_masks(self, grad, features, rois, prob, *rest):
        gradient = poisoned(prob.shape, rois.dtype)
        self._run("backward_masks", features, rois, prob, *rest, grad=grad, results=[gradient])
        return gradient

    def _run(
        self,
        kernel,
        features,
        rois,
        prob,
        level,
        scales,
        pooled_h,
        pooled_w,
        ratio,
        aligned,
        mode,
        *,
        results,
        grad=None,
    ):
        images, channels = features[0].shape[:2]
        maps = [self._guarded(one.permute(0, 2, 3, 1)) for one in features]
        grad = None if grad is None else self._guarded(grad.permute(0, 2, 3, 1))
        rois, prob = self._guarded(rois), None if prob is None else self._guarded(prob)
        per_access = 16 // features[0].element_size() if features[0].dtype != torch.float64 else 1
        bases = [one.data_ptr() for one in (*maps, *results, *([grad] if grad is not None else []))]
        self.vectors = per_access > 1 and channels % per_access == 0 and all(base % 16 == 0 for base in bases)
        mask_h, mask_w = prob.shape[1:] if prob is not None else (0, 0)
        call = _Call(len(rois), images)
        call.rois, call.masks = rois.data_ptr(), None if prob is None else prob.data_ptr()
        call.level = None if level is None else level.data_ptr()
        call.grad = None if grad is None else grad.data_ptr()
        for n, (one, scale) in enumerate(zip(maps, scales, strict=True)):
            call.features[n], call.scales[n] = one.data_ptr(), scale
            call.heights[n], call.widths[n] = one.shape[1:3]
        for n, one in enumerate(results):
            call.results[n] = one.data_ptr()
            call.strides[n][:] = one.stride() if one.dim() == 4 else (0, 0, 0, 0)
        call.type, call.vectors, call.downwards = _TYPES[features[0].dtype], self.vectors, self.downwards
        call.num_levels, call.channels = len(maps), channels
        call.pooled_h, call.pooled_w, call.sampling_ratio, call.aligned = pooled_h, pooled_w, ratio, aligned
        call.mask_h, call.mask_w, call.half_pixel = mask_h, mask_w, mode == 0
        assert getattr(self.library, kernel)(ctypes.byref(call)) == 1, "the kernel hangs"

    def _guarded(self, tensor):
        """The same values with NaN before and after them in memory, `shift` elements off an aligned base."""
        whole = torch.full((tensor.numel() + 2 * _GUARD,), torch.nan, dtype=tensor.dtype)
        start = next(n for n in range(_GUARD) if (whole.data_ptr() + n * whole.element_size()) % 16 == 0)
        inside = whole[start + self.shift :][: tensor.numel()].view(tensor.shape)
        return inside.copy_(tensor)


def poisoned(shape, dtype, layout=None):
    """A result in which no element may stay as it is: NaN would spoil any sum."""
    return torch.empty(shape, dtype=dtype, memory_format=layout or torch.contiguous_format).fill_(12345)
