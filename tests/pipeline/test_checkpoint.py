"""Checkpoints are there wholly or not at all, and a damaged one is noticed, named and passed over."""

import errno
import json
import os
import resource
import signal
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.checkpoint import (
    defects,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from pipeline.lease import StaleAttempt
from shards.errors import BadInput
from shards.storage.files import sha256_of

FILES = ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def save(folder, step):
    generator = torch.Generator().manual_seed(step)
    weights = {"b.weight": torch.randn(3, 4, generator=generator), "a": torch.randn(2, generator=generator)}
    momentum = {"b.weight": torch.randn(3, 4, generator=generator)}
    path = save_checkpoint(folder, step, weights, momentum, {"step": step})
    return path, weights, momentum


def test_round_trip_is_exact(tmp_path):
    path, weights, momentum = save(tmp_path, 7)
    assert path.name == "step-000000007"
    read = load_checkpoint(newest_checkpoint(tmp_path))
    assert read[2] == {"step": 7}
    for ours, theirs in zip(read, (weights, momentum), strict=False):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_same_content_gives_same_bytes(tmp_path):
    first, *_ = save(tmp_path / "a", 3)
    second, *_ = save(tmp_path / "b", 3)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", ["nothing", "one byte", "half", "all but one byte", "a flipped bit"])
def test_every_torn_file_is_noticed_and_the_older_checkpoint_used(tmp_path, name, keep, caplog):
    older, *_ = save(tmp_path, 1)
    newer, *_ = save(tmp_path, 2)
    content = (newer / name).read_bytes()
    half = len(content) // 2
    torn = {
        "nothing": b"",
        "one byte": content[:1],
        "half": content[:half],
        "all but one byte": content[:-1],
        "a flipped bit": content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :],
    }
    (newer / name).write_bytes(torn[keep])
    if name == "manifest.json" and keep == "a flipped bit":
        # A flipped bit may leave a manifest that still is JSON, never one that verifies.
        assert defects(newer)
    assert newest_checkpoint(tmp_path) == older
    assert not newer.exists()
    assert (tmp_path / "broken-step-000000002").exists()
    assert "set aside" in caplog.text and "step-000000002" in caplog.text


def test_a_missing_or_unlisted_file_is_noticed(tmp_path):
    path, *_ = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest) + "\n")
    assert "optimizer.safetensors" in defects(path)
    path, *_ = save(tmp_path, 2)
    (path / "state.json").unlink()
    assert "state.json" in defects(path)


def test_the_warning_names_the_fault_and_what_is_used_instead(tmp_path, caplog):
    save(tmp_path, 1)
    for step in (2, 3):
        path, *_ = save(tmp_path, step)
        (path / "state.json").write_text("{}")
    newest_checkpoint(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    for line, step in zip(said, (3, 2), strict=True):
        assert f"step-00000000{step} is broken: state.json differ from the manifest" in line
        assert line.endswith(f"set aside as broken-step-00000000{step}; step-000000001 is used instead")


def test_without_any_whole_checkpoint_it_stops_and_touches_nothing(tmp_path):
    """To begin anew would cost the logs at once, and by the next incident what could still be saved."""
    checkpoints = tmp_path / "refine" / "checkpoints"
    assert newest_checkpoint(checkpoints) is None, "a stage that has none yet begins"
    for step in (1, 2, 3):
        path, *_ = save(checkpoints, step)
        (path / "state.json").unlink()
        (checkpoints / f"broken-step-00000000{step}").mkdir()
    (checkpoints / ".step-000000004.tmp-there-7").mkdir()
    before = sorted(checkpoints.iterdir())
    said = r"none of 3 checkpoints is whole; of step-000000003, the newest, .*state\.json.*--redo refine$"
    with pytest.raises(BadInput, match=said):
        newest_checkpoint(checkpoints)
    assert sorted(checkpoints.iterdir()) == before


def test_a_stale_start_does_not_judge_what_a_newer_one_may_be_pruning(tmp_path):
    def refuse():
        raise StaleAttempt("over")

    path, *_ = save(tmp_path, 1)
    (path / "state.json").unlink()
    with pytest.raises(StaleAttempt):
        newest_checkpoint(tmp_path, refuse)


def test_a_half_written_checkpoint_is_never_taken(tmp_path, monkeypatch):
    older, *_ = save(tmp_path, 1)
    monkeypatch.setattr("pipeline.checkpoint.rename_durably", lambda *_: os._exit(9))
    child = os.fork()
    if child == 0:
        save(tmp_path, 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = next(tmp_path.glob(".*"))
    # Another attempt, on another machine too, writes under another name.
    assert left.name == f".step-000000002.tmp-{socket.gethostname()}-{child}"

    def refuse():
        raise StaleAttempt("over")

    with pytest.raises(StaleAttempt):
        newest_checkpoint(tmp_path, refuse)
    assert left.exists()
    # Its room is wanted before the next one is written.
    assert newest_checkpoint(tmp_path) == older and list(tmp_path.iterdir()) == [older]


def test_who_may_not_commit_any_more_leaves_nothing_behind(tmp_path):
    older, *_ = save(tmp_path, 1)

    def refuse():
        assert list(tmp_path.glob(".step-*/manifest.json")), "asked when all but the name is done"
        raise StaleAttempt("over")

    with pytest.raises(StaleAttempt):
        save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, {}, {"step": 2}, refuse)
    assert list(tmp_path.iterdir()) == [older]


def test_a_checkpoint_that_another_start_has_finished_meanwhile_is_left_alone(tmp_path):
    inodes = []

    def meanwhile():
        path, *_ = save(tmp_path, 2)
        inodes.append((path / "weights.safetensors").stat().st_ino)

    path = save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, {}, {"step": 2}, meanwhile)
    assert inodes == [(path / "weights.safetensors").stat().st_ino] and not defects(path)


