"""The one training loop, in run order: baseline, refine and control all come through here."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import Config, Schedule
from pipeline.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from pipeline.data import Batch, first_batch, sample_order, to_network, training_batches
from pipeline.engine import momentum_by_name, restore, set_lr, start_engine
from pipeline.labels import adopt_labels
from pipeline.lease import check_attempt
from pipeline.model import build_model
from pipeline.network.pretrained import load_pretrained
from pipeline.network.weights import load_weights, save_weights
from pipeline.quarantine import Quarantine
from pipeline.runlog import RunLog
from pipeline.schedule import lr_at
from shards.cache import cache_at
from shards.read import ShardDataset

log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or NaN; the message names step, term and image ids."""


@dataclass(frozen=True)
class TrainJob:
    """What every rank needs to know to train one stage.

    Attributes:
        config: the resolved config.
        stage: "baseline", "refine" or "control".
        run_dir: the run directory, the same path on every node.
        shards: the training shards, a directory or a URL.
        init_weights: weights of the baseline for "refine" and "control", else None.
        attempt: the attempt number that may commit.
    """

    config: Config
    stage: str
    run_dir: str
    shards: str
    init_weights: str | None
    attempt: int


def train(job: TrainJob) -> None:
    """Train one stage to its last step and write RUN/STAGE/weights.safetensors.

    Runs on every rank (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment) and resumes
    from the newest valid checkpoint, so calling it again after a kill goes on where it was.

    Raises:
        NonFiniteLoss: on every rank, before the weights are touched.
        StaleAttempt: a newer attempt has taken over the run directory.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling DeepSpeed's gradient buckets with NaN on every step would cost most of a CPU's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    config, schedule = job.config, stage_schedule(job.config, job.stage)
    dataset = ShardDataset(job.shards, cache=cache_at(config.data.cache_dir, config.data.cache_gb))
    adopt_labels(dataset, job.init_weights or config.model.weights)
    order = sample_order(dataset, config).identity
    model = stage_model(job, dataset)
    engine = start_engine(model, schedule, config, world)
    folder = Path(job.run_dir, job.stage)
    check_attempt(job.run_dir, job.attempt)
    first, window = _resume(engine, folder / "checkpoints", order)
    writer, quarantine = RunLog(folder, rank, world, first), Quarantine(config.data.on_corrupt, world)
    batches = training_batches(dataset, config, schedule, rank, world, first)
    model.train()
    for step in range(first, schedule.iters):
        began = time.monotonic()
        lr = lr_at(schedule, step)
        set_lr(engine, lr)
        ids: list[int] = []
        for _ in range(schedule.accumulate):
            batch = next(batches)
            ids += [target["image_id"] for _, target in batch]
            window["quarantined"] += quarantine.count(batch)
            losses = _forward(engine, batch, config.seed, step, world)
            engine.backward(losses["loss"])
            engine.step()
            _check_gradient(engine, step, ids)
            _add(window, losses, schedule.accumulate)
        window["steps"] += 1
        window["seconds"] += time.monotonic() - began
        window["timed"] += 1
        done = step + 1
        if config.debug.log_samples:
            check_attempt(job.run_dir, job.attempt)
            writer.samples(done, ids)
        if done % config.train.log_every == 0 or done == schedule.iters:
            check_attempt(job.run_dir, job.attempt)
            writer.metrics(done, schedule, len(dataset), lr, window)
            window = _empty_window()
        if done % config.checkpoint_every == 0 or done == schedule.iters:
            _save(engine, job, folder, done, window, order)
    _finish(engine, job, folder, dataset)


def stage_schedule(config: Config, stage: str) -> Schedule:
    """Return the schedule of a stage; the control has the refining stage's, to be its equal."""
    return config.train.baseline if stage == "baseline" else config.train.refine


def stage_model(job: TrainJob, dataset: ShardDataset) -> nn.Module:
    """Return the network of a stage with its starting weights: the same on every rank."""
    config = job.config
    torch.manual_seed(config.seed)
    refine = config.refine if job.stage == "refine" else None
    model = build_model(config.model, len(dataset.categories) + 1, refine, config.sara, config.test)
    if job.init_weights is not None:
        tensors, _ = load_weights(job.init_weights)
        measure = refine is not None and refine.init_gain == "mean_mask"
        model.load_baseline(tensors, *([first_batch(dataset, config)] if measure else []))
    elif config.model.weights:
        untrained = stage_schedule(config, job.stage).iters == 0
        categories = dataset.categories if untrained else None
        log.info("%s", load_pretrained(model, config.model.weights, categories))
    return model


