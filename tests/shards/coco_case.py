"""A small COCO data set on disk, whole at first, that each test damages in one way."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from shards.write import write_shards

WIDTH, HEIGHT = 40, 30


@dataclass
class Case:
    """`tree` is the COCO object, to be changed; `shard` writes it and shards it."""

    root: Path
    tree: dict

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def json(self) -> Path:
        return self.root / "instances.json"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def shard(self, **options) -> dict:
        self.json.write_text(json.dumps(self.tree))
        return write_shards(self.images, self.json, self.out, **options)

    def report(self) -> dict:
        return json.loads((self.out / "report.json").read_text())

    def annotation(self, annotation_id: int) -> dict:
        return next(a for a in self.tree["annotations"] if a["id"] == annotation_id)


def rectangle(x, y, w, h) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation(annotation_id, image_id, category_id, box, segmentation, iscrowd=0) -> dict:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": box[2] * box[3],
        "segmentation": segmentation,
        "iscrowd": iscrowd,
    }


def polygon(x, y, w, h) -> list:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


TREE = {
    "images": [
        {"id": identity, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for identity, name in ((30, "c.png"), (7, "a.jpg"), (12, "sub/b.jpg"), (99, "empty.jpg"))
    ],
    "annotations": [
        annotation(1, 7, 90, (4, 5, 20, 10), polygon(4, 5, 20, 10)),
        annotation(2, 7, 3, (6, 6, 20, 10), compressed(rectangle(6, 6, 20, 10))),
        # 30 rows a column: the first run ends after column 10, row 2.
        annotation(3, 12, 3, (10, 2, 1, 20), {"size": [30, 40], "counts": [302, 20, 878]}, iscrowd=1),
        annotation(4, 30, 17, (0, 0, 40, 30), polygon(0, 0, 40, 30)),
        annotation(5, 12, 90, (20, 10, 10, 15), polygon(20, 10, 10, 15)),
    ],
    "categories": [{"id": 90, "name": "z"}, {"id": 3, "name": "a"}, {"id": 17, "name": "m"}],
}


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)
