"""Some stages only, stages borrowed from another run directory, and what may change once they are done."""

import pytest

from jobs.ledger import Ledger
from shards.errors import BadInput
from tests.jobs.test_stages import ALL, bench  # noqa: F401


def test_only_the_stages_asked_for_run(bench):  # noqa: F811
    assert bench.run(stages=("shard", "baseline")) == ["shard", "baseline"]
    assert bench.run() == ALL[2:]


def test_a_lenders_finished_stage_is_a_link_and_never_deleted_by_the_borrower(bench):  # noqa: F811
    bench.run()
    lender, bench.run_dir = bench.run_dir, bench.run_dir.with_name("borrower")
    stages = ("shard", "baseline", "refine")
    assert bench.run(stages=stages, lender=lender, refine__iou=0.6) == ["shard", "refine"]
    assert (bench.run_dir / "baseline").resolve() == (lender / "baseline").resolve()
    assert Ledger.load(bench.run_dir).outputs("baseline") == Ledger.load(lender).outputs("baseline")
    assert bench.run(stages=stages, lender=lender, refine__iou=0.6) == []
    assert "baseline" in bench.run(stages=stages, redo="baseline", refine__iou=0.6)
    assert (lender / "baseline" / "weights.safetensors").read_text() == "baseline"
    assert not (bench.run_dir / "baseline").is_symlink()


def test_a_stage_of_other_inputs_is_not_borrowed(bench):  # noqa: F811
    bench.run()
    lender, bench.run_dir = bench.run_dir, bench.run_dir.with_name("borrower")
    assert bench.run(stages=("shard", "baseline"), lender=lender, seed=1) == ["shard", "baseline"]


def test_how_often_training_is_evaluated_may_change_but_what_may_stop_it_may_not(bench):  # noqa: F811
    bench.run()
    assert bench.run(train__refine__eval_every=5) == []
    with pytest.raises(BadInput, match=r"stage refine .*patience was"):
        bench.run(train__refine__eval_every=5, train__refine__patience=2)
    bench.run(redo="refine", train__refine__eval_every=5, train__refine__patience=2)
    with pytest.raises(BadInput, match=r"stage refine .*early stopping by test was content"):
        bench.run(train__refine__eval_every=5, train__refine__patience=2, test__alpha=2.0)
