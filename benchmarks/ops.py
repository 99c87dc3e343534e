"""`mrrcnn bench ops`: Shape-aware RoIAlign against what torchvision has, in one run, alternating.

    python -m benchmarks.ops [--device cpu] [--threads 1 2] [--repeats 10] [--out FILE.json]

All contenders' numbers, gradients too, are compared in double precision before any is timed; and what our
timed calls return, in their own type and with masks, is compared with the composition in double precision.
Peers do less: torchvision's RoIAlign knows no mask. The composition is the exact equivalent of ours in
PyTorch: RoIAlign with a sample a bin, times the resized mask, averaged. Peers get the layout that is best for
them, NCHW.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pooling import (
    NCHW,
    NHWC,
    Exact,
    Inputs,
    check,
    composition,
    draw,
    exact,
    our_pyramid,
    ours,
    output_gradient,
    refuse_unless_equal,
    torchvisions,
    torchvisions_pyramid,
    touched_bytes,
)
from benchmarks.timing import alternate, machine
from ops import backend_info

SIZES = (7, 14)
# Inputs rotate through this many sets on a GPU, so that its cache does not hold the last turn's.
CUDA_SETS = 3

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """A row of the table: the calls to time, ours first, what ours gives, and the bytes that it must move."""

    name: str
    size: int
    calls: Callable[[Inputs, int], Calls]
    exact: Callable[[Exact], list[Tensor]]
    floor: Callable[[Inputs, int], int]


def main() -> int:
    """Print the table; write JSON if asked to."""
    arguments = parse()
    device = arguments.device
    if problem := why_not(device):
        print(f"mrrcnn bench ops: {problem}", file=sys.stderr)
        return 2
    sets = [draw(device, seed) for seed in range(CUDA_SETS if device == "cuda" else 1)]
    check(sets[0], SIZES)
    check_timed(sets[0], SIZES)
    host = machine(device)
    print(f"# {json.dumps(host)}", flush=True)
    rows = []
    for threads in arguments.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        rows += [measure(case, sets, arguments.repeats, device, threads) for case in cases()]
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": host, "rows": rows}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="mrrcnn bench ops", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], help="CPU threads, one after the other"
    )
    parser.add_argument("--repeats", type=int, default=10, help="turns of every contender")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


def why_not(device: str) -> str | None:
    """Return why nothing can be measured on a device, or None."""
    info = backend_info()
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device is visible here; --device cpu measures the CPU kernels"
    if info["library" if device == "cpu" else "cuda_library"] is None:
        return f"{info['reason']}; the reference is not worth timing"
    return None


def cases() -> list[Case]:
    """Return the rows, for both output sizes."""
    one_level, all_levels = forward_floor(pyramid=False), forward_floor(pyramid=True)
    one, every = (lambda e: [e.pooled]), (lambda e: [e.pooled_pyramid])
    to_features, to_both = (lambda e: [e.to_features]), (lambda e: [e.to_features, e.to_masks])
    kinds = {
        "forward, channels_last": (forward(NHWC), one, one_level),
        "forward, NCHW": (forward(NCHW), one, one_level),
        "forward, bfloat16": (forward_bfloat16, one, lambda x, size: one_level(x, size) // 2),
        "FPN forward, channels_last": (pyramid_forward(NHWC), every, all_levels),
        "FPN forward, NCHW": (pyramid_forward(NCHW), every, all_levels),
        "backward to features": (backward(False), to_features, backward_floor(False)),
        "backward to features and mask": (backward(True), to_both, backward_floor(True)),
    }
    return [Case(name, size, *functions) for name, functions in kinds.items() for size in SIZES]


def check_timed(x: Inputs, sizes: tuple[int, ...]) -> None:
    """Refuse to time what does not give, in its own type, what the composition gives in double precision."""
    for size in sizes:
        expected = exact(x, size)
        for case in (one for one in cases() if one.size == size):
            own = case.calls(x, size)["ours"]()
            own = [own] if isinstance(own, Tensor) else list(own)
            refuse_unless_equal(f"composition ({case.name})", own, case.exact(expected))


def forward(layout: torch.memory_format) -> Callable[[Inputs, int], Calls]:
    """Return the contenders of one level's forward."""

    def calls(x: Inputs, size: int) -> Calls:
        feature = (x.pyramid_last if layout == NHWC else x.pyramid)[0]
        return {
            "ours": lambda: ours(feature, x.small, x.masks, size),
            "roi_align": lambda: torchvisions(x.pyramid[0], x.small, size),
            "composition": lambda: composition(x.pyramid[0], x.small, x.masks, size),
        }

    return calls


