"""Failures count since the newest checkpoint, and so does what was left of them."""

from jobs.launching.plan import Plan
from jobs.launching.tries import Tries


def test_a_checkpoint_forgives_what_failed_before_the_start_that_made_it(tmp_path):
    """An error at every start, days apart, is no error that repeats itself; one right after it may be."""
    checkpoints, scratch = tmp_path / "checkpoints", tmp_path / "scratch"
    checkpoints.mkdir()
    scratch.mkdir()
    tries = Tries(Plan((1,), checkpoints, scratch))
    (scratch / "error-first-0.json").touch()
    assert tries.fail() == 1
    (scratch / "error-second-0.json").touch()
    assert tries.fail() == 2
    assert len(list(scratch.iterdir())) == 2, "without a checkpoint the third is compared with both"
    (checkpoints / "step-000000005").mkdir()
    (scratch / "error-third-0.json").touch()
    assert tries.fail() == 1
    assert [path.name for path in scratch.iterdir()] == ["error-third-0.json"]
