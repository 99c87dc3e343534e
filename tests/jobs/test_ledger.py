"""The ledger survives what a crash or a disk does to it, and says so; it never starts afresh silently."""

import errno
import json
import os
from pathlib import Path

import pytest

from jobs.ledger import Ledger, changed_keys, hash_of
from pipeline.lease import StaleAttempt, acquire
from shards.errors import BadInput


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.load(tmp_path)
    ledger.begin("shard", {"data.on_bad": "fail"}, attempt=3)
    ledger.finish("shard", {"train": "abc"})
    return ledger


def test_everything_is_on_the_disk_after_each_change(tmp_path, ledger):
    again = Ledger.load(tmp_path)
    assert again.state("shard") == "done"
    assert again.inputs("shard") == {"data.on_bad": "fail"}
    assert again.outputs("shard") == {"train": "abc"}
    assert again.tree["stages"]["shard"]["attempt"] == 3
    assert again.state("baseline") == "pending"
    assert again.recovered is None


def test_a_driver_whose_directory_was_taken_over_changes_nothing(tmp_path, ledger):
    """Back from behind a broken network, its lock expired: it would write its old tree over the newer one."""
    with acquire(tmp_path) as lease:
        stale = Ledger.load(tmp_path, lease.attempt)
        stale.begin("baseline", {}, lease.attempt)
    with acquire(tmp_path) as lease:
        Ledger.load(tmp_path, lease.attempt).forget(["shard"])
    before = (tmp_path / "ledger.json").read_bytes()
    for change in (
        lambda: stale.fail("baseline", "lost"),
        lambda: stale.finish("baseline", {}),
        lambda: stale.track({"uri": "elsewhere"}),
        lambda: stale.begin("refine", {}, 1),
    ):
        with pytest.raises(StaleAttempt, match="attempt 2"):
            change()
    assert (tmp_path / "ledger.json").read_bytes() == before


def test_a_stage_keeps_the_attempt_that_began_it_until_its_inputs_change_or_it_is_forgotten(tmp_path, ledger):
    """By it evaluation's AP is told: a kill after telling it must not have it told at another step."""

    def attempt(inputs, now):
        ledger.begin("evaluate", inputs, now)
        return Ledger.load(tmp_path).tree["stages"]["evaluate"]["attempt"]

    assert [attempt({"a": 1}, 4), attempt({"a": 1}, 5), attempt({"a": 2}, 6)] == [4, 4, 6]
    ledger.forget(["evaluate"])
    assert attempt({"a": 2}, 7) == 7


def test_a_stage_has_one_name_while_it_goes_on_and_another_when_it_is_begun_anew(tmp_path, ledger):
    """By it MLflow tells trainings apart: a redo from the same inputs must not get its curve into the old."""

    def name(attempt):
        ledger.begin("refine", {"a": 1}, attempt)
        return Ledger.load(tmp_path).name("refine")

    first = name(4)
    assert first == name(5) == hash_of({"a": 1}), "as runs from before redos were told apart have it"
    ledger.forget(["refine"])
    again = name(6)
    assert again == name(7) != first
    ledger.forget(["refine"])
    assert name(8) not in (first, again)
    del ledger.tree["stages"]["shard"]["anew"]
    assert ledger.name("shard") == hash_of({"data.on_bad": "fail"}), "as ledgers from before it have none"


def test_failed_and_forgotten_stages(tmp_path, ledger):
    ledger.begin("baseline", {}, 3)
    ledger.fail("baseline", "no memory")
    assert Ledger.load(tmp_path).state("baseline") == "failed"
    ledger.forget(["baseline", "refine"])
    assert Ledger.load(tmp_path).state("baseline") == "forgotten"


def test_a_redo_is_noted_with_the_forgetting_and_until_the_pipelines_end(tmp_path, ledger):
    assert "redo" not in ledger.tree, "as ledgers from before it have none"
    assert ledger.redoing() == []
    ledger.forget(["shard"], "shard")
    ledger.forget(["baseline"], "baseline")
    ledger.forget(["shard"], "shard")
    again = Ledger.load(tmp_path)
    assert again.redoing() == ["shard", "baseline"] and again.state("baseline") == "forgotten"
    again.end_redo(["shard", "refine"])
    assert Ledger.load(tmp_path).redoing() == ["baseline"]


def test_keys_are_sorted_so_that_equal_ledgers_are_equal_files(tmp_path, ledger):
    text = (tmp_path / "ledger.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_torn_ledger_is_replaced_by_the_previous_copy_and_that_is_said(tmp_path, ledger, keep):
    path = tmp_path / "ledger.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else keep])
    with acquire(tmp_path) as lease:
        again = Ledger.load(tmp_path, lease.attempt)
    assert "ledger.json: is damaged" in again.recovered
    assert "ledger.previous.json" in again.recovered
    assert again.state("shard") == "running"
    assert Ledger.load(tmp_path).recovered is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["ledger.json", "ledger.previous.json"])
def test_a_ledger_that_cannot_be_read_just_now_is_not_replaced_by_its_copy(
    tmp_path, ledger, monkeypatch, code, name
):
    """A stage that is done would be running again, because a file server was away for a second."""
    if name == "ledger.previous.json":
        (tmp_path / "ledger.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.glob("ledger*")}
    read_text = Path.read_text

    def failing(path, **options):
        if path.name == name:
            raise OSError(code, os.strerror(code))
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", failing)
    for attempt in (None, 1):
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            Ledger.load(tmp_path, attempt)
        assert raised.value.filename == str(tmp_path / name)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damaged", [True, False])
def test_without_the_lease_the_copy_is_used_and_nothing_written(tmp_path, ledger, damaged):
    """Whoever only looks, or borrows, must not write into the directory of a run that is alive."""
    path = tmp_path / "ledger.json"
    path.write_text("{") if damaged else path.unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = Ledger.load(tmp_path)
    assert again.state("shard") == "running" and "is damaged" in again.recovered
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_ledger_beyond_repair_is_one_clear_line(tmp_path, ledger):
    for name in ("ledger.json", "ledger.previous.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(BadInput, match=r"ledger\.json: is damaged .*--run-dir"):
        Ledger.load(tmp_path)


def test_a_ledger_that_is_gone_while_its_copy_is_there_is_no_fresh_start(tmp_path, ledger):
    (tmp_path / "ledger.json").unlink()
    assert Ledger.load(tmp_path).state("shard") == "running"


def test_changed_keys_names_what_differs_appears_or_goes():
    assert changed_keys({"a": 1, "b": [1], "c": None}, {"a": 1, "b": [2], "d": None}) == ["b", "c", "d"]
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 1, "b": 3})
