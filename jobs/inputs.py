"""What each stage depends on, and so what a changed config means for a run directory."""

from pathlib import Path
from typing import Any

from configs.schema import CocoSource, Config
from jobs.ledger import Ledger, Values, changed_keys, hash_of
from pipeline.checkpoint import list_checkpoints
from shards.errors import BadInput
from shards.source_images import first_changed
from shards.storage.cache import Cache, cache_at
from shards.storage.files import sha256_of
from shards.storage.remote import ABSENT, hash_file, is_remote, local_path, shown

# In the order they run; each with the stages whose outputs it reads.
NEEDS = {
    "shard": (),
    "baseline": ("shard",),
    "refine": ("shard", "baseline"),
    "control": ("shard", "baseline"),
    "evaluate": ("shard", "baseline", "refine", "control"),
    "report": ("evaluate",),
}
# Each evaluated network, and the stage whose weights it has.
EVALUATED = {"baseline": "baseline", "control": "control", "refined": "refine"}


def stage_inputs(stage: str, config: Config, ledger: Ledger) -> Values:
    """Return every value that changes a stage's result, by config key or by the output it reads.

    Keys that are in no stage (workers, loader processes, logging, tracking, how often to
    checkpoint) may change freely, and so may `data.on_corrupt`: a run that a corrupt sample has stopped is
    to go on, and without one it changes nothing. Files count by content, so they may move.
    """
    keys = _flatten(config.model_dump(mode="json"))
    outputs = {
        f"{need}.{name}": value for need in NEEDS[stage] for name, value in ledger.outputs(need).items()
    }
    trained = _under(keys, "seed", "model.", "train.precision", "train.hflip", "train.aspect_window")
    if config.data.order == "window":
        # The full order has no setting, and run directories from before there was another go on.
        trained |= _under(keys, "data.order")
    if stage == "shard":
        files = {f"data.{split}": _split_hash(split, config, ledger) for split in ("train", "val")}
        return {
            **files,
            **_under(keys, "data.on_bad", "data.repair", "data.max_pixels", "data.shard_size_mb"),
        }
    if stage == "baseline":
        weights = {"model.weights": file_hash(config.model.weights)}
        schedule = _schedule("baseline", config, keys, outputs)
        return {**trained, **weights, **schedule, **_under(outputs, "shard.train")}
    trained.pop("model.weights")
    start = _under(outputs, "shard.train", "baseline.")
    if stage == "refine":
        return {
            **trained,
            **_under(keys, "sara.", "refine."),
            **_schedule("refine", config, keys, outputs),
            **start,
        }
    if stage == "control":
        return {**trained, **_schedule("refine", config, keys, outputs), **start}
    if stage == "evaluate":
        outputs.pop("shard.train", None)
        return {**_under(keys, "test."), **outputs}
    return outputs


def _schedule(name: str, config: Config, keys: Values, outputs: Values) -> Values:
    """Return what of a schedule changes the weights: how often to look at them only where that may stop."""
    found = _under(keys, f"train.{name}.")
    if getattr(config.train, name).patience:
        # Under another name: a change of them must not pass for one that redoes the evaluation only.
        looks = {"early stopping by test": hash_of(_under(keys, "test."))}
        return {**found, **looks, **_under(outputs, "shard.val")}
    return {key: value for key, value in found.items() if not key.endswith((".eval_every", ".patience"))}


def stages_to_redo(config: Config, run_dir: Path, ledger: Ledger, redo: str | None) -> list[str]:
    """Return the stages whose results no longer hold, in order: asked for, or what `test.*` changes.

    With `redo`, changes that concern that stage or a later one are accepted. A redo that was begun and has
    not come to the pipeline's end goes on: it costs only what has changed or been lost since.

    Raises:
        BadInput: a change would throw training away; names the key and `--redo STAGE`.
    """
    again = _with_dependents(redo) if redo and redo not in ledger.redoing() else set()
    accepted = list(NEEDS)[list(NEEDS).index(redo) :] if redo else []
    for stage in NEEDS:
        before = ledger.inputs(stage)
        if not before or stage in again:
            continue
        now = stage_inputs(stage, config, ledger)
        changed = changed_keys(before, now)
        harmless = all(key.startswith("test.") for key in changed) or not holds_work(run_dir, ledger, stage)
        if changed and (harmless or stage in accepted):
            again |= _with_dependents(stage)
        elif changed:
            raise BadInput(_refusal(run_dir, stage, changed, before, now))
        elif ledger.state(stage) == "done" and _is_lost(run_dir, config, ledger, stage, redo):
            again |= _with_dependents(stage)
    return [stage for stage in NEEDS if stage in again]


def holds_work(run_dir: Path, ledger: Ledger, stage: str) -> bool:
    """Return whether a stage is finished or has a checkpoint: something that a restart would lose.

    Raises:
        OSError: its checkpoints cannot be listed just now, which does not mean that there are none.
    """
    return ledger.state(stage) == "done" or bool(list_checkpoints(run_dir / stage / "checkpoints"))


