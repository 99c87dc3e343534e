"""The training benchmark charges a checkpoint to the block it was written in, and to no other."""

import json

import pytest

from benchmarks import train
from benchmarks.train import BLOCK, checkpoint_cost, show
from benchmarks.train_ranks import Ticks
from pipeline.notice import Notice


def test_a_checkpoint_is_asked_for_at_the_start_of_its_block():
    ticks = Ticks([False, True, False, True], steps=0)
    asked = [place for place in range(5 * BLOCK) if ticks() == Notice(save=True)]
    assert asked == [BLOCK, 3 * BLOCK] and len(ticks.seen) == 5 * BLOCK


def test_a_start_stops_after_its_first_step():
    ticks = Ticks([], steps=1)
    assert [ticks(), ticks()] == [Notice(), Notice(save=True, stop=True)]


def test_cost_is_that_of_blocks_with_over_blocks_without(tmp_path, monkeypatch):
    def begin(folder, shards, workers, iters, blocks):
        folder.mkdir()
        assert iters > BLOCK * len(blocks), "every block has an end to be timed"
        for rank in range(workers):
            wall, ticks = 0.0, []
            for place in range(iters):
                ticks.append({"wall": wall, "cpu": wall / 2})
                block = place // BLOCK
                # The first block, which warms up, is slow; a checkpoint takes a second.
                wall += 5.0 if block == 0 else 1.0
                wall += 1.0 if place % BLOCK == 0 and block < len(blocks) and blocks[block] else 0.0
            (folder / f"ticks-{rank}.json").write_text(json.dumps(ticks))

    monkeypatch.setattr(train, "begin", begin)
    found = checkpoint_cost(tmp_path, "shards", workers=2, repeats=3)
    assert found["without"] == {"wall_s": BLOCK, "cpu_s": BLOCK}
    assert found["held_up_s"] == 1.0
    assert found["wall_percent"] == pytest.approx(100 / BLOCK) == found["cpu_percent"]


def test_a_figure_over_its_limit_is_said_to_be(capsys):
    cost = {kind: {"wall_s": 1.0, "cpu_s": 1.0} for kind in ("with", "without")}
    show(
        cost | {"wall_percent": 3.1, "cpu_percent": 3.0, "held_up_s": 0.1},
        {"resumed_s": 15.1, "fresh_s": 9.0},
    )
    wall, cpu, _, start = capsys.readouterr().out.splitlines()
    assert "OVER 3.0 %" in wall and "within 3.0 %" in cpu and "OVER 15.0 s" in start
