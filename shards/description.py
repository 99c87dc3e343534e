"""The description of a finished data set, dataset.json: sealed when it is written, judged when it is read."""

import hashlib
import json
import re
from typing import Any

from shards.errors import BadInput
from shards.storage.files import encode_json
from shards.storage.store import Store

FORMAT = 1
DESCRIPTION = "dataset.json"
SEAL = "description_sha256"
PARTS = {
    "shards": list,
    "categories": list,
    "images": int,
    "instances": int,
    "hash": str,
    "has_annotations": bool,
}
# Names of files: a shard's beside the description, a checksum in the cache. None may lead elsewhere.
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
SHA256 = re.compile(r"[0-9a-f]{64}")


def read_description(store: Store) -> dict:
    """Return the content of dataset.json.

    Raises:
        BadInput: no finished data set there, or the file is not as it was written.
    """
    name = store.name(DESCRIPTION)
    content = store.description(DESCRIPTION)
    try:
        description = json.loads(content)
    except (ValueError, RecursionError):
        raise BadInput(f"{name}: is not JSON; make the shards again") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise BadInput(f"{name}: is not of format {FORMAT}; make the shards again with this version")
    if not is_intact(description):
        raise BadInput(f"{name}: was changed since it was written; copy it again or make the shards again")
    return description


def sealed(description: dict) -> dict:
    """Return the description with the checksum of all it says, which no edit or damage will match."""
    rest = {name: value for name, value in description.items() if name != SEAL}
    return {**rest, SEAL: hashlib.sha256(encode_json(rest)).hexdigest()}


def is_intact(description: dict) -> bool:
    """Return whether a description is as it was written; one of before there were seals may be.

    A seal is no proof of who set it, so the parts are looked at as well: whoever reads, downloads or mends
    shards may take every name and checksum for one.
    """
    try:
        return _is_complete(description) and (SEAL not in description or description == sealed(description))
    except (ValueError, RecursionError):
        # NaN, or a tree too deep: neither was ever written.
        return False


def _is_complete(description: dict) -> bool:
    if any(type(description.get(name)) is not kind for name, kind in PARTS.items()):
        return False
    shards, categories = description["shards"], description["categories"]
    return bool(shards) and all(map(_is_shard, shards)) and all(map(_is_category, categories))


def _is_shard(shard: Any) -> bool:
    if not isinstance(shard, dict):
        return False
    texts = {"name": SHARD_NAME, "sha256": SHA256, "index_sha256": SHA256}
    named = all(isinstance(shard.get(key), str) and form.fullmatch(shard[key]) for key, form in texts.items())
    return named and all(type(shard.get(key)) is int and shard[key] >= 0 for key in ("samples", "bytes"))


def _is_category(category: Any) -> bool:
    return isinstance(category, dict) and (type(category.get("id")), type(category.get("name"))) == (int, str)
