"""The stages in the order they run, each an idempotent job, and what decides which of them run."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import dump_config
from configs.schema import CocoSource, Config
from jobs.checks import (
    check_sources,
    check_splits,
    check_unowned,
    check_weights,
    check_workers,
    legal_workers,
    run_path,
)
from jobs.console import say
from jobs.errors import Stopped
from jobs.inputs import EVALUATED, cache_of, shards_of, stage_inputs, stage_outputs, stages_to_redo
from jobs.launching.environment import worker_environment
from jobs.launching.launch import launch
from jobs.ledger import Ledger
from jobs.summary import showing_findings
from jobs.track import note_begin, note_results, telling_of_failure, tracking
from pipeline.lease import acquire, check_attempt
from shards.storage.files import clear_temporaries, write_atomic
from shards.storage.remote import absolute
from shards.storage.secrets import redact


@dataclass(frozen=True)
class Run:
    """One attempt at a run directory: what is wanted, where, and with which workers."""

    config: Config
    path: Path
    attempt: int
    workers: int
    launcher: str
    address: str | None
    sizes: tuple[int, ...]
    ledger: Ledger
    tracker: Any
    lender: Path | None = None

    @property
    def stop_file(self) -> Path:
        """What SIGTERM leaves while workers run: one for all stages of the attempt."""
        return self.path / ".jobs" / f"{self.attempt}.stop"

    def check(self) -> None:
        """Return when this attempt may still write; StaleAttempt where a newer one has begun."""
        check_attempt(self.path, self.attempt)


def run_pipeline(
    config: Config,
    run_dir: str | Path,
    workers: int = 1,
    launcher: str = "ray",
    address: str | None = None,
    redo: str | None = None,
    min_workers: int | None = None,
    stages: tuple[str, ...] | None = None,
    lender: Path | None = None,
) -> None:
    """Do every stage that is not done; the same call again goes on where the last one ended.

    Args:
        config: the resolved config.
        run_dir: the run directory.
        workers: number of ranks.
        launcher: see `jobs.launching.launch.launch`.
        address: of a running Ray cluster; None starts a private one.
        redo: a stage to do again, with all that depends on it; given again before the pipeline has come to
            its end, it goes on like any call.
        min_workers: a cluster that has lost nodes goes on with as many workers as it has room for, if these
            are legal and not fewer, and takes on more when it can; None: it waits for all of them.
        stages: only these; None: all.
        lender: a run directory whose finished stages are taken over, as links, where they had the same
            inputs.

    Raises:
        BadInput, ConfigError: bad data, or a change that would throw training away; nothing has run.
        LeaseHeld: another live command holds the directory.
        StaleAttempt: this one has lost the directory to a newer one, and has written nothing since.
        Stopped: SIGTERM while a stage was trained; a checkpoint was saved, or the stage is done, or it
            says what failed.
        JobFailed: the workers failed.
    """
    path = run_path(run_dir)
    sizes = check_workers(config, workers, launcher, min_workers)
    legal = ", ".join(map(str, legal_workers(config)))
    say(f"workers: {workers}" + (f", at least {min_workers}" if min_workers else "") + f" (legal: {legal})")
    check_sources(config)
    check_weights(config)
    with acquire(path) as lease:
        ledger = Ledger.load(path, lease.attempt)
        _make_ready(path, config, ledger, redo)
        with tracking(config, path, ledger, lease.attempt) as tracker:
            run = Run(config, path, lease.attempt, workers, launcher, address, sizes, ledger, tracker, lender)
            _note_anew(run)
            asked = [stage for stage in STAGES if stages is None or stage in stages]
            for stage in asked:
                _do_once(run, stage, STAGES[stage])
        shutil.rmtree(path / ".jobs", ignore_errors=True)
        # Last: whoever is killed before this, and tried again with its --redo, finds all done.
        ledger.end_redo(asked)


def _note_anew(run: Run) -> None:
    # All at once, and only then as not lost any more: a kill in between leaves it to the next attempt.
    if not run.tracker.has_lost_events():
        return
    for stage in STAGES:
        if run.ledger.state(stage) == "done":
            note_begin(run.tracker, run.ledger, stage, run.attempt)
            note_results(run.tracker, run.config, run.path, run.ledger, stage)
    run.tracker.noted_anew()


def _make_ready(path: Path, config: Config, ledger: Ledger, redo: str | None) -> None:
    # A report can be written at any time, by `mrrcnn report` too: nothing is lost with one.
    check_unowned(ledger, {stage: _folder(path, stage) for stage in STAGES if stage != "report"})
    if ledger.recovered:
        say(ledger.recovered)
    again = stages_to_redo(config, path, ledger, redo)
    if redo in ledger.redoing() and redo not in again:
        say(f"--redo {redo}: goes on; it begins anew only once the pipeline has come to its end")
    ledger.forget(again, redo)
    for stage in again:
        # To delete the one before may have taken minutes, in which a newer attempt has begun.
        check_attempt(path, ledger.attempt)
        discard(path, stage)
    check_attempt(path, ledger.attempt)
    write_atomic(path / "config.yaml", redact(dump_config(config)).encode())


def shard(run: Run) -> None:
    """Validate the data and write it as shards, unless it is shards already; then no bad data can follow."""
    data = run.config.data
    for split in ("train", "val"):
        source = getattr(data, split)
        if isinstance(source, CocoSource):
            from shards.write import write_shards

            out = shards_of(run.path, run.config, split)
            keys = {"on_bad", "repair", "max_pixels", "shard_size_mb"}
            with showing_findings(out):
                options = data.model_dump(include=keys) | {"spreading": _spreading(run)}
                write_shards(source.images, source.annotations, out, workers=os.cpu_count() or 1, **options)
    train, val = (shards_of(run.path, run.config, split) for split in ("train", "val"))
    check_splits(train, val, cache_of(run.config))


def _spreading(run: Run) -> Any:
    """Return what shards on the cluster that the run was given; None for processes of this machine."""
    if run.launcher != "ray" or run.address is None:
        return None
    from jobs.launching.ray_tasks import ray_tasks

    return ray_tasks(run.address, None)


def baseline(run: Run) -> None:
    """Train Mask R-CNN, or with `train.baseline.iters=0` take that of `model.weights` as it is."""
    _train(run, "baseline", None)


def refine(run: Run) -> None:
    """Add the refining module to the baseline, initialised from its heads, and train."""
    _train(run, "refine", run.path / "baseline" / "weights.safetensors")


def control(run: Run) -> None:
    """Train the baseline on with refine's schedule and samples, without the module."""
    _train(run, "control", run.path / "baseline" / "weights.safetensors")