def test_broken_checkpoints_do_not_pile_up_and_a_stale_start_sets_none_aside(tmp_path):
    def refuse():
        raise StaleAttempt("over")

    save(tmp_path, 1)
    for step in (2, 3):
        path, *_ = save(tmp_path, step)
        (path / "state.json").unlink()
        with pytest.raises(StaleAttempt):
            newest_checkpoint(tmp_path, refuse)
        assert path.exists()
        newest_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-step-000000003", "step-000000001"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("calls", [["pipeline.checkpoint.sha256_of"], ["os.listdir", "os.scandir"]])
def test_what_cannot_be_read_just_now_is_not_taken_for_broken(tmp_path, monkeypatch, number, calls):
    """Else a file server that hiccups would have every checkpoint set aside, and the stage begun anew."""
    for step in (1, 2):
        save(tmp_path, step)
    found = sorted(tmp_path.iterdir())

    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    for call in calls:
        monkeypatch.setattr(call, fail)
    with pytest.raises(OSError) as failed:
        newest_checkpoint(tmp_path)
    monkeypatch.undo()
    assert failed.value.errno == number and str(tmp_path) in str(failed.value)
    assert sorted(tmp_path.iterdir()) == found and newest_checkpoint(tmp_path).name == "step-000000002"


def test_who_cannot_read_a_checkpoint_is_told_which_and_what_to_do(tmp_path, monkeypatch):
    """A sector that is really bad looks the same, and would fail every start."""
    older, *_ = save(tmp_path, 1)
    newer, *_ = save(tmp_path, 2)

    def fail(path):
        if newer in path.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    real = sha256_of
    monkeypatch.setattr("pipeline.checkpoint.sha256_of", fail)
    with pytest.raises(
        OSError, match=r"move this checkpoint away and the one before is used.*step-000000002"
    ):
        newest_checkpoint(tmp_path)
    newer.rename(tmp_path / "away")
    assert newest_checkpoint(tmp_path) == older


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "mkdir", "replace"])
def test_a_failing_disk_leaves_the_last_good_checkpoint_and_nothing_else(tmp_path, monkeypatch, number, call):
    older, *_ = save(tmp_path, 1)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="step-000000002") as failed:
        save(tmp_path, 2)
    monkeypatch.undo()
    assert failed.value.errno == number
    assert list(tmp_path.iterdir()) == [older] and newest_checkpoint(tmp_path) == older


def test_a_full_disk_is_told_as_such_also_by_safetensors(tmp_path):
    """A real limit of the kernel, in a process of its own."""
    older, *_ = save(tmp_path, 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
        try:
            save(tmp_path, 2)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG
    assert list(tmp_path.iterdir()) == [older]


def test_saving_again_keeps_a_valid_checkpoint_and_replaces_a_broken_one(tmp_path):
    path, *_ = save(tmp_path, 1)
    inode = (path / "weights.safetensors").stat().st_ino
    save(tmp_path, 1)
    assert (path / "weights.safetensors").stat().st_ino == inode
    (path / "state.json").write_text("{}")
    save(tmp_path, 1)
    assert not defects(path)


def test_pruning_keeps_the_newest_and_clears_what_a_kill_left(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / ".step-000000009.tmp-there-7").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]


@settings(max_examples=60)
@example(steps={1, 3, 5, 6, 8}, broken={6, 8}, keep=2, every=3)
@given(
    steps=st.sets(st.integers(1, 12), min_size=1, max_size=8),
    broken=st.sets(st.integers(1, 12)),
    keep=st.integers(2, 4),
    every=st.sampled_from([0, 3, 4]),
)
def test_retention(steps, broken, keep, every):
    """The newest, every n-th, and always the newest that is whole; where none is whole, all."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for step in steps:
            path, *_ = save(folder, step)
            if step in broken:
                (path / "state.json").unlink()
        prune_checkpoints(folder, keep, every)
        left = {int(path.name.removeprefix("step-")) for path in folder.iterdir()}
    whole = steps - broken
    regular = {step for step in steps if every and step % every == 0}
    assert left == ({*sorted(steps)[-keep:], *regular, max(whole)} if whole else steps)
