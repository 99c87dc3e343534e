"""The CUDA kernels, compiled for the CPU and called with CPU tensors: the operator without its binding."""

import ctypes
import mmap
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LEVELS = 8
_NO_ACCESS = 0  # PROT_NONE
_GUARD = 64  # elements of poison around every input


def compiler() -> list[str] | None:
    """Returns the system's C++ compiler, or None."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    return command if shutil.which(command[0]) else None


def build(folder: Path) -> Path:
    """Returns the compiled kernels; raises CalledProcessError if they do not compile."""
    library = folder / "kernels.so"
    # longjmp between stacks is the point here, and fortified longjmp forbids it.
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-w"]
    include = Path(torch.__file__).parent / "include"
    command = [*compiler(), *flags, f"-I{include}", str(_HERE / "kernels.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


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
        *((name, ctypes.c_int) for name in ("type", "vectors", "downwards", "warps_run_ahead", "poison")),
        *((name, ctypes.c_int) for name in ("num_levels", "channels")),
        *((name, ctypes.c_int) for name in ("pooled_h", "pooled_w", "sampling_ratio", "aligned")),
        *((name, ctypes.c_int) for name in ("mask_h", "mask_w", "half_pixel")),
    )


class Kernels:
    """`forward` and `backward` as in ops.reference, by the CUDA kernels on the CPU.

    Args:
        library: What `build` returned.
        downwards: Whether threads take their turns from the last to the first.
        warps_run_ahead: Whether a warp goes on alone until it has to wait for the others.
        poison: Whether shared memory is filled with NaN before every block.
        shift: Elements by which features and grad miss the alignment that the vector path needs.
        fence: "after" or "before": memory that must not be touched begins right there, at every input and
            result; touching it kills the process.
    """

    def __init__(
        self, library: Path, downwards=False, warps_run_ahead=False, poison=False, shift=0, fence=None
    ):
        self.library, self.shift, self.fence = ctypes.CDLL(str(library)), shift, fence
        self.schedule = {"downwards": downwards, "warps_run_ahead": warps_run_ahead, "poison": poison}
        self.vectors = None  # whether the last call took the vector path

    def forward(self, features, rois, prob, level, scales, pooled_h, pooled_w, *settings, layout=None):
        shape = (len(rois), features[0].shape[1], pooled_h, pooled_w)
        output = self._poisoned(shape, features[0].dtype, layout)
        self._run(
            "forward", features, rois, prob, level, scales, pooled_h, pooled_w, *settings, results=[output]
        )
        return output

    def backward_features(self, grad, features, *rest, layout=None):
        gradients = [self._poisoned(one.shape, one.dtype, layout) for one in features]
        self._run("backward_features", features, *rest, grad=grad, results=gradients)
        return gradients

    def backward_masks(self, grad, features, rois, prob, *rest):
        gradient = self._poisoned(prob.shape, rois.dtype)
        self._run("backward_masks", features, rois, prob, *rest, grad=grad, results=[gradient])
        return gradient

    def turn(self, feature):
        """[N, C, H, W] as it lies, contiguous, to channels_last."""
        images, channels, height, width = feature.shape
        turned = self._poisoned(feature.shape, feature.dtype, torch.channels_last)
        one = self.guarded(feature)
        call = _Call(0, images, type=_TYPES[feature.dtype], channels=channels, **self.schedule)
        call.features[0], call.results[0] = one.data_ptr(), turned.data_ptr()
        call.heights[0], call.widths[0] = height, width
        self._launch("turn", call)
        return turned

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
        maps = [self.guarded(one.permute(0, 2, 3, 1)) for one in features]
        grad = None if grad is None else self.guarded(grad.permute(0, 2, 3, 1))
        rois, prob, level = self.guarded(rois), self.guarded(prob), self.guarded(level)
        per_access = 16 // features[0].element_size() if features[0].dtype != torch.float64 else 1
        bases = [one.data_ptr() for one in (*maps, *results, *([grad] if grad is not None else []))]
        self.vectors = per_access > 1 and channels % per_access == 0 and all(base % 16 == 0 for base in bases)
        mask_h, mask_w = prob.shape[1:] if prob is not None else (0, 0)
        call = _Call(len(rois), images, vectors=self.vectors, **self.schedule)
        call.rois, call.masks = rois.data_ptr(), None if prob is None else prob.data_ptr()
        call.level = None if level is None else level.data_ptr()
        call.grad = None if grad is None else grad.data_ptr()
        for n, (one, scale) in enumerate(zip(maps, scales, strict=True)):
            call.features[n], call.scales[n] = one.data_ptr(), scale
            call.heights[n], call.widths[n] = one.shape[1:3]
        for n, one in enumerate(results):
            call.results[n] = one.data_ptr()
            call.strides[n][:] = one.stride() if one.dim() == 4 else (0, 0, 0, 0)
        call.type, call.num_levels, call.channels = _TYPES[features[0].dtype], len(maps), channels
        call.pooled_h, call.pooled_w, call.sampling_ratio, call.aligned = pooled_h, pooled_w, ratio, aligned
        call.mask_h, call.mask_w, call.half_pixel = mask_h, mask_w, mode == 0
        self._launch(kernel, call)

    def _launch(self, kernel, call):
        assert getattr(self.library, kernel)(ctypes.byref(call)) == 1, "the kernel hangs"

    def guarded(self, tensor):
        """The same values between poison, `shift` elements off an aligned base; or behind a fence."""
        if tensor is None:
            return None
        if self.fence:
            return self._fenced(tensor.shape, tensor.dtype).copy_(tensor)
        poison = torch.nan if tensor.is_floating_point() else -(2**62)
        whole = torch.full((tensor.numel() + 2 * _GUARD,), poison, dtype=tensor.dtype)
        start = next(n for n in range(_GUARD) if (whole.data_ptr() + n * whole.element_size()) % 16 == 0)
        inside = whole[start + self.shift :][: tensor.numel()].view(tensor.shape)
        return inside.copy_(tensor)

    def _poisoned(self, shape, dtype, layout=None):
        """A result in which no element may stay as it is."""
        layout = layout or torch.contiguous_format
        result = torch.empty(shape, dtype=dtype, memory_format=layout)
        if self.fence:
            result = self._fenced((result.numel(),), dtype).as_strided(shape, result.stride())
        return result.fill_(12345)

    def _fenced(self, shape, dtype):
        """A new tensor between two pages that must not be touched, right at the one that `fence` names."""
        size, page = torch.Size(shape).numel() * dtype.itemsize, mmap.PAGESIZE
        pages = -(-size // page) * page
        memory = mmap.mmap(-1, pages + 2 * page)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for fence in (first, first + page + pages):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), page, _NO_ACCESS) == 0
        offset = page + (pages - size if self.fence == "after" else 0)
        flat = torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=offset)
        return flat.view(shape)
