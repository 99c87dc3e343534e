"""`mrrcnn bench data`: sharding and loading against peers, in one run, alternating.

    python -m benchmarks.data [--workers 2] [--repeats 5] [--images 4000] [--coco DIR]
                              [--only sharding loading memory planning] [--out FILE.json]

What every contender makes is compared before any is timed. Without --coco the data are JPEG files of COCO's
sizes, drawn at random in a temporary folder. Peers do less: a loop over webdataset's ShardWriter checks
nothing, tar writes no index, CocoDetection verifies no byte and, without masks, makes no boxes.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

PARTS = ("sharding", "loading", "memory", "planning")
PACKAGES = ("webdataset", "pillow", "pycocotools", "numpy")


def main() -> int:
    """Print a table of each part; write JSON if asked to."""
    arguments = parse()
    if problem := why_not(arguments.coco):
        print(f"mrrcnn bench data: {problem}", file=sys.stderr)
        return 2
    # Not at the top: every process that shards imports this file anew, and torch takes a second or two.
    import torch

    from benchmarks.parts import measured
    from benchmarks.timing import machine

    torch.set_num_threads(1)
    host = machine("cpu") | {name: version(name) for name in PACKAGES}
    print(f"# {json.dumps(host)}", flush=True)
    parts = {}
    with tempfile.TemporaryDirectory(prefix="mrrcnn-bench-") as scratch:
        for part, found in measured(arguments, Path(scratch)):
            show(part, found)
            parts[part] = {**found, "bars": [asdict(bar) | {"verdict": bar.verdict} for bar in found["bars"]]}
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": host, "parts": parts}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="mrrcnn bench data", description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes that shard, and that load")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contender")
    parser.add_argument("--images", type=int, default=4000, help="synthetic images")
    parser.add_argument("--coco", type=Path, help="a folder with train2017/ and annotations/, instead")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


def why_not(coco: Path | None) -> str | None:
    """Return why nothing can be measured on a folder, or None."""
    for name in ("train2017", "annotations/instances_train2017.json") if coco else ():
        if not (coco / name).exists():
            return f"{coco / name}: is missing; give a folder laid out as COCO 2017 is"
    return None


def show(part: str, found: dict) -> None:
    """Print the times and the bars of a part."""
    said = ", ".join(f"{found[name]:,} {name}" for name in ("images", "workers", "samples", "shards", "ranks")
                     if name in found)  # fmt: skip
    print(f"\n{part}" + (f": {said}" if said else ""))
    for name, time in found.get("times", {}).items():
        print(f"  {name:48s} {time['wall']:9.0f} ms wall {time['cpu']:9.0f} ms processor")
    for bar in found["bars"]:
        print(f"  {bar.name:60s} {bar.value:9.3f} {bar.unit:3s} {bar.verdict}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
