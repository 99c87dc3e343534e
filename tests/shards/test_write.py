"""Shards: stock tools read them, bytes never vary, a kill anywhere leaves nothing half-done."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import termios
from pathlib import Path

import pytest
import webdataset

from shards.errors import BadInput
from shards.source_images import first_changed
from shards.storage.files import only_writer
from shards.write import write_shards
from tests.shards.coco_case import flip_byte

ROOT = Path(__file__).parents[2]


def digests(out):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


@pytest.fixture
def cut_small(monkeypatch):
    """A unit of shard_size_mb that makes several shards out of the 60 small images."""
    from shards import write

    plan = write.plan_shards
    monkeypatch.setattr(write, "plan_shards", lambda records, name, size: plan(records, name, size >> 3))


def shard(synthetic, out, **options):
    annotations = synthetic / "annotations/instances_train2017.json"
    return write_shards(synthetic / "train2017", annotations, out, shard_size_mb=1, **options)


def test_stock_webdataset_reads_them(case):
    case.shard()
    samples = {
        s["__key__"]: s
        for s in webdataset.WebDataset(str(case.out / "instances-000000.tar"), shardshuffle=False)
    }
    assert list(samples) == ["000000000007", "000000000012", "000000000030", "000000000099"]
    assert samples["000000000007"]["jpg"] == (case.images / "a.jpg").read_bytes()
    assert samples["000000000030"]["png"] == (case.images / "c.png").read_bytes()
    content = json.loads(samples["000000000012"]["json"])
    assert {k: content[k] for k in ("image_id", "file_name", "width", "height")} == {
        "image_id": 12, "file_name": "sub/b.jpg", "width": 40, "height": 30,
    }  # fmt: skip
    assert content["annotations"] == [case.annotation(3), case.annotation(5)]


def test_stock_tar_unpacks_plain_files_into_its_folder_with_fixed_times_and_owner(case, tmp_path):
    case.shard()
    with tarfile.open(case.out / "instances-000000.tar") as tar:
        members = tar.getmembers()
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert all(member.isfile() and "/" not in member.name and ".." not in member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {
        (0, 0, 0, "mrrcnn")
    }
    assert len(list((tmp_path / "unpacked").iterdir())) == 8


@pytest.mark.usefixtures("cut_small")
def test_every_byte_is_what_webdatasets_own_writer_writes(case, synthetic, tmp_path):
    """PNGs and JPEGs: their JSON stands before the one and after the other."""
    case.shard()
    shard(synthetic, tmp_path / "cut")
    for path in (*case.out.glob("*.tar"), *(tmp_path / "cut").glob("*.tar")):
        written, samples = io.BytesIO(), {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {"__key__": key})[extension] = tar.extractfile(member).read()
        with webdataset.TarWriter(written, user="mrrcnn", group="mrrcnn", mtime=0, encoder=False) as writer:
            for sample in samples.values():
                writer.write(sample)
        assert written.getvalue() == path.read_bytes()


def test_index_and_description_say_where_everything_is(case):
    description = case.shard()
    assert description == json.loads((case.out / "dataset.json").read_text())
    assert description["images"] == 4
    assert description["instances"] == 5
    assert [c["id"] for c in description["categories"]] == [3, 17, 90]
    assert description["labels"] == {"3": 1, "17": 2, "90": 3}
    assert description["source"]["annotations_sha256"] == hashlib.sha256(case.json.read_bytes()).hexdigest()
    tar = (case.out / "instances-000000.tar").read_bytes()
    entries = json.loads((case.out / "instances-000000.index.json").read_text())
    assert set(entries[0]) == {"key", "image_id", "width", "height", "num_instances", "members"}
    assert [entry["num_instances"] for entry in entries] == [2, 2, 1, 0]
    for entry in entries:
        for member in entry["members"].values():
            content = tar[member["offset"] : member["offset"] + member["size"]]
            assert hashlib.sha256(content).hexdigest() == member["sha256"]


@pytest.mark.usefixtures("cut_small")
def test_bytes_do_not_depend_on_workers(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.validation.validate.CHUNKS_A_WORKER", 1)
    monkeypatch.setattr("shards.validation.validate.CHUNK", 7)
    description = shard(synthetic, tmp_path / "one")
    assert len(description["shards"]) > 2
    shard(synthetic, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_no_worker_has_to_hold_many_annotations_at_a_time(case, monkeypatch):
    monkeypatch.setattr("shards.tars.MAX_JSON_BYTES", 1)
    description = case.shard()
    assert [shard["samples"] for shard in description["shards"]] == [1, 1, 1, 1]


@pytest.mark.usefixtures("cut_small")
def test_the_hash_is_of_the_samples_not_of_the_cut(synthetic, sharded, tmp_path):
    cut = shard(synthetic, tmp_path / "cut")
    whole = json.loads((sharded / "dataset.json").read_text())
    assert len(cut["shards"]) > len(whole["shards"])
    assert cut["hash"] == whole["hash"]


KILLED = """
import os, signal, sys
from pathlib import Path
from shards import write
from shards.storage import files

plan = write.plan_shards
write.plan_shards = lambda records, name, size: plan(records, name, size >> 3)
countdown = int(sys.argv[4])

def killing(rename):
    def counted(source, target):
        global countdown
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        countdown -= 1
        rename(source, target)
    return counted

