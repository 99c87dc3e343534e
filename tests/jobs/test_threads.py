"""That another number of threads than before, which may change the last bits, is told."""

from types import SimpleNamespace

import pytest

import jobs.stages
from configs.load import parse_config
from jobs.ledger import Ledger
from tests.jobs.stage_bench import Bench


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


@pytest.mark.parametrize(("workers", "threads", "told"), [(2, "4", 1), (2, "2", 0), (1, "4", 0)])
def test_other_threads_than_before_are_told_once_where_they_alone_may_change_the_last_bits(
    bench, monkeypatch, capsys, workers, threads, told
):
    monkeypatch.setattr(jobs.stages, "_launch", lambda *_: None)
    bench.run_dir.mkdir()

    def train(workers, threads):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        place = {"path": bench.run_dir, "stop_file": bench.run_dir / "stop"}
        ledger = Ledger.load(bench.run_dir)
        config = parse_config(bench.tree, "test")
        run = SimpleNamespace(config=config, workers=workers, attempt=1, ledger=ledger, **place)
        jobs.stages.baseline(run)
        jobs.stages.control(run)
        return capsys.readouterr().out

    assert train(2, "2") == ""
    said = train(workers, threads)
    assert said.count("\n") == told and ("threads: 4, before 2: " in said) == bool(told)
    assert train(workers, threads) == "", "it goes on with what it has told"
