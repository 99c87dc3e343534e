"""A row is evaluated in a folder of that attempt alone, beside its results."""

from configs.load import parse_config
from jobs.sweeping.rows import RowJob, _evaluate, evaluated_dir


def test_a_row_is_never_evaluated_where_an_earlier_attempts_ranks_may_still_write(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("jobs.sweeping.rows.dataset_hash", lambda *_: "hash")
    monkeypatch.setattr("jobs.evaluation.launch", lambda ask, payload, jobs, *_: seen.append(jobs.parent))
    monkeypatch.setattr("pipeline.evaluate.score", lambda *_: {})
    config = parse_config({"data": {"train": "t", "val": "v"}})
    job = RowJob("r", config, "baseline", tmp_path, "v", 1, "local", None)
    out = evaluated_dir(job)
    left = out / ".evaluate" / "of-a-dead-attempt"
    left.mkdir(parents=True)
    for _ in range(2):
        _evaluate(job, tmp_path / "weights.safetensors")
    assert len(set(seen)) == 2 and all(place.is_relative_to(out) for place in seen)
    assert list(out.iterdir()) == []
