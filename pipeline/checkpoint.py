"""Canonical checkpoints: named tensors free of the world size, either wholly there or not at all.

A checkpoint is a directory `step-000000123` whose manifest lists the size and sha256 of every
file. It is written under a temporary name and renamed last, so a directory with the final name
and a manifest that verifies is complete, whatever was killed when.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.files import flush_path, rename_durably, sha256_of

log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]


def save_checkpoint(
    directory: Path, step: int, weights: Tensors, momentum: Tensors, state: dict[str, Any]
) -> Path:
    """Return the path of a checkpoint made of named fp32 weights and momentum and a JSON state.

    A valid checkpoint of that step is left alone; a broken one is replaced.
    """
    final = directory / f"step-{step:09d}"
    if final.exists():
        if not defects(final):
            return final
        shutil.rmtree(final)
    temporary = directory / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_plain(weights), temporary / "weights.safetensors")
    save_file(_plain(momentum), temporary / "optimizer.safetensors")
    _write(temporary / "state.json", json.dumps(state, sort_keys=True, indent=1))
    files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    _write(temporary / "manifest.json", json.dumps({"files": files, "step": step}, sort_keys=True, indent=1))
    for path in temporary.iterdir():
        flush_path(path)
    flush_path(temporary)
    rename_durably(temporary, final)
    return final


def load_checkpoint(path: Path) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Return (weights, momentum, state) of a checkpoint that `newest_checkpoint` has verified."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors"), state


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint that verifies, or None.

    Broken ones are renamed to `broken-...` with a warning that says what is wrong with them.
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        if path.suffix == ".tmp":
            continue
        wrong = defects(path)
        if not wrong:
            return path
        log.warning("checkpoint %s is set aside: %s; an older one is used instead", path, wrong)
        _set_aside(path)
    return None


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and whatever a killed writer left half-done."""
    paths = sorted(directory.glob("step-*"))
    finished = [path for path in paths if path.suffix != ".tmp"]
    for path in [*finished[:-keep], *(path for path in paths if path.suffix == ".tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def defects(path: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty string when every file verifies."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        missing = {"weights.safetensors", "optimizer.safetensors", "state.json"} - set(files)
        if missing:
            return f"manifest.json does not list {', '.join(sorted(missing))}"
        changed = [name for name, print_ in files.items() if _fingerprint(path / name) != print_]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"manifest.json or a file it lists cannot be read ({error})"
    return f"{', '.join(sorted(changed))} differ from the manifest" if changed else ""


def _set_aside(path: Path) -> None:
    target = path.with_name(f"broken-{path.name}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"broken-{path.name}-{number}")
    os.rename(path, target)


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
