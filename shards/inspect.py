"""A look at finished shards: every byte verified, what is in them counted and drawn."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.boxes import HUDDLED_IOU
from shards.charts import draw_charts
from shards.errors import BadInput
from shards.files import sha256_of
from shards.read import ShardDataset
from shards.sheet import draw_sheet
from shards.tally import MEDIUM_PX, SMALL_PX, Tally

SHEET, CHARTS = "contact_sheet.png", "statistics.png"


def inspect_shards(directory: str | Path, out: str | Path | None = None) -> dict:
    """Return what the shards hold, after reading each byte of them, and draw two pictures.

    Args:
        directory: what `mrrcnn shard` wrote.
        out: the contact sheet's PNG; `DIRECTORY/contact_sheet.png` by default; `statistics.png` beside it.

    Returns:
        "damaged": one line for each fault, naming shard and sample; empty when all is well. "images",
        "instances", "crowds", "images_without_instances", "huddled" (share of the instances),
        "instances_per_image", "width_px", "height_px" (min, median, max), "area" (COCO's small, medium and
        large), "categories" (instances of each name), "hash", "contact_sheet" (path, None if no sample can
        be drawn), "statistics" (path). Damaged samples are left out of the counts of instances.

    Raises:
        BadInput: no finished data set there, or a damaged index.
    """
    dataset = ShardDataset(directory)
    damaged = list(_damaged_shards(dataset))
    tally = Tally({category["id"]: category["name"] for category in dataset.categories})
    whole = []
    for place in _present(dataset):
        try:
            dataset.image_bytes(place)
            sample = dataset.annotations(place)
        except BadInput as error:
            damaged.append(str(error))
            continue
        whole.append(place)
        tally.add(sample)
    path = Path(out) if out else Path(directory) / SHEET
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = dataset.entries.rows
    return {
        "damaged": damaged,
        "hash": dataset.hash,
        "shards": len(dataset.description["shards"]),
        **_statistics(rows, tally),
        "contact_sheet": draw_sheet(dataset, whole, path),
        "statistics": draw_charts(rows, tally, path.with_name(CHARTS)),
    }


def _present(dataset: ShardDataset) -> Iterator[int]:
    """Yield the places of the samples whose shard is there: a missing shard is one line, not thousands."""
    there = [(dataset.directory / shard["name"]).is_file() for shard in dataset.description["shards"]]
    return (place for place in range(len(dataset)) if there[dataset.entries.image(place).shard])


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


def _statistics(rows: np.ndarray, tally: Tally) -> dict:
    areas, overlaps = np.array(tally.areas), np.array(tally.overlaps)
    small, below_large = int((areas < SMALL_PX).sum()), int((areas < MEDIUM_PX).sum())
    return {
        "images": len(rows),
        "instances": tally.instances,
        "crowds": tally.crowds,
        "images_without_instances": tally.empty,
        "huddled": float((overlaps >= HUDDLED_IOU).mean()) if len(overlaps) else None,
        "area": {"small": small, "medium": below_large - small, "large": len(areas) - below_large},
        "instances_per_image": _spread(rows["num_instances"]),
        "width_px": _spread(rows["width"]),
        "height_px": _spread(rows["height"]),
        "categories": tally.by_name(),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
