"""What a sweep is going to do: its rows with their configs, checked before anything runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from configs.load import ConfigError
from configs.schema import Config
from configs.sweep import Row, Sweep, load_sweep, paper_rows, row_config, settings_name
from jobs.checks import check_sources, check_weights, check_workers
from jobs.sweeping.data import shards_of_source, synthetic_dir
from jobs.sweeping.rows import RowJob, is_done
from shards.errors import BadInput

PAPER = Path(configs.__file__).parent / "tables" / "paper.json"
SHARED = ("data", "shards", "training", "evaluated")


@dataclass(frozen=True)
class Plan:
    """A sweep that can be run.

    Attributes:
        sweep: its file, validated.
        rows: the chosen rows and the config of each.
        root: folder of what the rows of several tables share.
        table: folder of this table's report.
        data: where the preset's synthetic data set belongs, None without one.
        paper: the paper's numbers by the rows' ids.
    """

    sweep: Sweep
    rows: list[tuple[Row, Config]]
    root: Path
    table: Path
    data: Path | None
    paper: dict[str, dict[str, Any]]


def plan_sweep(
    file: str, overrides: list[str], root: Path, workers: int, launcher: str, min_workers: int | None = None
) -> Plan:
    """Return what `file` asks for in the folder `root`.

    Raises:
        ConfigError, BadInput: what is wrong with the file or does not go with the workers.
    """
    sweep, keys = load_sweep(file, overrides)
    data = synthetic_dir(root, sweep.chosen)
    rows = [(row, row_config(sweep, file, row, keys, data)) for row in sweep.chosen_rows]
    for _, config in rows:
        check_workers(config, workers, launcher, min_workers)
        check_sources(config)
    paper = paper_rows(PAPER)
    for row in sweep.rows:
        if row.paper is not None and row.paper not in paper:
            raise ConfigError(f"{file}: row {row.name}: {row.paper} is no row of {PAPER}")
    return Plan(sweep, rows, root, root / _table_name(file, sweep, keys), data, paper)


def _table_name(file: str, sweep: Sweep, keys: list[str]) -> str:
    # Other keys, another table: neither its report nor its rows in MLflow replace or join those of this one.
    stem = Path(file).stem
    if stem in SHARED:
        raise ConfigError(f"{file}: {stem} is the name of a folder that tables share; give the file another")
    return stem + (f"-{sweep.preset}" if sweep.preset else "") + settings_name(keys)


def row_jobs(
    plan: Plan, workers: int, launcher: str, address: str | None, min_workers: int | None = None
) -> tuple[dict[str, RowJob], dict[str, str]]:
    """Return, by row, what can be run, its data written as shards now, and why the others cannot."""
    jobs: dict[str, RowJob] = {}
    failed: dict[str, str] = {}
    for row, config in plan.rows:
        try:
            ready, on = _ready(plan, config)
            ranks = workers, launcher, address
            job = RowJob(row.name, ready, row.network, plan.root, on, *ranks, min_workers=min_workers)
            # Reads what identifies data and weights, so that what is wrong with them shows here.
            is_done(job)
            jobs[row.name] = job
        except (BadInput, ConfigError, OSError) as error:
            failed[row.name] = " ".join(str(error).split())
    return jobs, failed


def _ready(plan: Plan, config: Config) -> tuple[Config, str]:
    from pipeline.network.pretrained import with_source

    check_weights(config)
    model, data, on = config.model, config.data, plan.sweep.evaluate_on
    if model.weights is not None:
        model, _ = with_source(model, model.weights)
    train, val = (shards_of_source(plan.root, data, source) for source in (data.train, data.val))
    evaluated = val if on is None else shards_of_source(plan.root, data, on)
    data = data.model_copy(update={"train": train, "val": val})
    return config.model_copy(update={"data": data, "model": model}), evaluated
