"""The table of a sweep: its rows' numbers beside the paper's, on the disk, in MLflow and on the terminal."""

from typing import Any

from configs.schema import Config
from configs.sweep import Row
from jobs.console import say, show_table
from jobs.sweeping.plan import Plan
from jobs.sweeping.rows import RowJob, evaluated_dir
from pipeline.report.table import TableForm, TableRow, row_values, write_table
from pipeline.tracking.tracker import flatten

SHOWN = ("box AP", "mask AP", "huddled box AP", "huddled mask AP")


def table_rows(plan: Plan, jobs: dict[str, RowJob], failed: dict[str, str]) -> list[TableRow]:
    """Return the rows of the report; those that failed have their reason and no numbers."""
    return [_table_row(plan, row, config, jobs, failed) for row, config in plan.rows]


def save_table(plan: Plan, rows: list[TableRow], tracker: Any) -> None:
    """Write the report into the table's folder and give it to MLflow."""
    sweep, preset = plan.sweep, plan.sweep.chosen
    note = preset.note if preset else ""
    form = TableForm(sweep.title, sweep.columns, sweep.measures, sweep.curve, sweep.pictures, note)
    write_table(form, rows, plan.table)
    for name in ("report.md", "report.html", "summary.json"):
        tracker.log_artifact("pipeline", plan.table / name)
    tracker.log_artifact("pipeline", plan.table / "figures", "figures")


def show(plan: Plan, rows: list[TableRow]) -> None:
    """Print AP of every row, in percent, and where archives for the COCO server and the report are."""
    lines = []
    for row in rows:
        ours = row_values(row)["ours"]
        lines.append([*row.cells, *("-" if ours[name] is None else f"{ours[name]:.1f}" for name in SHOWN)])
    show_table(plan.sweep.title, [*plan.sweep.columns, *SHOWN], lines)
    for archive in (archive for row in rows for archive in row.archives):
        say(f"for the COCO server: {archive}")
    say(f"report: {plan.table / 'report.html'}")


def _table_row(
    plan: Plan, row: Row, config: Config, jobs: dict[str, RowJob], failed: dict[str, str]
) -> TableRow:
    done = row.name in jobs and row.name not in failed
    folder = evaluated_dir(jobs[row.name]) if done else None
    settings = flatten(config.model_dump(mode="json")) | {"network": row.network}
    theirs = plan.paper[row.paper] if row.paper else {}
    group = plan.sweep.preset or row.config
    return TableRow(row.name, row.cells, group, folder, settings, theirs, failed.get(row.name))
