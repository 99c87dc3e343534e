"""What is refused before anything runs: places, worker counts and data that cannot work."""

from pathlib import Path

from configs.load import ConfigError
from configs.schema import Config
from jobs.inputs import EVALUATED
from jobs.ledger import Ledger
from pipeline.lease import CLAIM
from shards.errors import BadInput
from shards.storage.cache import Cache
from shards.storage.remote import ABSENT, check_url
from shards.storage.secrets import redact


def run_path(run_dir: str | Path) -> Path:
    """Return the absolute path of a run directory.

    Raises:
        BadInput: it is a URL; locks and renames need a POSIX file system.
    """
    if "://" in str(run_dir):
        raise BadInput(
            f"--run-dir {run_dir}: is a URL, but the lease and atomic renames need a POSIX file system; "
            "give a directory that every node sees, such as an NFS mount"
        )
    return Path(run_dir).resolve()


def check_unowned(ledger: Ledger, folders: dict[str, Path]) -> None:
    """Raise BadInput if the folder of a stage is there of which the ledger knows nothing.

    It may be the user's own, or of a run whose ledger is lost: neither is ours to delete or go on from.
    """
    for stage, folder in folders.items():
        if ledger.state(stage) == "pending" and folder.exists():
            raise BadInput(
                f"{folder}: is there, but {ledger.path} knows of no stage {stage}; "
                "choose another --run-dir, move the folder away, or put the ledger back"
            )


def check_no_run(out: Path) -> None:
    """Raise BadInput if a folder is a run's, or a stage's of one: what these are writing would be deleted."""
    held = [name for name in ("ledger.json", "lease.json", CLAIM) if (out / name).exists()]
    if out.name in EVALUATED and (out.parent / CLAIM).exists():
        # The run would take for its own what it finds there.
        held.append("its results")
    if held:
        raise BadInput(
            f"--out {out}: is a run's own folder (it holds {held[0]}); give another, such as {out / 'again'}"
        )


def check_weights(config: Config) -> None:
    """Raise an error if there is nothing to start from; what the file holds, the baseline stage says."""
    path = config.model.weights
    if path is None:
        return _check_from_scratch(config)
    try:
        with open(path, "rb") as file:
            file.read(1)
    except ABSENT as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); correct model.weights") from None


def _check_from_scratch(config: Config) -> None:
    if config.train.baseline.iters == 0:
        raise ConfigError(
            "train.baseline.iters=0 takes the baseline from model.weights, which is not set; "
            "set it to a Mask R-CNN checkpoint, or train.baseline.iters above 0"
        )
    if config.model.norm == "frozen_bn":
        raise ConfigError(
            "model.norm=frozen_bn keeps the norms of a pretrained trunk, but model.weights is not set; "
            "set it to ImageNet or Mask R-CNN weights, or train from scratch with model.norm=group"
        )


def check_workers(config: Config, workers: int, launcher: str, least: int | None = None) -> tuple[int, ...]:
    """Return the legal numbers of workers from `least` (None: from `workers`) to `workers`.

    Legal is what shares the batches of all stages evenly.

    Raises:
        BadInput: `workers` or `least` is not legal; names the numbers that are.
    """
    if launcher == "local" and workers != 1:
        raise BadInput(f"--workers {workers}: --launcher local has one; use torchrun or ray for more")
    legal = legal_workers(config)
    shown = ", ".join(map(str, legal))
    for option, number in (("--workers", workers), ("--min-workers", least)):
        if number is not None and number not in legal:
            raise BadInput(
                f"{option} {number}: {_indivisible(config, number)}; use {shown} workers, or change the batch"
            )
    if least is not None and least > workers:
        raise BadInput(f"--min-workers {least}: is more than --workers {workers}; give at most that")
    return tuple(size for size in legal if (least or workers) <= size <= workers)


def check_elastic(launcher: str, address: str | None, least: int | None) -> None:
    """Raise BadInput if fewer workers may do (`least` is not None) where no nodes can be lost."""
    if least is not None and (launcher != "ray" or address is None):
        raise BadInput("--min-workers: is for a Ray cluster whose nodes come and go; give its --address too")


def legal_workers(config: Config) -> list[int]:
    """Return the numbers of workers that share the batches of all stages evenly, rising."""
    from shards.batches import legal_world_sizes

    schedules = config.train.baseline, config.train.refine
    return sorted(
        set.intersection(*(set(legal_world_sizes(item.batch, item.accumulate)) for item in schedules))
    )


def _indivisible(config: Config, workers: int) -> str:
    for name in ("baseline", "refine"):
        schedule = getattr(config.train, name)
        share = schedule.batch // schedule.accumulate
        if share % workers:
            return f"does not divide train.{name}.batch / accumulate = {share}"
    raise ValueError(f"{workers} divides every batch")


def check_sources(config: Config) -> None:
    """Raise BadInput if data are at a URL with a password, or the starting weights at any URL."""
    for source in (config.data.train, config.data.val):
        for place in (source,) if isinstance(source, str) else (source.images, source.annotations):
            check_url(place)
    weights = config.model.weights
    if weights is not None and "://" in weights:
        raise BadInput(
            f"{redact(weights)}: is a URL, but model.weights is a file; download it and give its path"
        )


def check_splits(train: str | Path, val: str | Path, cache: Cache) -> None:
    """Raise BadInput if the two shard directories cannot be trained and evaluated on together."""
    from shards.read import ShardDataset

    learned, held_out = (ShardDataset(place, verify=False, cache=cache) for place in (train, val))
    if not learned.has_annotations:
        raise BadInput(f"{train}: has no annotations to train on; give data.train an annotated set")
    if not held_out.has_annotations:
        raise BadInput(
            f"{val}: has no annotations to measure AP with; give data.val an annotated set, "
            "and image lists to `mrrcnn evaluate`"
        )
    for directory, dataset in ((train, learned), (val, held_out)):
        if not dataset.description["instances"]:
            raise BadInput(
                f"{directory}: holds {len(dataset)} images without a single annotation; "
                "see what report.json there says was left out, and mend it"
            )
    ours = {item["id"]: item["name"] for item in learned.categories}
    if not any(item["id"] in ours for item in held_out.categories):
        raise BadInput(f"{val}: has no category id of {train}; give data.val the categories of data.train")
    for item in held_out.categories:
        if ours.get(item["id"], item["name"]) != item["name"]:
            raise BadInput(
                f"{val}: category {item['id']} is {item['name']!r} but {ours[item['id']]!r} in {train}; "
                "data.train and data.val must name categories alike"
            )
