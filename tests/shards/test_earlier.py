"""A folder that shards are in already: finished ones stay, damage is mended, another source is refused."""

import os
import shutil

import pytest

from shards import write
from shards.errors import BadInput
from shards.storage.folder import LocalFolder
from shards.write import write_shards
from tests.shards.coco_case import digests, flip_byte


def test_a_finished_one_is_not_written_again(case):
    first = case.shard()
    stamps = {path: path.stat().st_mtime_ns for path in case.out.iterdir()}
    assert case.shard() == first
    assert {path: path.stat().st_mtime_ns for path in case.out.iterdir()} == stamps


@pytest.mark.parametrize("change", ["annotations", "options", "image"])
def test_another_source_into_the_same_folder_is_refused(case, change):
    case.shard()
    before = digests(case.out)
    options = {}
    if change == "annotations":
        case.annotation(1)["area"] = 201
    elif change == "image":
        with open(case.images / "a.jpg", "ab") as stream:
            stream.write(b"more")
    else:
        options["repair"] = True
    with pytest.raises(BadInput, match=f"{case.out}: holds shards of another source"):
        case.shard(**options)
    assert digests(case.out) == before


def test_a_mended_source_goes_into_the_folder_that_refused_it(case):
    case.annotation(1)["bbox"] = [100, 100, 5, 5]
    with pytest.raises(BadInput):
        case.shard()
    case.annotation(1)["bbox"] = [4, 5, 20, 10]
    assert case.shard()["images"] == 4


@pytest.mark.usefixtures("a_shard_an_image")
def test_an_image_damaged_in_place_is_refused_and_the_finished_shards_stay(case):
    case.shard()
    before = digests(case.out)
    path = case.images / "a.jpg"
    path.write_bytes(zeroed(path.read_bytes()))
    with pytest.raises(BadInput, match=r"a\.jpg, image 7: is no JPEG"):
        case.shard()
    after = digests(case.out)
    assert after.pop("report.json") != before.pop("report.json")
    assert after == before


def test_a_finished_folder_that_was_damaged_is_mended_with_the_same_bytes(case, a_shard_an_image):
    case.shard()
    before = digests(case.out)
    lost, damaged = sorted(case.out.glob("*.tar"))[:2]
    lost.unlink()
    flip_byte(damaged, 700)
    case.shard()
    assert digests(case.out) == before


@pytest.mark.parametrize("damage", [None, b"{"])
def test_a_report_that_is_gone_or_damaged_is_written_again(case, damage):
    case.shard()
    path = case.out / "report.json"
    before = digests(case.out)
    path.unlink() if damage is None else path.write_bytes(damage)
    case.shard()
    assert digests(case.out) == before


def zeroed(content: bytes) -> bytes:
    """Return an image as a disk gives it that never wrote one block: of the same size."""
    return content[:20] + bytes(200) + content[220:]


@pytest.mark.parametrize("restore", ["write", "keep its time"])
def test_an_image_restored_in_place_is_taken_up_by_the_same_command(case, tmp_path, restore):
    path = case.images / "a.jpg"
    kept = shutil.copy2(path, tmp_path / "kept.jpg")
    path.write_bytes(zeroed(path.read_bytes()))
    assert case.shard(on_bad="skip")["images"] == 3
    shutil.copy2(kept, path) if restore == "keep its time" else path.write_bytes(kept.read_bytes())
    assert case.shard(on_bad="skip")["images"] == 4
    assert case.report()["errors"] == {}
    write_shards(case.images, case.json, tmp_path / "fresh", on_bad="skip")
    assert digests(case.out) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("cut", [True, False])
def test_an_image_damaged_in_place_leaves_no_shard_of_before(case, monkeypatch, tmp_path, cut):
    if cut:
        monkeypatch.setattr("shards.tars.MAX_PACKED_BYTES", 1)
    case.shard(on_bad="skip")
    path = case.images / "a.jpg"
    path.write_bytes(zeroed(path.read_bytes()))
    assert case.shard(on_bad="skip")["images"] == 3
    write_shards(case.images, case.json, tmp_path / "fresh", on_bad="skip")
    assert digests(case.out) == digests(tmp_path / "fresh")


