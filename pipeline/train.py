"""The one training loop, in run order: baseline, refine and control all come through here."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import Config, Schedule
from pipeline.agreement import on_any_rank
from pipeline.background import CheckpointWriter
from pipeline.checkpoint import load_checkpoint, newest_checkpoint
from pipeline.data import Batch, first_batch, sample_order, to_network, training_batches
from pipeline.engine import momentum_by_name, restore, set_lr, start_engine
from pipeline.evaluations import Evaluations
from pipeline.labels import adopt_labels
from pipeline.lease import Claim, claim_stage
from pipeline.model import build_model
from pipeline.network.pretrained import load_pretrained
from pipeline.network.weights import load_weights, save_weights
from pipeline.notice import ASKED, Ask, Notice, Preempted, no_notice
from pipeline.quarantine import Quarantine
from pipeline.runlog import RunLog
from pipeline.schedule import lr_at
from pipeline.step_note import InStep
from shards.read import ShardDataset
from shards.storage.cache import cache_at

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
        val_shards: the held-out shards, for evaluation during training; None where nothing is evaluated.
    """

    config: Config
    stage: str
    run_dir: str
    shards: str
    init_weights: str | None
    attempt: int
    val_shards: str | None = None


def train(job: TrainJob, ask: Ask = no_notice) -> bool:
    """Train one stage to its last step and write RUN/STAGE/weights.safetensors.

    Runs on every rank (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment) and resumes
    from the newest valid checkpoint, so calling it again after a kill goes on where it was. Each rank asks
    `ask` once a step, as it waits, and at the end; what any rank was told, all of them do after the step.

    Returns:
        Whether any rank was asked to stop too late for that: the stage is done, and another is not to begin.

    Raises:
        NonFiniteLoss: on every rank, before the weights are touched; on rank 0 alone when it was not the
            loss but weights or momentum about to be saved.
        StaleAttempt, Superseded: a newer attempt, or start of the workers, has taken over.
        Preempted: asked to stop; a checkpoint of the last step is on the disk.
        OSError: on rank 0, a step or more late: a checkpoint could not be written; earlier ones are there.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _be_deterministic()
    config, schedule = job.config, stage_schedule(job.config, job.stage)
    dataset = ShardDataset(job.shards, cache=cache_at(config.data.cache_dir, config.data.cache_gb))
    adopt_labels(dataset, job.init_weights or config.model.weights)
    order = sample_order(dataset, config).identity
    engine = start_engine(stage_model(job, dataset), schedule, config, world)
    claim, folder = claim_stage(job.run_dir, job.stage, job.attempt, rank), Path(job.run_dir, job.stage)
    first, window, logged = _resume(engine, folder / "checkpoints", order, claim)
    logs = RunLog(folder, rank, world, first, claim.check, logged)
    quarantine = Quarantine(config.data.on_corrupt, world)
    batches = training_batches(dataset, config, schedule, rank, world, first)
    engine.module.train()
    keep = config.keep_checkpoints, config.keep_checkpoint_every
    meta = weights_meta(config, job.stage, dataset)
    with (
        Evaluations(folder, schedule, _evaluation_order(job, meta, world, claim), rank) as evaluations,
        CheckpointWriter(folder / "checkpoints", *keep, claim.check, evaluations.keep) as checkpoints,
    ):
        writers = logs, checkpoints, evaluations
        books = _Books(job, schedule, engine, *writers, order, len(dataset), window, ask)
        done = first
        while done < schedule.iters and not evaluations.stops(done, books.agree):
            step, done = done, done + 1
            with InStep(done):
                checkpoints.check()
                began = time.monotonic()
                set_lr(engine, lr_at(schedule, step))
                ids, told = _step(
                    engine, batches, step, config.seed, schedule, books.window, quarantine, ask()
                )
                books.enter(done, time.monotonic() - began, ids, told)
        checkpoints.wait()
        evaluations.finish(done, books.agree)
    return _finish(engine, job, claim, meta, ask)


@dataclass
class _Books:
    """What is written of a stage while it trains. Every method is called on every rank."""

    job: TrainJob
    schedule: Schedule
    engine: Any
    logs: RunLog
    checkpoints: CheckpointWriter
    evaluations: Evaluations
    order: str
    size: int
    window: dict[str, float]
    ask: Ask

    def enter(self, step: int, seconds: float, ids: list[int], told: Notice) -> None:
        """Note a step that is done, and write whatever is due at it."""
        config, last = self.job.config, step == self.schedule.iters
        for name, value in (("steps", 1), ("timed", 1), ("seconds", seconds)):
            self.window[name] += value
        if config.debug.log_samples:
            self.logs.samples(step, ids)
        if step % config.train.log_every == 0 or last:
            self.logs.metrics(step, self.schedule, self.size, lr_at(self.schedule, step - 1), self.window)
            self.window = _empty_window()
        if step % config.checkpoint_every == 0 or last or told.save or self.evaluations.due(step):
            self.save(step)
        if told.stop and not last:
            self.stop(step)

    def save(self, step: int) -> None:
        """Begin to write a checkpoint."""
        momentum = momentum_by_name(self.engine)
        if dist.get_rank():
            return
        weights = self.engine.module.state_dict()
        _check_finite({**weights, **momentum}, step)
        # Seconds are the one thing that differs between equal runs; keep checkpoints equal.
        state = {
            "step": step,
            "seed": self.job.config.seed,
            "samples": step * self.schedule.batch,
            "dataset": self.order,
            "window": {**self.window, "timed": 0, "seconds": 0.0},
            "logged": dict(self.logs.logged),
        }
        self.checkpoints.save(step, weights, momentum, state)

    def agree(self, step: int, lacking: bool) -> bool:
        """Return whether any rank lacks an evaluation that all wait for after a step; or stop, if asked to.

        Who is only asked to save has done so: the steps that ranks wait after are all saved.
        """
        lacking, stop = on_any_rank(lacking, self.ask().stop, device=self.engine.device)
        if lacking and stop:
            self.stop(step)
        return lacking

    def stop(self, step: int) -> None:
        """Raise Preempted once the checkpoint is on the disk."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            error.add_note(ASKED)
            raise
        # The others' end could take rank 0 with it before the checkpoint has its name.
        dist.barrier()
        raise Preempted(
            f"asked to stop: step {step} of {self.schedule.iters} is saved; the same command goes on"
        )


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


