"""Rows of a sweep: none begins once another command has the sweep's folder."""

from types import SimpleNamespace

import pytest

from jobs.sweeping import running
from pipeline.lease import StaleAttempt


def test_a_sweep_that_was_replaced_begins_no_other_row(tmp_path, monkeypatch):
    """Else it would take the rows' own folders from the sweep that has replaced it."""
    begun = []
    monkeypatch.setattr(running, "is_done", lambda job: False)
    monkeypatch.setattr(running, "do_row", begun.append)

    def check():
        if len(begun) == 2:
            raise StaleAttempt("attempt 2 has taken over")

    jobs = {name: SimpleNamespace(name=name) for name in "abc"}
    with pytest.raises(StaleAttempt):
        running.do_rows(jobs, 1, tmp_path, check)
    assert begun == [jobs["a"], jobs["b"]]
