"""What a run directory has to say, read without assuming that any of it is there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.runlog import read_lines
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.storage.cache import LIMIT_GB, cache_at

TRAINED = ("baseline", "refine", "control")
MODELS = {
    "baseline": "Mask R-CNN (baseline)",
    "control": "Mask R-CNN, trained on (control)",
    "refined": "MR R-CNN",
}


@dataclass(frozen=True)
class Evaluated:
    """One evaluated model: metrics.json, its COCO results, and source.json ({} if absent)."""

    metrics: dict[str, Any]
    results: list[dict[str, Any]]
    source: dict[str, Any]


@dataclass
class RunData:
    """A run directory's content; `missing` says in words what is not there.

    Attributes:
        name: what the report calls it.
        config: the resolved config, {} if absent.
        stages: stage -> ledger entry.
        curves: stage -> logged lines of metrics.jsonl.
        models: "baseline", "control", "refined" -> what was evaluated.
        sweep: (alpha, metrics) of the refined weights, increasing.
        shards: the held-out images, None if they cannot be found.
    """

    name: str
    path: Path
    config: dict[str, Any]
    stages: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    models: dict[str, Evaluated]
    sweep: list[tuple[float, dict[str, Any]]]
    shards: ShardDataset | None = None
    missing: list[str] = field(default_factory=list)


def read_run(path: Path, name: str) -> RunData:
    """Return what is in a run directory.

    Raises:
        BadInput: it is no directory, or holds nothing that a report could be made of.
    """
    if not path.is_dir():
        raise BadInput(f"{path}: is no directory; give run directories")
    evaluated = {folder.name: _evaluated(folder) for folder in sorted((path / "evaluate").glob("*/"))}
    found = {key: value for key, value in evaluated.items() if value is not None}
    run = RunData(
        name,
        path,
        config=_yaml(path / "config.yaml"),
        stages=(_json(path / "ledger.json") or {}).get("stages", {}),
        curves={stage: lines for stage in TRAINED if (lines := read_lines(path / stage / "metrics.jsonl"))},
        models={key: found[key] for key in MODELS if key in found},
        sweep=_alpha_sweep(found),
    )
    if not (run.config or run.curves or run.models):
        raise BadInput(f"{path}: holds neither config.yaml nor metrics; give the directory of a run")
    run.shards = _held_out(run)
    _note_missing(run)
    return run


def _evaluated(folder: Path) -> Evaluated | None:
    metrics, results = _json(folder / "metrics.json"), _json(folder / "coco_results.json")
    if metrics is None:
        return None
    return Evaluated(metrics, results or [], _json(folder / "source.json") or {})


def _alpha_sweep(found: dict[str, Evaluated]) -> list[tuple[float, dict[str, Any]]]:
    # Every evaluation of the refined weights whose settings differ from the main one in alpha alone.
    if "refined" not in found or "test" not in found["refined"].source:
        return []
    main = found["refined"].source
    rest = {**main["test"], "alpha": None}
    points = {
        item.source["test"]["alpha"]: item.metrics
        for item in found.values()
        if item.source.get("weights_sha256") == main["weights_sha256"]
        and item.source["dataset"] == main["dataset"]
        and {**item.source["test"], "alpha": None} == rest
    }
    return sorted(points.items()) if len(points) > 1 else []


def _held_out(run: RunData) -> ShardDataset | None:
    for item in run.models.values():
        if "shards" not in item.source:
            continue
        try:
            data = (run.config or {}).get("data", {})
            cache = cache_at(data.get("cache_dir"), data.get("cache_gb", LIMIT_GB))
            return ShardDataset(item.source["shards"], cache=cache)
        except (BadInput, OSError) as error:
            run.missing.append(f"the held-out shards cannot be read ({error})")
            return None
    return None


def _note_missing(run: RunData) -> None:
    names = [("config.yaml", run.config), ("ledger.json", run.stages)]
    names += [(f"{stage}/metrics.jsonl", run.curves.get(stage)) for stage in TRAINED]
    names += [(f"evaluate/{model}/metrics.json", run.models.get(model)) for model in MODELS]
    run.missing += [f"{name} is not there" for name, content in names if not content]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
