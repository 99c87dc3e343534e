"""One shard: the plan of it, and the tar with its index, whole or absent."""

import hashlib
import json
import re
import socket
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from shards.errors import BadInput
from shards.index import index_name
from shards.storage.files import flush
from shards.storage.folder import Folder, LocalFolder
from shards.validation.findings import Finding
from shards.validation.source import ImageRow
from shards.validation.validate import Record, Rules, Sample, check_row

OWNER = "mrrcnn"
READABLE = 0o444
BLOCK = tarfile.BLOCKSIZE
# A worker holds the annotations of its shard. COCO has 8 MiB of them in 256 MiB, so this cuts only data
# sets of tiny images, whose shards would otherwise be annotations for the most part.
MAX_PACKED_BYTES = 16 << 20
# What a KEY.json holds beside annotations and file name.
ENVELOPE = 100


@dataclass(frozen=True)
class Shard:
    """The plan of one shard.

    Attributes:
        images: what is to go into it, each with the size of its file as `plan_shards` got it.
        write: False if it is only to be looked at.
    """

    name: str
    images: tuple[tuple[ImageRow, int | None], ...]
    write: bool = True


@dataclass(frozen=True)
class Made:
    """A shard as it was, or would have been, written.

    Attributes:
        row: its row of dataset.json: name, samples, bytes and checksums.
        records: its samples.
        findings: of all its images, also of those that are left out.
        there: whether it lies in the target, to the last byte.
    """

    row: dict
    records: list[Record]
    findings: list[Finding]
    there: bool

    @property
    def refused(self) -> bool:
        """Whether there is an error that forbids to keep it."""
        return any(finding.action == "refused" for finding in self.findings)


def plan_shards(images: Iterable[tuple[ImageRow, int | None]], name: str, max_bytes: int) -> Iterator[Shard]:
    """Yield the shards in order; the cut depends on the source alone, not on what is left out or on workers.

    A shard ends before it grows beyond `max_bytes`, annotations taken as long as they are packed, or those
    beyond 16 MiB; one image fits always.

    Args:
        images: with the size of their files in bytes: -1 of an absent one, None where it cannot be known (a
            web server need not tell): then two pixels are taken for a byte, as a JPEG of good quality has it.
    """
    number, total, packed, batch = 0, 0, 0, []
    for row, size in images:
        expected = row.width * row.height // 2 if size is None else max(0, size)
        sample = _padded(expected) + _padded(len(row.packed) + len(row.file_name) + ENVELOPE)
        if batch and (total + sample > max_bytes or packed + len(row.packed) > MAX_PACKED_BYTES):
            yield Shard(f"{name}-{number:06d}.tar", tuple(batch))
            number, total, packed, batch = number + 1, 0, 0, []
        batch.append((row, size))
        total, packed = total + sample, packed + len(row.packed)
    yield Shard(f"{name}-{number:06d}.tar", tuple(batch))


def _padded(size: int) -> int:
    return BLOCK + size + -size % BLOCK


def make_shard(shard: Shard, images: Folder, out: Folder, rules: Rules) -> Made:
    """Return a shard after looking at its images and writing it, unless it lies there to the last byte.

    If all of its images are left out, it is an empty tar.

    Raises:
        BadInput: one of the folders is not there on this machine, or an image changed since the plan.
        OSError: the disk or the network fails.
    """
    for folder in (images, out):
        _check_there(folder)
    index_file = index_name(shard.name)
    begun = out.has(index_file) and out.has(shard.name)
    if begun or not shard.write:
        made, index = _pack(None, shard, images, rules)
        there = begun and _is_same(made.row, index, out)
        if there or not shard.write:
            return replace(made, there=there)
    # The index goes first and comes last, so an index means that its shard is whole.
    out.remove(index_file)
    with out.making(shard.name) as temporary, open(temporary, "wb") as stream:
        made, index = _pack(stream, shard, images, rules)
        flush(stream)
    out.write(index_file, index)
    return made


def remove_shards(name: str, out: Folder, keep: Iterable[str] = ()) -> None:
    """Remove the shards of a name and their indexes, but those to `keep` (names of shards), indexes first."""
    kept = {file for shard in keep for file in (shard, index_name(shard))}
    ours = re.compile(re.escape(name) + r"-\d{6,}(\.tar|\.index\.json)")
    for file in sorted(out.names()):
        if ours.fullmatch(file) and file not in kept:
            out.remove(file)


def _check_there(folder: Folder) -> None:
    # It was there when the command began; but this may be another machine.
    if isinstance(folder, LocalFolder) and not folder.exists():
        raise BadInput(
            f"{folder}: is no folder on {socket.gethostname()}; give one that every machine that shards "
            "sees, or shard on one machine"
        )


class _Tar:
    """A tar, byte for byte as webdataset's TarWriter writes it (importing that takes seconds), and its index.

    Passes on to a stream, if there is one, and counts and hashes.
    """

    def __init__(self, stream: IO[bytes] | None):
        self.stream = stream
        self.size = 0
        self.digest = hashlib.sha256()
        self.entries: list[dict] = []

    def add(self, sample: Sample) -> None:
        record = sample.record
        content = {record.image.extension: sample.image, "json": sample.json}
        sha256 = {record.image.extension: record.image.sha256, "json": record.json_sha256}
        parts, members, place = [], {}, self.size
        for extension, member in sorted(content.items()):
            parts += [_head(f"{record.key}.{extension}", len(member)), member, bytes(-len(member) % BLOCK)]
            members[extension] = {
                "offset": place + BLOCK, "size": len(member), "sha256": sha256[extension],
            }  # fmt: skip
            place += BLOCK + len(member) + -len(member) % BLOCK
        # At once: a call for each part costs more than the copy.
        self._write(b"".join(parts))
        self.entries.append(_entry(record, members))

    def end(self) -> None:
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self.size += len(content)
        self.digest.update(content)
        if self.stream is not None:
            self.stream.write(content)


def _pack(stream: IO[bytes] | None, shard: Shard, images: Folder, rules: Rules) -> tuple[Made, bytes]:
    """Return the shard and its index, after writing the tar to a stream, or to nowhere."""
    tar, records, findings = _Tar(stream), [], []
    for row, size in shard.images:
        sample, found = check_row(row, size, images, rules)
        findings += found
        if sample is not None:
            tar.add(sample)
            records.append(sample.record)
    tar.end()
    index = json.dumps(tar.entries, separators=(",", ":")).encode()
    row = {
        "name": shard.name,
        "samples": len(records),
        "bytes": tar.size,
        "sha256": tar.digest.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }
    return Made(row, records, findings, there=stream is not None), index


def _head(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, READABLE, OWNER, OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


def _entry(record: Record, members: dict[str, dict]) -> dict:
    return {
        "key": record.key,
        "image_id": record.image_id,
        "width": record.width,
        "height": record.height,
        "num_instances": record.num_instances,
        "members": members,
    }


def _is_same(row: dict, index: bytes, out: Folder) -> bool:
    """Return whether what lies in the target is what would be written."""
    return out.read(index_name(row["name"])) == index and out.holds(row["name"], row["bytes"], row["sha256"])