def test_new_times_of_the_same_images_write_no_shard_again_and_are_looked_into_once(case, monkeypatch):
    case.shard()
    before, shard = digests(case.out), case.out / "instances-000000.tar"
    stamp = shard.stat().st_mtime_ns
    for path in case.images.rglob("*.*"):
        os.utime(path)
    case.shard()
    assert digests(case.out) == before and shard.stat().st_mtime_ns == stamp
    monkeypatch.setattr("shards.write.make_shard", None)
    case.shard()


class Killed(BaseException):
    """A kill that leaves the test alive."""


def kill(*arguments, **options):
    raise Killed


@pytest.mark.parametrize("where", ["begin", "_described"])
@pytest.mark.parametrize("on_bad", ["skip", "fail"])
def test_a_restored_image_is_taken_up_also_after_a_kill(case, monkeypatch, tmp_path, where, on_bad):
    path = case.images / "a.jpg"
    sound = path.read_bytes()
    path.write_bytes(zeroed(sound))
    if on_bad == "skip":
        case.shard(on_bad=on_bad)
    path.write_bytes(sound)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(write, where, kill)
        case.shard(on_bad=on_bad)
    assert case.shard(on_bad=on_bad)["images"] == 4
    write_shards(case.images, case.json, tmp_path / "fresh", on_bad=on_bad)
    assert digests(case.out) == digests(tmp_path / "fresh")


def test_a_refused_look_at_a_finished_folder_is_refused_again(case):
    case.shard()
    path = case.images / "a.jpg"
    sound = path.read_bytes()
    path.write_bytes(zeroed(sound))
    for _ in range(2):
        with pytest.raises(BadInput, match="image 7: is no JPEG"):
            case.shard()
    path.write_bytes(sound)
    stamp = (case.out / "instances-000000.tar").stat().st_mtime_ns
    case.shard()
    assert case.report()["errors"] == {}
    assert (case.out / "instances-000000.tar").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("a_shard_an_image")
@pytest.mark.parametrize("change", ["annotations", "options", "images"])
def test_what_was_begun_of_another_source_and_not_finished_makes_room(case, monkeypatch, tmp_path, change):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(write, "_described", kill)
        case.shard(name="other")
    assert len(list(case.out.glob("other-*.tar"))) == 4
    options = {"on_bad": "skip"}
    if change == "annotations":
        case.annotation(1)["area"] = 201
    elif change == "images":
        (case.images / "a.jpg").unlink()
    case.shard(**options)
    write_shards(case.images, case.json, tmp_path / "fresh", **options)
    assert digests(case.out) == digests(tmp_path / "fresh")


def test_shards_beyond_the_last_one_do_not_stay(case, monkeypatch):
    case.shard()
    for name in ("instances-000001.tar", "instances-000001.index.json", "notes.txt"):
        (case.out / name).write_bytes(b"")
    (case.out / "dataset.json").unlink()
    case.shard()
    kept = {"instances-000000.tar", "instances-000000.index.json", "notes.txt"}
    assert {path.name for path in case.out.iterdir()} == kept | {
        "dataset.json", "report.json", "source_images.json",
    }  # fmt: skip


@pytest.mark.parametrize("damage", [b"{}", b'{"kept": 1}', b'{"findings": [{}]}', b"null"])
def test_a_report_that_is_none_is_written_again(case, damage):
    case.shard()
    before = digests(case.out)
    (case.out / "report.json").write_bytes(damage)
    case.shard()
    assert digests(case.out) == before


def test_a_full_disk_at_the_report_of_a_refusal_keeps_no_shard(case, monkeypatch):
    case.annotation(5)["bbox"] = [100, 100, 5, 5]
    written = LocalFolder.write

    def full(self, name, *arguments):
        if name == "report.json":
            raise OSError(28, "No space left on device", name)
        written(self, name, *arguments)

    monkeypatch.setattr(LocalFolder, "write", full)
    with pytest.raises(OSError, match="No space left"):
        case.shard()
    assert not list(case.out.iterdir())


def test_an_image_written_while_it_is_sharded_is_looked_at_by_the_next_call(case, monkeypatch, tmp_path):
    """The description has from its first moment on the time at which the images were looked at."""
    path = case.images / "a.jpg"

    def rewritten(*arguments):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        return report(*arguments)

    report = write._report
    with monkeypatch.context() as patch:
        patch.setattr(write, "_report", rewritten)
        case.shard()
    with pytest.raises(BadInput, match="image 7"):
        case.shard()
