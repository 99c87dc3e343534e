"""Damage of every sort, by seed: a run ends in one named line or in a data set that accounts for all it read.

`MRRCNN_FUZZ=2000` tries that many cases of each sort in place of the short form's.
"""

import copy
import json
import os
import random
import re
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.data import training_target
from shards.errors import BadInput
from shards.inspection.samples import checked_sample
from shards.read import Sample, ShardDataset
from shards.write import write_shards
from tests.shards.coco_case import Case, polygon
from tests.shards.damage import damage_bytes, damage_image, damage_tree
from tests.shards.stranger import SHARD, indexed_again, written_again

CASES = int(os.environ.get("MRRCNN_FUZZ", "60"))
HANGS_AFTER_S = 60
ENTRY_KINDS = {
    *("duplicate_annotation_id", "image_refused", "unknown_image", "unknown_category", "not_finite"),
}
TREE_DAMAGES = 2


class Hang(BaseException):
    """Not an Exception: nothing in the code under test may catch it."""


@pytest.fixture(autouse=True)
def no_hang():
    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pristine(case) -> Case:
    """The data set that each case damages: its images in several forms, a polygon past the edge."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(case.images / "a.jpg").save(case.images / "a.jpg", exif=exif, progressive=True)
    Image.open(case.images / "sub/b.jpg").convert("CMYK").save(case.images / "sub/b.jpg")
    case.annotation(5).update(bbox=[35, 10, 10, 15], segmentation=polygon(35, 10, 10, 15))
    return case


def each_case(pristine: Case, tmp_path: Path, sort: str):
    """Yield (random numbers, a fresh copy to damage, a tag naming the case) and time each body."""
    for seed in range(CASES):
        rng = random.Random(f"{sort} {seed}")
        root = tmp_path / "now"
        shutil.copytree(pristine.images, root / "images", symlinks=True)
        signal.alarm(HANGS_AFTER_S)
        yield rng, Case(root, copy.deepcopy(pristine.tree)), f"{sort}, seed {seed}"
        shutil.rmtree(root)


def run(case: Case, rng: random.Random, tag: str) -> str:
    """Shard as a user might, and return how it ended; anything but a named end or a true data set fails."""
    options = {"on_bad": rng.choice(["fail", "skip", "skip"]), "repair": rng.random() < 0.4}
    try:
        write_shards(case.images, case.json, case.out, **options)
    except BadInput as error:
        check_named(error, tag)
        assert not (case.out / "dataset.json").exists(), tag
        return "refused"
    check_account(case, options, tag)
    return "written"


def check_named(error: BadInput, tag: str) -> None:
    line = str(error)
    assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", line), f"{tag}: {line!r}"
    assert len(line) < 2000, tag
    line.encode()


def check_account(case: Case, options: dict, tag: str) -> None:
    source, report = json.loads(case.json.read_bytes()), case.report()
    data_set = ShardDataset(case.out)
    samples = [data_set[place] for place in range(len(data_set))]
    for sample in samples:
        assert sample.image.shape == (3, sample.height, sample.width), tag
        check_trainable(sample, data_set, tag)
    kept = [annotation for sample in samples for annotation in sample.annotations]
    read = {name: len(source.get(name, [])) for name in ("images", "annotations")}
    assert report["read"] == read, tag
    assert report["kept"] == {"images": len(samples), "annotations": len(kept)}, tag
    assert {name: read[name] - report["kept"][name] for name in read} == report["dropped"], tag
    assert report["dropped"] == lost_by(report["findings"]), tag
    known = [image["id"] for image in as_dicts(source["images"])]
    assert all(sample.image_id in known for sample in samples), tag
    if not options["repair"]:
        assert all(annotation in source["annotations"] for annotation in kept), tag


def lost_by(findings: list[dict]) -> dict[str, int]:
    """Count from the findings alone how many images and annotations are not in the shards."""
    gone = [found for found in findings if found["action"] == "skipped" or "dropped" in found["action"]]
    images = [found for found in gone if found["kind"] in ("duplicate_image_id",) or of_image(found)]
    along = [re.search(r"\(its (\d+) annotations? go(?:es)? with it\)", found["message"]) for found in images]
    own = [found for found in gone if found not in images]
    entries = [f for f in own if f["kind"] in ENTRY_KINDS or f["message"].startswith("annotation number")]
    others = {(found["image_id"], found["annotation_id"]) for found in own if found not in entries}
    annotations = len(entries) + len(others) + sum(int(found[1]) for found in along if found)
    return {"images": len(images), "annotations": annotations}


def of_image(found: dict) -> bool:
    return found["kind"].startswith("image_") and found["kind"] != "image_refused"


def as_dicts(entries: list) -> list[dict]:
    return [entry for entry in entries if isinstance(entry, dict) and "id" in entry]


def contents(out: Path) -> dict[str, bytes]:
    """Return all files but the report, which names the folder of the images."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "report.json"}


def test_damaged_coco_trees(pristine, tmp_path):
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "tree"):
        for _ in range(rng.randint(1, TREE_DAMAGES)):
            damage_tree(case.tree, rng)
        case.json.write_text(json.dumps(case.tree))
        ends[run(case, rng, tag)] += 1
    assert min(ends["refused"], ends["written"]) > CASES // 10
    print(ends)


