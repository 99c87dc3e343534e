"""The next window's shards are in the cache before they are read, and nothing that is read depends on it."""

import pytest

from shards import write
from shards.description import DESCRIPTION
from shards.order import SampleOrder
from shards.read import ShardDataset
from shards.storage import remote
from shards.storage.ahead import Ahead
from shards.storage.cache import Cache
from shards.window import WindowOrder
from shards.write import write_shards
from tests.shards.http_folder import served

WINDOW = 12


@pytest.fixture(scope="module")
def cut(synthetic, tmp_path_factory):
    """The synthetic data set in many shards."""
    out, plan = tmp_path_factory.mktemp("cut"), write.plan_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "plan_shards", lambda images, name, size: plan(images, name, 12_000))
        write_shards(synthetic / "train2017", synthetic / "annotations/instances_train2017.json", out)
    return out


@pytest.fixture
def far(cut, tmp_path, monkeypatch):
    """Its server, and the data set read from there."""
    monkeypatch.setattr(remote, "PAUSE_S", 0)
    with served(cut) as server:
        yield server, ShardDataset(server.url, cache=Cache(str(tmp_path / "cache"), 10**9))


def window_of(data_set) -> WindowOrder:
    return WindowOrder(data_set.shard_sizes, WINDOW, 3, data_set.hash)


def fetched(server) -> set[str]:
    return {name for name in server.asked if name.endswith(".tar")}


def names(data_set, shards) -> set[str]:
    return {data_set.description["shards"][shard]["name"] for shard in shards}


def test_a_window_ahead_is_fetched_once_and_read_from_the_cache(far):
    server, data_set = far
    order = window_of(data_set)
    ahead = Ahead(data_set, order, 5 * WINDOW)
    _, after = order.window_at(0)
    coming, _ = order.window_at(after)
    assert len(data_set.shard_sizes) > 8 and len(coming) > 1
    for position in range(after):
        ahead.reached(position)
    ahead._thread.shutdown()
    assert fetched(server) == names(data_set, coming)
    for position in range(after, after + 3):
        data_set[order.index(position)]
    assert set(server.asked.values()) == {1}


def test_at_the_end_and_in_a_small_cache_and_where_all_is_here_nothing_is_fetched(cut, far, tmp_path):
    server, data_set = far
    order = window_of(data_set)
    small = ShardDataset(server.url, cache=Cache(str(tmp_path / "small"), 60_000))
    for ahead in (
        Ahead(data_set, order, WINDOW),
        Ahead(small, order, 5 * WINDOW),
        Ahead(data_set, SampleOrder(len(data_set), 3, data_set.hash), 5 * WINDOW),
        Ahead(ShardDataset(cut), order, 5 * WINDOW),
    ):
        ahead.reached(0)
        ahead.close()
    assert fetched(server) == set()


def test_what_cannot_be_had_ahead_stops_nobody(far):
    server, data_set = far
    order = window_of(data_set)
    coming, _ = order.window_at(order.window_at(0)[1])
    for name in names(data_set, coming):
        server.answers[name] = [404, *[503] * remote.TRIES]
    ahead = Ahead(data_set, order, 5 * WINDOW)
    ahead.reached(0)
    ahead.close()
    assert DESCRIPTION in server.asked and data_set[order.index(0)].image_id
