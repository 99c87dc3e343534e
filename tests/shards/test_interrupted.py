"""A full or failing disk, a killed worker: told in one line, and nothing half-written looks done."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from shards import write
from shards.errors import BadInput, CutShort
from shards.index import index_name
from shards.pool import processes
from shards.storage.folder import LocalFolder, folder_at
from shards.write import write_shards
from tests.shards.coco_case import Case

ROOT = Path(__file__).parents[2]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@contextmanager
def shards_of(max_bytes: int):
    """Let shards be cut at another size than the command line can say."""
    plan = write.plan_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "plan_shards", lambda images, name, _: plan(images, name, max_bytes))
        yield


@pytest.fixture
def undisturbed(case, tmp_path, a_shard_an_image) -> dict[str, bytes]:
    case.json.write_text(json.dumps(case.tree))
    write_shards(case.images, case.json, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


def fail_at(monkeypatch, call: int, number: int) -> None:
    """Let one fsync fail: everything that is written is flushed, so this is everywhere a disk can fail."""
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("shards.storage.files.os.fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_wherever_the_disk_fails_nothing_half_written_looks_done_and_the_same_call_completes(
    case: Case, undisturbed, monkeypatch, tmp_path, number
):
    call, failed = 0, True
    while failed:
        call, failed = call + 1, False
        out = tmp_path / f"out-{call}"
        with monkeypatch.context() as patch:
            fail_at(patch, call, number)
            try:
                write_shards(case.images, case.json, out)
            except OSError as error:
                failed = True
                assert error.errno == number and error.filename.startswith(str(out))
        if (out / "dataset.json").exists():
            assert undisturbed.items() <= contents(out).items()
        assert not list(out.glob(".*")), "half-written files are cleared away"
        for index in out.glob("*.index.json"):
            assert undisturbed[index.name] == index.read_bytes()
            shard = index.name.replace(".index.json", ".tar")
            assert undisturbed[shard] == (out / shard).read_bytes()
        write_shards(case.images, case.json, out)
        assert contents(out) == undisturbed
    assert call > 20


LIMITED = """
import resource, sys
from jobs.cli import main
from shards import write
write.IMAGES_A_WORKER = 2
plan = write.plan_shards
write.plan_shards = lambda images, name, size: plan(images, name, 100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("limit", "workers"), [(2_000, 1), (60_000, 1), (60_000, 2)])
def test_a_file_that_cannot_grow_ends_the_command_with_1_and_one_line(synthetic, tmp_path, limit, workers):
    """The kernel refuses the write itself, in the command or in its workers, as a full disk does."""
    out = tmp_path / "out"
    annotations = synthetic / "annotations/instances_train2017.json"
    arguments = ["shard", "--images", synthetic / "train2017", "--annotations", annotations, "--out", out]
    command = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments), "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith(f"mrrcnn: {out}")
    assert "File too large; make room" in ended.stderr
    assert not list(out.glob(".*")) and not (out / "dataset.json").exists()
    left = {path: path.read_bytes() for path in out.glob("*.tar")}
    with shards_of(100_000):
        description = write_shards(synthetic / "train2017", annotations, out)
    assert all(path.read_bytes() == content for path, content in left.items())
    for shard in description["shards"]:
        assert (out / shard["name"]).stat().st_size == shard["bytes"]
        assert (out / index_name(shard["name"])).is_file()


def end_by_signal(task: int) -> int:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_killed_worker_is_told_in_one_line():
    said = "was killed, perhaps for want of memory; give fewer --workers"
    with pytest.raises(CutShort, match=said), processes(2) as spread:
        list(spread(end_by_signal, range(4)))


def test_a_process_that_is_being_started_when_another_is_killed_is_not_waited_for(monkeypatch):
    """Not in the pool's book yet when the pool ends those that are, it would wait for tasks for ever."""
    real, started = SpawnProcess.start, []

    def start(process):
        real(process)
        started.append(process)
        if len(started) == 2:
            started[0].kill()
            # The pool's own thread ends what is in its book.
            time.sleep(2)

    monkeypatch.setattr(SpawnProcess, "start", start)
    with pytest.raises(CutShort, match="was killed"), processes(2) as spread:
        list(spread(time.sleep, [60, 60]))
    assert len(started) == 2 and not started[1].is_alive()


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_an_image_that_changes_while_it_is_sharded_ends_the_command(case, monkeypatch, change):
    """Left out, it would be gone for good: the next call finds the sizes that it was planned with."""
    case.json.write_text(json.dumps(case.tree))
    read, path = LocalFolder.read, case.images / "c.png"

    def changing(self, name):
        if name == "c.png":
            path.write_bytes(path.read_bytes() + b"x") if change == "longer" else path.unlink(missing_ok=True)
        return read(self, name)

    monkeypatch.setattr(LocalFolder, "read", changing)
    with pytest.raises(BadInput, match=r"c\.png: image 30 changed while it was sharded; run it again"):
        write_shards(case.images, case.json, case.out, on_bad="skip")
    assert not (case.out / "dataset.json").exists()


def test_want_of_room_for_temporary_files_is_no_fault_of_an_image(case, monkeypatch):
    case.json.write_text(json.dumps(case.tree))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setattr("shards.validation.heard.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(case.images, case.json, case.out, on_bad="skip")


def test_what_a_machine_that_was_lost_meanwhile_left_half_written_is_cleared_away(case, undisturbed):
    @contextmanager
    def elsewhere():
        def spread(make, tasks):
            for task in tasks:
                (case.out / ".images-000000.tar.tmp-lost-1").write_bytes(b"half")
                yield make(task)

        yield spread

    write_shards(case.images, case.json, case.out, spreading=elsewhere())
    assert contents(case.out) == undisturbed


def test_shards_that_went_to_another_machine_are_not_called_finished(case, tmp_path):
    case.json.write_text(json.dumps(case.tree))

    @contextmanager
    def elsewhere():
        def spread(make, tasks):
            for task in tasks:
                yield make.func(task, **make.keywords | {"out": folder_at(tmp_path)})

        yield spread

    with pytest.raises(BadInput, match=r"000000\.tar: was written by another machine and is not here"):
        write_shards(case.images, case.json, case.out, spreading=elsewhere())
    assert not (case.out / "dataset.json").exists()
