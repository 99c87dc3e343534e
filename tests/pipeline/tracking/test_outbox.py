"""An outbox that has lost events says so, and is noted anew; a log that begins anew is read anew."""

import pytest

from pipeline.tracking.outbox import MetricsTail
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.mlflow_case import cut_back, history, runs, write_steps


@pytest.mark.parametrize("delivered", [True, False], ids=["delivered", "waiting"])
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=["nothing", "one byte", "half", "all but one byte"])
def test_a_torn_outbox_is_told_set_aside_and_noted_anew_and_no_point_is_lost_or_doubled(
    uri, dead_uri, run_dir, caplog, keep, delivered
):
    first = Tracker(run_dir, uri if delivered else dead_uri)
    first.stage_started("refine", attempt=1, inputs="a")
    write_steps(run_dir, range(1, 11))
    first.stage_finished("refine")
    assert not first.has_lost_events()
    assert first.close(timeout=30 if delivered else 0.1) == delivered
    outbox = run_dir / "outbox.jsonl"
    content = outbox.read_bytes()
    outbox.write_bytes(content[: len(content) // 2 if keep == 0.5 else keep])
    second = Tracker(run_dir, uri, attempt=2)
    assert second.has_lost_events()
    assert "outbox.jsonl is damaged" in caplog.text and "outbox.broken.jsonl" in caplog.text
    # What jobs.stages does of a stage that is done.
    second.stage_started("refine", attempt=2, inputs="a")
    second.stage_finished("refine")
    assert second.close()
    state = second.state()
    assert history(uri, state) == list(range(1, 11))
    assert sorted(run.info.run_name for run in runs(uri)) == ["refine", "run"]
    third = Tracker(run_dir, uri, attempt=3)
    assert not third.has_lost_events()
    third.close()


def test_a_log_that_was_cut_back_to_nothing_is_read_again_from_its_start(run_dir):
    """Looked at while it is empty: training goes on from before the first line."""
    tail = MetricsTail(run_dir / "refine" / "metrics.jsonl")
    write_steps(run_dir, [1, 2])
    assert [row["step"] for row in tail.batch().rows] == [1, 2]
    tail.advance()
    cut_back(run_dir, 0)
    assert tail.batch() is None and tail.batch() is None
    write_steps(run_dir, [1])
    assert [row["step"] for row in tail.batch().rows] == [1]
