"""Detect with one weights file on every rank, then score: what `evaluate` does, and each row of a sweep."""

import shutil
from pathlib import Path
from typing import Any

from configs.schema import Test
from jobs.launching.launch import launch
from shards.storage.cache import cache_at
from shards.storage.remote import absolute


def detect_and_score(
    weights: Path,
    shards: str | Path,
    out: Path,
    test: Test,
    scratch: Path,
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
        out: made if absent.
        test: inference settings.
        scratch: a folder of this call's own that every node sees; emptied first.
        workers, launcher, address, sizes: as for `jobs.launching.launch.launch`.
        cache: arguments of `cache_at`, for shards at a URL.
        algorithm: names the archive for the COCO server.

    Raises:
        BadInput: weights and shards do not fit each other, or cannot be read.
        JobFailed: the workers failed.
    """
    from jobs.launching.worker import detect_parts
    from pipeline.evaluate import score

    parts = scratch / "parts"
    shutil.rmtree(scratch, ignore_errors=True)
    parts.mkdir(parents=True)
    payload = {
        "jobs": [{"weights": str(weights.resolve()), "parts": str(parts.resolve())}],
        "shards": absolute(shards),
        "test": test.model_dump(mode="json"),
        "cache": cache or {},
    }
    launch(detect_parts, payload, scratch / "jobs", workers, launcher, address, sizes)
    metrics = score(shards, parts, out, cache_at(**cache or {}), algorithm)
    shutil.rmtree(scratch)
    return metrics