def evaluate(run: Run) -> None:
    """Detect with all three on the same images and score them."""
    shards, folder = shards_of(run.path, run.config, "val"), run.path / "evaluate"
    waiting = [name for name in EVALUATED if not (folder / name / "metrics.json").exists()]
    parts = {name: folder / name / "parts" for name in EVALUATED}
    for directory in parts.values():
        # Parts of an attempt with another number of workers would not fit these.
        shutil.rmtree(directory, ignore_errors=True)
        clear_temporaries(directory.parent)
    weights = {name: str(run.path / EVALUATED[name] / "weights.safetensors") for name in waiting}
    jobs = [{"weights": weights[name], "parts": str(parts[name])} for name in waiting]
    test = run.config.test.model_dump(mode="json")
    from jobs.launching.worker import detect_parts
    from pipeline.evaluate import score

    cache = {"folder": _cache_dir(run.config), "limit_gb": run.config.data.cache_gb}
    claim = {"run_dir": str(run.path), "stage": "evaluate", "attempt": run.attempt}
    payload = {"jobs": jobs, "shards": absolute(shards), "test": test, "cache": cache, "claim": claim}
    _launch(run, "evaluate", detect_parts, payload)
    for name in waiting:
        score(shards, parts[name], folder / name, cache_of(run.config), may_commit=run.check)
        run.check()
        shutil.rmtree(parts[name])


def report(run: Run) -> None:
    """Write tables, figures and pictures of the run."""
    from pipeline.report.document import write_report

    run.check()
    clear_temporaries(run.path / "report")
    write_report([run.path], run.path / "report")


STAGES = {
    "shard": shard,
    "baseline": baseline,
    "refine": refine,
    "control": control,
    "evaluate": evaluate,
    "report": report,
}


