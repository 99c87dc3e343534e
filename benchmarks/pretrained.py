"""A checkpoint of each program from import to refining and back, on a few images of a COCO folder.

    python -m benchmarks.pretrained COCO SCRATCH

COCO holds `annotations/instances_val2017.json` and `val2017/`; SCRATCH is made. The checkpoints are random,
under each program's own names and with COCO's classes: what is shown is that every step runs from each format
and that the bits come back, not an AP. The exit code is 1 where a step fails, nothing
is detected, the loss is no number, or what comes back differs.
"""

import argparse
import json
import math
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from pipeline.network.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
SIZE = "--set model.min_size=160 --set model.max_size=256"
# The made checkpoints are narrow; a zoo's file needs none of the first three.
SMALL = """\\
  --set model.fpn_channels=32 --set model.box_head_dim=64 --set model.mask_head_channels=32 \\
  --set data.train=shards --set data.val=shards --set train.baseline.iters=0 \\
  --set train.refine.iters=4 --set train.refine.batch=2 --set train.refine.steps=[1000] \\
  --set train.refine.clip=1 --set checkpoint_every=4"""
IMAGES = 8
TARGETS = ("torchvision", "detectron2")
PROGRAMS = (*TARGETS, "maskrcnn_benchmark")


def write_checkpoint(program: str, folder: Path) -> Path:
    """Return a random checkpoint in a program's own container."""
    if program == "detectron2":
        arrays = {name: tensor.numpy() for name, tensor in detectron2_checkpoint(0).items()}
        path = folder / "detectron2.pkl"
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "made"}))
        return path
    tensors = torchvision_checkpoint(0) if program == "torchvision" else benchmark_checkpoint(0)
    path = folder / f"{program}.pth"
    torch.save(tensors if program == "torchvision" else {"model": tensors, "iteration": 0}, path)
    return path


def write_few(coco: Path, folder: Path) -> None:
    """Write an annotation file of the first images."""
    tree = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    tree["images"] = sorted(tree["images"], key=lambda image: image["id"])[:IMAGES]
    kept = {image["id"] for image in tree["images"]}
    tree["annotations"] = [found for found in tree["annotations"] if found["image_id"] in kept]
    (folder / "few.json").write_text(json.dumps(tree))


def mrrcnn(folder: Path, line: str) -> None:
    """Show a command and run it in a folder; end with its error where it fails."""
    print("$ mrrcnn", line, flush=True)
    words = shlex.split(line.replace("$SIZE", SIZE).replace("$SMALL", SMALL.replace("\\\n", "")))
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")


def walk(program: str, folder: Path) -> bool:
    """Take one program's checkpoint all the way; return whether the bits came back."""
    file, ours = write_checkpoint(program, folder).name, f"{program}.safetensors"
    mrrcnn(folder, f"import-weights {file} --out {ours} $SIZE")
    mrrcnn(folder, f"evaluate {ours} --shards shards --out {program}-val")
    detections = json.loads((folder / f"{program}-val" / "coco_results.json").read_text())
    print(f"  {len(detections)} detections on {len({found['image_id'] for found in detections})} images")
    if not detections:
        sys.exit(f"{ours}: no detections, where random weights give 100 an image")
    run = f"{program}-run"
    mrrcnn(
        folder,
        f"run coco_r50.yaml --run-dir {run} --launcher local --set model.weights={ours} $SIZE $SMALL",
    )
    last = json.loads((folder / run / "refine" / "metrics.jsonl").read_text().splitlines()[-1])
    print(f"  loss at step {last['step']} of refining: {last['loss']:.2f}")
    if not math.isfinite(last["loss"]):
        sys.exit(f"{run}: the loss is {last['loss']}")
    return program not in TARGETS or there_and_back(
        program, folder / ours, f"{program}-back{Path(file).suffix}"
    )


def there_and_back(program: str, ours: Path, theirs: str) -> bool:
    """Export a weights file, import that, and return whether bits and profile are the same."""
    again = f"{program}-again.safetensors"
    mrrcnn(ours.parent, f"export-weights {ours.name} --to {program} --out {theirs}")
    mrrcnn(ours.parent, f"import-weights {theirs} --out {again} $SIZE")
    (one, meta), (other, later) = load_weights(ours), load_weights(ours.parent / again)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    alike = meta["model"] == later["model"]
    print(
        f"  {len(one)} tensors, {'the same bits' if same else 'OTHER BITS'}; "
        f"{'the same' if alike else 'ANOTHER'} profile"
    )
    return same and alike


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("coco", type=Path)
    parser.add_argument("scratch", type=Path)
    asked = parser.parse_args()
    if asked.scratch.exists():
        parser.error(f"{asked.scratch} exists already; name a folder that is to be made")
    asked.scratch.mkdir(parents=True)
    write_few(asked.coco, asked.scratch)
    shutil.copy(ROOT / "configs" / "coco_r50.yaml", asked.scratch)
    (asked.scratch / "images").symlink_to((asked.coco / "val2017").resolve())
    print(f'$ SIZE="{SIZE}"\n$ SMALL="{SMALL}"')
    mrrcnn(asked.scratch, "shard --images images --annotations few.json --out shards")
    kept = [walk(program, asked.scratch) for program in PROGRAMS]
    sys.exit(0 if all(kept) else 1)
