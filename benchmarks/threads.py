"""How much faster the operator is with two threads than with one, and how much of the rest is new memory.

    python -m benchmarks.threads [--threads 2] [--repeats 15] [--out FILE.json]

A large result is memory that the system has just handed out: it is cleared and mapped page by page when it is
first written, by the system and not by the kernels, and torch gives it back as soon as the result is dropped.
So every call is timed in three processes (MEMORIES below). With new memory: as it is. With kept memory: the C
library keeps what is freed (glibc's variables), so that after the first call no page is new any more. With
huge pages: torch asks for them (its own variable), where the system has any free.

One thread and several alternate in one process; medians. `torch.zeros` is what a result's memory costs alone.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.ops import SIZES, cases, why_not
from benchmarks.pooling import Inputs, draw
from benchmarks.timing import alternate, machine

MEMORIES = {
    "new": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
    "huge": {"THP_MEM_ALLOC_ENABLE": "1"},
}


def main() -> int:
    """Print the table; write JSON if asked to. With --measure: be one of the processes."""
    arguments = parse()
    if problem := why_not("cpu"):
        print(f"benchmarks.threads: {problem}", file=sys.stderr)
        return 2
    if arguments.measure:
        measure(arguments.threads, arguments.repeats)
        return 0
    host = machine("cpu")
    print(f"# {json.dumps(host)}", flush=True)
    rows = side_by_side({memory: in_a_process(memory, arguments) for memory in MEMORIES})
    for row in rows:
        print(line(row, arguments.threads))
    if arguments.out:
        text = json.dumps({"machine": host, "memories": MEMORIES, "rows": rows}, indent=1)
        arguments.out.write_text(text + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="benchmarks.threads", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="compared with one")
    parser.add_argument("--repeats", type=int, default=15, help="turns of either")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def side_by_side(measured: dict[str, list[dict]]) -> list[dict]:
    """Return a row for every call: its name, and the milliseconds with each memory."""
    rows = zip(*measured.values(), strict=True)
    return [
        {"call": of[0]["call"], **{memory: one["ms"] for memory, one in zip(measured, of, strict=True)}}
        for of in rows
    ]


def in_a_process(memory: str, arguments: argparse.Namespace) -> list[dict]:
    """Return the rows that a new process measures with this memory, and with no other's settings."""
    settings = {name for variables in MEMORIES.values() for name in variables}
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    environment |= MEMORIES[memory]
    command = [sys.executable, "-m", "benchmarks.threads", "--measure"]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(row) for row in done.stdout.splitlines()]


def measure(threads: int, repeats: int) -> None:
    """Print a row of JSON for every call: median milliseconds with one thread and with several."""
    x = draw("cpu", 0)
    for name, call in calls(x).items():
        contenders = {str(n): lambda _, n=n, call=call: with_threads(n, call) for n in (1, threads)}
        times = alternate(contenders, repeats, "cpu")
        print(json.dumps({"call": name, "ms": {n: of["wall"] for n, of in times.items()}}), flush=True)


def calls(x: Inputs) -> dict:
    """Return our side of every row of `mrrcnn bench ops`, and new tensors as large as the results."""
    found = {f"{case.name}, {case.size}x{case.size}": case.calls(x, case.size)["ours"] for case in cases()}
    shapes = [(len(x.small), x.pyramid[0].shape[1], size, size) for size in SIZES] + [x.pyramid[0].shape]
    for shape in shapes:
        megabytes = 4 * torch.Size(shape).numel() / 1e6
        found[f"torch.zeros, {megabytes:.0f} MB"] = lambda shape=shape: torch.zeros(shape)
    return found


def with_threads(count: int, call) -> None:
    """Call with that many threads."""
    torch.set_num_threads(count)
    call()


def line(row: dict, threads: int) -> str:
    """Return a row of the table."""
    parts = []
    for memory in MEMORIES:
        one, several = row[memory]["1"], row[memory][str(threads)]
        parts.append(f"{memory} memory {one:7.1f} ms, {threads} threads {one / several:4.2f}x")
    return f"{row['call']:38s} {' | '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
