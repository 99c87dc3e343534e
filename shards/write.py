"""COCO to shards: validated first, then written in parallel; the bytes are always the same."""

import hashlib
import json
import re
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from shards.description import DESCRIPTION, FORMAT, is_intact, sealed
from shards.errors import BadInput
from shards.index import index_name
from shards.pool import Spread, processes
from shards.source_images import note_images
from shards.storage.files import encode_json
from shards.storage.folder import Folder, LocalFolder, folder_at
from shards.storage.remote import WEB, shown
from shards.tars import plan_shards, write_shard
from shards.validation.check_image import MAX_PIXELS, check_image, leads_out
from shards.validation.findings import Refused, refuse_errors, report_of
from shards.validation.source import Source, read_source
from shards.validation.validate import Record, useful_workers, validate

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
    spreading: AbstractContextManager[Spread] | None = None,
) -> dict:
    """Return the content of OUT/dataset.json, after writing the shards, their indexes and report.json.

    Validates everything first and writes report.json, also when it refuses. Bytes do not depend on the
    number of workers. Killed and called again it goes on; finished, it returns at once unless an image was
    written since: then all is validated again, and the shards that differ are written. A second writer of
    `out` is refused where `out` is a local folder; object stores have no locks.

    Args:
        images: folder or URL that the file_names of the annotation file are relative to.
        annotations: a COCO instances file, or an image list without annotations; a path or URL.
        out: target folder or URL, one data set each.
        workers: processes; no more than the images are worth are started.
        on_bad: "fail" refuses any error, "skip" leaves the image or annotation out; both list it.
        repair: clip boxes, take boxes and areas from the masks, drop annotations without a usable mask.
        max_pixels: an image of more pixels (width x height) is an error and is not decoded.
        shard_size_mb: a shard is closed when it would grow beyond this many MiB.
        name: shards are called NAME-000000.tar; by default as the annotation file, or "shard" where that has
            no letter or digit of ASCII.
        spreading: what yields a `map` in order to be used in place of processes of this machine.

    Raises:
        BadInput: an error in the source, another source in `out`, or an argument out of range.
    """
    _check_arguments(workers, on_bad, max_pixels, shard_size_mb)
    target, originals = folder_at(out), folder_at(images)
    _check_writable(out)
    _check_folder(originals)
    source = read_source(annotations)
    options = {"on_bad": on_bad, "repair": repair, "max_pixels": max_pixels}
    identity = _identity(source, originals, options, shard_size_mb, name)
    _make_folder(target)
    with target.locked():
        began = time.time_ns()
        finished = _begun(target, identity)
        if finished is not None and not _images_changed(source, originals, target, max_pixels):
            return finished
        with spreading or processes(min(workers, useful_workers(len(source.rows)))) as spread:
            records = _validated(source, originals, target, options, spread)
            description = _write_all(source, records, originals, target, identity, spread)
        if finished is not None:
            _remove_others(target, finished, description)
        if isinstance(target, LocalFolder):
            target.date(DESCRIPTION, began)
        return description


def _identity(
    source: Source, originals: Folder, options: dict[str, Any], shard_size_mb: int, name: str | None
) -> dict[str, Any]:
    return {
        "annotations_sha256": source.sha256,
        "image_sizes_sha256": _hash_image_sizes(source, originals),
        **options,
        "shard_size_mb": shard_size_mb,
        "name": _shard_name(name) if name is not None else _name_after(source.file),
    }


def _check_arguments(workers: int, on_bad: str, max_pixels: int, shard_size_mb: int) -> None:
    if on_bad not in ("fail", "skip"):
        raise BadInput(f"on_bad is {on_bad!r}; give fail or skip")
    numbers = {"workers": workers, "max_pixels": max_pixels, "shard_size_mb": shard_size_mb}
    for name, number in numbers.items():
        if number < 1:
            raise BadInput(f"{name} is {number}; give at least 1")


def _check_folder(images: Folder) -> None:
    if images.exists():
        return
    if str(images).startswith(WEB):
        raise BadInput(
            f"{images}: is no folder, or its server lists none; names and sizes are read from such a list: "
            "give a folder of a server that lists its files, or download the images"
        )
    raise BadInput(f"{images}: is no folder; give the folder of the images")


def _check_writable(out: str | Path) -> None:
    if str(out).startswith(WEB):
        raise BadInput(f"{shown(out)}: cannot be written to over HTTP; choose a folder or a store as --out")


def _make_folder(out: Folder) -> None:
    try:
        out.make()
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{out}: cannot be made a folder ({reason}); choose another --out") from None


def _shard_name(name: str) -> str:
    safe = _safe(name)
    if not safe:
        raise BadInput(f"shards cannot be named {name!r}; use letters, digits, - and _")
    return safe


def _name_after(file: str) -> str:
    # A file may be named in any script.
    return _safe(PurePosixPath(file).stem) or "shard"


