"""Resident memory of the processes that shard and of those that load.

    python -m benchmarks.memory shard IMAGES ANNOTATIONS OUT
    python -m benchmarks.memory load SHARDS

Each measurement is a program of its own, so that none inherits what another has touched. Every process that
shards imports this file anew, so torch is imported only where samples are loaded.
"""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.photographs import instance, write_coco
from shards.write import write_shards

SIDE_PX = 64
INSTANCES_AN_IMAGE = 10
WORKERS = 2
# Small shards, so that a worker's share of one is the same with few annotations and with many.
SHARD_MB = 1
LOADED = 400
POLL_S = 0.02


def measure(scratch: Path, annotations: int) -> dict[str, int]:
    """Return the most resident kB of a worker that shards and of one that loads this many annotations."""
    images, path = _data_set(scratch / f"{annotations}", annotations)
    out = scratch / f"shards-{annotations}"
    shard = _run("shard", images, path, out)
    return {"annotations": annotations, "shard_kb": shard, "load_kb": _run("load", out)}


def _run(*arguments: object) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout.split()[-1])


def _data_set(out: Path, annotations: int) -> tuple[Path, Path]:
    """Write small images, one file under many names: what counts here are the annotations."""
    rng = np.random.default_rng(0)
    images = out / "train2017"
    images.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)).save(out / "one.jpg")
    content = (out / "one.jpg").read_bytes()
    drawn = [instance(rng, 1, 1, SIDE_PX, SIDE_PX) for _ in range(1000)]
    rows, found = [], []
    for image_id in range(1, annotations // INSTANCES_AN_IMAGE + 1):
        name = f"{image_id:012d}.jpg"
        (images / name).write_bytes(content)
        rows.append({"id": image_id, "file_name": name, "width": SIDE_PX, "height": SIDE_PX})
        for _ in range(INSTANCES_AN_IMAGE):
            one = drawn[len(found) % len(drawn)]
            found.append({**one, "id": len(found) + 1, "image_id": image_id})
    return images, write_coco(out, rows, found)


def _shard(images: Path, annotations: Path, out: Path) -> int:
    """Return the most that a process of ours held while it sharded, this one aside."""
    most, ended = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(most, ended))
    watcher.start()
    try:
        write_shards(images, annotations, out, workers=WORKERS, shard_size_mb=SHARD_MB)
    finally:
        ended.set()
        watcher.join()
    return most[0]


def _watch(most: list[int], ended: threading.Event) -> None:
    own = psutil.Process()
    while not ended.wait(POLL_S):
        for child in own.children(recursive=True):
            try:
                most[0] = max(most[0], child.memory_info().rss // 1024)
            except psutil.Error:
                # It ended between the list and the look.
                continue


class Resident:
    """Loads a sample, and returns what the process that did it holds, kB."""

    def __init__(self, shards: Path):
        from pipeline.data import TrainingSamples
        from shards.read import ShardDataset

        self.samples = TrainingSamples(ShardDataset(shards), seed=0, hflip=0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> int:
        self.samples[place, place]
        return psutil.Process().memory_info().rss // 1024


def _load(shards: Path) -> int:
    """Return the most that the one process of a DataLoader held while it read samples from everywhere."""
    from torch.utils.data import DataLoader

    dataset = Resident(shards)
    places = np.linspace(0, len(dataset) - 1, min(LOADED, len(dataset))).astype(int).tolist()
    return max(DataLoader(dataset, None, sampler=places, num_workers=1))


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    print({"shard": _shard, "load": _load}[what](*map(Path, paths)))
