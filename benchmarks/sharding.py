"""Sharding: ours, a loop over webdataset's writer, tar and one pass of SHA-256 over the same files."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from webdataset import ShardWriter

from shards.boxes import box_of
from shards.masks import decode_mask
from shards.storage.files import flush
from shards.storage.folder import LocalFolder
from shards.validation.check_annotation import check_annotation
from shards.validation.jpeg import decodes
from shards.validation.source import Source, read_source
from shards.write import write_shards

# So many shards a worker that none is idle at the end.
SHARDS_A_WORKER = 4


@dataclass(frozen=True)
class Files:
    """A COCO data set on the disk, and a folder that every turn begins empty."""

    images: Path
    annotations: Path
    scratch: Path

    def begin(self) -> None:
        """Empty the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)

    def rows(self) -> list[dict]:
        """Return the image objects, by increasing id."""
        return sorted(json.loads(self.annotations.read_bytes())["images"], key=lambda row: row["id"])

    def names(self) -> list[str]:
        """Return the file names of the images in that order."""
        return [row["file_name"] for row in self.rows()]


def contenders(files: Files, workers: int) -> dict[str, Callable[[int], object]]:
    """Return the ways to shard."""
    shard_mb, names = shard_size_mb(files, workers), files.names()
    return {
        "ours": lambda turn: ours(files, workers, shard_mb),
        "ShardWriter": lambda turn: shard_writer(files, shard_mb),
        "tar and SHA-256": lambda turn: tar_and_sha256(files, names),
    }


def pieces(files: Files, workers: int) -> dict[str, Callable[[int], object]]:
    """Return what says where the time goes, each in one process; what looks at images reads them too.

    "not in it" is what ours leaves to `mrrcnn inspect`.
    """
    shard_mb = shard_size_mb(files, workers)
    source, names = read_source(files.annotations), files.names()
    return {
        "ours, one process": lambda turn: ours(files, 1, shard_mb),
        "part: read the annotation file": lambda turn: read_source(files.annotations),
        "part: read every image": lambda turn: for_each(files, names, len),
        "part: read and hash every image (twice in it)": lambda turn: for_each(files, names, hashlib.sha256),
        "part: read and look at every image": lambda turn: for_each(files, names, look_at),
        "part: check and encode every annotation": lambda turn: check_all(source),
        "part: read every image and write it": lambda turn: write_all(files, names),
        "not in it: read and decode every image": lambda turn: for_each(files, names, decode),
        "ShardWriter, each image decoded": lambda turn: shard_writer(files, shard_mb, checked=True),
    }


def shard_size_mb(files: Files, workers: int) -> int:
    """Return the size of shards, MiB, that gives every worker several."""
    total = sum((files.images / row["file_name"]).stat().st_size for row in files.rows())
    return max(1, total // (workers * SHARDS_A_WORKER) >> 20)


def ours(files: Files, workers: int, shard_mb: int) -> Path:
    """Return the folder of our shards: validated, checksummed, on the disk."""
    out = files.scratch / "ours"
    write_shards(files.images, files.annotations, out, workers=workers, shard_size_mb=shard_mb)
    return out


def shard_writer(files: Files, shard_mb: int, checked: bool = False) -> Path:
    """Return the folder of the same samples as a user of webdataset would write them, in one process.

    With `checked` each image is decoded and hashed and each mask rasterised before it is written, the way
    to find damage without knowing the file format; without, the bytes are copied unseen.
    """
    tree = json.loads(files.annotations.read_bytes())
    annotations = {row["id"]: [] for row in tree["images"]}
    for annotation in tree["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    out = files.scratch / "webdataset"
    out.mkdir()
    options = {"maxsize": shard_mb << 20, "mtime": 0, "encoder": False, "verbose": 0}
    with ShardWriter(str(out / "shard-%06d.tar"), **options) as writer:
        for row in sorted(tree["images"], key=lambda row: row["id"]):
            sample = _sample(row, annotations[row["id"]], files.images)
            if checked:
                _look_at(sample, row, annotations[row["id"]])
            writer.write(sample)
    return out


def tar_and_sha256(files: Files, names: list[str]) -> Path:
    """Return a tar of the images and the annotation file, after one pass of SHA-256 over it."""
    out = files.scratch / "files.tar"
    annotations = ["-C", files.annotations.parent, files.annotations.name]
    command = ["tar", "cf", out, *annotations, "-C", files.images, "-T", "-"]
    subprocess.run(command, input="\n".join(names).encode(), check=True)
    with open(out, "rb") as stream:
        hashlib.file_digest(stream, "sha256").hexdigest()
    return out


def for_each(files: Files, names: list[str], look: Callable[[bytes], object]) -> None:
    """Read every image as ours does, and do something with it."""
    images = LocalFolder(str(files.images), files.images)
    for name in names:
        look(images.read(name))


def write_all(files: Files, names: list[str]) -> None:
    """Read every image, write all into one file, and see it to the disk."""
    with open(files.scratch / "images", "wb") as stream:
        for_each(files, names, stream.write)
        flush(stream)


def look_at(content: bytes) -> None:
    """Tell from its head, markers and tables whether an image will decode."""
    with Image.open(io.BytesIO(content)) as image:
        if not (image.size and decodes(content)):
            raise SystemExit("bench data: an image is not of the common kind")


def decode(content: bytes) -> None:
    """Decode an image."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()


def check_all(source: Source) -> None:
    """Measure every mask, compare it with box and area, and encode the annotation."""
    for row in source.rows:
        for annotation in row.annotations:
            check_annotation(annotation, row, source.file, repair=False)


def check(files: Files, workers: int) -> None:
    """Refuse to time what does not hold the same samples."""
    files.begin()
    shard_mb = shard_size_mb(files, workers)
    own, theirs = (_members(out) for out in (ours(files, workers, shard_mb), shard_writer(files, shard_mb)))
    if own != theirs:
        wrong = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        raise SystemExit(f"bench data: ours and ShardWriter differ in {len(wrong)} members, first {wrong[0]}")
    with tarfile.open(tar_and_sha256(files, files.names())) as tar:
        packed = {member.name: tar.extractfile(member).read() for member in tar}
    for row in files.rows():
        key = f"{row['id']:012d}{Path(row['file_name']).suffix.lower()}"
        if packed[row["file_name"]] != own[key]:
            raise SystemExit(f"bench data: tar packed another {row['file_name']} than ours")


def _sample(row: dict, annotations: list[dict], images: Path) -> dict:
    path = images / row["file_name"]
    tree = {"image_id": row["id"], "annotations": annotations}
    tree |= {name: row[name] for name in ("file_name", "width", "height")}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    extension = path.suffix.lower().lstrip(".")
    return {"__key__": f"{row['id']:012d}", extension: path.read_bytes(), "json": text}


def _look_at(sample: dict, row: dict, annotations: list[dict]) -> None:
    """Do what finds damage; the finding itself costs nothing."""
    image, text = (sample[name] for name in sample if name != "__key__")
    for content in (image, text):
        hashlib.sha256(content).hexdigest()
    with Image.open(io.BytesIO(image)) as picture:
        picture.load()
    for annotation in annotations:
        mask = decode_mask(annotation["segmentation"], row["height"], row["width"])
        mask.sum(), box_of(mask)


def _members(folder: Path) -> dict[str, object]:
    """Return the content of every member of every shard: images as bytes, JSON as what it says."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                found[member.name] = json.loads(content) if member.name.endswith(".json") else content
    return found
