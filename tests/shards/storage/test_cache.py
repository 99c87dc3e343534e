"""The cache: each file fetched once for all, whole and verified, within the cap, whatever is killed."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time

import pytest

from shards.errors import BadInput
from shards.storage import cache as module
from shards.storage import remote
from shards.storage.cache import Cache, cache_at
from tests.shards.http_folder import served
from tests.shards.storage.nfs import as_nfs

SIZE = 50_000


def content_of(number):
    return hashlib.shake_128(str(number).encode()).digest(SIZE)


def sha_of(number):
    return hashlib.sha256(content_of(number)).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    folder = tmp_path / "store"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.tar").write_bytes(content_of(number))
    with served(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 3 * SIZE)


def fetch(cache, server, number):
    descriptor = cache.open(f"{server.url}/{number}.tar", sha_of(number), SIZE)
    try:
        return os.pread(descriptor, SIZE + 1, 0)
    finally:
        os.close(descriptor)


def held(cache):
    names = {entry.name for entry in os.scandir(cache.folder)} - {".lock"}
    return {number for number in range(8) if sha_of(number) in names} if names <= _shas() else names


def _shas():
    return {sha_of(number) for number in range(8)}


def test_a_file_is_fetched_once_and_is_the_one_asked_for(cache, server):
    assert all(fetch(cache, server, 1) == content_of(1) for _ in range(3))
    assert server.asked == {"1.tar": 1}
    assert held(cache) == {1}


def test_it_may_lie_on_nfs(cache, server, monkeypatch):
    as_nfs(monkeypatch)
    assert fetch(cache, server, 1) == content_of(1)


def test_the_same_file_under_another_url_is_not_fetched_again(cache, server, tmp_path):
    fetch(cache, server, 1)
    os.close(cache.open("http://127.0.0.1:9/other.tar", sha_of(1), SIZE))


def test_what_was_not_used_for_longest_goes_and_the_cap_is_kept(cache, server):
    for number in (0, 1, 2, 0, 3):
        fetch(cache, server, number)
        assert len(held(cache)) <= 3
    assert held(cache) == {0, 2, 3}
    fetch(cache, server, 1)
    assert held(cache) == {0, 1, 3}


def test_what_is_being_read_survives_its_eviction(cache, server):
    descriptor = cache.open(f"{server.url}/0.tar", sha_of(0), SIZE)
    for number in (1, 2, 3):
        fetch(cache, server, number)
    assert held(cache) == {1, 2, 3}
    assert os.pread(descriptor, SIZE, 0) == content_of(0)
    os.close(descriptor)


def test_a_file_larger_than_the_cache_is_refused_with_the_remedy(server, tmp_path):
    with pytest.raises(BadInput, match=r"data\.cache_gb"):
        fetch(Cache(str(tmp_path / "small"), SIZE - 1), server, 0)


def test_a_file_that_comes_damaged_is_kept_apart_until_it_is_forgotten(cache, server, tmp_path):
    (tmp_path / "store" / "0.tar").write_bytes(content_of(1))
    for _ in range(2):
        assert fetch(cache, server, 0) == content_of(1)
    assert server.asked["0.tar"] == 2 and held(cache) == {f"{sha_of(0)}.damaged"}
    (tmp_path / "store" / "0.tar").write_bytes(content_of(0))
    cache.forget(sha_of(0), before=time.time() - 60)
    assert fetch(cache, server, 0) == content_of(1)
    cache.forget(sha_of(0))
    assert fetch(cache, server, 0) == content_of(0) and held(cache) == {0}
    (tmp_path / "store" / "1.tar").write_bytes(content_of(2))
    for number in (1, 2, 3, 4):
        fetch(cache, server, number)
    assert held(cache) == {2, 3, 4}, "it is evicted like any other"


def test_a_file_larger_than_the_one_asked_for_is_refused_and_not_kept(cache, server, tmp_path):
    (tmp_path / "store" / "0.tar").write_bytes(content_of(1) + b"x")
    with pytest.raises(BadInput, match=r"/0\.tar: does not match its checksum"):
        fetch(cache, server, 0)
    assert server.asked["0.tar"] == 2 and held(cache) == set()


def test_small_files_are_read_through_the_cache_too(cache, server):
    for _ in range(2):
        assert cache.read(f"{server.url}/5.tar", sha_of(5)) == content_of(5)
    assert server.asked == {"5.tar": 1}
    with pytest.raises(BadInput, match="checksum"):
        cache.read(f"{server.url}/5.tar", sha_of(6))


def test_a_file_whose_time_may_not_be_changed_is_read_all_the_same(cache, server, monkeypatch):
    """Another user's file, or a cache on a disk that is only read."""
    fetch(cache, server, 1)

    def refuse(descriptor):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "utime", refuse)
    assert fetch(cache, server, 1) == content_of(1) and server.asked == {"1.tar": 1}


