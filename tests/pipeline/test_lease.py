"""One live run per directory, whatever dies; and no commit by an attempt that is over."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.lease import LeaseHeld, StaleAttempt, Superseded, acquire, check_attempt, claim_stage

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pipeline.lease import acquire
with acquire(sys.argv[1]) as lease:
    print(lease.attempt, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_holds_the_directory(tmp_path, holder):
    with (
        pytest.raises(LeaseHeld, match=f"process {holder.pid} on .* since 20") as error,
        acquire(tmp_path, 0.2),
    ):
        pass
    assert "--run-dir" in str(error.value)


def test_kill_9_of_the_holder_frees_the_directory_for_the_next_attempt(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with acquire(tmp_path, 0.2) as lease:
        assert lease.attempt == 2


def test_it_waits_a_little_for_a_holder_that_is_about_to_go(tmp_path, holder):
    pid = os.fork()
    if pid == 0:
        signal.sigtimedwait([], 0.5)
        os.kill(holder.pid, signal.SIGKILL)
        os._exit(0)
    with acquire(tmp_path, 20) as lease:
        assert lease.attempt == 2
    os.waitpid(pid, 0)


def test_attempts_count_up_and_a_released_lease_can_be_taken_again(tmp_path):
    for attempt in (1, 2, 3):
        with acquire(tmp_path, 0) as lease:
            assert lease.attempt == attempt
            check_attempt(tmp_path, attempt)


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lease(tmp_path):
    # As a loader process of a killed driver would.
    with acquire(tmp_path, 0):
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
    try:
        with acquire(tmp_path, 20) as lease:
            assert lease.attempt == 2
    finally:
        child.kill()
        child.join()


def test_an_orphan_of_an_older_attempt_can_commit_nothing(tmp_path):
    with acquire(tmp_path, 0) as first:
        pass
    with acquire(tmp_path, 0) as second:
        with pytest.raises(StaleAttempt, match="attempt 1 is over, attempt 2"):
            check_attempt(tmp_path, first.attempt)
        check_attempt(tmp_path, second.attempt)


def test_without_a_lease_nobody_is_stale(tmp_path):
    check_attempt(tmp_path, 1)


def test_a_damaged_lease_is_refused_and_never_counted_from_one_again(tmp_path):
    with acquire(tmp_path, 0):
        pass
    (tmp_path / "lease.json").write_text('{"attempt": ')
    with pytest.raises(ValueError, match=r"lease\.json: is damaged .* then delete it"), acquire(tmp_path, 0):
        pass
    (tmp_path / "lease.json").unlink()
    with acquire(tmp_path, 0) as lease:
        assert lease.attempt == 2


def test_workers_of_an_earlier_start_can_commit_nothing_when_they_come_back(tmp_path):
    """A node behind a broken network: same driver, same attempt, but the workers were started again."""
    with acquire(tmp_path, 0) as lease:
        lost = claim_stage(tmp_path, "baseline", lease.attempt, rank=0)
        lost.check()
        newer = claim_stage(tmp_path, "baseline", lease.attempt, rank=0)
        other = claim_stage(tmp_path, "refine", lease.attempt, rank=0)
        with pytest.raises(Superseded, match="baseline: the workers were started again"):
            lost.check()
        newer.check()
        other.check()


def test_what_kills_have_left_half_written_is_cleared_by_the_next_attempt_and_start(tmp_path):
    (tmp_path / "baseline").mkdir()
    places = tmp_path, tmp_path / "baseline"
    for folder in places:
        (folder / ".weights.safetensors.tmp-there-7").touch()
    with acquire(tmp_path, 0) as lease:
        claim_stage(tmp_path, "baseline", lease.attempt, rank=1)
        assert [len([*folder.glob(".*.tmp-*")]) for folder in places] == [0, 1]
        claim_stage(tmp_path, "baseline", lease.attempt, rank=0)
    assert not [path for folder in places for path in folder.glob(".*.tmp-*")]


def test_a_late_start_of_an_older_attempt_takes_no_claim(tmp_path):
    with acquire(tmp_path, 0) as first:
        pass
    with acquire(tmp_path, 0) as second:
        claim = claim_stage(tmp_path, "baseline", second.attempt, rank=0)
        for rank in (0, 1):
            with pytest.raises(StaleAttempt):
                claim_stage(tmp_path, "baseline", first.attempt, rank)
        claim.check()
