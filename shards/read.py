"""Samples out of shards: random access by index, every byte checked against its checksum."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image

from shards.description import read_description
from shards.errors import CorruptSample
from shards.index import Index, Member, read_index
from shards.masks import decode_mask
from shards.storage.cache import Cache
from shards.storage.store import open_store

TREE = ("image_id", "file_name", "width", "height", "annotations")


@dataclass(frozen=True)
class Sample:
    """One image with its annotations.

    Attributes:
        image: uint8 `[3, height, width]` RGB. EXIF orientation is ignored: COCO's boxes and masks are in
            the pixels as stored, not as a viewer would turn them.
        annotations: COCO annotation objects as in the source (category ids original, iscrowd kept).
    """

    image: torch.Tensor
    image_id: int
    file_name: str
    width: int
    height: int
    annotations: list[dict]


class ShardDataset(Dataset):
    """A finished set of shards, as a map-style data set of `Sample`.

    Stateless: files are opened lazily in each process, so it may be pickled, forked and spawned; reads are
    positioned (pread), so that forked workers may share them.

    Args:
        directory: what `mrrcnn shard` wrote, or an fsspec URL that it was copied to.
        verify: compare each read with its SHA-256.
        cache: where the shards of a URL are kept; by default the user's (`cache_at`).

    Attributes:
        entries: rows of the index, list-like: key, image_id, width, height, num_instances.
        categories: COCO categories by increasing id.
        label_of: category id -> label 1..K.
        category_of: label -> category id; label 0 is background and maps to 0.
        shard_sizes: samples of each shard, in their order.
        hash: of all samples and categories; it does not depend on how they are cut into shards.
        has_annotations: False for an image list without ground truth (test-dev).

    Raises:
        BadInput: no finished data set there, or a damaged index; on reading, a shard that is not there.
        CorruptSample: on reading, a damaged sample, named.
    """

    def __init__(self, directory: str | Path, verify: bool = True, cache: Cache | None = None):
        self.store = open_store(directory, cache)
        self.directory: str | Path = self.store.place
        self.verify = verify
        self.description = read_description(self.store)
        self.entries: Index = read_index(self.store, self.description)
        self.categories: list[dict] = self.description["categories"]
        self.category_of = [0, *(category["id"] for category in self.categories)]
        self.label_of = {category: label for label, category in enumerate(self.category_of) if label}
        self.shard_sizes = [shard["samples"] for shard in self.description["shards"]]
        self.hash: str = self.description["hash"]
        self.has_annotations: bool = self.description["has_annotations"]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: int) -> Sample:
        if not 0 <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        content = self.image_bytes(place)
        tree = self.annotations(place)
        try:
            image = _to_uint8(decode_image(_as_tensor(content), mode=ImageReadMode.RGB))
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise CorruptSample(
                f"{self.image_name(place)}: cannot be decoded ({reason}); "
                "convert the image and make the shards again"
            ) from None
        if tuple(image.shape) != (3, tree["height"], tree["width"]):
            raise CorruptSample(
                f"{self.image_name(place)}: is {image.shape[2]} x {image.shape[1]}, its annotations are of "
                f"{tree['width']} x {tree['height']}; make the shards again"
            )
        return Sample(image, *(tree[name] for name in TREE))

    def image_bytes(self, place: int) -> bytes:
        """Return the image file of a sample, byte for byte as it was in the source."""
        return self._read(self.entries.image(place), place)

    def image_name(self, place: int) -> str:
        """Return what messages call the image of a sample: its shard and its member there."""
        return self._name(self.entries.image(place), place)

    def annotations(self, place: int) -> dict:
        """Return the KEY.json of a sample: image_id, file_name, width, height, annotations."""
        member = self.entries.annotations(place)
        try:
            tree = json.loads(self._read(member, place))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            tree = None
        if not isinstance(tree, dict) or not tree.keys() >= set(TREE):
            raise CorruptSample(f"{self._name(member, place)}: is no sample's JSON; make the shards again")
        return tree

    def to_coco(self) -> dict:
        """Return the COCO ground truth: images, annotations (none if the source had none), categories.

        What COCO's evaluation needs and a source may lack is filled in: iscrowd 0, the area of the mask.
        """
        images, annotations = [], []
        for place in range(len(self)):
            tree = self.annotations(place)
            annotations += [_completed(one, tree) for one in tree.pop("annotations")]
            images.append({"id": tree.pop("image_id"), **tree})
        return {"images": images, "annotations": annotations, "categories": self.categories}

    def _read(self, member: Member, place: int) -> bytes:
        shard = self.description["shards"][member.shard]
        for _ in range(2):
            content = self.store.read(shard, member.offset, member.size)
            if not self.verify or hashlib.sha256(content).digest() == member.sha256:
                return content
            # A second look: at the shard itself if that was a copy in the cache, or was replaced meanwhile.
            self.store.forget(shard)
        raise CorruptSample(
            f"{self._name(member, place)}: its bytes do not match their checksum; "
            "the shard is damaged, copy it again or make the shards again"
        )

    def _name(self, member: Member, place: int) -> str:
        shard = self.store.name(self.description["shards"][member.shard]["name"])
        return f"{shard}, sample {self.entries[place]['key']}.{member.extension}"


def _completed(annotation: dict, image: dict) -> dict:
    if "area" in annotation and "iscrowd" in annotation:
        return annotation
    mask = decode_mask(annotation["segmentation"], image["height"], image["width"])
    return {"iscrowd": 0, "area": float(mask.sum()), **annotation}


def _as_tensor(content: bytes) -> torch.Tensor:
    # A bytearray: torch warns of memory that it must not write to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Bring a 16-bit PNG to 8 bits: 65535 becomes 255."""
    if image.dtype == torch.uint8:
        return image
    return (image.to(torch.int32) >> 8).to(torch.uint8)