def test_damaged_coco_bytes(pristine, tmp_path):
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "json"):
        case.json.write_bytes(damage_bytes(json.dumps(case.tree, indent=1).encode(), rng))
        ends[run(case, rng, tag)] += 1
    assert min(ends["refused"], ends["written"]) > 0
    print(ends)


def test_damaged_images(pristine, tmp_path):
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "image"):
        case.json.write_text(json.dumps(case.tree))
        for name in rng.sample(["a.jpg", "sub/b.jpg", "c.png", "empty.jpg"], rng.randint(1, 2)):
            damage_image(case.images / name, rng)
        ends[run(case, rng, tag)] += 1
    assert min(ends["refused"], ends["written"]) > CASES // 10
    print(ends)


def test_damaged_shards(pristine, tmp_path):
    """Reading gives the sample or names it; sharding again mends the folder or refuses it."""
    pristine.shard()
    whole = contents(pristine.out)
    samples = [ShardDataset(pristine.out)[place].image for place in range(4)]
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "shards"):
        shutil.copytree(pristine.out, case.out)
        case.json.write_text(json.dumps(case.tree))
        damaged = case.out / rng.choice(["instances-000000.tar", "instances-000000.index.json"])
        damaged.write_bytes(damage_bytes(damaged.read_bytes(), rng))
        for place, image in enumerate(samples):
            try:
                assert (ShardDataset(case.out)[place].image == image).all(), tag
                ends["read"] += 1
            except BadInput as error:
                check_named(error, tag)
                ends["named"] += 1
        write_shards(case.images, case.json, case.out)
        assert contents(case.out) == whole, tag
    assert min(ends["read"], ends["named"]) > 0
    print(ends)


def test_shards_that_somebody_else_wrote(pristine, tmp_path):
    """Every checksum is right. What `inspect` passes can be trained on; what it does not it names."""
    pristine.shard()
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "strangers"):
        shutil.copytree(pristine.out, case.out)
        if rng.random() < 0.3:
            index = json.loads((case.out / f"{SHARD}.index.json").read_text())
            damage_tree(index, rng)
            indexed_again(case.out, json.dumps(index).encode())
        else:
            key = rng.choice(["000000000007", "000000000012", "000000000030"])
            written_again(case.out, key, partial(damage_sample, rng=rng))
        ends.update(inspected(case, tag))
    assert min(ends["sound"], ends["named"], ends["refused"]) > 0
    print(ends)


def damage_sample(members: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    extension = rng.choice([*members, "json", "json"])
    if extension != "json" or rng.random() < 0.1:
        return {extension: damage_bytes(members[extension], rng)}
    tree = json.loads(members["json"])
    damage_tree(tree, rng)
    return {"json": json.dumps(tree).encode()}


def inspected(case: Case, tag: str) -> list[str]:
    """Return how each sample ended, "refused" for all of them; fails where one that passed cannot train."""
    try:
        data_set = ShardDataset(case.out)
    except BadInput as error:
        check_named(error, tag)
        return ["refused"]
    ends = []
    for place in range(len(data_set)):
        try:
            checked_sample(data_set, place)
        except BadInput as error:
            check_named(error, tag)
            ends.append("named")
            continue
        check_trainable(data_set[place], data_set, tag)
        ends.append("sound")
    return ends


def check_trainable(sample: Sample, data_set: ShardDataset, tag: str) -> None:
    target = training_target(sample, data_set.label_of)
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= sample.width) & (y2 <= sample.height)).all(), tag
    assert ((x1 < x2) & (y1 < y2)).all(), tag
    masks = target["masks"][torch.arange(len(target["boxes"]))]
    assert masks.shape == (len(target["labels"]), sample.height, sample.width), tag


def test_a_damaged_description(pristine, tmp_path):
    """Reading notices; sharding again names it or mends it, and the shards stay as they are."""
    said = pristine.shard()
    whole = contents(pristine.out)
    ends = Counter()
    for rng, case, tag in each_case(pristine, tmp_path, "description"):
        shutil.copytree(pristine.out, case.out)
        case.json.write_text(json.dumps(case.tree))
        damaged = case.out / "dataset.json"
        damaged.write_bytes(damage_bytes(damaged.read_bytes(), rng))
        try:
            check_says(ShardDataset(case.out).description, said, tag)
        except BadInput as error:
            check_named(error, tag)
        try:
            check_says(write_shards(case.images, case.json, case.out), said, tag)
            ends["went on"] += 1
        except BadInput as error:
            check_named(error, tag)
            ends["named"] += 1
        left = contents(case.out)
        assert all(left[name] == whole[name] for name in whole.keys() - {"dataset.json"}), tag
    assert min(ends["went on"], ends["named"]) > 0
    print(ends)


def check_says(description: dict, expected: dict, tag: str) -> None:
    """The same, but for the name of the checksum: unknown names are no harm, and then it is not compared."""
    for name in expected.keys() - {"description_sha256"}:
        assert description[name] == expected[name], tag


def test_the_account_notices_a_silent_loss(pristine):
    """The check itself: an annotation that is gone without a finding does not pass."""
    pristine.annotation(1)["area"] = 900
    pristine.shard(on_bad="skip")
    check_account(pristine, {"repair": False}, "whole")
    report = pristine.report()
    report["read"]["annotations"] += 1
    (pristine.out / "report.json").write_text(json.dumps(report))
    with pytest.raises(AssertionError):
        check_account(pristine, {"repair": False}, "lossy")
