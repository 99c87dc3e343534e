"""The doctor names what is missing, says what to do, and fails on essentials only."""

import fcntl
from pathlib import Path

import pytest

from jobs import doctor
from jobs.doctor import examine, local_lock, try_file_system
from tests.shards.storage.nfs import as_nfs


def test_this_machine_is_well_enough_to_run_the_tests(tmp_path, capsys):
    assert examine(tmp_path / "not" / "yet" / "there") == 0
    out = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "ray",
        "deepspeed",
        "mlflow",
        "operator",
        "compiler",
        "ninja",
        "file system",
    ):
        assert name in out
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_essential_and_has_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert examine(tmp_path) == 1
    assert "pip install no-such-package" in capsys.readouterr().out


def test_a_slow_operator_is_a_note_and_no_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ops.backend_info", lambda: {"backend": "reference", "reason": "not built"})
    assert examine(tmp_path) == 0
    assert "setup.py build_ext" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("/data/runs", ""),
        ("/old/runs", "local_lock=flock"),
        ("/with space", "nolock"),
        ("/données/runs", "nolock"),
        ("/old/disk/runs", ""),
        ("/elsewhere", ""),
    ],
)
def test_an_nfs_whose_locks_stay_on_one_machine_is_found_out(place, option):
    """A lock that this machine's two processes see says nothing of other machines."""
    mounts = """\
22 27 0:21 / / rw,relatime - ext4 /dev/vda rw
23 27 0:22 / /data rw,relatime shared:1 - nfs4 nas:/data rw,vers=4.2,local_lock=none,addr=10.0.0.1
24 27 0:23 / /old rw,relatime - nfs nas:/old rw,vers=3,local_lock=flock,addr=10.0.0.1
25 27 0:24 / /with\\040space rw,relatime - nfs nas:/w rw,vers=3,nolock,local_lock=all
28 27 0:26 / /données rw,relatime - nfs nas:/d rw,vers=3,nolock,local_lock=all
26 24 0:25 / /old/disk rw,relatime - ext4 /dev/vdb rw
"""
    assert local_lock(Path(place), mounts) == option


def test_a_file_system_without_locks_or_that_is_read_only_is_found_out(tmp_path, monkeypatch):
    assert try_file_system(tmp_path) == ""
    with monkeypatch.context() as nfs:
        as_nfs(nfs)
        assert try_file_system(tmp_path) == ""
    assert "cannot be written" in try_file_system(tmp_path / "absent")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "flock does not exclude" in try_file_system(tmp_path)
