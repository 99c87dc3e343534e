"""A look at finished shards: every byte verified, what is in them counted and drawn."""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from shards.boxes import HUDDLED_IOU
from shards.errors import BadInput
from shards.inspection.charts import draw_charts
from shards.inspection.samples import checked_sample
from shards.inspection.sheet import draw_sheet
from shards.inspection.tally import MEDIUM_PX, SMALL_PX, Tally
from shards.read import ShardDataset
from shards.storage.cache import Cache
from shards.storage.folder import naming
from shards.storage.remote import is_remote, local_path, shown

SHEET, CHARTS = "contact_sheet.png", "statistics.png"
OURS = re.compile(r"\d{12}\.(jpg|jpeg|png|json)")


def inspect_shards(directory: str | Path, out: str | Path | None = None, cache: Cache | None = None) -> dict:
    """Return what the shards hold, after reading each byte and decoding each image, and draw two pictures.

    Args:
        directory: what `mrrcnn shard` wrote, or a URL that it was copied to.
        out: the contact sheet's PNG; `DIRECTORY/contact_sheet.png` by default; `statistics.png` beside it.
        cache: where the shards of a URL are kept; by default the user's (`cache_at`).

    Returns:
        "damaged": one line for each fault, naming shard and sample; empty when all is well. "complaints":
        one line for each image that training decodes, but whose decoder complains of damage. "images",
        "instances", "crowds", "images_without_instances", "huddled" (share of the instances),
        "instances_per_image", "width_px", "height_px" (min, median, max), "area" (COCO's small, medium and
        large), "categories" (instances of each name), "hash", "contact_sheet" (path, None if no sample can
        be drawn), "statistics" (path). Damaged samples are left out of the counts of instances.

    Raises:
        BadInput: no finished data set there, or a damaged index; a URL without `out`, or a folder in which
            the pictures cannot be written.
        OSError: a file cannot be read just now, which says nothing of it; names the file.
    """
    if out is None and is_remote(directory):
        raise BadInput(f"{shown(directory)}: is a URL; give --out, a folder for the two pictures")
    dataset = ShardDataset(directory, cache=cache)
    path = Path(out) if out else local_path(directory) / SHEET
    _check_writable(path.parent)
    absent, damaged = _check_shards(dataset)
    whole, complaints = [], []
    tally = Tally({category["id"]: category["name"] for category in dataset.categories})
    # None: on a terminal only.
    for place in tqdm(range(len(dataset)), "decoding", unit=" images", disable=None):
        # A missing shard is one line, not thousands.
        if dataset.entries.image(place).shard in absent:
            continue
        try:
            sample, said = checked_sample(dataset, place)
        except BadInput as error:
            damaged.append(str(error))
            continue
        complaints += said
        whole.append(place)
        tally.add(sample)
    rows = dataset.entries.rows
    return {
        "damaged": damaged,
        "complaints": complaints,
        "hash": dataset.hash,
        "shards": len(dataset.description["shards"]),
        **_statistics(rows, tally),
        "contact_sheet": draw_sheet(dataset, whole, path),
        "statistics": draw_charts(rows, tally, path.with_name(CHARTS)),
    }


def _check_writable(folder: Path) -> None:
    # Before all is read, which may take hours.
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder}: may not be written to; give --out, a folder for the two pictures")


def _check_shards(dataset: ShardDataset) -> tuple[set[int], list[str]]:
    """Return the numbers of the shards that cannot be read at all, and what is wrong with any."""
    absent, lines = set(), []
    for number, shard in enumerate(
        tqdm(dataset.description["shards"], "verifying", unit=" shards", disable=None)
    ):
        try:
            lines += _damage(dataset, shard)
        except BadInput as error:
            absent.add(number)
            lines.append(str(error))
    return absent, lines


def _damage(dataset: ShardDataset, shard: dict) -> list[str]:
    name = dataset.store.name(shard["name"])
    for _ in range(2):
        with naming(name), dataset.store.open(shard) as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == shard["sha256"]
            stream.seek(0)
            # Also where it is whole: data sets come from elsewhere, checksums and all.
            strangers = list(_strangers(stream, name))
        if whole:
            return strangers
        # A second look: at the shard itself if that was a copy in the cache.
        dataset.store.forget(shard)
    remedy = "copy it again or make the shards again"
    return [f"{name}: its bytes do not match their checksum; {remedy}", *strangers]


def _strangers(stream: BinaryIO, path: str) -> Iterator[str]:
    """Name members that no shard of ours has: unpacking could write them elsewhere, or anything there."""
    try:
        # Unpacked as it is: what is compressed is no shard, and might unpack to any size.
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            strange = [member.name for member in tar if not (member.isfile() and OURS.fullmatch(member.name))]
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
