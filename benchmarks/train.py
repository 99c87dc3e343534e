"""`mrrcnn bench train`: what checkpoints cost a step, and how soon training goes on from one.

    python -m benchmarks.train [--workers 2] [--repeats 5] [--out FILE.json]

The demo's model on images of its kind. Blocks of 20 steps with and without a checkpoint alternate in one
training; a start from a checkpoint and one from nothing alternate, from the start of the processes (without
Ray) to the end of the first step. Medians; processor time is that of all ranks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

BLOCK = 20
LIMIT_PERCENT, LIMIT_S = 3.0, 15.0
ROOT = Path(__file__).resolve().parents[1]
IMAGES = 200


def main() -> int:
    """Print the figures and whether they are within the limits; write JSON if asked to."""
    arguments = parse()
    from benchmarks.timing import machine

    host = machine("cpu")
    print(f"# {json.dumps(host)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mrrcnn-bench-") as scratch:
        shards = make_shards(Path(scratch))
        cost = checkpoint_cost(Path(scratch), shards, arguments.workers, arguments.repeats)
        starts = first_steps(Path(scratch), shards, arguments.workers, arguments.repeats)
    show(cost, starts)
    if arguments.out:
        found = {"machine": host, "workers": arguments.workers, "checkpoint": cost, "start": starts}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="mrrcnn bench train", description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--repeats", type=int, default=5, help="blocks and starts of either kind")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


def make_shards(scratch: Path) -> str:
    """Return shards of synthetic images as the demo has them."""
    from shards.synthetic.synth import write_synthetic
    from shards.write import write_shards

    write_synthetic(scratch / "coco", IMAGES, 0)
    annotations = scratch / "coco" / "annotations" / "instances_train2017.json"
    write_shards(scratch / "coco" / "train2017", annotations, scratch / "shards")
    return str(scratch / "shards")


def checkpoint_cost(scratch: Path, shards: str, workers: int, repeats: int) -> dict:
    """Return the median seconds of blocks with and without a checkpoint, wall and processor."""
    # The first block warms up; the last is followed by the checkpoint that every training ends with.
    blocks = [False, *[kind for _ in range(repeats) for kind in (True, False)]]
    begin(scratch / "cost", shards, workers, iters=BLOCK * len(blocks) + 1, blocks=blocks)
    ticks = [json.loads(path.read_text()) for path in sorted((scratch / "cost").glob("ticks-*.json"))]
    found = {}
    for name, saved in (("with", True), ("without", False)):
        places = [place for place, kind in enumerate(blocks) if kind == saved and place]
        found[name] = {
            "wall_s": statistics.median(_length(ticks[0], place, "wall") for place in places),
            "cpu_s": statistics.median(
                sum(_length(rank, place, "cpu") for rank in ticks) for place in places
            ),
        }
    saved = [place for place, kind in enumerate(blocks) if kind]
    found["held_up_s"] = statistics.median(_held_up(ticks[0], place) for place in saved)
    for clock in ("wall", "cpu"):
        extra = found["with"][f"{clock}_s"] / found["without"][f"{clock}_s"] - 1
        found[f"{clock}_percent"] = 100 * extra
    return found


def first_steps(scratch: Path, shards: str, workers: int, repeats: int) -> dict:
    """Return the median seconds from the start of the processes to the end of the first step."""
    times: dict[str, list[float]] = {"resumed": [], "fresh": []}
    for turn in range(repeats):
        # The folder of the blocks has a checkpoint; it is left one step short of its end.
        for kind, folder in (("resumed", scratch / "cost"), ("fresh", scratch / f"fresh-{turn}")):
            began = time.monotonic()
            begin(folder, shards, workers, iters=100_000, blocks=[], steps=1)
            ticks = json.loads((folder / "ticks-0.json").read_text())
            times[kind].append(ticks[1]["wall"] - began)
    return {f"{kind}_s": statistics.median(values) for kind, values in times.items()}


def begin(folder: Path, shards: str, workers: int, iters: int, blocks: list[bool], steps: int = 0) -> None:
    """Train in processes of their own until `iters`, or until `steps` steps were done."""
    from pipeline.lease import acquire

    folder.mkdir(exist_ok=True)
    with acquire(folder) as lease:
        order = {"run_dir": str(folder), "shards": shards, "attempt": lease.attempt, "iters": iters}
        (folder / "order.json").write_text(json.dumps({**order, "blocks": blocks, "steps": steps}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={workers}", f"--log-dir={folder / 'torchrun'}"]
        command += ["-m", "benchmarks.train_ranks", str(folder / "order.json")]
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def show(cost: dict, starts: dict) -> None:
    """Print the figures beside what they should be at most."""
    for clock in ("wall", "cpu"):
        print(
            f"{BLOCK} steps, {clock}: {cost['without'][f'{clock}_s']:.2f} s without a checkpoint, "
            f"{cost['with'][f'{clock}_s']:.2f} s with one: {cost[f'{clock}_percent']:+.1f} % "
            f"({_verdict(cost[f'{clock}_percent'], LIMIT_PERCENT)} %)"
        )
    print(f"the step that saves takes {cost['held_up_s'] * 1000:.0f} ms more than the others")
    print(
        f"start of the processes to the end of the first step: {starts['resumed_s']:.1f} s from a checkpoint "
        f"({_verdict(starts['resumed_s'], LIMIT_S)} s), {starts['fresh_s']:.1f} s from nothing"
    )


def _verdict(found: float, limit: float) -> str:
    return f"{'within' if found <= limit else 'OVER'} {limit}"


def _held_up(ticks: list[dict[str, float]], block: int) -> float:
    """Return how much longer the step with the checkpoint took than its block's median step."""
    begun = [tick["wall"] for tick in ticks[block * BLOCK : (block + 1) * BLOCK + 1]]
    steps = [after - before for before, after in pairwise(begun)]
    return steps[0] - statistics.median(steps)


def _length(ticks: list[dict[str, float]], block: int, clock: str) -> float:
    return ticks[(block + 1) * BLOCK][clock] - ticks[block * BLOCK][clock]


if __name__ == "__main__":
    sys.exit(main())
