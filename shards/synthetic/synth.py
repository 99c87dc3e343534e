"""A synthetic data set of huddled instances in COCO 2017's own paths, the same bytes for the same seed."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shards.boxes import box_of
from shards.errors import BadInput
from shards.storage.files import write_atomic
from shards.synthetic.scene import Shape, paint_scene, place_scene
from shards.synthetic.shapes import CATEGORIES

EMPTY_EVERY = 50
PNG_EVERY = 8


def write_synthetic(out: str | Path, images: int, seed: int, huddle: float = 0.6, size: int = 128) -> dict:
    """Return `{"train2017": COCO dict, "val2017": COCO dict}` after writing both with their images.

    Writes `OUT/annotations/instances_{train,val}2017.json`, `OUT/train2017/` and `OUT/val2017/`, with
    `images` training and `max(50, images // 5)` validation images. An image depends on its seed, split and
    place alone, so a larger set begins with the same pictures.

    Args:
        out: target directory; files of the same names are replaced.
        images: number of training images, at least 1.
        seed: any non-negative integer.
        huddle: the share of instances, 0..1, that overlap another one's box at IoU >= 0.3 (roughly).
        size: side of the square images in pixels, at least 64.

    Raises:
        BadInput: an argument out of its range.
    """
    _check_arguments(images, seed, huddle, size)
    out = Path(out)
    first_val_id = images + 1
    counts = {"train2017": (images, 1), "val2017": (max(50, images // 5), first_val_id)}
    data_set = {}
    for number, (split, (count, first_id)) in enumerate(counts.items()):
        (out / split).mkdir(parents=True, exist_ok=True)
        data_set[split] = _write_split(
            out, split, (seed, number), range(first_id, first_id + count), huddle, size
        )
    return data_set


def _check_arguments(images: int, seed: int, huddle: float, size: int) -> None:
    if images < 1:
        raise BadInput(f"images is {images}; give at least 1")
    if seed < 0:
        raise BadInput(f"seed is {seed}; give 0 or more")
    if not 0 <= huddle <= 1:
        raise BadInput(f"huddle is {huddle}; give a share from 0 to 1")
    if size < 64:
        raise BadInput(f"size is {size}; give at least 64 pixels")


def _write_split(out: Path, split: str, key: tuple[int, int], ids: range, huddle: float, size: int) -> dict:
    images, annotations = [], []
    for place, image_id in enumerate(ids):
        rng = np.random.default_rng([*key, place])
        shapes = [] if place % EMPTY_EVERY == EMPTY_EVERY - 1 else place_scene(rng, size, huddle)
        extension = ".png" if place % PNG_EVERY == PNG_EVERY - 1 else ".jpg"
        file_name = f"{image_id:012d}{extension}"
        (out / split / file_name).write_bytes(_encode(paint_scene(rng, shapes, size), extension))
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
        for shape in shapes:
            annotations.append(_annotation(len(annotations) + 1, image_id, shape))
    coco = {
        "info": {"description": f"synthetic huddled shapes, seed {key[0]}, {split}", "version": "1"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": name, "supercategory": "shape"} for c, name in CATEGORIES.items()],
    }
    path = out / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(coco, separators=(",", ":")).encode())
    return coco


def _encode(picture: np.ndarray, extension: str) -> bytes:
    stream = io.BytesIO()
    if extension == ".png":
        Image.fromarray(picture).save(stream, "PNG")
    else:
        Image.fromarray(picture).save(stream, "JPEG", quality=94, subsampling=0)
    return stream.getvalue()


def _annotation(annotation_id: int, image_id: int, shape: Shape) -> dict:
    x1, y1, x2, y2 = box_of(shape.visible).tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.category,
        "segmentation": _segmentation(shape),
        "area": float(np.count_nonzero(shape.visible)),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": int(shape.crowd),
    }


def _segmentation(shape: Shape) -> list | dict:
    """Polygons while the shape is whole and without a hole; RLE otherwise; uncompressed for crowds."""
    if shape.crowd:
        return {"size": list(shape.visible.shape), "counts": _run_lengths(shape.visible)}
    if len(shape.polygons) == 1 and np.array_equal(shape.visible, shape.mask):
        return [shape.polygons[0].ravel().tolist()]
    rle = coco_mask.encode(np.asfortranarray(shape.visible.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns; the first run, of zeros, may be empty."""
    pixels = np.concatenate([[0], mask.ravel(order="F").astype(np.int8)])
    changes = np.flatnonzero(np.diff(pixels))
    return np.diff([0, *changes.tolist(), mask.size]).tolist()
