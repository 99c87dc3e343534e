"""A folder has one writer, whichever machine it is on, and a killed one is in nobody's way."""

import errno
import os
import threading

import pytest

from shards.errors import BadInput
from shards.storage.files import only_writer
from tests.shards.storage.nfs import as_nfs


@pytest.mark.parametrize("nfs", [True, False])
def test_a_second_writer_is_refused_and_leaves_the_files_of_the_first(tmp_path, monkeypatch, nfs):
    monkeypatch.setattr("shards.storage.files.PATIENCE_S", 0.2)
    if nfs:
        as_nfs(monkeypatch)
    half = tmp_path / ".a.tmp-host-1"
    with only_writer(tmp_path):
        half.touch()
        for _ in range(2):
            with pytest.raises(BadInput, match="another process is writing there"), only_writer(tmp_path):
                pytest.fail("two write at once")
        assert half.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_leaves_is_cleared_its_lock_included(tmp_path):
    for name in (".mrrcnn.lock", ".a.tmp-host-1"):
        (tmp_path / name).touch()
    with only_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".mrrcnn.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_files_are_not_taken_for_what_a_kill_has_left(tmp_path):
    (tmp_path / ".lock").write_text("another program's")
    (tmp_path / ".thesis.tmp-2026" / "chapter").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with only_writer(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_of_another_user_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / ".mrrcnn.lock").touch()

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("shards.storage.files.os.open", refuse)
    with (
        pytest.raises(BadInput, match=r"\.mrrcnn\.lock: Permission denied; .* delete it"),
        only_writer(tmp_path),
    ):
        pytest.fail("it was not held")


def test_a_writer_that_is_just_ending_is_waited_for(tmp_path):
    """Its ranks outlive a killed command by a moment."""
    held, free = threading.Event(), threading.Event()

    def write():
        with only_writer(tmp_path):
            held.set()
            free.wait(30)

    other = threading.Thread(target=write)
    other.start()
    held.wait(30)
    threading.Timer(0.3, free.set).start()
    with only_writer(tmp_path):
        other.join(30)
        assert free.is_set() and not other.is_alive()
