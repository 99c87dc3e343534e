"""One shard: the plan of it, and the tar with its index, whole or absent."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput
from shards.files import flush, sha256_of, whole_or_absent, write_atomic
from shards.index import index_name
from shards.validate import Record

OWNER = "mrrcnn"
BLOCK = 512


@dataclass(frozen=True)
class Shard:
    """The plan of one shard: everything that its bytes depend on."""

    name: str
    records: tuple[Record, ...]


def plan_shards(records: list[Record], name: str, max_bytes: int) -> Iterator[Shard]:
    """Yield the shards in order; the cut depends on the records alone, never on the workers."""
    number, total, batch = 0, 0, []
    for record in records:
        size = _padded(record.image.size) + _padded(len(record.json))
        if batch and total + size > max_bytes:
            yield Shard(f"{name}-{number:06d}.tar", tuple(batch))
            number, total, batch = number + 1, 0, []
        batch.append(record)
        total += size
    yield Shard(f"{name}-{number:06d}.tar", tuple(batch))


def write_shard(shard: Shard, images: Path, out: Path) -> dict:
    """Return name, samples, bytes and checksums of a shard, written unless it is there and whole.

    Raises:
        BadInput: an image is not the one that was validated.
    """
    path, index_path = out / shard.name, out / index_name(shard.name)
    # The index is renamed into place after the shard, so an index means that its shard is whole.
    if not index_path.is_file() or not _is_planned(path, index_path, shard):
        with whole_or_absent(path) as temporary:
            _write_tar(temporary, shard, images)
            index = _index_of(temporary, shard)
        write_atomic(index_path, json.dumps(index, separators=(",", ":")).encode())
    return {
        "name": shard.name,
        "samples": len(shard.records),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "index_sha256": sha256_of(index_path),
    }


def _padded(size: int) -> int:
    return BLOCK + -(-size // BLOCK) * BLOCK


def _write_tar(path: Path, shard: Shard, images: Path) -> None:
    from webdataset import TarWriter  # imports torch: seconds, so only where a shard is really written

    with open(path, "wb") as stream:
        with TarWriter(stream, user=OWNER, group=OWNER, mtime=0, encoder=False) as writer:
            for record in shard.records:
                writer.write(_sample(record, images))
        flush(stream)


def _sample(record: Record, images: Path) -> dict:
    path = images / record.file_name
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != record.image.sha256:
        raise BadInput(f"{path}: image {record.image_id} changed while it was sharded; run it again")
    return {"__key__": record.key, record.image.extension: content, "json": record.json}


def _index_of(path: Path, shard: Shard) -> list[dict]:
    with tarfile.open(path) as tar:
        places = {member.name: {"offset": member.offset_data, "size": member.size} for member in tar}
    return [_entry(record, places) for record in shard.records]


def _entry(record: Record, places: dict[str, dict]) -> dict:
    checksums = {record.image.extension: record.image.sha256, "json": record.json_sha256}
    return {
        "key": record.key,
        "image_id": record.image_id,
        "width": record.width,
        "height": record.height,
        "num_instances": record.num_instances,
        "members": {
            extension: {**places[f"{record.key}.{extension}"], "sha256": checksum}
            for extension, checksum in checksums.items()
        },
    }


def _is_planned(path: Path, index_path: Path, shard: Shard) -> bool:
    """Whether a shard from an earlier, killed call is what this call would write, to the last byte."""
    if not path.is_file():
        return False
    try:
        entries = json.loads(index_path.read_bytes())
        return entries == _index_of(path, shard) and _members_match(path, entries)
    except (ValueError, KeyError, tarfile.TarError):
        return False


def _members_match(path: Path, entries: list[dict]) -> bool:
    with open(path, "rb") as stream:
        for member in (member for entry in entries for member in entry["members"].values()):
            stream.seek(member["offset"])
            if hashlib.sha256(stream.read(member["size"])).hexdigest() != member["sha256"]:
                return False
    return True
