"""Shards behind a URL are read as those of a directory, by any number of loader workers."""

import errno
import os
import shutil

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from shards.errors import BadInput, CorruptSample
from shards.read import ShardDataset
from shards.storage import remote
from shards.storage.cache import Cache
from shards.storage.store import LocalStore
from tests.shards.coco_case import flip_byte
from tests.shards.http_folder import served


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    monkeypatch.setenv("MRRCNN_CACHE", str(tmp_path / "not to be used"))
    return Cache(str(tmp_path / "cache"), 10**9)


@pytest.fixture
def store(sharded, tmp_path):
    with served(shutil.copytree(sharded, tmp_path / "store")) as server:
        yield server


def same(one, other):
    assert len(one) == len(other) and one.hash == other.hash and one.shard_sizes == other.shard_sizes
    for place in (0, 7, len(one) - 1):
        assert torch.equal(one[place].image, other[place].image)
        assert one[place].annotations == other[place].annotations
        assert one.image_bytes(place) == other.image_bytes(place)


def test_every_kind_of_url_reads_as_the_directory_does(sharded, store, cache):
    local, memory = ShardDataset(sharded), MemoryFileSystem()
    memory.put(str(sharded), "/set", recursive=True)
    for url in (store.url, f"{store.url}/", f"file://{sharded}", "memory://set"):
        same(ShardDataset(url, cache=cache), local)
    assert ShardDataset(store.url, cache=cache).to_coco() == local.to_coco()
    assert store.asked["instances_train2017-000000.tar"] == 1


