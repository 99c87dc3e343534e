"""A sweep that was replaced tells MLflow nothing more."""

import pytest

from configs.load import parse_config
from jobs.sweeping.tracking import tracked
from pipeline.lease import StaleAttempt, acquire
from pipeline.tracking.outbox import read_events


def test_a_sweep_whose_folder_was_taken_over_notes_nothing(tmp_path):
    """The lease is the whole folder's: one for all of its tables."""
    tree = {"data": {"train": "t", "val": "v"}, "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    root, table = tmp_path / "runs", tmp_path / "runs" / "table"
    with acquire(root) as lease:
        pass
    with (
        pytest.raises(StaleAttempt, match="attempt 1 is over, attempt 2 "),
        tracked(table, root, parse_config(tree), lease.attempt) as tracker,
    ):
        tracker.log_tags("pipeline", {"a": "1"})
        with acquire(root):
            before = read_events(table)
            with pytest.raises(StaleAttempt):
                tracker.log_tags("pipeline", {"a": "2"})
    assert read_events(table) == before
