"""The real twin's data: some categories alone, halves that share no image, and nothing read back wrongly."""

import json

import pytest

from benchmarks.real_subset import main

NAMES = ["person", "dog", "car"]


def write_set(folder, split, first_id, labels):
    """One image for each list of category ids in `labels`; returns the folder of images."""
    images = folder / split
    images.mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    tree = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)],
    }
    for image_id, members in enumerate(labels, first_id):
        tree["images"].append({"id": image_id, "file_name": f"{image_id}.jpg"})
        (images / f"{image_id}.jpg").write_bytes(f"image {image_id}".encode())
        tree["annotations"] += [
            {"id": 100 * image_id + n, "image_id": image_id, "category_id": c} for n, c in enumerate(members)
        ]
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return str(images)


def read(out, split):
    tree = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
    copied = {image["id"]: (out / split / image["file_name"]).read_text() for image in tree["images"]}
    assert copied == {identity: f"image {identity}" for identity in copied}
    assert len(list((out / split).iterdir())) == len(copied)
    return tree, set(copied)


def test_images_with_the_categories_are_copied_and_every_third_of_a_split_is_held_out(tmp_path, capsys):
    train = write_set(tmp_path / "a", "train2017", 1, [[0, 1, 0], [1], [2]])
    val = write_set(tmp_path / "a", "val2017", 11, [[1, 2]])
    mixed = write_set(tmp_path / "b", "train2017", 21, [[0], [0], [1], [2], [0]])
    out = tmp_path / "out"
    sources = ["--train", train, "--val", val, "--split", mixed]
    main([*sources, "--categories", "person", "car", "--out", str(out)])
    trained, train_ids = read(out, "train2017")
    held, val_ids = read(out, "val2017")
    assert (train_ids, val_ids) == ({1, 3, 22, 24}, {11, 21, 25})
    assert [category["name"] for category in held["categories"]] == ["person", "car"]
    assert [item["id"] for item in trained["annotations"]] == [100, 102, 300, 2200, 2400]
    assert {item["category_id"] for item in held["annotations"]} == {0, 2}
    assert "train2017: 4 images, 5 instances: 3 person, 2 car" in capsys.readouterr().out


def test_a_category_that_is_not_there_and_an_image_given_twice_are_refused(tmp_path):
    train = write_set(tmp_path / "a", "train2017", 1, [[0]])
    with pytest.raises(SystemExit, match="no category 'cow'"):
        main(["--train", train, "--categories", "person", "cow", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="images 1 is there 2 times"):
        main(["--train", train, train, "--categories", "person", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "train2017").exists()