def weights_meta(config: Config, stage: str, dataset: ShardDataset) -> dict[str, Any]:
    """Return what a weights file says of itself: nothing of time, host, world size or attempt."""
    return {
        "format": 1,
        "model": config.model.model_dump(mode="json", exclude={"weights"}),
        "sara": config.sara.model_dump(mode="json"),
        "refine": config.refine.model_dump(mode="json") if stage == "refine" else None,
        "categories": [{"id": item["id"], "name": item["name"]} for item in dataset.categories],
        "source": {"name": "mrrcnn", "stage": stage, "dataset": dataset.hash},
    }


def _resume(engine: Any, checkpoints: Path, order: str) -> tuple[int, dict[str, float]]:
    # Rank 0 alone looks (and sets broken ones aside); the others must not race it.
    found = [newest_checkpoint(checkpoints) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0, _empty_window()
    weights, momentum, state = load_checkpoint(found[0])
    if state["dataset"] != order:
        raise ValueError(f"{found[0]}: was trained on other shards ({state['dataset']}, not {order})")
    restore(engine, weights, momentum)
    log.info("resumed from %s", found[0])
    return state["step"], {**_empty_window(), **state["window"]}


def _forward(engine: Any, batch: Batch, seed: int, step: int, world: int) -> dict[str, Tensor]:
    terms = engine(*to_network(batch, engine.device), seed)
    names = list(terms)
    sums = torch.stack([terms[name][0].float() for name in names])
    counts = torch.stack([terms[name][1].float() for name in names])
    # A mean over all ranks' samples, whatever share of the positives this rank happens to hold. With
    # accumulation it is that of one slice of the global batch: later slices' counts are not known yet.
    totals = torch.cat([sums.detach(), counts])
    dist.all_reduce(totals)
    total_sums, total_counts = totals.chunk(2)
    means = total_sums / total_counts.clamp(min=1)
    if not torch.isfinite(means).all():
        _stop_on_non_finite(names, sums, means, batch, step)
    # ZeRO averages gradients over ranks, hence times the world size.
    loss = (sums / total_counts.clamp(min=1)).sum() * world
    return {**dict(zip(names, means.tolist(), strict=True)), "loss": loss, "total": means.sum().item()}


def _stop_on_non_finite(names: list[str], sums: Tensor, means: Tensor, batch: Batch, step: int) -> None:
    bad = [name for name, mean in zip(names, means.tolist(), strict=True) if not abs(mean) < float("inf")]
    mine = [] if torch.isfinite(sums).all() else [target["image_id"] for _, target in batch]
    everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    ids = sorted(image_id for ids in everyone for image_id in ids)
    raise NonFiniteLoss(
        f"step {step + 1}: {', '.join(bad)} is not finite on images {ids}; nothing of this step was kept. "
        "Lower the learning rate or lengthen the warm-up, and look at these images' annotations"
    )


def _check_gradient(engine: Any, step: int, image_ids: list[int]) -> None:
    # ZeRO skips such a step without a word, and that batch would be lost.
    if getattr(engine.optimizer, "overflow", False):
        raise NonFiniteLoss(
            f"step {step + 1}: the gradient is not finite, though the losses are, on images {image_ids} "
            "of this rank or on the other ranks'; lower the learning rate, or set clip"
        )


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise NonFiniteLoss(
            f"step {step}: {bad[0]} and {len(bad) - 1} more weights are not finite and are not saved; "
            "the last checkpoint is good. Lower the learning rate, or set clip"
        )


def _add(window: dict[str, float], losses: dict[str, Any], accumulate: int) -> None:
    for name, value in losses.items():
        if name != "loss":
            window[name] = window.get(name, 0.0) + value / accumulate


def _empty_window() -> dict[str, float]:
    return {"steps": 0, "timed": 0, "seconds": 0.0, "quarantined": 0}


def _save(engine: Any, job: TrainJob, folder: Path, step: int, window: dict, order: str) -> None:
    momentum = momentum_by_name(engine)
    _check_finite({**engine.module.state_dict(), **momentum}, step)
    if dist.get_rank() == 0:
        check_attempt(job.run_dir, job.attempt)
        # Seconds are the one thing that differs between equal runs; keep checkpoints equal.
        state = {
            "step": step,
            "seed": job.config.seed,
            "samples": step * stage_schedule(job.config, job.stage).batch,
            "dataset": order,
            "window": {**window, "timed": 0, "seconds": 0.0},
        }
        save_checkpoint(folder / "checkpoints", step, engine.module.state_dict(), momentum, state)
        prune_checkpoints(folder / "checkpoints", job.config.keep_checkpoints)
    dist.barrier()


def _finish(engine: Any, job: TrainJob, folder: Path, dataset: ShardDataset) -> None:
    if dist.get_rank() == 0:
        check_attempt(job.run_dir, job.attempt)
        meta = weights_meta(job.config, job.stage, dataset)
        save_weights(folder / "weights.safetensors", engine.module.state_dict(), meta)
    dist.barrier()
    engine.destroy()