def test_without_a_cache_the_users_own_serves(sharded, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MRRCNN_CACHE", str(tmp_path / "mine"))
    same(ShardDataset(store.url), ShardDataset(sharded))
    assert len(list((tmp_path / "mine").glob("?" * 64))) == 2, "the shard and its index"


def test_forked_loader_workers_share_one_download(sharded, store, cache):
    data_set, local = ShardDataset(store.url, cache=cache), ShardDataset(sharded)
    loader = DataLoader(data_set, batch_size=None, sampler=range(12), num_workers=2)
    for place, sample in enumerate(loader):
        assert torch.equal(sample.image, local[place].image)
    assert store.asked["instances_train2017-000000.tar"] == 1


def test_a_damaged_copy_in_the_cache_is_fetched_again(sharded, store, cache, tmp_path):
    data_set = ShardDataset(store.url, cache=cache)
    data_set[0]
    copy = tmp_path / "cache" / data_set.description["shards"][0]["sha256"]
    flip_byte(copy, data_set.entries.image(3).offset + 30)
    assert torch.equal(data_set[3].image, ShardDataset(sharded)[3].image)
    assert store.asked["instances_train2017-000000.tar"] == 2


def test_a_shard_that_was_put_right_is_read_without_a_new_start(sharded, tmp_path):
    copy = shutil.copytree(sharded, tmp_path / "copy")
    data_set = ShardDataset(copy)
    tar = next(copy.glob("*.tar"))
    flip_byte(tar, data_set.entries.image(3).offset + 30)
    with pytest.raises(CorruptSample):
        data_set[3]
    tar.unlink()
    shutil.copy(sharded / tar.name, tar)
    assert data_set[3].image_id == data_set.entries[3]["image_id"]


def test_a_url_without_shards_and_a_damaged_set_are_named(store, cache, tmp_path):
    with pytest.raises(BadInput, match=rf"{store.url}/none/dataset\.json: is not there"):
        ShardDataset(f"{store.url}/none", cache=cache)
    with pytest.raises(BadInput, match="password"):
        ShardDataset("http://me:secret@127.0.0.1/set", cache=cache)
    tar = tmp_path / "store" / "instances_train2017-000000.tar"
    flip_byte(tar, 2000)
    with pytest.raises(CorruptSample, match=r"000000\.tar, sample \d+\.jpg: its bytes do not match"):
        ShardDataset(store.url, cache=cache)[0]
    cache.forget(ShardDataset(store.url, cache=cache).description["shards"][0]["sha256"])
    tar.unlink()
    with pytest.raises(BadInput, match=r"000000\.tar: is not there"):
        ShardDataset(store.url, cache=cache)[0]
    (tmp_path / "store" / "dataset.json").write_text("<html>")
    with pytest.raises(BadInput, match=r"dataset\.json: is not JSON"):
        ShardDataset(store.url, cache=cache)


def test_a_shard_damaged_behind_its_url_costs_its_damaged_samples_only(sharded, store, cache, tmp_path):
    name = "instances_train2017-000000.tar"
    data_set, local = ShardDataset(store.url, cache=cache), ShardDataset(sharded)
    flip_byte(tmp_path / "store" / name, data_set.entries.image(3).offset + 30)
    for place in (3, 4, 3, 5):
        if place == 3:
            with pytest.raises(CorruptSample, match=rf"^{store.url}/{name}, sample .*copy it again"):
                data_set[place]
        else:
            assert torch.equal(data_set[place].image, local[place].image)
    assert store.asked[name] == 2, "not again for each sample"
    shutil.copy(sharded / name, tmp_path / "store" / name)
    again = ShardDataset(store.url, cache=cache)
    assert torch.equal(again[4].image, local[4].image) and store.asked[name] == 2
    assert torch.equal(again[3].image, local[3].image), "a later start looks whether it was put right"
    assert store.asked[name] == 3


def test_quarantine_replaces_the_damaged_samples_of_a_remote_shard_as_of_a_local_one(
    sharded, store, cache, tmp_path
):
    from pipeline.data import TrainingSamples

    local = ShardDataset(shutil.copytree(sharded, tmp_path / "copy"))
    for place in ("copy", "store"):
        flip_byte(tmp_path / place / "instances_train2017-000000.tar", local.entries.image(3).offset + 30)
    remote_set = ShardDataset(store.url, cache=cache)
    kept = [TrainingSamples(one, 0, 0.5, "quarantine")[(9, 3)] for one in (local, remote_set)]
    assert torch.equal(kept[0][0], kept[1][0]) and [len(t["corrupt"]) for _, t in kept] == [1, 1]
    with pytest.raises(CorruptSample):
        TrainingSamples(remote_set, 0, 0.5, "fail")[(9, 3)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOENT, BadInput), (errno.ENOTDIR, BadInput), (errno.EISDIR, BadInput)]
    + [(code, OSError) for code in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES)],
)
def test_only_what_is_absent_is_bad_input(sharded, monkeypatch, code, kind):
    """Nobody makes shards again, and no run ends for good, because a file server was away for a minute."""
    store = LocalStore(sharded)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    for opening in ("os.open", "open", "Path.read_bytes"):
        monkeypatch.setattr(f"shards.storage.store.{opening}", fail, raising=False)
    reads = {
        "dataset.json": lambda name: store.description(name),
        "a.index.json": lambda name: store.content(name, "0" * 64),
        "a.tar": lambda name: store.read({"name": name}, 0, 1),
        "b.tar": lambda name: store.open({"name": name}),
    }
    for name, read in reads.items():
        with pytest.raises(kind, match=os.strerror(code)) as raised:
            read(name)
        if kind is OSError:
            assert (raised.value.errno, raised.value.filename) == (code, str(sharded / name))
        else:
            assert f"{sharded / name}: is missing" in str(raised.value)


def test_a_failing_disk_is_named_by_the_file_that_it_cannot_read(sharded, store, cache, monkeypatch):
    """Else a run of days ends with `Input/output error` of nobody knows what."""
    local, remote = ShardDataset(sharded), ShardDataset(store.url, cache=cache)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shards.storage.store.os.pread", fail)
    shard = local.description["shards"][0]
    for data_set, name in ((local, sharded / shard["name"]), (remote, f"{cache.folder}/{shard['sha256']}")):
        with pytest.raises(OSError, match="Input/output error") as raised:
            data_set[0]
        assert raised.value.filename == str(name)