def _evaluation_order(job: TrainJob, meta: dict[str, Any], world: int, claim: Claim) -> dict[str, Any]:
    data = job.config.data
    cache = {"folder": data.cache_dir, "limit_gb": data.cache_gb}
    test = job.config.test.model_dump(mode="json")
    order = {"shards": job.val_shards, "test": test, "cache": cache, "meta": meta, "ranks": world}
    return {**order, "claim": {**asdict(claim), "run_dir": job.run_dir}}


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


def _resume(
    engine: Any, checkpoints: Path, order: str, claim: Claim
) -> tuple[int, dict[str, float], dict[str, int]]:
    # Rank 0 alone looks (and sets broken ones aside); the others must not race it.
    found = [newest_checkpoint(checkpoints, claim.check) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0, _empty_window(), {}
    weights, momentum, state = load_checkpoint(found[0])
    if state["dataset"] != order:
        raise ValueError(f"{found[0]}: was trained on other shards ({state['dataset']}, not {order})")
    restore(engine, weights, momentum)
    log.info("resumed from %s", found[0])
    # Checkpoints of earlier versions do not say what was logged.
    return state["step"], {**_empty_window(), **state["window"]}, state.get("logged", {})


def _step(
    engine: Any,
    batches: Iterator[Batch],
    step: int,
    seed: int,
    schedule: Schedule,
    window: dict[str, float],
    quarantine: Quarantine,
    asked: Notice,
) -> tuple[list[int], Notice]:
    ids: list[int] = []
    for _ in range(schedule.accumulate):
        batch = next(batches)
        ids += [target["image_id"] for _, target in batch]
        window["quarantined"] += quarantine.count(batch)
        losses, told = _forward(engine, batch, seed, step, asked)
        engine.backward(losses["loss"])
        engine.step()
        _check_gradient(engine, step, ids)
        _add(window, losses, schedule.accumulate)
    return ids, told


def _forward(engine: Any, batch: Batch, seed: int, step: int, asked: Notice) -> tuple[dict[str, Any], Notice]:
    terms = engine(*to_network(batch, engine.device), seed)
    names = list(terms)
    sums = torch.stack([terms[name][0].float() for name in names])
    counts = torch.stack([terms[name][1].float() for name in names])
    # A mean over all ranks' samples, whatever share of the positives this rank happens to hold. With
    # accumulation it is that of one slice of the global batch: later slices' counts are not known yet.
    totals = torch.cat([sums.detach(), counts, sums.new_tensor([asked.save or asked.stop, asked.stop])])
    dist.all_reduce(totals)
    total_sums, total_counts, wishes = totals.split([len(names), len(names), 2])
    means = total_sums / total_counts.clamp(min=1)
    if not torch.isfinite(means).all():
        _stop_on_non_finite(names, sums, means, batch, step)
    # ZeRO averages gradients over ranks, hence times the world size.
    loss = (sums / total_counts.clamp(min=1)).sum() * dist.get_world_size()
    *values, total, save, stop = [*means.tolist(), means.sum().item(), *wishes.tolist()]
    return {**dict(zip(names, values, strict=True)), "loss": loss, "total": total}, Notice(save > 0, stop > 0)


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
    # A finite sum has finite terms, and takes a tenth of the time.
    doubtful = {name: tensor for name, tensor in tensors.items() if not torch.isfinite(tensor.sum())}
    bad = [name for name, tensor in doubtful.items() if not torch.isfinite(tensor).all()]
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


def _be_deterministic() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling DeepSpeed's gradient buckets with NaN on every step would cost most of a CPU's step.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _finish(engine: Any, job: TrainJob, claim: Claim, meta: dict[str, Any], ask: Ask) -> bool:
    if dist.get_rank() == 0:
        claim.check()
        save_weights(Path(job.run_dir, job.stage, "weights.safetensors"), engine.module.state_dict(), meta)
    # Asked after it: while a rank waits for rank 0, it hears nothing.
    dist.barrier()
    (stop,) = on_any_rank(ask().stop, device=engine.device)
    engine.destroy()
    return stop