def _safe(name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
    return safe if safe.strip("_") else ""


def _hash_image_sizes(source: Source, images: Folder) -> str:
    """Hash names and sizes: a mended image is another source, and a look at each file is cheap."""
    digest = hashlib.sha256()
    sizes = images.sizes(row.file_name for row in source.rows if not leads_out(row.file_name))
    for row in source.rows:
        size = -1 if leads_out(row.file_name) else next(sizes)
        digest.update(encode_json((row.file_name, size)))
    return digest.hexdigest()


def _begun(out: Folder, identity: dict) -> dict | None:
    """Return what is finished there, None if it is to be begun or gone on with; refuse another source."""
    if out.has(DESCRIPTION):
        description = _json_of(out, DESCRIPTION)
        if description.get("source") == identity:
            # Left by a call that was killed, or found the disk full, at its very last step.
            out.remove(PROGRESS)
            return description if _is_whole(out, description) else None
    elif not out.has(PROGRESS) or _json_of(out, PROGRESS) == identity:
        return None
    raise BadInput(
        f"{out}: holds shards of another source or other options; choose another --out or delete it "
        "(in a run directory: --redo shard)"
    )


def _is_whole(out: Folder, description: dict) -> bool:
    """Whether every shard and every index is there to the last byte, the description, and a report."""
    try:
        _json_of(out, REPORT)
        return is_intact(description) and all(_holds(out, shard) for shard in description["shards"])
    except (KeyError, TypeError, AttributeError, OSError, BadInput):
        # Damage that left JSON behind: then everything is looked at and written anew.
        return False


def _holds(out: Folder, shard: dict) -> bool:
    index = index_name(shard["name"])
    whole = out.has(index) and hashlib.sha256(out.read(index)).hexdigest() == shard["index_sha256"]
    return whole and out.holds(shard["name"], shard["bytes"], shard["sha256"])


def _images_changed(source: Source, images: Folder, out: Folder, max_pixels: int) -> bool:
    """Return whether finished shards may be of other images than those there now, of the same sizes.

    Their times tell, where both are local; they are compared with that of dataset.json, in which they cannot
    be written: the same images give the same bytes. Else only the images that were found bad are looked at.
    """
    rows = [row for row in source.rows if not leads_out(row.file_name)]
    if isinstance(images, LocalFolder) and isinstance(out, LocalFolder):
        return images.changed_since((row.file_name for row in rows), out, DESCRIPTION)
    bad = _refused_images(out)
    return any(check_image(row, images, max_pixels)[0] for row in rows if row.image_id in bad)


def _refused_images(out: Folder) -> set[int]:
    found = _json_of(out, REPORT).get("findings", ())
    return {
        one["image_id"]
        for one in found
        if one["severity"] == "error" and one["annotation_id"] is None and one["kind"].startswith("image_")
    }


def _remove_others(out: Folder, before: dict, now: dict) -> None:
    """Remove the shards of an earlier description that the present one has no more."""
    names = {shard["name"] for shard in now["shards"]}
    for gone in {shard["name"] for shard in before["shards"]} - names:
        out.remove(index_name(gone))
        out.remove(gone)


def _json_of(out: Folder, name: str) -> dict:
    try:
        return dict(json.loads(out.read(name)))
    except (ValueError, TypeError, RecursionError):
        raise BadInput(f"{out.name_of(name)}: is damaged; delete the folder and shard again") from None


def _validated(
    source: Source, images: Folder, out: Folder, options: dict[str, Any], spread: Spread
) -> list[Record]:
    records, findings = validate(source, images, spread=spread, **options)
    kept = {"images": len(records), "annotations": sum(record.num_instances for record in records)}
    if any(finding.action == "refused" for finding in findings):
        kept = dict.fromkeys(kept, 0)
    report = report_of(findings, source.counts, kept)
    out.write(REPORT, json.dumps(report, indent=1).encode())
    refuse_errors(findings, out.name_of(REPORT))
    if not records:
        raise Refused(f"{source.file}: no image is left after skipping; see {out.name_of(REPORT)}")
    return records


def _write_all(
    source: Source, records: list[Record], images: Folder, out: Folder, identity: dict, spread: Spread
) -> dict:
    out.write(PROGRESS, encode_json(identity))
    plan = plan_shards(records, identity["name"], identity["shard_size_mb"] << 20)
    written = spread(partial(write_shard, images=images, out=out), plan)
    shards = list(tqdm(written, "writing", unit=" shards", disable=None))
    description = sealed(
        {
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
    )
    note_images(out, ((record.file_name, record.image.size) for record in records))
    out.write(DESCRIPTION, json.dumps(description, indent=1, sort_keys=True).encode())
    out.remove(PROGRESS)
    return description


def _hash(records: list[Record], categories: list[dict]) -> str:
    """Hash what the samples hold, not how they are cut into shards."""
    digest = hashlib.sha256(encode_json(categories))
    for record in records:
        digest.update(encode_json((record.image_id, record.image.sha256, record.json_sha256)))
    return digest.hexdigest()
