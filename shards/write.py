"""COCO to shards: validated first, then written in parallel; the bytes are always the same."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from shards.check_image import MAX_PIXELS, leads_out
from shards.errors import BadInput
from shards.files import encode_json, only_writer, sha256_of, write_atomic
from shards.findings import Refused, refuse_errors, report_of
from shards.index import DESCRIPTION, FORMAT, index_name
from shards.pool import map_ordered
from shards.source import Source, read_source
from shards.source_images import note_images
from shards.tars import plan_shards, write_shard
from shards.validate import Record, validate

PROGRESS = "progress.json"
REPORT = "report.json"


def write_shards(
    images: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    on_bad: str = "fail",
    repair: bool = False,
    max_pixels: int = MAX_PIXELS,
    shard_size_mb: int = 256,
    name: str | None = None,
) -> dict:
    """Return the content of OUT/dataset.json, after writing the shards, their indexes and report.json.

    Validates everything first and writes report.json, also when it refuses. Bytes do not depend on the
    number of workers. Killed and called again it goes on; finished, it returns at once.

    Args:
        images: folder that the file_names of the annotation file are relative to.
        annotations: a COCO instances file, or an image list without annotations.
        out: target folder, one data set each.
        workers: processes.
        on_bad: "fail" refuses any error, "skip" leaves the image or annotation out; both list it.
        repair: clip boxes, take boxes and areas from the masks, drop annotations without a usable mask.
        max_pixels: an image of more pixels (width x height) is an error and is not decoded.
        shard_size_mb: a shard is closed when it would grow beyond this many MiB.
        name: shards are called NAME-000000.tar; by default as the annotation file.

    Raises:
        BadInput: an error in the source, another source in `out`, or an argument out of range.
    """
    _check_arguments(workers, on_bad, max_pixels, shard_size_mb)
    out, images = Path(out), Path(images)
    if not images.is_dir():
        raise BadInput(f"{images}: is no folder; give the folder of the images")
    source = read_source(annotations)
    identity = {
        "annotations_sha256": source.sha256,
        "image_sizes_sha256": _hash_image_sizes(source, images),
        "on_bad": on_bad,
        "repair": repair,
        "max_pixels": max_pixels,
        "shard_size_mb": shard_size_mb,
        "name": _shard_name(source.path.stem if name is None else name),
    }
    _make_folder(out)
    with only_writer(out):
        finished = _begun(out, identity)
        if finished is not None:
            return finished
        options = {"on_bad": on_bad, "repair": repair, "max_pixels": max_pixels}
        records = _validated(source, images, out, workers, options)
        return _write_all(source, records, images, out, identity, workers)


def _check_arguments(workers: int, on_bad: str, max_pixels: int, shard_size_mb: int) -> None:
    if on_bad not in ("fail", "skip"):
        raise BadInput(f"on_bad is {on_bad!r}; give fail or skip")
    numbers = {"workers": workers, "max_pixels": max_pixels, "shard_size_mb": shard_size_mb}
    for name, number in numbers.items():
        if number < 1:
            raise BadInput(f"{name} is {number}; give at least 1")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot be made a folder ({error.strerror}); choose another --out") from None


def _shard_name(name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
    if not safe.strip("_"):
        raise BadInput(f"shards cannot be named {name!r}; use letters, digits, - and _")
    return safe


def _hash_image_sizes(source: Source, images: Path) -> str:
    """Hash names and sizes: a mended image is another source, and a look at each file is cheap."""
    digest = hashlib.sha256()
    for row in source.rows:
        digest.update(encode_json((row.file_name, _size_of(images, row.file_name))))
    return digest.hexdigest()


def _size_of(images: Path, file_name: str) -> int:
    if leads_out(file_name):
        return -1
    try:
        return (images / file_name).stat().st_size
    except (OSError, ValueError):
        return -1


def _begun(out: Path, identity: dict) -> dict | None:
    """Return what is finished there, None if it is to be begun or gone on with; refuse another source."""
    if (out / DESCRIPTION).is_file():
        description = _json_of(out / DESCRIPTION)
        if description.get("source") == identity:
            # Left by a call that was killed, or found the disk full, at its very last step.
            (out / PROGRESS).unlink(missing_ok=True)
            return description if _is_whole(out, description) else None
    elif not (out / PROGRESS).is_file() or _json_of(out / PROGRESS) == identity:
        return None
    raise BadInput(
        f"{out}: holds shards of another source or other options; choose another --out or delete it "
        "(in a run directory: --redo shard)"
    )


def _is_whole(out: Path, description: dict) -> bool:
    """Whether every shard and every index is there to the last byte."""
    checksums = {}
    for shard in description["shards"]:
        checksums[out / shard["name"]] = shard["sha256"]
        checksums[out / index_name(shard["name"])] = shard["index_sha256"]
    return all(path.is_file() and sha256_of(path) == checksum for path, checksum in checksums.items())


def _json_of(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise BadInput(f"{path}: is damaged; delete the folder and shard again") from None


def _validated(
    source: Source, images: Path, out: Path, workers: int, options: dict[str, Any]
) -> list[Record]:
    records, findings = validate(source, images, workers=workers, **options)
    kept = {"images": len(records), "annotations": sum(record.num_instances for record in records)}
    if any(finding.action == "refused" for finding in findings):
        kept = dict.fromkeys(kept, 0)
    report = report_of(findings, source.counts, kept)
    write_atomic(out / REPORT, json.dumps(report, indent=1).encode())
    refuse_errors(findings, str(out / REPORT))
    if not records:
        raise Refused(f"{source.path}: no image is left after skipping; see {out / REPORT}")
    return records


def _write_all(
    source: Source, records: list[Record], images: Path, out: Path, identity: dict, workers: int
) -> dict:
    write_atomic(out / PROGRESS, encode_json(identity))
    plan = list(plan_shards(records, identity["name"], identity["shard_size_mb"] << 20))
    write = partial(write_shard, images=images, out=out)
    shards = list(map_ordered(write, plan, min(workers, len(plan))))
    description = {
        "format": FORMAT,
        "shards": shards,
        "images": len(records),
        "instances": sum(record.num_instances for record in records),
        "has_annotations": source.has_annotations,
        "categories": source.categories,
        "labels": {str(category["id"]): label for label, category in enumerate(source.categories, 1)},
        "hash": _hash(records, source.categories),
        "source": identity,
    }
    note_images(out, ((record.file_name, record.image.size) for record in records))
    write_atomic(out / DESCRIPTION, json.dumps(description, indent=1, sort_keys=True).encode())
    (out / PROGRESS).unlink()
    return description


def _hash(records: list[Record], categories: list[dict]) -> str:
    """Hash what the samples hold, not how they are cut into shards."""
    digest = hashlib.sha256(encode_json(categories))
    for record in records:
        digest.update(encode_json((record.image_id, record.image.sha256, record.json_sha256)))
    return digest.hexdigest()
