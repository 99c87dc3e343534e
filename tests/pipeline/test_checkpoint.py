"""Checkpoints are there wholly or not at all, and a damaged one is noticed, named and passed over."""

import json

import pytest
import torch

from pipeline.checkpoint import (
    defects,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

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
        "all but one byte": content[:-2] if name == "manifest.json" else content[:-1],
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
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "optimizer.safetensors" in defects(path)
    path, *_ = save(tmp_path, 2)
    (path / "state.json").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_half_written_checkpoint_is_never_taken(tmp_path):
    older, *_ = save(tmp_path, 1)
    newer, *_ = save(tmp_path, 2)
    newer.rename(tmp_path / "step-000000002.tmp")
    assert newest_checkpoint(tmp_path) == older


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
    (tmp_path / "step-000000009.tmp").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]
