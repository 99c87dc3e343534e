"""Which rows may run beside each other: never two that fill the same folder."""

from pathlib import Path
from types import SimpleNamespace

from jobs.sweeping.parallel import _startable


def row(name, *claims):
    return SimpleNamespace(name=name, claims=[Path(claim) for claim in claims])


def names(rows):
    return [item.name for item in rows]


def test_rows_start_in_order_as_far_as_there_is_room():
    rows = [row(name, name) for name in "abcd"]
    assert names(_startable(rows, [], 2)) == ["a", "b"]
    assert names(_startable(rows[2:], rows[:1], 2)) == ["c"]
    assert names(_startable(rows[2:], rows[:2], 2)) == []


def test_a_row_waits_for_a_training_that_another_is_doing_and_later_ones_overtake_it():
    base, refined, other = row("base", "t1", "e1"), row("refined", "t1", "t2", "e2"), row("other", "t3")
    assert names(_startable([base, refined, other], [], 3)) == ["base", "other"]
    assert names(_startable([refined], [base], 3)) == []
    # The training is there, and only the evaluation is still under way.
    assert names(_startable([row("refined", "t2", "e2")], [row("base", "e1")], 3)) == ["refined"]
