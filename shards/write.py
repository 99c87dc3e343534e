"""COCO to shards: each image is looked at and written in one go; the bytes are always the same."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from shards.description import DESCRIPTION, FORMAT, sealed
from shards.earlier import PROGRESS, REPORT, abandon, begin, finished, images_changed
from shards.errors import BadInput
from shards.index import index_name
from shards.pool import Spread, processes
from shards.source_images import note_images
from shards.storage.files import encode_json
from shards.storage.folder import Folder, folder_at
from shards.storage.remote import WEB, shown
from shards.tars import Made, Shard, make_shard, plan_shards, remove_shards
from shards.validation.check_image import MAX_PIXELS, leads_out
from shards.validation.findings import Finding, Refused, refusal_of, report_of
from shards.validation.source import Source, read_source
from shards.validation.validate import Record, Rules, source_findings

# Starting a process costs about as much as looking at so many images and writing them.
IMAGES_A_WORKER = 256


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

    Everything is validated and listed in report.json; if that refuses the data set, its shards are removed
    again. Bytes do not depend on the number of workers. Killed and called again it goes on; finished, it
    returns at once unless an image was written since: then all is validated again before the shards that
    differ are written. A second writer of `out` is refused where `out` is a local folder; object stores
    have no locks.

    Args:
        images: folder or URL that the file_names of the annotation file are relative to.
        annotations: a COCO instances file, or an image list without annotations; a path or URL.
        out: target folder or URL, one data set each.
        workers: processes; no more than the images are worth are started.
        on_bad: "fail" refuses any error, "skip" leaves the image or annotation out; both list it.
        repair: clip boxes, take boxes and areas from the masks, drop annotations without a usable mask.
        max_pixels: an image of more pixels (width x height) is an error and is not decoded.
        shard_size_mb: a shard is closed when its images and annotations would grow beyond this many MiB.
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
    options = {"on_bad": on_bad, "repair": repair, "max_pixels": max_pixels, "shard_size_mb": shard_size_mb}
    work = _planned(source, originals, target, options, name)
    _make_folder(target)
    with target.locked():
        began = time.time_ns()
        before = finished(target, work.identity)
        if before is not None and not images_changed(source, originals, target, max_pixels):
            return before
        with spreading or processes(_useful(workers, work)) as spread:
            return _sharded(work, spread, began)


@dataclass(frozen=True)
class _Work:
    """What is to be sharded, from where, to where and how; `identity` is all that decides the bytes."""

    source: Source
    images: Folder
    out: Folder
    rules: Rules
    identity: dict[str, Any]
    shards: list[Shard]


def _planned(source: Source, images: Folder, out: Folder, options: dict[str, Any], name: str | None) -> _Work:
    sizes = _image_sizes(source, images)
    identity = {
        "annotations_sha256": source.sha256,
        "image_sizes_sha256": _hash_image_sizes(source, sizes),
        **options,
        "name": _shard_name(name) if name is not None else _name_after(source.file),
    }
    skip = options["on_bad"] == "skip"
    rules = Rules(source.file, source.has_annotations, options["max_pixels"], skip, options["repair"])
    sized = zip(source.rows, sizes, strict=True)
    shards = list(plan_shards(sized, identity["name"], options["shard_size_mb"] << 20))
    return _Work(source, images, out, rules, identity, shards)


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


def _image_sizes(source: Source, images: Folder) -> list[int | None]:
    """Return the size of each image file in bytes: -1 where there is none, None where nobody tells."""
    inside = [row for row in source.rows if not leads_out(row.file_name)]
    found = images.sizes(row.file_name for row in inside)
    sizes = {row.image_id: size for row, size in zip(inside, found, strict=True)}
    return [sizes.get(row.image_id, -1) for row in source.rows]


def _hash_image_sizes(source: Source, sizes: list[int | None]) -> str:
    """Hash names and sizes: a mended image is another source, and a look at each file is cheap."""
    digest = hashlib.sha256()
    for row, size in zip(source.rows, sizes, strict=True):
        digest.update(encode_json((row.file_name, size)))
    return digest.hexdigest()


def _useful(workers: int, work: _Work) -> int:
    """Return how many processes have something to do that is worth their start."""
    return max(1, min(workers, len(work.shards), len(work.source.rows) // IMAGES_A_WORKER))


def _sharded(work: _Work, spread: Spread, began: int) -> dict:
    """Return the description after writing what is not there yet."""
    made = None
    if work.out.has(DESCRIPTION):
        # What was finished stays if it turns out now that it would be refused.
        made = _made(work, spread, write=False)
        _refuse_errors(work, made, finished=True)
    if made is None or not all(one.there for one in made):
        begin(work.out, work.identity)
        made = _made(work, spread, write=True)
        _refuse_errors(work, made, finished=False)
    return _described(work, made, began)


def _made(work: _Work, spread: Spread, write: bool) -> list[Made]:
    """Return all shards, written as long as nothing is refused."""
    made: list[Made] = []
    refused = any(one.action == "refused" for one in source_findings(work.source.findings, work.rules))

    def tasks() -> Iterator[Shard]:
        for shard in work.shards:
            yield replace(shard, write=write and not refused)

    make = partial(make_shard, images=work.images, out=work.out, rules=work.rules)
    doing, total = "sharding" if write else "looking", len(work.source.rows)
    # None: on a terminal only.
    with tqdm(total=total, desc=doing, unit=" images", disable=None) as progress:
        for one, shard in zip(spread(make, tasks()), work.shards, strict=True):
            made.append(one)
            refused = refused or one.refused
            progress.update(len(shard.images))
    return made


def _refuse_errors(work: _Work, made: list[Made], finished: bool) -> None:
    """Return when there is none that forbids to keep what was made.

    Raises:
        Refused: with an error, or if nothing is left. Its report is written; shards stay that were finished.
    """
    path = work.out.name_of(REPORT)
    refusal = refusal_of(_findings(work, made), path)
    if refusal is None and not _records(made):
        refusal = Refused(f"{work.rules.file}: no image is left after skipping; see {path}")
    if refusal is None:
        return
    if not finished:
        # First: a disk that they have filled has no room for the report.
        abandon(work.out, work.identity)
    _report(work, made)
    raise refusal


def _report(work: _Work, made: list[Made]) -> None:
    findings, records = _findings(work, made), _records(made)
    kept = {"images": len(records), "annotations": sum(record.num_instances for record in records)}
    if any(finding.action == "refused" for finding in findings):
        kept = dict.fromkeys(kept, 0)
    report = report_of(findings, work.source.counts, kept)
    work.out.write(REPORT, json.dumps(report, indent=1).encode())


def _described(work: _Work, made: list[Made], began: int) -> dict:
    """Return the description after writing it: from then on the data set is finished."""
    source, records = work.source, _records(made)
    description = sealed(
        {
            "format": FORMAT,
            "shards": [one.row for one in made],
            "images": len(records),
            "instances": sum(record.num_instances for record in records),
            "has_annotations": source.has_annotations,
            "categories": source.categories,
            "labels": {str(category["id"]): label for label, category in enumerate(source.categories, 1)},
            "hash": _hash(records, source.categories),
            "source": work.identity,
        }
    )
    names = [shard["name"] for shard in description["shards"]]
    _check_written(work.out, names)
    remove_shards(work.identity["name"], work.out, keep=names)
    _report(work, made)
    note_images(work.out, ((record.file_name, record.image.size) for record in records))
    work.out.write(DESCRIPTION, json.dumps(description, indent=1, sort_keys=True).encode(), began)
    work.out.remove(PROGRESS)
    return description


def _check_written(out: Folder, shards: list[str]) -> None:
    files = [file for shard in shards for file in (shard, index_name(shard))]
    for file, size in zip(files, out.sizes(files), strict=True):
        if size == -1:
            raise BadInput(
                f"{out.name_of(file)}: was written by another machine and is not here; "
                "give an --out that every machine sees"
            )


def _findings(work: _Work, made: list[Made]) -> list[Finding]:
    found = [finding for one in made for finding in one.findings]
    return [*source_findings(work.source.findings, work.rules), *found]


def _records(made: list[Made]) -> list[Record]:
    return [record for one in made for record in one.records]


def _hash(records: list[Record], categories: list[dict]) -> str:
    """Hash what the samples hold, not how they are cut into shards."""
    digest = hashlib.sha256(encode_json(categories))
    for record in records:
        digest.update(encode_json((record.image_id, record.image.sha256, record.json_sha256)))
    return digest.hexdigest()
