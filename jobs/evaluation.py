"""Detect with one weights file on every rank, then score: what `evaluate` does, and each row of a sweep."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from configs.schema import Test
from jobs.launching.launch import launch
from shards.storage.cache import cache_at
from shards.storage.files import only_writer
from shards.storage.remote import absolute


def detect_and_score(
    weights: Path,
    shards: str | Path,
    out: Path,
    test: Test,
    workers: int,
    launcher: str,
    address: str | None,
    cache: dict[str, Any] | None = None,
    algorithm: str = "mrrcnn",
    sizes: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return metrics.json's content, written to `out` with the results; {} for shards without annotations.

    Args:
        weights: a weights.safetensors.
        shards: a directory of shards, or a URL.
        out: made if absent; every node sees it.
        test: inference settings.
        workers, launcher, address, sizes: as for `jobs.launching.launch.launch`.
        cache: arguments of `cache_at`, for shards at a URL.
        algorithm: names the archive for the COCO server.

    Raises:
        BadInput: weights and shards do not fit each other, or cannot be read, or another command is
            writing to `out`.
        JobFailed: the workers failed.
    """
    from jobs.launching.worker import detect_parts
    from pipeline.evaluate import score

    with _scratch(out) as scratch:
        parts = scratch / "parts"
        parts.mkdir()
        payload = {
            "jobs": [{"weights": str(weights.resolve()), "parts": str(parts)}],
            "shards": absolute(shards),
            "test": test.model_dump(mode="json"),
            "cache": cache or {},
        }
        launch(detect_parts, payload, scratch / "jobs", workers, launcher, address, sizes)
        return score(shards, parts, out, cache_at(**cache or {}), algorithm)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    out.mkdir(parents=True, exist_ok=True)
    work = out.resolve() / ".evaluate"
    with only_writer(out):
        # Of a command that was killed, or failed: whoever looked for its traceback has seen it.
        shutil.rmtree(work, ignore_errors=True)
        # Ranks that outlive their command must not find the next one's folder, nor it delete that.
        scratch = work / uuid.uuid4().hex
        scratch.mkdir(parents=True)
        yield scratch
        shutil.rmtree(scratch)
        with suppress(OSError):
            work.rmdir()
