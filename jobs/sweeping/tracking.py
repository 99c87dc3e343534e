"""A table in MLflow: one run with the report, and a child run for each row, whose tags rebuild the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.schema import Config
from configs.sweep import PIPELINE, Sweep
from jobs.track import closing
from pipeline.report.table import TableRow, row_values
from shards.storage.files import clear_temporaries

COLUMN_MARK = " | "


@contextmanager
def tracked(table: Path, root: Path, config: Config, attempt: int) -> Iterator[Any]:
    """Yield the tracker of a table: its MLflow run has the report, and a child run for each row.

    `attempt` is that of the lease of the sweep's folder, `root`.
    """
    from pipeline.tracking.tracker import Tracker

    table.mkdir(parents=True, exist_ok=True)
    clear_temporaries(table)
    tracker = Tracker(table, config.tracking.uri, config.tracking.experiment, attempt, leased=root)
    with closing(tracker):
        yield tracker


def tell(tracker: Any, table: str, sweep: Sweep, rows: list[TableRow], attempt: int) -> None:
    """Tell MLflow of a table and of its rows that are done."""
    failed = COLUMN_MARK.join(row.name for row in rows if row.failed)
    tags = {"mrrcnn.report": table, "mrrcnn.title": sweep.title, "mrrcnn.failed": failed}
    tracker.log_tags(PIPELINE, tags)
    for place, row in enumerate(rows):
        if row.folder is not None:
            _tell_row(tracker, table, sweep, row, place, attempt)


def _tell_row(tracker: Any, table: str, sweep: Sweep, row: TableRow, place: int, attempt: int) -> None:
    # The folder's name holds the hash of all that the numbers depend on: other numbers, another run.
    tracker.stage_started(row.name, attempt, row.folder.name)
    tags = {f"column.{name}": cell for name, cell in zip(sweep.columns, row.cells, strict=True)}
    own = {"table": table, "row": row.name, "place": f"{place:02d}"}
    # Tags have no order of their own.
    own["columns"] = COLUMN_MARK.join(sweep.columns)
    own |= {"group": row.group, "paper": row.paper.get("id", ""), "folder": str(row.folder)}
    tracker.log_tags(row.name, tags | {f"mrrcnn.{key}": value for key, value in own.items()})
    settings = {key: v for key, v in row.config.items() if not key.startswith("tracking.")}
    tracker.log_params(settings, row.name)
    values = row_values(row)
    parts = {"": values["ours"], "paper_": values["paper"], "minus_paper_": values["difference"]}
    named = {prefix + key.replace(" ", "_"): v for prefix, part in parts.items() for key, v in part.items()}
    # Always the same step: a row that was done before is not told again.
    tracker.log_metrics(row.name, named, step=0)
    for name in ("metrics.json", "source.json"):
        if (row.folder / name).is_file():
            tracker.log_artifact(row.name, row.folder / name)
    for archive in row.archives:
        tracker.log_artifact(row.name, archive)
    tracker.stage_finished(row.name)
