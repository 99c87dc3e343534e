"""The process that evaluates the snapshots of a stage while the stage is trained.

python -m pipeline.evaluating STAGE/evaluations
"""

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from configs.schema import Test
from pipeline.checkpoint import WEIGHTS, defects, step_of
from pipeline.child import await_parents_end
from pipeline.evaluate import check_categories, detect_images, measure
from pipeline.evaluations import (
    BEST,
    POLL_S,
    alive_file,
    drop_snapshot,
    mask_ap,
    result_file,
    results_of,
    snapshots,
)
from pipeline.lease import Claim
from pipeline.model import load_model
from pipeline.network.paste import paste_runs
from pipeline.network.weights import save_weights
from shards.read import ShardDataset
from shards.storage.cache import cache_at
from shards.storage.files import temporary_beside, write_atomic


def main() -> None:
    """Evaluate what is there and what comes, until the process that trains has ended."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    # Once: a later start of the workers writes its own, which is not this process's to act on.
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    while True:
        waiting = snapshots(folder)
        if not waiting:
            time.sleep(POLL_S)
            continue
        evaluate_snapshot(folder, waiting[0], order)


def evaluate_snapshot(folder: Path, snapshot: Path, order: dict[str, Any]) -> None:
    """Leave a snapshot's result, and its weights as STAGE/best.safetensors if no earlier step was as good.

    Killed anywhere and called again, it leaves the same. Weights that are not those of the manifest are
    deleted with a warning.

    Args:
        folder: STAGE/evaluations.
        snapshot: step-000000123 in it; gone when this returns.
        order: the content of order.json.

    Raises:
        StaleAttempt, Superseded: those who train were started again, and evaluate for themselves.
    """
    step, stage = step_of(snapshot), folder.parent
    claim = Claim(**{**order["claim"], "run_dir": Path(order["claim"]["run_dir"])})
    # A name of this process's own: one of an earlier start may live on behind a broken network.
    weights = temporary_beside(stage / BEST)
    if not result_file(folder, step).exists():
        wrong = defects(snapshot, (WEIGHTS,))
        if wrong:
            claim.check()
            return drop_snapshot(snapshot, wrong)
        save_weights(weights, load_file(snapshot / WEIGHTS), order["meta"])
        result = {"step": step, **_evaluated(weights, order, alive_file(folder))}
        claim.check()
        if _is_best(result, results_of(stage)):
            os.replace(weights, stage / BEST)
        write_atomic(result_file(folder, step), json.dumps(result, allow_nan=False).encode() + b"\n")
        weights.unlink(missing_ok=True)
    claim.check()
    shutil.rmtree(snapshot)


def _is_best(result: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    # Later ones may be there already, where a snapshot had to be linked again.
    rank = mask_ap(result), -result["step"]
    return all(rank > (mask_ap(other), -other["step"]) for other in others)


def _evaluated(weights: Path, order: dict[str, Any], alive: Path) -> dict[str, Any]:
    began = time.monotonic()
    test, device = Test(**order["test"]), _device(order["ranks"])
    dataset = ShardDataset(order["shards"], cache=cache_at(**order["cache"]))
    model = load_model(weights, test=test).to(device)
    model.paste = paste_runs
    check_categories(model.categories, dataset.categories, weights, order["shards"])
    found = detect_images(model, dataset, range(len(dataset)), device=device, beat=alive.touch)
    metrics = measure(dataset.to_coco(), list(found), test.scorer)
    metrics.pop("per_category")
    return {**metrics, "seconds": time.monotonic() - began}


def _device(ranks: int) -> torch.device:
    # The first GPU that no rank of this machine has; without a spare one, rank 0's.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", ranks if ranks < gpus else 0) if gpus else torch.device("cpu")


def _die_with_parent() -> None:
    await_parents_end()
    os._exit(1)


if __name__ == "__main__":
    main()
