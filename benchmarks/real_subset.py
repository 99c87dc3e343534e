"""Makes the data of the tables' real twin: some categories that huddle, in COCO 2017's layout.

    python -m benchmarks.real_subset --train COCO/train2017 --val COCO/val2017 --split CROWDED/train2017

Each argument is a folder of images, its annotations in ../annotations/instances_NAME.json. Images with an
instance of the categories are copied, with these categories alone; of what `--split` gives, every third image
by increasing id is held out. The copies stay under `runs/`: COCO's images have licences of their own.
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

CATEGORIES = ("person", "bicycle", "car", "motorcycle")
HELD_OUT_EVERY = 3
Tree = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Write both halves and print how many images and instances each has."""
    options = _parse(arguments)
    train = [chosen(folder, options.categories) for folder in options.train]
    val = [chosen(folder, options.categories) for folder in options.val]
    for folder in options.split:
        kept, held_out = split(chosen(folder, options.categories))
        train.append(kept)
        val.append(held_out)
    for name, parts in (("train2017", train), ("val2017", val)):
        if not parts:
            raise SystemExit(f"{name}: no folder is given for it; give --split, or both --train and --val")
        tree = write(options.out, name, parts)
        counts = Counter(annotation["category_id"] for annotation in tree["annotations"])
        told = ", ".join(f"{counts[category['id']]} {category['name']}" for category in tree["categories"])
        print(f"{name}: {len(tree['images'])} images, {len(tree['annotations'])} instances: {told}")


def chosen(folder: Path, categories: list[str]) -> Tree:
    """Return a folder's annotations of some categories, and of its images those that have any.

    Every image gains `path`, where it lies.

    Raises:
        SystemExit: a category is not there.
    """
    file = folder.parent / "annotations" / f"instances_{folder.name}.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    kept = [category for category in tree["categories"] if category["name"] in categories]
    if missing := set(categories) - {category["name"] for category in kept}:
        raise SystemExit(f"{file}: has no category {min(missing)!r}; give --categories that it has")
    ids = {category["id"] for category in kept}
    annotations = [item for item in tree["annotations"] if item["category_id"] in ids]
    used = {item["image_id"] for item in annotations}
    images = [
        image | {"path": folder / image["file_name"]} for image in tree["images"] if image["id"] in used
    ]
    return {"images": images, "annotations": annotations, "categories": kept}


def split(tree: Tree) -> tuple[Tree, Tree]:
    """Return (kept, held out): every third image by increasing id is held out."""
    held_out = set(sorted(image["id"] for image in tree["images"])[::HELD_OUT_EVERY])
    return _part(tree, lambda image: image not in held_out), _part(tree, lambda image: image in held_out)


def write(out: Path, name: str, parts: list[Tree]) -> Tree:
    """Copy the images of the parts to OUT/NAME and return their annotations, also written.

    Raises:
        SystemExit: two parts have the same image or annotation id.
    """
    tree = {
        "images": [image for part in parts for image in part["images"]],
        "annotations": [item for part in parts for item in part["annotations"]],
        "categories": parts[0]["categories"],
    }
    for kind in ("images", "annotations"):
        identity, times = Counter(item["id"] for item in tree[kind]).most_common(1)[0]
        if times > 1:
            raise SystemExit(
                f"{name}: {kind} {identity} is there {times} times; give folders that share none"
            )
    (out / name).mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    for image in tree["images"]:
        shutil.copyfile(image.pop("path"), out / name / image["file_name"])
    (out / "annotations" / f"instances_{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    return tree


def _part(tree: Tree, belongs: Any) -> Tree:
    images = [image for image in tree["images"] if belongs(image["id"])]
    annotations = [item for item in tree["annotations"] if belongs(item["image_id"])]
    return {**tree, "images": images, "annotations": annotations}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, of in (
        ("train", "to train on"),
        ("val", "held out"),
        ("split", "two thirds of it, and a third"),
    ):
        parser.add_argument(f"--{name}", type=Path, nargs="+", default=[], help=f"images: {of}")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/real/data"), help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