files.rename_durably = killing(files.rename_durably)
write.write_shards(*sys.argv[1:4], shard_size_mb=1)
"""


@pytest.mark.usefixtures("cut_small")
@pytest.mark.parametrize("renames", [2, 3, None])
def test_killed_before_any_rename_and_called_again_it_ends_with_the_same_bytes(synthetic, tmp_path, renames):
    """The renames: report, progress, then a shard and its index in turn, and the description last (None)."""
    undisturbed = shard(synthetic, tmp_path / "undisturbed")
    renames = 2 + 2 * len(undisturbed["shards"]) if renames is None else renames
    annotations = synthetic / "annotations/instances_train2017.json"
    arguments = [str(synthetic / "train2017"), str(annotations), str(tmp_path / "killed"), str(renames)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "dataset.json").exists()
    again = write_shards(*map(Path, arguments[:3]), shard_size_mb=1)
    assert again == undisturbed
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")


@pytest.mark.usefixtures("cut_small")
def test_going_on_keeps_whole_shards_and_writes_damaged_ones_again(synthetic, tmp_path):
    shard(synthetic, tmp_path)
    expected = digests(tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps(description["source"]))
    (tmp_path / "dataset.json").unlink()
    name = description["shards"][1]["name"]
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[2000] ^= 1
    (tmp_path / name).write_bytes(damaged)
    untouched = (tmp_path / description["shards"][0]["name"]).stat().st_ino
    shard(synthetic, tmp_path)
    assert digests(tmp_path) == expected
    assert (tmp_path / description["shards"][0]["name"]).stat().st_ino == untouched


def test_a_finished_one_is_not_written_again(case):
    first = case.shard()
    stamps = {path: path.stat().st_mtime_ns for path in case.out.iterdir()}
    assert case.shard() == first
    assert {path: path.stat().st_mtime_ns for path in case.out.iterdir()} == stamps


def test_a_target_over_http_is_refused_before_anything_is_read(case):
    with pytest.raises(BadInput, match=r"^http://127.0.0.1:9/out: cannot be written to over HTTP"):
        write_shards(case.root / "nowhere", case.json, "http://127.0.0.1:9/out")


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


def test_an_image_list_without_annotations_is_sharded_as_such(case):
    del case.tree["annotations"]
    assert case.shard()["has_annotations"] is False
    assert case.report()["warnings"] == {}


def test_two_writers_of_one_folder_are_refused(case):
    case.out.mkdir()
    with only_writer(case.out), pytest.raises(BadInput, match="another process is writing there"):
        case.shard()


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"on_bad": "ignore"}, {"shard_size_mb": 0}, {"name": "../.."}]
)
def test_arguments_out_of_range_are_refused(case, options):
    with pytest.raises(BadInput):
        case.shard(**options)
    assert not list(case.root.glob("**/*.tar"))


def test_an_annotation_file_may_be_named_in_any_script(case):
    case.shard()
    other = case.json.rename(case.root / "标注.json")
    description = write_shards(case.images, other, case.root / "other")
    assert [shard["name"] for shard in description["shards"]] == ["shard-000000.tar"]
    assert (case.root / "other/shard-000000.tar").read_bytes() == (
        case.out / "instances-000000.tar"
    ).read_bytes()


def test_a_finished_folder_that_was_damaged_is_mended_with_the_same_bytes(synthetic, tmp_path, cut_small):
    shard(synthetic, tmp_path)
    before = digests(tmp_path)
    lost, damaged = sorted(tmp_path.glob("*.tar"))[:2]
    lost.unlink()
    flip_byte(damaged, 700)
    shard(synthetic, tmp_path)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_images_that_are_no_longer_those_of_the_shards_are_named(case, change):
    case.shard()
    assert first_changed(case.out, case.images) is None
    path = case.images / "a.jpg"
    path.unlink() if change == "missing" else path.write_bytes(path.read_bytes() + b"x")
    assert first_changed(case.out, case.images) == "a.jpg"
    assert first_changed(case.out, case.images / "gone") is None


@pytest.mark.parametrize("damage", [b"", b"[1]", b'[["a.jpg"]]', b"{"])
def test_a_damaged_list_of_images_is_named(case, damage):
    case.shard()
    (case.out / "source_images.json").write_bytes(damage)
    with pytest.raises(BadInput, match=r"source_images\.json: is damaged; delete it"):
        first_changed(case.out, case.images)


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
        monkeypatch.setattr("shards.tars.MAX_JSON_BYTES", 1)
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
    monkeypatch.setattr("shards.write.validate", None)
    case.shard()


def test_progress_is_told_on_a_terminal_and_nowhere_else(case, tmp_path):
    """A log of a job has no line for every second of sharding; who sits before it sees that it goes on."""
    case.json.write_text(json.dumps(case.tree))
    command = [sys.executable, "-m", "jobs.cli", "shard", "--images", str(case.images)]
    command += ["--annotations", str(case.json), "--workers", "1", "--out"]
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([*command, str(tmp_path / "seen")], stderr=theirs, stdout=subprocess.DEVNULL, check=True)
    os.close(theirs)
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "checking" in seen and "writing" in seen
    quiet = subprocess.run([*command, str(tmp_path / "logged")], capture_output=True, text=True, check=True)
    assert "checking" not in quiet.stderr + quiet.stdout
