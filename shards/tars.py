"""One shard: the plan of it, and the tar with its index, whole or absent."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

from shards.errors import BadInput
from shards.index import index_name
from shards.storage.files import flush
from shards.storage.folder import Folder
from shards.validation.validate import Record

OWNER = "mrrcnn"
READABLE = 0o444
BLOCK = tarfile.BLOCKSIZE
# A worker holds the annotations of its shard. COCO has 6 MiB of them in 256 MiB, so this cuts only data
# sets of tiny images, whose shards would otherwise be annotations for the most part.
MAX_JSON_BYTES = 8 << 20


@dataclass(frozen=True)
class Shard:
    """The plan of one shard: everything that its bytes depend on."""

    name: str
    records: tuple[Record, ...]


def plan_shards(records: list[Record], name: str, max_bytes: int) -> Iterator[Shard]:
    """Yield the shards in order; the cut depends on the records alone, never on the workers.

    A shard ends before it grows beyond `max_bytes`, or its annotations beyond 8 MiB; one sample fits always.
    """
    number, total, texts, batch = 0, 0, 0, []
    for record in records:
        text = len(record.json)
        size = _padded(record.image.size) + _padded(text)
        if batch and (total + size > max_bytes or texts + text > MAX_JSON_BYTES):
            yield Shard(f"{name}-{number:06d}.tar", tuple(batch))
            number, total, texts, batch = number + 1, 0, 0, []
        batch.append(record)
        total, texts = total + size, texts + text
    yield Shard(f"{name}-{number:06d}.tar", tuple(batch))


def write_shard(shard: Shard, images: Folder, out: Folder) -> dict:
    """Return name, samples, bytes and checksums of a shard, written unless it is there and whole.

    Raises:
        BadInput: an image is not the one that was validated.
    """
    index = _encoded_index(shard)
    tar = _found(shard, index, out)
    if tar is None:
        with out.making(shard.name) as temporary, open(temporary, "wb") as stream:
            tar = _write_tar(stream, shard, partial(_source_image, images))
            flush(stream)
        # The index comes after the shard, so an index means that its shard is whole.
        out.write(index_name(shard.name), index)
    return {
        "name": shard.name,
        "samples": len(shard.records),
        "bytes": tar.size,
        "sha256": tar.digest.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }


class _Hashed:
    """What a tar is written to: passes on to a stream, if there is one, and counts and hashes."""

    def __init__(self, stream: IO[bytes] | None):
        self.stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        self.size += len(content)
        self.digest.update(content)
        if self.stream is not None:
            self.stream.write(content)


def _write_tar(stream: IO[bytes] | None, shard: Shard, image_of: Callable[[Record], bytes]) -> _Hashed:
    """Write, byte for byte, what webdataset's TarWriter would; importing that takes seconds."""
    tar = _Hashed(stream)
    for record in shard.records:
        content = {record.image.extension: image_of(record), "json": record.json}
        parts = []
        for extension, size in _members(record):
            parts += [_head(f"{record.key}.{extension}", size), content[extension], bytes(-size % BLOCK)]
        # At once: a call for each part costs more than the copy.
        tar.write(b"".join(parts))
    tar.write(bytes(2 * BLOCK))
    tar.write(bytes(-tar.size % tarfile.RECORDSIZE))
    return tar


def _members(record: Record) -> list[tuple[str, int]]:
    """Return extension and size of the members of a sample, in their order in the tar."""
    return sorted([(record.image.extension, record.image.size), ("json", len(record.json))])


def _head(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, READABLE, OWNER, OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padded(size: int) -> int:
    return BLOCK + -(-size // BLOCK) * BLOCK


def _offsets(shard: Shard) -> Iterator[dict[str, int]]:
    """Yield where in the tar the members of each sample begin, by extension: their sizes decide it."""
    place = 0
    for record in shard.records:
        offsets = {}
        for extension, size in _members(record):
            offsets[extension] = place + BLOCK
            place += _padded(size)
        yield offsets


def _source_image(images: Folder, record: Record) -> bytes:
    try:
        content = images.read(record.file_name)
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != record.image.sha256:
        name = images.name_of(record.file_name)
        raise BadInput(f"{name}: image {record.image_id} changed while it was sharded; run it again")
    return content


def _encoded_index(shard: Shard) -> bytes:
    entries = [_entry(*one) for one in zip(shard.records, _offsets(shard), strict=True)]
    return json.dumps(entries, separators=(",", ":")).encode()


def _entry(record: Record, offsets: dict[str, int]) -> dict:
    files = {
        record.image.extension: (record.image.size, record.image.sha256),
        "json": (len(record.json), record.json_sha256),
    }
    return {
        "key": record.key,
        "image_id": record.image_id,
        "width": record.width,
        "height": record.height,
        "num_instances": record.num_instances,
        "members": {
            extension: {"offset": offsets[extension], "size": size, "sha256": sha256}
            for extension, (size, sha256) in files.items()
        },
    }


def _found(shard: Shard, index: bytes, out: Folder) -> _Hashed | None:
    """Return the tar that an earlier, killed call left, if it and its index are what this one would write.

    To the last byte: the tar is written again, to nowhere, out of the images that lie in it.
    """
    if not (out.has(index_name(shard.name)) and out.has(shard.name)):
        return None
    if out.read(index_name(shard.name)) != index:
        return None
    lie = dict(zip((record.key for record in shard.records), _offsets(shard), strict=True))
    try:
        with out.open(shard.name) as stream:
            tar = _write_tar(None, shard, lambda record: _shard_image(stream, record, lie[record.key]))
            stream.seek(0)
            same = hashlib.file_digest(stream, "sha256").digest() == tar.digest.digest()
    except ValueError:
        return None
    return tar if same else None


def _shard_image(stream: IO[bytes], record: Record, offsets: dict[str, int]) -> bytes:
    stream.seek(offsets[record.image.extension])
    content = stream.read(record.image.size)
    if hashlib.sha256(content).hexdigest() != record.image.sha256:
        raise ValueError(f"{record.key} is damaged")
    return content