def discard(run_dir: Path, stage: str) -> None:
    """Delete whatever a stage has written."""
    folder = _folder(run_dir, stage)
    if folder.is_symlink():
        # Another run directory's work, which is its own to delete.
        folder.unlink()
    elif folder.exists():
        say(f"{stage}: deleting {folder}")
        shutil.rmtree(folder)


def _folder(run_dir: Path, stage: str) -> Path:
    return run_dir / ("shards" if stage == "shard" else stage)


def _do_once(run: Run, stage: str, work: Any) -> None:
    state = run.ledger.state(stage)
    if state == "done":
        return say(f"{stage}: done already")
    if state == "forgotten":
        # Left by a command that was killed between forgetting a stage and deleting its output.
        run.check()
        discard(run.path, stage)
    inputs = stage_inputs(stage, run.config, run.ledger)
    if run.lender is not None and _borrow(run, stage, inputs):
        return say(f"{stage}: done already in {run.lender}")
    run.ledger.begin(stage, inputs, run.attempt)
    note_begin(run.tracker, run.ledger, stage, run.attempt)
    say(f"{stage}: {'going on' if state in ('running', 'failed') else 'starting'}")
    with telling_of_failure(run.tracker, stage):
        _do(run, stage, work)
    if run.stop_file.exists():
        raise Stopped(f"asked to stop: stage {stage} is done; the same command goes on")


def _do(run: Run, stage: str, work: Any) -> None:
    try:
        work(run)
    except (ValueError, RuntimeError, OSError) as error:
        # What failed is told, not that a full disk does not take this either.
        with suppress(OSError):
            run.ledger.fail(stage, str(error))
        raise
    outputs = stage_outputs(run.path, run.config, stage)
    # Before the stage counts as done: a kill in between would leave its results untold for ever.
    note_results(run.tracker, run.config, run.path, run.ledger, stage)
    run.ledger.finish(stage, outputs)


def _borrow(run: Run, stage: str, inputs: dict[str, Any]) -> bool:
    """Return whether the lender has done this stage from the same inputs; then it is ours as well."""
    lent, folder = Ledger.load(run.lender), _folder(run.path, stage)
    if lent.state(stage) != "done" or lent.inputs(stage) != inputs or not _folder(run.lender, stage).is_dir():
        return False
    # Begun before it is linked: a folder that the ledger does not know would be refused as somebody else's.
    run.ledger.begin(stage, inputs, run.attempt)
    if not folder.is_symlink():
        folder.symlink_to(os.path.relpath(_folder(run.lender, stage), run.path))
    run.ledger.finish(stage, lent.outputs(stage))
    return True


def _train(run: Run, stage: str, init_weights: Path | None) -> None:
    from jobs.launching.worker import train_stage

    _note_threads(run)
    # Workers track nothing, and what they are told may be shown by Ray.
    config = run.config.model_dump(mode="json", exclude={"tracking"})
    if run.config.model.weights is not None:
        # Workers stand in another directory than the command did.
        config["model"]["weights"] = str(Path(run.config.model.weights).resolve())
    config["data"]["cache_dir"] = _cache_dir(run.config)
    payload = {
        "config": config,
        "stage": stage,
        "run_dir": str(run.path),
        "shards": absolute(shards_of(run.path, run.config, "train")),
        "init_weights": None if init_weights is None else str(init_weights),
        "attempt": run.attempt,
        "val_shards": absolute(shards_of(run.path, run.config, "val")),
        "stop_file": str(run.stop_file),
    }
    _launch(run, stage, train_stage, payload, run.path / stage / "checkpoints")


def _note_threads(run: Run) -> None:
    threads = worker_environment(run.workers)["OMP_NUM_THREADS"]
    before = run.ledger.train_with(run.workers, threads)
    if before not in (None, threads):
        say(
            f"threads: {threads}, before {before}: on CPUs sums are added in another order, so the last bits "
            f"may differ; OMP_NUM_THREADS={before} keeps them"
        )


def _cache_dir(config: Config) -> str | None:
    # Without one each machine has its own default, and may have another home.
    return None if config.data.cache_dir is None else cache_of(config).folder


def _launch(
    run: Run, stage: str, task: Any, payload: dict[str, Any], checkpoints: Path | None = None
) -> None:
    scratch = run.path / ".jobs" / f"{stage}-{run.attempt}"
    launch(task, payload, scratch, run.workers, run.launcher, run.address, run.sizes, checkpoints)