def forward_bfloat16(x: Inputs, size: int) -> Calls:
    """Return ours in bfloat16, torchvision's in its best type: float16 on a GPU, float32 on a CPU."""
    feature, theirs, boxes = x.pyramid_last[0].bfloat16(), x.pyramid[0], x.small
    if theirs.is_cuda:
        theirs, boxes = theirs.half(), boxes.half()
    return {
        "ours": lambda: ours(feature, x.small, x.masks, size),
        "roi_align": lambda: torchvisions(theirs, boxes, size),
    }


def pyramid_forward(layout: torch.memory_format) -> Callable[[Inputs, int], Calls]:
    """Return the contenders on all levels."""

    def calls(x: Inputs, size: int) -> Calls:
        maps = x.pyramid_last if layout == NHWC else x.pyramid
        return {
            "ours": lambda: our_pyramid(maps, x.boxes, x.masks, size),
            "MultiScaleRoIAlign": lambda: torchvisions_pyramid(x.pyramid, x.boxes, size, [x.image_size] * 2),
        }

    return calls


def backward(with_mask: bool) -> Callable[[Inputs, int], Calls]:
    """Return the contenders of one level's backward; the peers' goes to the features alone."""

    def calls(x: Inputs, size: int) -> Calls:
        last, first = (maps[0].detach().requires_grad_() for maps in (x.pyramid_last, x.pyramid))
        masks = x.masks.detach().requires_grad_(with_mask)
        own = ours(last, x.small, masks, size)
        theirs, composed = torchvisions(first, x.small, size), composition(first, x.small, x.masks, size)
        grad = output_gradient(x, size)
        grad_last = grad.contiguous(memory_format=NHWC)
        inputs = (last, masks) if with_mask else (last,)
        return {
            "ours": lambda: torch.autograd.grad(own, inputs, grad_last, retain_graph=True),
            "roi_align": lambda: torch.autograd.grad(theirs, first, grad, retain_graph=True),
            "composition": lambda: torch.autograd.grad(composed, first, grad, retain_graph=True),
        }

    return calls


def forward_floor(pyramid: bool) -> Callable[[Inputs, int], int]:
    """Return what counts a forward's bytes in float32: touched pixels read once, the output written once."""

    def floor(x: Inputs, size: int) -> int:
        maps, boxes = (x.pyramid_last, x.boxes) if pyramid else (x.pyramid_last[:1], x.small)
        return touched_bytes(maps, boxes, size, aligned=not pyramid) + pooled_bytes(x, size)

    return floor


def backward_floor(with_mask: bool) -> Callable[[Inputs, int], int]:
    """Return what counts a backward's bytes: the output's gradient read, every input's written, once."""

    def floor(x: Inputs, size: int) -> int:
        least = pooled_bytes(x, size) + x.pyramid[0].nbytes
        if with_mask:
            least += touched_bytes(x.pyramid_last[:1], x.small, size, aligned=True) + x.masks.nbytes
        return least

    return floor


def pooled_bytes(x: Inputs, size: int) -> int:
    """Return the bytes of a pooled tensor in float32."""
    return len(x.boxes) * x.pyramid[0].shape[1] * size * size * 4


def measure(case: Case, sets: list[Inputs], repeats: int, device: str, threads: int) -> dict:
    """Time one case, print its row, return it."""
    made = [case.calls(x, case.size) for x in sets]
    contenders = {name: lambda turn, name=name: made[turn % len(made)][name]() for name in made[0]}
    times = alternate(contenders, repeats, device)
    own = times.pop("ours")
    row = {
        "case": case.name,
        "size": case.size,
        "threads": threads,
        "ours": own,
        "peers": times,
        "ratio": {peer: {kind: of[kind] / own[kind] for kind in own} for peer, of in times.items()},
        "floor_mb": case.floor(sets[0], case.size) / 1e6,
    }
    print(line(row), flush=True)
    return row


def line(row: dict) -> str:
    """Return a row of the table: our wall time, and how many times longer the peers take."""
    name = f"{row['case']:30s} {row['size']}x{row['size']}, {row['threads']} thread(s)"
    gb_per_s = row["floor_mb"] / row["ours"]["wall"]
    ratios = ", ".join(
        f"{peer} " + " ".join(f"{ratio:.1f}x {kind}" for kind, ratio in of.items())
        for peer, of in row["ratio"].items()
    )
    return f"{name:52s} {row['ours']['wall']:8.2f} ms {gb_per_s:6.1f} GB/s of the floor | {ratios}"


if __name__ == "__main__":
    sys.exit(main())
