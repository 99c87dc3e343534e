"""The index: what fits no shard is refused in one line, whatever its checksum says."""

import json

import pytest

from shards.errors import BadInput
from shards.read import ShardDataset
from tests.shards.stranger import SHARD, indexed_again

INDEX = f"{SHARD}.index.json"


def indexed(out, change):
    """Change the entries of an index; every checksum is right."""
    indexed_again(out, json.dumps(change(json.loads((out / INDEX).read_text()))).encode())
    return out


def with_member(**fields):
    def change(entries):
        entries[1]["members"]["json"] |= fields
        return entries

    return change


def with_entry(**fields):
    return lambda entries: [{**entries[0], **fields}, *entries[1:]]


STRANGE = {
    "no list": lambda entries: 7,
    "no objects": lambda entries: [1, 2, 3, 4],
    "no member": with_entry(members={}),
    "no image": with_entry(members={"json": {"offset": 0, "size": 0, "sha256": "00" * 32}}),
    "a word for a width": with_entry(width="wide"),
    "beyond 64 bits": with_member(offset=1 << 70),
    "no checksum": with_member(sha256="x"),
}
OF_ANOTHER = {
    "a sample less": lambda entries: entries[1:],
    "before the shard": with_member(offset=-5),
    "beyond the shard": with_member(size=1 << 45),
    "far beyond": with_member(offset=(1 << 63) - 1),
    "no height": with_entry(height=0),
}


def test_an_index_that_is_as_it_was_passes(case):
    case.shard()
    assert len(ShardDataset(indexed(case.out, lambda entries: entries))) == 4


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_what_is_no_index_is_named(case, change):
    case.shard()
    with pytest.raises(BadInput, match=rf"{INDEX}: is no index of a shard; make the shards again"):
        ShardDataset(indexed(case.out, change))


@pytest.mark.parametrize("change", OF_ANOTHER.values(), ids=OF_ANOTHER)
def test_an_index_that_does_not_fit_its_shard_is_named(case, change):
    case.shard()
    with pytest.raises(BadInput, match=rf"{INDEX}: is not the index of instances-000000\.tar; make"):
        ShardDataset(indexed(case.out, change))
