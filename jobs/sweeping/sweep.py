"""`mrrcnn sweep`: a table's rows, what is not there done, the rest taken as it is, and the report."""

import sys
from functools import partial
from pathlib import Path

from configs.load import ConfigError
from jobs.checks import check_elastic, run_path
from jobs.sweeping.data import make_data
from jobs.sweeping.plan import plan_sweep, row_jobs
from jobs.sweeping.running import do_rows
from jobs.sweeping.table import save_table, show, table_rows
from jobs.sweeping.tracking import tell, tracked
from pipeline.lease import acquire, check_attempt


def run_sweep(
    file: str,
    overrides: list[str],
    root: str | Path,
    workers: int,
    launcher: str,
    address: str | None,
    parallel: int | None,
    min_workers: int | None = None,
) -> int:
    """Return 0 when every row is done, 1 if some failed; the same call again does those.

    Args:
        file: the sweep's YAML file.
        overrides: `preset=NAME`, `evaluate_on=...`, or config keys for every row.
        root: folder of what rows share; tables in the same one share it.
        workers: ranks of each row's training.
        launcher, address: as for `jobs.launching.launch.launch`.
        parallel: rows at a time; None: as many as the GPUs hold, one without, or with `min_workers`.
        min_workers: as for `jobs.stages.run_pipeline`, of each row.

    Raises:
        ConfigError, BadInput: what is wrong with the file; nothing has run.
        LeaseHeld: another sweep is at work in the same folder.
    """
    if launcher != "ray" and (parallel or 1) > 1:
        raise ConfigError(f"--parallel {parallel}: rows run beside each other over Ray; use --launcher ray")
    check_elastic(launcher, address, min_workers)
    if min_workers is not None and (parallel or 1) > 1:
        # They are one job to Ray: each would take the places of the others for room to grow into.
        raise ConfigError(
            f"--parallel {parallel}: with --min-workers rows run in turn; leave out one of them"
        )
    plan = plan_sweep(file, overrides, run_path(root), workers, launcher, min_workers)
    with acquire(plan.root) as lease:
        make_data(plan.data, plan.sweep.chosen)
        jobs, failed = row_jobs(plan, workers, launcher, address, min_workers)
        with tracked(plan.table, plan.root, plan.rows[0][1], lease.attempt) as tracker:
            check = partial(check_attempt, plan.root, lease.attempt)
            failed |= do_rows(jobs, parallel, plan.table / "rows", check)
            rows = table_rows(plan, jobs, failed)
            tell(tracker, plan.table.name, plan.sweep, rows, lease.attempt)
            save_table(plan, rows, tracker)
            # Every attempt tells all of a table.
            tracker.noted_anew()
    show(plan, rows)
    for name, reason in failed.items():
        print(f"mrrcnn: row {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0
