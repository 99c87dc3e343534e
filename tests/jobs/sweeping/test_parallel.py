"""Rows beside each other: never two that fill the same folder, and what becomes of each is told."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.sweeping.parallel import _startable
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards

ROOT = Path(__file__).resolve().parents[3]
# In a process of its own, with a cluster of its own. One row is done before it starts; the other has no data.
COMMAND = """
import sys
from pathlib import Path
from configs.load import parse_config
from jobs.sweeping.parallel import run_beside
from jobs.sweeping.rows import RowJob, evaluated_dir
root, shards = Path(sys.argv[1]), sys.argv[2]
def job(name, place):
    config = parse_config({"data": {"train": place, "val": place}})
    return RowJob(name, config, "baseline", root, place, 1, "ray", None, root / "rows" / f"{name}.log")
done, bad = job("done", shards), job("bad", str(root / "nowhere"))
evaluated_dir(done).mkdir(parents=True)
(evaluated_dir(done) / "analysis.json").write_text("{}")
# A row without data cannot say what it claims, and here it is to fail on the cluster only.
RowJob.claims = property(lambda self: [])
for job, error in run_beside([done, bad], 2):
    print(job.name, type(error).__name__, str(error).splitlines()[0])
"""


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


@pytest.mark.ray
@pytest.mark.slow
def test_a_row_that_fails_in_the_cluster_is_told_as_it_is_here_and_the_other_ends(tmp_path):
    write_synthetic(tmp_path / "data", 1, seed=1, size=64)
    annotations = tmp_path / "data/annotations/instances_train2017.json"
    write_shards(tmp_path / "data/train2017", annotations, tmp_path / "shards")
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "sweep"), str(tmp_path / "shards")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    bad, done = sorted(ran.stdout.splitlines())
    assert done == "done NoneType None"
    assert bad.startswith("bad BadInput ") and "nowhere" in bad
    assert (tmp_path / "sweep/rows/done.log").read_text() == "done: done already\n"
