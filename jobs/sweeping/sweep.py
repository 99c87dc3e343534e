"""`mrrcnn sweep`: a table's rows, what is not there done, the rest taken as it is, and the report."""

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import configs
from configs.load import ConfigError
from configs.schema import Config
from configs.sweep import Row, Sweep, load_sweep, paper_rows, row_config
from jobs.checks import check_sources, check_weights, check_workers, run_path
from jobs.console import say, show_table
from jobs.errors import Stopped
from jobs.sweeping.data import make_data, shards_of_source, synthetic_dir
from jobs.sweeping.rows import RowJob, do_row, evaluated_dir, is_done
from jobs.sweeping.tracking import tell, tracked
from pipeline.lease import acquire
from pipeline.report.table import TableForm, TableRow, row_values, write_table
from pipeline.tracking.tracker import flatten
from shards.errors import BadInput

PAPER = Path(configs.__file__).parent / "tables" / "paper.json"


def run_sweep(
    file: str,
    overrides: list[str],
    root: str | Path,
    workers: int,
    launcher: str,
    address: str | None,
    parallel: int | None,
) -> int:
    """Return 0 when every row is done, 1 if some failed; the same call again does those.

    Args:
        file: the sweep's YAML file.
        overrides: `preset=NAME`, `evaluate_on=...`, or config keys for every row.
        root: folder of what rows share; tables in the same one share it.
        workers: ranks of each row's training.
        launcher, address: as for `jobs.launching.launch.launch`.
        parallel: rows at a time; None: as many as the GPUs hold, one without.

    Raises:
        ConfigError, BadInput: what is wrong with the file; nothing has run.
        LeaseHeld: another sweep is at work in the same folder.
    """
    sweep, keys = load_sweep(file, overrides)
    path = run_path(root)
    table = path / (Path(file).stem + (f"-{sweep.preset}" if sweep.preset else ""))
    if launcher != "ray" and (parallel or 1) > 1:
        raise ConfigError(f"--parallel {parallel}: rows run beside each other over Ray; use --launcher ray")
    data = synthetic_dir(path, sweep.chosen)
    plans = [(row, row_config(sweep, file, row, keys, data)) for row in sweep.chosen_rows]
    for _, config in plans:
        check_workers(config, workers, launcher)
        check_sources(config)
    paper = paper_rows(PAPER)
    for row in sweep.rows:
        if row.paper is not None and row.paper not in paper:
            raise ConfigError(f"{file}: row {row.name}: {row.paper} is no row of {PAPER}")
    with acquire(path) as lease:
        make_data(data, sweep.chosen)
        failed: dict[str, str] = {}
        jobs = _jobs(sweep, plans, path, (workers, launcher, address), failed)
        with tracked(table, plans[0][1], lease.attempt) as tracker:
            _run_rows(jobs, parallel, table / "rows", failed)
            rows = [_table_row(sweep, row, config, jobs, paper, failed) for row, config in plans]
            tell(tracker, table.name, sweep, rows, lease.attempt)
            write_table(_form(sweep), rows, table)
            tracker.log_artifact("pipeline", table / "report.md")
            tracker.log_artifact("pipeline", table / "report.html")
            tracker.log_artifact("pipeline", table / "summary.json")
            tracker.log_artifact("pipeline", table / "figures", "figures")
    _show(sweep, rows, table)
    for name, reason in failed.items():
        print(f"mrrcnn: row {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _jobs(
    sweep: Sweep,
    plans: list[tuple[Row, Config]],
    root: Path,
    place: tuple[int, str, str | None],
    failed: dict[str, str],
) -> dict[str, RowJob]:
    """Return what can be run, by row; the data of each are shards now. Why others cannot goes to `failed`."""
    from pipeline.network.pretrained import with_source

    jobs: dict[str, RowJob] = {}
    for row, config in plans:
        try:
            check_weights(config)
            model = config.model
            if model.weights is not None:
                model, _ = with_source(model, model.weights)
            data = config.data
            train, val = (shards_of_source(root, data, source) for source in (data.train, data.val))
            on = val if sweep.evaluate_on is None else shards_of_source(root, data, sweep.evaluate_on)
            data = data.model_copy(update={"train": train, "val": val})
            ready = config.model_copy(update={"data": data, "model": model})
            job = RowJob(row.name, ready, row.network, root, on, *place)
            # Reads what identifies data and weights, so that what is wrong with them shows here.
            is_done(job)
            jobs[row.name] = job
        except (BadInput, ConfigError, OSError) as error:
            failed[row.name] = _line(error)
    return jobs