def test_a_forgotten_file_is_fetched_again(cache, server):
    fetch(cache, server, 1)
    cache.forget(sha_of(1))
    cache.forget(sha_of(2))
    assert fetch(cache, server, 1) == content_of(1)
    assert server.asked["1.tar"] == 2


def read_many(cache, url, seed, failed):
    """In a process of its own: 60 reads in an order of its own, all of which must be right."""
    for turn in range(60):
        number = (turn * (2 * seed + 3) + seed) % 8
        descriptor = cache.open(f"{url}/{number}.tar", sha_of(number), SIZE)
        if os.pread(descriptor, SIZE + 1, 0) != content_of(number):
            failed.value = 1
        os.close(descriptor)
        sizes = [size for size in map(_size, os.scandir(cache.folder)) if size]
        if sum(sizes) > cache.limit_bytes:
            failed.value = 2


def _size(entry):
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def test_processes_that_share_it_read_right_bytes_and_keep_the_cap(cache, server):
    """Eight files through room for three: they evict what the others are about to read, all the time."""
    context = multiprocessing.get_context("fork")
    failed = context.Value("i", 0)
    workers = [context.Process(target=read_many, args=(cache, server.url, s, failed)) for s in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert failed.value == 0, {1: "wrong bytes", 2: "over the cap"}[failed.value]
    assert held(cache) <= set(range(8)) and len(held(cache)) <= 3, "no lock and no part is left"


def test_many_who_want_one_file_fetch_it_once(cache, server, monkeypatch):
    slow = module.download
    monkeypatch.setattr(module, "download", lambda url, part: (time.sleep(0.3), slow(url, part)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(cache, server, 4))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [content_of(4)] * 6
    assert server.asked == {"4.tar": 1}


def test_downloads_wait_for_room_that_others_were_granted(server, tmp_path, monkeypatch):
    """Two at once do not fit: neither may go beyond the cap, and both come to an end."""
    cache = Cache(str(tmp_path / "cache"), SIZE + 1)
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    together, most = [], []

    def counted(url, part):
        together.append(url)
        time.sleep(0.2)
        most.append(len(together))
        remote.download(url, part)
        together.remove(url)

    monkeypatch.setattr(module, "download", counted)
    threads = [threading.Thread(target=fetch, args=(cache, server, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1] and len(held(cache)) == 1


def hang(cache, url):
    module.download = lambda *_: time.sleep(600)
    cache.open(f"{url}/0.tar", sha_of(0), SIZE)


def test_a_killed_download_leaves_no_room_taken_and_nobody_waiting(cache, server):
    worker = multiprocessing.get_context("fork").Process(target=hang, args=(cache, server.url))
    worker.start()
    deadline = time.monotonic() + 60
    while not os.path.exists(os.path.join(cache.folder, f"{sha_of(0)}.{SIZE}.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    for number in (1, 2, 3):
        fetch(cache, server, number)
    assert held(cache) == {1, 2, 3}, "the dead one's room was taken back"
    assert fetch(cache, server, 0) == content_of(0)


def test_a_folder_that_cannot_be_is_refused(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made a folder"):
        fetch(Cache(str(tmp_path / "file"), 3 * SIZE), server, 0)


def test_a_folder_that_takes_no_files_is_refused_but_what_lies_in_it_is_read(cache, server, monkeypatch):
    fetch(cache, server, 1)
    monkeypatch.setattr(module.os, "access", lambda folder, mode: False)
    assert fetch(cache, server, 1) == content_of(1)
    with pytest.raises(BadInput, match=r"cache: may not be written to; set data\.cache_dir or MRRCNN_CACHE"):
        fetch(cache, server, 2)


def test_its_place_is_the_one_given_or_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("MRRCNN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_at() == Cache(str(tmp_path / ".cache" / "mrrcnn"), 20 * 10**9)
    monkeypatch.setenv("MRRCNN_CACHE", str(tmp_path / "other"))
    assert cache_at().folder == str(tmp_path / "other")
    assert cache_at("~/mine", 0.5) == Cache(str(tmp_path / "mine"), 5 * 10**8)
