"""`mrrcnn bench eval`: scoring against pycocotools, in one run, alternating, and the memory that it takes.

    python -m benchmarks.eval [--images 5000] [--detections 100] [--repeats 3] [--out FILE.json]

Ground truth and results are made, not predicted: of COCO's size, half of the results near an instance. Both
sides read the same lists and compute box and mask AP; what they find is compared before anything is timed.
Memory is the most that a process held which does what `mrrcnn evaluate` does after detecting: it reads all
ranks' results and the shards, scores box and mask, plain and huddled, and writes coco_results.json and
metrics.json.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

KINDS = ("bbox", "segm")
FASTER, MOST_GB = 4, 2
CHECKED_IMAGES = 200
PACKAGES = ("faster-coco-eval", "pycocotools", "numpy")


def main() -> int:
    """Print the ratio and the memory; write JSON if asked to."""
    arguments = parse()
    if arguments.score:
        return score_once(*arguments.score)
    from benchmarks.made_results import made_case
    from benchmarks.parts import Bar
    from benchmarks.timing import alternate, machine

    host = machine("cpu") | {name: version(name) for name in PACKAGES}
    print(f"# {json.dumps(host)}", flush=True)
    check(*made_case(min(CHECKED_IMAGES, arguments.images), arguments.detections, seed=1))
    coco, results = made_case(arguments.images, arguments.detections)
    times = alternate(contenders(coco, results), arguments.repeats, "cpu")
    ratio = {clock: times["pycocotools"][clock] / times["ours"][clock] for clock in ("wall", "cpu")}
    with tempfile.TemporaryDirectory(prefix="mrrcnn-bench-") as scratch:
        peak = peak_gb(Path(scratch), coco, results)
    bars = [
        Bar("scoring box and mask, pycocotools' time over ours, wall", ratio["wall"], "x", ">=", FASTER),
        Bar("the same, processor", ratio["cpu"], "x"),
        Bar("most memory of the process that scores and writes", peak, "GB", "<=", MOST_GB),
    ]
    found = {"images": arguments.images, "detections": arguments.detections, "times": times, "bars": bars}
    show(found)
    if arguments.out:
        found["bars"] = [asdict(bar) | {"verdict": bar.verdict} for bar in bars]
        arguments.out.write_text(json.dumps({"machine": host, "parts": {"scoring": found}}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="mrrcnn bench eval", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000, help="made images")
    parser.add_argument("--detections", type=int, default=100, help="made results an image")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every contender")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--score", nargs=3, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def contenders(coco: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is timed: box and mask AP from ground truth and results in memory."""
    return {"ours": lambda _: ours(coco, results), "pycocotools": lambda _: peer(coco, results)}


def ours(coco: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Return box and mask AP by `pipeline.scoring`."""
    from pipeline.scoring.coco_ap import evaluate_kind

    return {kind: evaluate_kind(coco, results, kind)[0]["AP"] for kind in KINDS}


def peer(coco: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Return box and mask AP by pycocotools, used as its own notebook does."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**coco, "annotations": [dict(item) for item in coco["annotations"]]}
        truth.createIndex()
        detected = truth.loadRes([dict(item) for item in results])
        for kind in KINDS:
            evaluation = COCOeval(truth, detected, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found[kind] = float(evaluation.stats[0])
    return found


def check(coco: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Refuse to time scorers that disagree."""
    mine, theirs = ours(coco, results), peer(coco, results)
    wrong = [kind for kind in KINDS if abs(mine[kind] - theirs[kind]) > 1e-10]
    if wrong:
        raise SystemExit(
            f"bench eval: {wrong[0]} AP is {mine[wrong[0]]}, pycocotools says {theirs[wrong[0]]}"
        )


def peak_gb(scratch: Path, coco: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Return the most memory in GB that a process of its own holds which scores these results."""
    shards, parts, out = scratch / "shards", scratch / "parts", scratch / "out"
    _write_shards(scratch, coco, shards)
    _write_parts(parts, shards, results)
    command = [sys.executable, "-m", "benchmarks.eval", "--score", str(shards), str(parts), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def score_once(shards: Path, parts: Path, out: Path) -> int:
    """Score, and print the most memory that this process has held, in GB."""
    from pipeline.evaluate import score

    score(shards, parts, out)
    # Not getrusage: what it calls the most includes what the parent held when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 / 1e9)
    return 0


def _write_shards(scratch: Path, coco: dict[str, Any], out: Path) -> None:
    from PIL import Image

    from shards.write import write_shards

    images = scratch / "images"
    images.mkdir()
    for image in coco["images"]:
        # What is in the picture is never looked at, but that it is one, and of that size.
        Image.new("L", (image["width"], image["height"])).save(images / image["file_name"])
    annotations = scratch / "instances.json"
    annotations.write_text(json.dumps(coco))
    write_shards(images, annotations, out, workers=2)


def _write_parts(folder: Path, shards: Path, results: list[dict[str, Any]]) -> None:
    from configs.schema import Test
    from pipeline.evaluate import in_pieces
    from shards.read import ShardDataset

    dataset = ShardDataset(shards, verify=False)
    source = {"weights_sha256": "made", "dataset": dataset.hash, "test": Test().model_dump()}
    ids = [entry["image_id"] for entry in dataset.entries]
    head = {"source": source, "rank": 0, "world": 1, "image_ids": ids}
    folder.mkdir()
    with (folder / "rank-0000-of-0001.jsonl").open("w") as stream:
        stream.writelines(json.dumps(tree) + "\n" for tree in (head, *in_pieces(results)))


def show(found: dict[str, Any]) -> None:
    """Print times and bars."""
    print(f"\nscoring: {found['images']:,} images, {found['detections']} detections each")
    for name, time in found["times"].items():
        print(f"  {name:60s} {time['wall']:9.0f} ms wall {time['cpu']:9.0f} ms processor")
    for bar in found["bars"]:
        print(f"  {bar.name:60s} {bar.value:9.2f} {bar.unit:3s} {bar.verdict}")


if __name__ == "__main__":
    sys.exit(main())
