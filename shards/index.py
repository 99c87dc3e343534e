"""The index beside each shard, in memory as flat arrays."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from shards.errors import BadInput
from shards.storage.store import Store

FETCHERS = 16
IMAGES = {"jpg", "jpeg", "png"}


class Entry(TypedDict):
    """One sample of the index; sizes in pixels."""

    key: str
    image_id: int
    width: int
    height: int
    num_instances: int


class Member(NamedTuple):
    """Where a file lies in its shard: number of the shard, offset and size in bytes, SHA-256 (32 bytes)."""

    shard: int
    extension: str
    offset: int
    size: int
    sha256: bytes


_ROW = np.dtype([
    ("image_id", "<i8"), ("width", "<i4"), ("height", "<i4"), ("num_instances", "<i4"), ("shard", "<i4"),
    ("extension", "S4"), ("offset", "<i8", 2), ("size", "<i8", 2), ("sha256", "V32", 2),
])  # fmt: skip


@dataclass(frozen=True)
class Index:
    """All samples of a data set, by place; a few flat arrays, so that forked workers share their memory."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Entry:
        row = self.rows[place]
        image_id = int(row["image_id"])
        return Entry(
            key=f"{image_id:012d}",
            image_id=image_id,
            width=int(row["width"]),
            height=int(row["height"]),
            num_instances=int(row["num_instances"]),
        )

    @property
    def aspects(self) -> np.ndarray:
        """Width / height of each sample, float64 `[len]`."""
        return self.rows["width"] / self.rows["height"]

    @property
    def image_ids(self) -> np.ndarray:
        """The image id of each sample, int64 `[len]`."""
        return self.rows["image_id"]

    def image(self, place: int) -> Member:
        """Return where the image of a sample lies."""
        return self._member(place, 0, self.rows[place]["extension"].decode())

    def annotations(self, place: int) -> Member:
        """Return where the KEY.json of a sample lies."""
        return self._member(place, 1, "json")

    def _member(self, place: int, which: int, extension: str) -> Member:
        row = self.rows[place]
        digest = row["sha256"][which].tobytes()
        return Member(
            int(row["shard"]), extension, int(row["offset"][which]), int(row["size"][which]), digest
        )


def read_index(store: Store, description: dict) -> Index:
    """Return the index of all shards, in their order.

    Raises:
        BadInput: an index file is missing, is not the one that dataset.json names, or fits no shard.
    """
    contents = _index_contents(store, description["shards"])
    return Index(np.concatenate([
        _checked_rows(content, number, shard, store.name(index_name(shard["name"])))
        for number, (shard, content) in enumerate(zip(description["shards"], contents, strict=True))
    ]))  # fmt: skip


def _checked_rows(content: bytes, number: int, shard: dict, name: str) -> np.ndarray:
    """Return the rows of a shard; its checksum holds, and yet somebody else may have written it."""
    try:
        rows = _rows_of(json.loads(content), number)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        raise BadInput(f"{name}: is no index of a shard; make the shards again") from None
    ends = rows["offset"] + rows["size"]
    lies_inside = (rows["offset"] >= 0) & (rows["size"] >= 0) & (ends >= 0) & (ends <= shard["bytes"])
    positive = (rows["width"] > 0) & (rows["height"] > 0) & (rows["num_instances"] >= 0)
    if len(rows) != shard["samples"] or not (lies_inside.all() and positive.all()):
        raise BadInput(f"{name}: is not the index of {shard['name']}; make the shards again")
    return rows


def _index_contents(store: Store, shards: list[dict]) -> Iterator[bytes]:
    # Of a remote data set each is a round trip; a hundred thousand one by one would take an hour. Few at
    # a time: as bytes they are larger than as rows.
    with ThreadPoolExecutor(FETCHERS) as pool:
        for first in range(0, len(shards), FETCHERS):
            some = shards[first : first + FETCHERS]
            names = [index_name(shard["name"]) for shard in some]
            yield from pool.map(store.content, names, [shard["index_sha256"] for shard in some])


def index_name(shard: str) -> str:
    """Return the name of the index that stands beside a shard."""
    return shard.removesuffix(".tar") + ".index.json"


def _rows_of(entries: list[dict], shard: int) -> np.ndarray:
    rows = np.zeros(len(entries), _ROW)
    for row, entry in zip(rows, entries, strict=True):
        (extension,) = IMAGES & entry["members"].keys()
        row["shard"], row["extension"] = shard, extension.encode()
        for name in ("image_id", "width", "height", "num_instances"):
            row[name] = entry[name]
        for which, name in enumerate((extension, "json")):
            member = entry["members"][name]
            row["offset"][which], row["size"][which] = member["offset"], member["size"]
            row["sha256"][which] = np.void(bytes.fromhex(member["sha256"]))
    return rows