def stage_outputs(run_dir: Path, config: Config, stage: str) -> Values:
    """Return the hash of every output of a stage that has just finished."""
    if stage == "shard":
        cache, splits = cache_of(config), ("train", "val")
        return {split: dataset_hash(shards_of(run_dir, config, split), cache) for split in splits}
    return {name: sha256_of(path) for name, path in output_files(run_dir, stage).items()}


def output_files(run_dir: Path, stage: str) -> dict[str, Path]:
    """Return the files that are a stage's result, by name; `shard` has directories instead."""
    if stage in ("baseline", "refine", "control"):
        return {"weights": run_dir / stage / "weights.safetensors"}
    if stage == "evaluate":
        return {name: run_dir / stage / name / "metrics.json" for name in ("baseline", "control", "refined")}
    return {}


def shards_of(run_dir: Path, config: Config, split: str) -> Path | str:
    """Return the shard directory of "train" or "val": the user's own, which may be a URL, or the run's."""
    source = getattr(config.data, split)
    if isinstance(source, str):
        return source if is_remote(source) else local_path(source)
    return run_dir / "shards" / split


def cache_of(config: Config) -> Cache:
    """Return where the shards of a URL are kept, on every machine of a run."""
    return cache_at(config.data.cache_dir, config.data.cache_gb)


def dataset_hash(place: Path | str, cache: Cache) -> str:
    """Return the hash of a shard directory or URL.

    Raises:
        BadInput: there are no such shards.
    """
    if not is_remote(place) and not (local_path(place) / "dataset.json").is_file():
        raise BadInput(f"{place}: holds no dataset.json; give a directory that mrrcnn shard has finished")
    from shards.read import ShardDataset

    return ShardDataset(place, verify=False, cache=cache).hash


def _split_hash(split: str, config: Config, ledger: Ledger) -> str | None:
    source = getattr(config.data, split)
    gone = isinstance(source, CocoSource) and not (
        is_remote(source.annotations) or local_path(source.annotations).exists()
    )
    if gone and ledger.state("shard") == "done":
        # Shards need their source no more, and it may be large.
        return ledger.inputs("shard")[f"data.{split}"]
    # What identifies a data source: the shards' hash, or that of the annotation file.
    if isinstance(source, str):
        return dataset_hash(source, cache_of(config))
    return file_hash(source.annotations)


def file_hash(path: str | None) -> str | None:
    """Return the sha256 of a file named in the config, or None for none.

    Raises:
        BadInput: it is not there, or there is no right to read it.
        OSError: it cannot be read just now.
    """
    try:
        return None if path is None else hash_file(path)
    except ABSENT as error:
        raise BadInput(
            f"{shown(path)}: cannot be read ({error.strerror or error}); correct the path in the config"
        ) from None


def _is_lost(run_dir: Path, config: Config, ledger: Ledger, stage: str, redo: str | None) -> bool:
    try:
        _check_outputs(run_dir, config, ledger, stage)
    except BadInput:
        # To do the stage again is what the line asks for: then it may not only go on.
        if stage != redo:
            raise
        return True
    return False


def _check_outputs(run_dir: Path, config: Config, ledger: Ledger, stage: str) -> None:
    if stage == "shard" and stage_outputs(run_dir, config, stage) != ledger.outputs(stage):
        raise BadInput(f"{run_dir}: the shards are not those that were trained on; give --redo shard")
    if stage == "shard":
        _check_source_images(run_dir, config)
    for name, path in output_files(run_dir, stage).items():
        if not path.exists() or sha256_of(path) != ledger.outputs(stage).get(name):
            wrong = "has changed" if path.exists() else "is gone"
            raise BadInput(
                f"{path}: {wrong} since stage {stage} wrote it; put it back or give --redo {stage}"
            )


def _check_source_images(run_dir: Path, config: Config) -> None:
    for split in ("train", "val"):
        source = getattr(config.data, split)
        if not isinstance(source, CocoSource):
            continue
        changed = first_changed(shards_of(run_dir, config, split), local_path(source.images))
        if changed is not None:
            raise BadInput(
                f"{Path(source.images, changed)}: is not the image that {run_dir} was sharded from; "
                f"set data.{split}.images back, choose another --run-dir, or give --redo shard"
            )


def _refusal(run_dir: Path, stage: str, changed: list[str], before: Values, now: Values) -> str:
    shown = "; ".join(
        f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}" for key in changed[:4]
    )
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return (
        f"{run_dir}: stage {stage} was begun with other settings: {shown}{more}; set them back, "
        f"choose another --run-dir, or give --redo {stage} to do it and what depends on it again"
    )


def _short(value: Any) -> str:
    return f"content {value[:12]}" if isinstance(value, str) and len(value) == 64 else str(value)


def _with_dependents(stage: str) -> set[str]:
    found = {stage}
    for later, needs in NEEDS.items():
        if found & set(needs):
            found.add(later)
    return found


def _flatten(tree: dict[str, Any], prefix: str = "") -> Values:
    flat: Values = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _under(values: Values, *prefixes: str) -> Values:
    return {key: value for key, value in values.items() if key.startswith(prefixes)}
