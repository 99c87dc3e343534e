"""From weights and held-out shards to COCO results and metrics.json.

`detect` runs on every rank over its slice of the images and leaves one file; `score` merges the files,
on one process and off the training path, and refuses a set that is not exactly the whole.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import Test
from pipeline.scoring.coco_ap import evaluate_countings, prepare_annotations
from pipeline.scoring.coco_results import Result, coco_results
from pipeline.scoring.evaluators import Kind, Scorer
from pipeline.scoring.huddled import huddled_ids
from pipeline.scoring.server import check_server_zip, write_server_zip
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.storage.cache import Cache
from shards.storage.files import encode_json, flush, rename_durably, sha256_of, whole_or_absent, write_atomic
from shards.storage.remote import absolute

log = logging.getLogger(__name__)
Detector = Callable[[list[Tensor]], list[dict[str, Tensor]]]
KINDS: tuple[Kind, ...] = ("bbox", "segm")
RESULTS_AT_ONCE = 1000


def detect(
    weights: str | Path,
    shards: str | Path,
    parts_dir: str | Path,
    test: Test,
    rank: int = 0,
    world: int = 1,
    batch: int = 1,
    cache: Cache | None = None,
    may_commit: Callable[[], None] = lambda: None,
) -> Path:
    """Return the file of this rank's results on images rank, rank + world, ... of the shards.

    Runs on LOCAL_RANK's GPU if there is one. Writes nothing but its own file, atomically, so a killed
    rank is simply run again. `parts_dir` belongs to one detection: empty it before another. `may_commit` is
    asked before the file gets its name, and raises what forbids it.

    Raises:
        BadInput: weights whose categories are not the shards' categories.
    """
    from pipeline.model import load_model
    from pipeline.network.paste import paste_runs

    dataset = ShardDataset(shards, cache=cache)
    model = load_model(weights, test=test)
    model.paste = paste_runs
    check_categories(model.categories, dataset.categories, weights, shards)
    device = _device()
    indices = range(rank, len(dataset), world)
    head = {
        "source": {
            "weights_sha256": sha256_of(Path(weights)),
            "dataset": dataset.hash,
            "test": test.model_dump(),
        },
        "rank": rank,
        "world": world,
        "image_ids": [dataset.entries[index]["image_id"] for index in indices],
    }
    path = Path(parts_dir) / f"rank-{rank:04d}-of-{world:04d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as temporary, open(temporary, "wb") as stream:
        # Some results a line: nobody ever has to hold the text of all of them.
        found = detect_images(model.to(device), dataset, indices, batch, device)
        for tree in chain([head], in_pieces(found)):
            stream.write(encode_json(tree) + b"\n")
        flush(stream)
        may_commit()
    return path


def detect_images(
    model: Detector,
    dataset: Any,
    indices: range,
    batch: int = 1,
    device: torch.device | str = "cpu",
    beat: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yield the COCO results of the images at `indices`, image by image.

    Masks become RLE before the next batch is read; with `paste_runs` they never are anything else. `beat`
    is called after every batch, also where nothing was found.
    """
    report_every = max(1, len(indices) // 10)
    for start in range(0, len(indices), batch):
        samples = [dataset[index] for index in indices[start : start + batch]]
        with torch.inference_mode():
            detections = model([sample.image.to(device) for sample in samples])
        for sample, detection in zip(samples, detections, strict=True):
            yield from coco_results(detection, sample.image_id)
        beat()
        done = start + len(samples)
        if done // report_every > start // report_every:
            log.info("detected %d of %d images", done, len(indices))


def score(
    shards: str | Path,
    parts_dir: str | Path,
    out_dir: str | Path,
    cache: Cache | None = None,
    algorithm: str = "mrrcnn",
    may_commit: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return the metrics of all ranks' results together; {} for shards without annotations.

    Writes `coco_results.json` (by image id, then as detected), `metrics.json`, and `source.json`: which
    weights, shards and test settings they belong to. Without annotations there is no metrics.json but
    the zip that the COCO server takes, with `algorithm` in its name, checked against the server's format.
    `may_commit` is asked before anything is written, and raises where a newer attempt has begun.

    Raises:
        BadInput: parts of different detections, or an image that no part or more than one covers.
    """
    dataset, out = ShardDataset(shards, cache=cache), Path(out_dir)
    source, results = merge_parts(Path(parts_dir), [entry["image_id"] for entry in dataset.entries])
    if source["dataset"] != dataset.hash:
        raise BadInput(f"{parts_dir}: was detected on other shards than {shards}; run the evaluation again")
    may_commit()
    out.mkdir(parents=True, exist_ok=True)
    # Killed before the new ones are there, it must not leave the old ones beside other results.
    (out / "metrics.json").unlink(missing_ok=True)
    _write_results(out / "coco_results.json", results)
    _write_readable(out / "source.json", {**source, "shards": absolute(shards)})
    if not dataset.has_annotations:
        _write_checked_zip(out, dataset, results, algorithm)
        return {}
    metrics = measure(dataset.to_coco(), results, Test(**source["test"]).scorer)
    may_commit()
    _write_readable(out / "metrics.json", metrics)
    return metrics


def _write_checked_zip(out: Path, dataset: ShardDataset, results: list[Result], algorithm: str) -> None:
    # Elsewhere until it is checked: an archive in `out` is one that the server takes.
    unchecked = out / "unchecked"
    unchecked.mkdir(exist_ok=True)
    archive = write_server_zip(unchecked, results, algorithm)
    sizes = {entry["image_id"]: (entry["height"], entry["width"]) for entry in dataset.entries}
    # A bare image list knows no categories; then the results' own are as good as any.
    known = {item["id"] for item in dataset.categories} or {item["category_id"] for item in results}
    count = check_server_zip(archive, sizes, known)
    rename_durably(archive, out / archive.name)
    shutil.rmtree(unchecked)
    log.info("%s: %d results on %d images, as the COCO server takes them", archive.name, count, len(sizes))


def measure(
    coco: dict[str, Any], results: list[Result], scorer: Scorer = "faster_coco_eval"
) -> dict[str, Any]:
    """Return metrics.json's content for COCO results on a COCO ground truth.

    Fractions from 0 to 1; None where undefined (no ground truth of that kind), 0 without results.
    """
    coco = prepare_annotations(coco)
    countings = [None, huddled_ids(coco["annotations"])]
    found = {kind: evaluate_countings(coco, results, kind, countings, scorer) for kind in KINDS}
    plain, huddled = ({kind: found[kind][place] for kind in KINDS} for place in (0, 1))
    return {
        **{kind: plain[kind][0] for kind in KINDS},
        "huddled": {kind: huddled[kind][0] for kind in KINDS},
        "per_category": {
            str(category["id"]): {
                "name": category["name"],
                **{kind: plain[kind][1][category["id"]] for kind in KINDS},
            }
            for category in sorted(coco["categories"], key=lambda item: item["id"])
        },
    }


def merge_parts(parts_dir: Path, image_ids: list[int]) -> tuple[dict[str, Any], list[Result]]:
    """Return (source, results sorted by image id) of all parts, which must cover every image once."""
    paths = sorted(parts_dir.glob("rank-*-of-*.jsonl"))
    if not paths:
        raise BadInput(f"{parts_dir}: holds no results (rank-*-of-*.jsonl); run the detection first")
    heads, results = [], []
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            heads.append(json.loads(next(lines)))
            for line in lines:
                results += json.loads(line)
    if any(head["source"] != heads[0]["source"] for head in heads):
        raise BadInput(f"{parts_dir}: mixes results of different weights, shards or settings; empty it first")
    covered = Counter(image_id for head in heads for image_id in head["image_ids"])
    _check_covered(covered, image_ids, parts_dir)
    results.sort(key=lambda result: result["image_id"])
    return heads[0]["source"], results


def check_categories(
    learned: Iterable[dict[str, Any]],
    given: Iterable[dict[str, Any]],
    weights: str | Path,
    shards: str | Path,
) -> None:
    """Refuse weights that name a category otherwise than the shards do, or that share none with them.

    Shards without any category (a bare image list) are taken as they are.
    """
    ours = {category["id"]: category["name"] for category in learned}
    theirs = {category["id"]: category["name"] for category in given}
    for identity in sorted(ours.keys() & theirs.keys()):
        if ours[identity] != theirs[identity]:
            raise BadInput(
                f"{weights}: category {identity} is {ours[identity]!r} but {theirs[identity]!r} in {shards}; "
                "evaluate on shards of the data the weights were trained for"
            )
    if theirs and not ours.keys() & theirs.keys():
        raise BadInput(f"{weights}: shares no category id with {shards}; these weights are for other data")


def _check_covered(covered: Counter[int], image_ids: list[int], parts_dir: Path) -> None:
    missing = sorted(set(image_ids) - covered.keys())
    surplus = sorted(covered.keys() - set(image_ids))
    twice = sorted(image_id for image_id, times in covered.items() if times > 1)
    for what, ids in (("lacks", missing), ("has unknown", surplus), ("has more than once", twice)):
        if ids:
            raise BadInput(
                f"{parts_dir}: {what} {len(ids)} of {len(image_ids)} images (the first is {ids[0]}); "
                "empty the folder and run the detection again on every rank"
            )


def in_pieces(results: Iterable[Result]) -> Iterator[list[Result]]:
    """Yield results in lists of RESULTS_AT_ONCE; the last may be shorter, and none is empty."""
    rest = iter(results)
    while piece := list(islice(rest, RESULTS_AT_ONCE)):
        yield piece


def _write_results(path: Path, results: list[Result]) -> None:
    """Write what `encode_json(results)` is, a piece at a time."""
    with whole_or_absent(path) as temporary, open(temporary, "wb") as stream:
        for place, piece in enumerate(in_pieces(results)):
            stream.write(b"," if place else b"[")
            stream.write(encode_json(piece)[1:-1])
        stream.write(b"]" if results else b"[]")
        flush(stream)


def _write_readable(path: Path, tree: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(tree, indent=1, allow_nan=False).encode() + b"\n")


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
