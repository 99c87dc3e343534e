"""Shards: stock tools read them, bytes never vary, a kill anywhere leaves nothing half-done."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import termios
from pathlib import Path

import pytest
import webdataset

from shards.errors import BadInput
from shards.read import ShardDataset
from shards.source_images import first_changed
from shards.storage.files import only_writer
from shards.storage.folder import LocalFolder
from shards.tars import plan_shards
from shards.validation.source import ImageRow
from shards.window import WindowOrder
from shards.write import write_shards
from tests.shards.coco_case import digests

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cut_small(monkeypatch):
    """A unit of shard_size_mb that makes several shards out of the 60 small images."""
    from shards import write

    plan = write.plan_shards
    monkeypatch.setattr(write, "plan_shards", lambda images, name, size: plan(images, name, size >> 3))


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
    monkeypatch.setattr("shards.write.IMAGES_A_WORKER", 1)
    description = shard(synthetic, tmp_path / "one")
    assert len(description["shards"]) > 2
    shard(synthetic, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_no_worker_has_to_hold_many_annotations_at_a_time(case, monkeypatch):
    monkeypatch.setattr("shards.tars.MAX_PACKED_BYTES", 1)
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
write.plan_shards = lambda images, name, size: plan(images, name, size >> 3)
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
    """The renames: progress, a shard and its index in turn, report, images, the description (None)."""
    undisturbed = shard(synthetic, tmp_path / "undisturbed")
    renames = 3 + 2 * len(undisturbed["shards"]) if renames is None else renames
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


def test_a_target_over_http_is_refused_before_anything_is_read(case):
    with pytest.raises(BadInput, match=r"^http://127.0.0.1:9/out: cannot be written to over HTTP"):
        write_shards(case.root / "nowhere", case.json, "http://127.0.0.1:9/out")


@pytest.mark.usefixtures("a_shard_an_image")
def test_what_is_refused_leaves_its_report_and_no_shard_of_the_images_before_the_fault(case):
    case.annotation(5)["bbox"] = [100, 100, 5, 5]
    with pytest.raises(BadInput, match="annotation 5"):
        case.shard()
    assert [path.name for path in case.out.iterdir()] == ["report.json"]


@pytest.mark.usefixtures("a_shard_an_image")
def test_a_shard_all_of_whose_images_are_left_out_is_an_empty_tar_that_every_reader_takes(case):
    (case.images / "sub/b.jpg").write_bytes(b"")
    description = case.shard(on_bad="skip")
    assert [shard["samples"] for shard in description["shards"]] == [1, 0, 1, 1]
    samples = ShardDataset(case.out)
    assert [samples[place].image_id for place in range(len(samples))] == [7, 30, 99]
    window = WindowOrder(samples.shard_sizes, 2, 0, samples.hash)
    assert sorted(window.index(position) for position in range(3)) == [0, 1, 2]
    files = sorted(map(str, case.out.glob("*.tar")))
    stock = webdataset.WebDataset(files, shardshuffle=False, empty_check=False)
    assert [sample["__key__"] for sample in stock] == ["000000000007", "000000000030", "000000000099"]


def test_every_image_is_read_once(case, monkeypatch):
    read, names = LocalFolder.read, []

    def noted(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(LocalFolder, "read", noted)
    case.shard()
    assert sorted(name for name in names if not name.endswith(".json")) == sorted(
        image["file_name"] for image in case.tree["images"]
    )


def test_a_shard_ends_before_its_images_and_annotations_outgrow_it():
    rows = [ImageRow(number, f"{number}.jpg", 40, 30, 0, 0, bytes(20)) for number in range(5)]
    # Two heads of 512 bytes each and the annotations' block, beside the file's own blocks.
    sizes = [512, 512, -1, 5000, None]
    shards = list(plan_shards(zip(rows, sizes, strict=True), "x", 4096))
    assert [[row.image_id for row, _ in shard.images] for shard in shards] == [[0, 1], [2], [3], [4]]
    assert [shard.name for shard in shards] == [f"x-{number:06d}.tar" for number in range(4)]


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
    assert "sharding" in seen and "images" in seen
    quiet = subprocess.run([*command, str(tmp_path / "logged")], capture_output=True, text=True, check=True)
    assert "sharding" not in quiet.stderr + quiet.stdout
