"""A folder has one writer, whichever machine it is on, and a killed one is in nobody's way."""

import pytest

from shards.errors import BadInput
from shards.storage.files import only_writer
from tests.shards.storage.nfs import as_nfs


@pytest.mark.parametrize("nfs", [True, False])
def test_a_second_writer_is_refused_and_leaves_the_files_of_the_first(tmp_path, monkeypatch, nfs):
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
    for name in (".lock", ".a.tmp-host-1"):
        (tmp_path / name).touch()
    with only_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
