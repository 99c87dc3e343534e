"""Canonical checkpoints: named tensors free of the world size, either wholly there or not at all.

A checkpoint is a directory `step-000000123` whose manifest lists the size and sha256 of every
file. It is written under a temporary name and renamed last, so a directory with the final name
and a manifest that verifies is complete, whatever was killed when.
"""

import errno
import fnmatch
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.errors import BadInput
from shards.storage.files import LOST, flush_path, rename_durably, sha256_of, temporary_beside

log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]
NAMES = "step-" + 9 * "[0-9]"
WEIGHTS = "weights.safetensors"
CONTENT = (WEIGHTS, "optimizer.safetensors", "state.json")


def save_checkpoint(
    directory: Path,
    step: int,
    weights: Tensors,
    momentum: Tensors,
    state: dict[str, Any],
    may_commit: Callable[[], None] = lambda: None,
) -> Path:
    """Return the path of a checkpoint made of named fp32 weights and momentum and a JSON state.

    A valid checkpoint of that step is left alone; a broken one is replaced. `may_commit` is asked last,
    before the checkpoint gets its name, and raises what forbids it.

    Raises:
        OSError: it cannot be written (a full disk, say); what was written of it is gone.
    """
    final = directory / f"step-{step:09d}"
    if final.exists() and not defects(final):
        return final
    temporary = temporary_beside(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, weights, momentum, state)
        may_commit()
        if final.exists() and not defects(final):
            # Another start has written it meanwhile.
            return final
        shutil.rmtree(final, ignore_errors=True)
        rename_durably(temporary, final)
    except SafetensorError as error:
        raise _os_error(error, final) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(final)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Return (weights, momentum, state) of a checkpoint that `newest_checkpoint` has verified."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return load_file(path / WEIGHTS), load_file(path / "optimizer.safetensors"), state


def newest_checkpoint(directory: Path, may_change: Callable[[], None] = lambda: None) -> Path | None:
    """Return the newest checkpoint that verifies, or None where there are no checkpoints at all.

    Unless `may_change` raises: broken ones are renamed to `broken-...` with a warning that says what is wrong
    and what is used instead, and what was set aside before is deleted then; and what a killed writer has
    left half-done is deleted, because the next checkpoint needs its room.

    Raises:
        BadInput: there are checkpoints, but none verifies; nothing was renamed or deleted.
        OSError: one cannot be read, or they cannot be listed, just now.
    """
    broken: list[tuple[Path, str]] = []
    found = None
    for path in list_checkpoints(directory):
        wrong = _defects_to_be_mended(path)
        if not wrong:
            found = path
            break
        broken.append((path, wrong))
    if broken or _half_written(directory):
        may_change()
    if broken and found is None:
        raise BadInput(_none_whole(directory, broken))
    _clear_half_written(directory)
    for left in directory.glob("broken-*") if broken else ():
        shutil.rmtree(left)
    for path, wrong in broken:
        aside = _set_aside(path).name
        log.warning("%s is broken: %s; set aside as %s; %s is used instead", path, wrong, aside, found.name)
    return found


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, whole or not, the newest first.

    Raises:
        OSError: it cannot be listed just now, which does not mean that it is empty.
    """
    # Not by glob, to which a folder that it may not list is an empty one.
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(fnmatch.filter(names, NAMES), reverse=True)]


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, or of what is named like one."""
    return int(path.name.removeprefix("step-"))


def prune_checkpoints(directory: Path, keep: int, every: int = 0, sound: Path | None = None) -> None:
    """Delete what need not be kept, and whatever a killed writer left half-done.

    Kept are the `keep` newest, those whose step is a multiple of `every` (0: none), and always the newest
    that verifies; where none does, all. `sound`, just written, need not be read again. Only the holder of
    the stage's claim may call this: others may still be writing.
    """
    _clear_half_written(directory)
    newest_first = list_checkpoints(directory)
    resumed = next((path for path in newest_first if path == sound or not defects(path)), None)
    if resumed is None:
        return
    regular = {path for path in newest_first if every and step_of(path) % every == 0}
    spare = [path for path in newest_first[keep:] if path not in {*regular, resumed}]
    for path in spare:
        # First another name: a deletion that is killed must not leave half a checkpoint behind.
        gone = temporary_beside(path)
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def defects(path: Path, content: tuple[str, ...] = CONTENT) -> str:
    """Return what is wrong with a checkpoint, or with some files of one; an empty string when all verify.

    Raises:
        OSError: a file cannot be read just now (a server that is away, a stale handle, no right to), which
            says nothing of it.
    """
    try:
        files = _read_manifest(path)["files"]
        missing = set(content) - set(files)
        if missing:
            return f"manifest.json does not list {', '.join(sorted(missing))}"
        changed = [name for name in content if _fingerprint(path / name) != files[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in LOST:
            raise
        return f"manifest.json or a file it lists cannot be read ({error})"
    return f"{', '.join(sorted(changed))} differ from the manifest" if changed else ""


def _defects_to_be_mended(path: Path) -> str:
    try:
        return defects(path)
    except OSError as error:
        remedy = "repair the file system, or move this checkpoint away and the one before is used"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", error.filename or str(path)) from error


def _none_whole(directory: Path, broken: list[tuple[Path, str]]) -> str:
    newest, wrong = broken[0]
    return (
        f"{directory}: none of {len(broken)} checkpoints is whole; of {newest.name}, the newest, {wrong}; "
        "put back a copy of one, or begin the stage anew: move them away or give "
        f"--redo {directory.parent.name}"
    )


def _write_files(folder: Path, step: int, weights: Tensors, momentum: Tensors, state: dict[str, Any]) -> None:
    save_file(_plain(weights), folder / WEIGHTS)
    save_file(_plain(momentum), folder / "optimizer.safetensors")
    _write(folder / "state.json", json.dumps(state, sort_keys=True, indent=1))
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    _write(folder / "manifest.json", json.dumps({"files": files, "step": step}, sort_keys=True, indent=1))
    for path in folder.iterdir():
        flush_path(path)
    flush_path(folder)


def _half_written(directory: Path) -> list[Path]:
    return list(directory.glob(".step-*.tmp-*"))


def _clear_half_written(directory: Path) -> None:
    for left in _half_written(directory):
        shutil.rmtree(left, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    text = (path / "manifest.json").read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError("its end is missing")
    return json.loads(text)


def _os_error(error: SafetensorError, path: Path) -> OSError:
    # safetensors tells a full disk in words only.
    number = re.search(r"\(os error (\d+)\)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code), str(path))


def _set_aside(path: Path) -> Path:
    target = path.with_name(f"broken-{path.name}")
    os.rename(path, target)
    return target


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
