"""Files behind a URL: what cannot be had is one clear line, what may come is tried again."""

import errno
import sys

import pytest

from shards.errors import BadInput
from shards.storage import remote
from shards.storage.remote import absolute, check_url, download, is_remote, local_path, read_url, shown
from tests.shards.http_folder import served


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 999)
    with served(tmp_path) as server:
        yield server


def test_files_come_as_they_are(server, tmp_path):
    content = (tmp_path / "a.bin").read_bytes()
    for url in (f"{server.url}/a.bin", f"file://{tmp_path}/a.bin"):
        assert read_url(url) == content
        download(url, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///nowhere/a.bin", "is not there"),
        ("memory://nowhere/a.bin", "is not there"),
        ("s3://bucket/a.bin", "driver that is not installed.*s3fs"),
        ("magic://bucket/a.bin", "Protocol not known: magic"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(url, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for attempt in (lambda: read_url(url), lambda: download(url, tmp_path / "copy")):
        with pytest.raises(BadInput, match=words) as raised:
            attempt()
        assert str(raised.value).startswith(url) and "\n" not in str(raised.value)


def test_a_missing_file_and_a_refusal_over_http_are_not_tried_again(server, tmp_path):
    with pytest.raises(BadInput, match=r"/b\.bin: is not there"):
        download(f"{server.url}/b.bin", tmp_path / "copy")
    for status in (401, 403):
        server.answers["a.bin"] = [status]
        with pytest.raises(BadInput, match=rf"may not be read \({status}.*credentials"):
            download(f"{server.url}/a.bin", tmp_path / "copy")
    assert server.asked == {"b.bin": 1, "a.bin": 2}


def test_a_store_that_is_busy_is_asked_again(server):
    server.answers["a.bin"] = [503, 500, 429]
    assert len(read_url(f"{server.url}/a.bin")) == 256 * 999
    assert server.asked["a.bin"] == 4


def test_a_store_that_stays_away_is_no_fault_of_the_users(server):
    """No BadInput: a worker that ends with it is started again."""
    server.answers["a.bin"] = [503] * remote.TRIES
    with pytest.raises(OSError, match="tried 4 times") as raised:
        read_url(f"{server.url}/a.bin")
    assert raised.value.filename == f"{server.url}/a.bin"
    with pytest.raises(OSError, match="tried 4 times"):
        read_url("http://127.0.0.1:9/a.bin")


def test_a_full_disk_is_not_waited_for(server, tmp_path, monkeypatch):
    tries = []

    def full(*_):
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device", "copy")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.get_file", full)
    with pytest.raises(OSError, match="No space left"):
        download(f"file://{tmp_path}/a.bin", tmp_path / "copy")
    assert len(tries) == 1


def test_urls_are_told_from_paths_and_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_remote("s3://bucket/train") and not is_remote("data/train") and not is_remote(tmp_path)
    assert absolute("s3://bucket/train") == "s3://bucket/train"
    assert absolute("data") == str(tmp_path / "data")


def test_a_file_url_is_a_path_of_this_machine(tmp_path):
    assert not is_remote(f"file://{tmp_path}")
    assert local_path(f"file://{tmp_path}") == local_path(tmp_path) == tmp_path
    assert absolute(f"file://{tmp_path}") == str(tmp_path)


def test_a_password_is_refused_and_not_shown():
    with pytest.raises(BadInput, match=r"^https://host/train: .*credentials") as raised:
        check_url("https://me:secret@host/train")
    assert "secret" not in str(raised.value)
    check_url("s3://bucket/a:b@c/train")
    check_url("https://host:8080/train")
    check_url("/a/path:with@signs")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://me:secret@host/x", "ftp://host/x"),
        ("https://me@corp.com:secret@host/x", "https://host/x"),
        ("s3://key@bucket/a:b@c", "s3://bucket/a:b@c"),
        ("https://host/a.json?signature=secret", "https://host/a.json"),
        ("/a/path?", "/a/path?"),
    ],
)
def test_what_is_shown_of_a_url_gives_nothing_away(url, expected):
    assert shown(url) == expected


def test_no_message_shows_a_signature(server, tmp_path):
    for action in (read_url, lambda url: download(url, tmp_path / "copy")):
        with pytest.raises(BadInput) as raised:
            action(f"{server.url}/b.bin?signature=secret")
        assert "secret" not in str(raised.value)
    server.answers["a.bin?signature=secret"] = [503] * remote.TRIES
    with pytest.raises(OSError, match="tried 4 times") as raised:
        read_url(f"{server.url}/a.bin?signature=secret")
    assert "secret" not in str(raised.value)
