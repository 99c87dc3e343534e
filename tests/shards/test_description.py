"""dataset.json: an edit is noticed, and none can make a reader touch a file that is not the data set's."""

import json
import os
import shutil

import pytest

from shards.description import sealed
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.storage.cache import Cache
from tests.shards.http_folder import served


def test_a_description_that_was_edited_is_noticed(case):
    case.shard()
    path = case.out / "dataset.json"
    text = path.read_text()
    path.write_text(text.replace('"instances": 5', '"instances": 6'))
    with pytest.raises(
        BadInput, match=r"dataset\.json: was changed since it was written; .* make the shards"
    ):
        ShardDataset(case.out)
    case.shard()
    assert path.read_text() == text, "sharding again mends it"


def test_shards_of_before_descriptions_had_a_checksum_are_read(case):
    case.shard()
    path = case.out / "dataset.json"
    description = json.loads(path.read_text())
    del description["description_sha256"]
    path.write_text(json.dumps(description))
    assert len(ShardDataset(case.out)) == 4


def resealed(path, change):
    """Edit a description as somebody would who knows how it is sealed."""
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(sealed(description)))


@pytest.mark.parametrize("name", ["sha256", "index_sha256"])
def test_a_checksum_that_is_a_path_makes_the_cache_touch_nothing(sharded, tmp_path, name):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    copy = shutil.copytree(sharded, tmp_path / "store")
    resealed(copy / "dataset.json", lambda tree: tree["shards"][0].update({name: str(mine)}))
    with served(copy) as server, pytest.raises(BadInput, match=r"dataset\.json: was changed"):
        ShardDataset(server.url, cache=Cache(str(tmp_path / "cache"), 10**9))[0]
    assert {path.name for path in tmp_path.iterdir()} == {"store", "mine.txt"}


def test_sharding_again_removes_nothing_outside_its_folder(case):
    """Shards that are no more are removed by the names which the folder's old description gives them."""
    case.shard()
    for kind in ("tar", "index.json"):
        shutil.copy(case.out / f"instances-000000.{kind}", case.root / f"mine.{kind}")
    resealed(case.out / "dataset.json", lambda tree: tree["shards"][0].update(name="../mine.tar"))
    # As if the images had changed since: then all is written again.
    os.utime(case.out / "dataset.json", (0, 0))
    case.shard()
    assert (case.root / "mine.tar").exists() and (case.root / "mine.index.json").exists()


BROKEN = {
    "no list of shards": lambda tree: tree.update(shards=7),
    "no shards": lambda tree: tree.update(shards=[]),
    "a shard without a name": lambda tree: tree["shards"][0].pop("name"),
    "samples that are no number": lambda tree: tree["shards"][0].update(samples=True),
    "no categories": lambda tree: tree.pop("categories"),
    "a category without id": lambda tree: tree["categories"][0].pop("id"),
    "no hash": lambda tree: tree.pop("hash"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_description_that_lacks_a_part_is_named_whatever_its_seal(case, what):
    expected = case.shard()
    path = case.out / "dataset.json"
    resealed(path, BROKEN[what])
    with pytest.raises(BadInput, match=r"dataset\.json: was changed"):
        ShardDataset(case.out)
    assert case.shard() == expected == json.loads(path.read_text())
