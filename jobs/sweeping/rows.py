"""One row of a sweep: the training that it needs, shared with whoever needs the same, and its evaluation.

Every distinct training has a run directory of its own, named by its last stage and the hash of all that
this stage depends on; the baseline in it is a link to the run directory that trained it. Every distinct
evaluation has a folder named likewise. So rows of any table that lie in one folder share what they have in
common, and what is there is never done again.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from jobs.checks import check_workers
from jobs.console import say
from jobs.evaluation import detect_and_score
from jobs.inputs import EVALUATED, cache_of, dataset_hash, stage_inputs
from jobs.ledger import Ledger, Values, hash_of
from jobs.stages import run_pipeline

HASH_LENGTH = 12


@dataclass(frozen=True)
class RowJob:
    """What a process needs to know to do a row.

    Attributes:
        name: of the row.
        config: its resolved config; its data are directories or URLs of shards.
        network: "baseline", "control" or "refined".
        root: the sweep's folder, which every node sees.
        shards: what to detect on.
        workers, launcher, address: as for `jobs.launching.launch.launch`.
        output: file for what the row prints, None for the terminal.
        min_workers: as for `jobs.stages.run_pipeline`.
    """

    name: str
    config: Config
    network: str
    root: Path
    shards: str
    workers: int
    launcher: str
    address: str | None
    output: Path | None = None
    min_workers: int | None = None

    @property
    def stages(self) -> list[str]:
        """The stages that train, in order."""
        return list(dict.fromkeys(["baseline", EVALUATED[self.network]]))

    @property
    def claims(self) -> list[Path]:
        """The folders that the row still has to fill: no two rows may fill the same one at once."""
        places = [training_dir(self.root, stage, self.config) for stage in self.stages]
        undone = [
            place for place, stage in zip(places, self.stages, strict=True) if not _trained(place, stage)
        ]
        return undone if is_done(self) else [*undone, evaluated_dir(self)]


def do_row(job: RowJob) -> None:
    """Train what the row needs and is not trained yet, evaluate it, and analyse what it found.

    Raises:
        BadInput, ConfigError, LeaseHeld: what the user can mend.
        JobFailed: the workers failed.
    """
    with contextlib.ExitStack() as stack:
        if job.output is not None:
            job.output.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(job.output.open("a"))))
        if is_done(job):
            return say(f"{job.name}: done already")
        place, lender = None, None
        for stage in job.stages:
            place = training_dir(job.root, stage, job.config)
            _train(job, stage, place, lender)
            lender = place
        _evaluate(job, place / job.stages[-1] / "weights.safetensors")


def is_done(job: RowJob) -> bool:
    """Return whether a row's numbers are there, or its archive for the COCO server."""
    folder = evaluated_dir(job)
    return (folder / "analysis.json").is_file() or any(folder.glob("detections_*.zip"))


def training_dir(root: Path, stage: str, config: Config) -> Path:
    """Return the run directory in which a stage is trained: the same one for all that need the same."""
    return root / "training" / f"{stage}-{hash_of(_training_inputs(stage, config))[:HASH_LENGTH]}"


def evaluated_dir(job: RowJob) -> Path:
    """Return the folder of a row's results: the same one for all rows with equal weights and settings."""
    inputs = {
        "training": _training_inputs(job.stages[-1], job.config),
        "test": job.config.test.model_dump(mode="json"),
        "shards": dataset_hash(job.shards, cache_of(job.config)),
    }
    return job.root / "evaluated" / f"{job.network}-{hash_of(inputs)[:HASH_LENGTH]}"


def _training_inputs(stage: str, config: Config) -> Values:
    # As the ledger will have them, but for the hashes of what is not there yet: those follow from these.
    nothing = Ledger(Path(), {"stages": {}})
    before = {} if stage == "baseline" else {"baseline": _training_inputs("baseline", config)}
    data = {"shards": dataset_hash(config.data.train, cache_of(config))}
    if (config.train.baseline if stage == "baseline" else config.train.refine).patience:
        # When to stop is decided on them.
        data["held out"] = dataset_hash(config.data.val, cache_of(config))
    return {**stage_inputs(stage, config, nothing), **before, "stage": stage, **data}


def _trained(place: Path, stage: str) -> bool:
    return Ledger.load(place).state(stage) == "done" and (place / stage / "weights.safetensors").is_file()


def _train(job: RowJob, stage: str, place: Path, lender: Path | None) -> None:
    if _trained(place, stage):
        return say(f"{job.name}: {stage} is there, {place}")
    stages = tuple(dict.fromkeys(["shard", "baseline", stage]))
    ranks, least = (job.workers, job.launcher, job.address), job.min_workers
    run_pipeline(job.config, place, *ranks, min_workers=least, stages=stages, lender=lender)


def _evaluate(job: RowJob, weights: Path) -> None:
    from pipeline.scoring.analysis import analyse, save_analysis
    from pipeline.scoring.coco_ap import prepare_annotations
    from shards.read import ShardDataset

    say(f"{job.name}: evaluating {weights}")
    out, data = evaluated_dir(job), job.config.data
    folder = None if data.cache_dir is None else cache_of(job.config).folder
    cache = {"folder": folder, "limit_gb": data.cache_gb}
    place = job.workers, job.launcher, job.address
    sizes = check_workers(job.config, job.workers, job.launcher, job.min_workers)
    if detect_and_score(weights, job.shards, out, job.config.test, *place, cache, job.name, sizes):
        truth = prepare_annotations(ShardDataset(job.shards, cache=cache_of(job.config)).to_coco())
        results = json.loads((out / "coco_results.json").read_text(encoding="utf-8"))
        # Last: with it the row counts as done.
        save_analysis(out / "analysis.json", analyse(truth, results))
