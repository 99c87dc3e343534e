"""A look at finished shards: every byte verified, what is in them counted, a sheet of examples drawn."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.boxes import huddled
from shards.errors import BadInput
from shards.files import sha256_of
from shards.read import ShardDataset
from shards.sheet import draw_sheet

SHEET = "contact_sheet.png"
SMALL_PX, MEDIUM_PX = 32**2, 96**2


def inspect_shards(directory: str | Path, out: str | Path | None = None) -> dict:
    """Return what the shards hold, after reading each byte of them, and draw a contact sheet.

    Args:
        directory: what `mrrcnn shard` wrote.
        out: the PNG to draw; `DIRECTORY/contact_sheet.png` by default.

    Returns:
        "damaged": one line for each fault, naming shard and sample; empty when all is well. "images",
        "instances", "crowds", "images_without_instances", "huddled" (share of the instances),
        "instances_per_image", "width_px", "height_px" (min, median, max), "area" (COCO's small, medium and
        large), "categories" (instances of each name), "hash", "contact_sheet" (path, None if no sample can
        be drawn). Damaged samples are left out of the counts of instances.

    Raises:
        BadInput: no finished data set there, or a damaged index.
    """
    dataset = ShardDataset(directory)
    damaged = list(_damaged_shards(dataset))
    missing = {
        number
        for number, shard in enumerate(dataset.description["shards"])
        if not (dataset.directory / shard["name"]).is_file()
    }
    counts: Counter = Counter()
    categories = Counter({category["id"]: 0 for category in dataset.categories})
    whole = []
    for place in range(len(dataset)):
        if dataset.entries.image(place).shard in missing:
            continue
        try:
            dataset.image_bytes(place)
            annotations = dataset.annotations(place)["annotations"]
        except BadInput as error:
            damaged.append(str(error))
            continue
        whole.append(place)
        _count(annotations, counts, categories)
    path = Path(out) if out else Path(directory) / SHEET
    return {
        "damaged": damaged,
        "hash": dataset.hash,
        "shards": len(dataset.description["shards"]),
        **_statistics(dataset, counts),
        "categories": {category["name"]: categories[category["id"]] for category in dataset.categories},
        "contact_sheet": draw_sheet(dataset, whole, path),
    }


def _damaged_shards(dataset: ShardDataset) -> Iterator[str]:
    for shard in dataset.description["shards"]:
        path = dataset.directory / shard["name"]
        if not path.is_file():
            yield f"{path}: is missing; copy it again or make the shards again"
        elif sha256_of(path) != shard["sha256"]:
            yield f"{path}: its bytes do not match their checksum; copy it again or make the shards again"
            yield from _strangers(path)


def _strangers(path: Path) -> Iterator[str]:
    """Name members that unpacking could write elsewhere: no shard of ours has any."""
    try:
        with tarfile.open(path) as tar:
            strange = [member.name for member in tar if not member.isfile() or "/" in member.name]
    except tarfile.TarError as error:
        yield f"{path}: is no tar file any more ({error}); copy it again"
        return
    for name in strange:
        yield f"{path}: holds {name!r}, which this program did not write; do not unpack it"


def _count(annotations: list[dict], counts: Counter, categories: Counter) -> None:
    crowds = sum(bool(annotation.get("iscrowd", 0)) for annotation in annotations)
    counts["crowds"] += crowds
    counts["instances"] += len(annotations) - crowds
    counts["empty"] += not annotations
    counts["huddled"] += int(huddled(annotations).sum())
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            continue
        categories[annotation["category_id"]] += 1
        area = annotation.get("area") or 0
        counts["small" if area < SMALL_PX else "medium" if area < MEDIUM_PX else "large"] += 1


def _statistics(dataset: ShardDataset, counts: Counter) -> dict:
    rows = dataset.entries.rows
    return {
        "images": len(dataset),
        "instances": counts["instances"],
        "crowds": counts["crowds"],
        "images_without_instances": counts["empty"],
        "huddled": counts["huddled"] / counts["instances"] if counts["instances"] else None,
        "area": {size: counts[size] for size in ("small", "medium", "large")},
        "instances_per_image": _spread(rows["num_instances"]),
        "width_px": _spread(rows["width"]),
        "height_px": _spread(rows["height"]),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