def _run_rows(jobs: dict[str, RowJob], parallel: int | None, logs: Path, failed: dict[str, str]) -> None:
    waiting = [job for job in jobs.values() if not is_done(job)]
    for job in jobs.values():
        if is_done(job):
            say(f"{job.name}: done already")
    if not waiting:
        return
    parallel = parallel or _as_gpus_allow(waiting[0])
    if parallel == 1:
        for job in waiting:
            _note(failed, logs, job, _attempt(job))
        return
    from jobs.launching.parallel import run_beside

    waiting = [replace(job, output=logs / f"{job.name}.log") for job in waiting]
    for job, error in run_beside(waiting, parallel):
        _note(failed, logs, job, error)


def _as_gpus_allow(job: RowJob) -> int:
    if job.launcher != "ray":
        return 1
    if job.address is None:
        import torch

        return max(1, torch.cuda.device_count() // job.workers) if torch.cuda.is_available() else 1
    from jobs.launching.ray_launch import connect

    connect(job.address, job.workers)
    import ray

    return max(1, int(ray.cluster_resources().get("GPU", 0)) // job.workers)


def _attempt(job: RowJob) -> BaseException | None:
    say(f"{job.name}: starting")
    try:
        do_row(job)
    except Stopped:
        # Asked to stop: not this row alone.
        raise
    except Exception as error:
        return error
    return None


def _note(failed: dict[str, str], logs: Path, job: RowJob, error: BaseException | None) -> None:
    if error is None:
        return say(f"{job.name}: done")
    failed[job.name] = _line(error)
    if not isinstance(error, ValueError | RuntimeError | OSError):
        # A fault of ours: whoever mends it needs more than a line.
        logs.mkdir(parents=True, exist_ok=True)
        details = logs / f"{job.name}.traceback.txt"
        details.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        failed[job.name] += f"; see {details}"
    say(f"{job.name}: failed: {failed[job.name]}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _form(sweep: Sweep) -> TableForm:
    preset = sweep.chosen
    note = preset.note if preset else ""
    return TableForm(sweep.title, sweep.columns, sweep.measures, sweep.curve, sweep.pictures, note)


def _table_row(
    sweep: Sweep,
    row: Row,
    config: Config,
    jobs: dict[str, RowJob],
    paper: dict[str, dict[str, Any]],
    failed: dict[str, str],
) -> TableRow:
    job = jobs.get(row.name)
    group = sweep.preset or row.config
    folder = evaluated_dir(job) if job is not None and row.name not in failed else None
    settings = flatten(config.model_dump(mode="json")) | {"network": row.network}
    theirs = paper[row.paper] if row.paper else {}
    return TableRow(row.name, row.cells, group, folder, settings, theirs, failed.get(row.name))


def _show(sweep: Sweep, rows: list[TableRow], table: Path) -> None:
    names = ["box AP", "mask AP", "huddled box AP", "huddled mask AP"]
    values = {row.name: row_values(row)["ours"] for row in rows}
    lines = [
        [*row.cells, *("-" if values[row.name][n] is None else f"{values[row.name][n]:.1f}" for n in names)]
        for row in rows
    ]
    show_table(sweep.title, [*sweep.columns, *names], lines)
    say(f"report: {table / 'report.html'}")
