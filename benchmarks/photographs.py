"""A COCO data set of JPEG files as large and as full as COCO's own, drawn at random."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# COCO 2017: most images are 640 x 480 or 480 x 640, 160 kB; 7 instances each; 80 categories, ids to 90.
SIZES = ((640, 480), (480, 640))
MOST_INSTANCES = 14
CATEGORIES = range(1, 91)
CROWD_EVERY = 100
CANVAS = 1024


def write_photographs(out: Path, images: int, seed: int = 0) -> None:
    """Write `OUT/train2017/*.jpg` and `OUT/annotations/instances_train2017.json`."""
    rng = np.random.default_rng(seed)
    canvas = _canvas(rng)
    folder = out / "train2017"
    folder.mkdir(parents=True)
    rows, annotations = [], []
    for image_id in range(1, images + 1):
        width, height = SIZES[int(rng.random() < 0.25)]
        (folder / f"{image_id:012d}.jpg").write_bytes(_jpeg(rng, canvas, width, height))
        rows.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height})
        for _ in range(rng.integers(1, MOST_INSTANCES)):
            annotations.append(instance(rng, len(annotations) + 1, image_id, width, height))
    write_coco(out, rows, annotations)


def write_coco(out: Path, rows: list[dict], annotations: list[dict]) -> Path:
    """Return `OUT/annotations/instances_train2017.json` after writing it."""
    path = out / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": category, "name": f"kind {category}"} for category in CATEGORIES]
    path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return path


def instance(rng: np.random.Generator, annotation_id: int, image_id: int, width: int, height: int) -> dict:
    """Return an annotation that agrees with itself: a polygon of 12 to 60 corners, now and then a crowd."""
    while True:
        polygon = _polygon(rng, width, height)
        runs = coco_mask.frPyObjects([polygon], height, width)[0]
        if coco_mask.area(runs):
            break
    crowd = annotation_id % CROWD_EVERY == 0
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(rng.choice(CATEGORIES)),
        "segmentation": _uncompressed(runs) if crowd else [polygon],
        "area": float(coco_mask.area(runs)),
        "bbox": coco_mask.toBbox(runs).tolist(),
        "iscrowd": int(crowd),
    }


def _canvas(rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [CANVAS, CANVAS, 3] with detail of every size, as photographs have."""
    canvas = np.zeros((CANVAS, CANVAS, 3))
    for side in (4, 16, 64, 256, 1024):
        noise = Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8))
        layer = noise.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
        canvas += np.asarray(layer, float) * (0.3 if side < CANVAS else 0.12)
    return np.clip(canvas - 0.3 * 255, 0, 255).astype(np.uint8)


def _jpeg(rng: np.random.Generator, canvas: np.ndarray, width: int, height: int) -> bytes:
    left, top = rng.integers(0, CANVAS - width), rng.integers(0, CANVAS - height)
    picture = canvas[top : top + height, left : left + width] + rng.integers(0, 64, 3, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _polygon(rng: np.random.Generator, width: int, height: int) -> list[float]:
    corners = rng.integers(12, 60)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.7, 1, corners) * np.exp(rng.uniform(np.log(8), np.log(min(width, height) / 3)))
    x = np.clip(rng.uniform(0, width) + radii * np.cos(angles), 0, width)
    y = np.clip(rng.uniform(0, height) + radii * np.sin(angles), 0, height)
    return np.stack([x, y], 1).round(2).ravel().tolist()


def _uncompressed(runs: dict) -> dict:
    pixels = coco_mask.decode(runs).ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(pixels, prepend=0))
    return {"size": runs["size"], "counts": np.diff([0, *changes.tolist(), pixels.size]).tolist()}
