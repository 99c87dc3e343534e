"""Random COCO ground truths and results that are small enough to check by hand."""

import numpy as np
from pycocotools import mask as rle

SIZE = 128


def random_case(seed, images=8, categories=(3, 17, 90)):
    """Return (ground truth, results): crowds, several areas, overlaps, near misses and false alarms."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(101, 101 + images):
        for _ in range(rng.integers(0, 7)):
            box, category = random_box(rng), int(rng.choice(categories))
            crowd = int(rng.random() < 0.15)
            annotations.append(annotation(len(annotations) + 1, image_id, category, box, crowd))
            if rng.random() < 0.8:
                results.append(result(rng, image_id, category, jitter(rng, box)))
        for _ in range(rng.integers(0, 4)):
            results.append(result(rng, image_id, int(rng.choice(categories)), random_box(rng)))
    coco = {
        "images": [
            {"id": image_id, "width": SIZE, "height": SIZE, "file_name": f"{image_id}.png"}
            for image_id in range(101, 101 + images)
        ],
        "annotations": annotations,
        "categories": [{"id": category, "name": f"kind {category}"} for category in categories],
    }
    return coco, results


def annotation(identity, image_id, category, box, crowd=0):
    """Return an annotation whose mask is an ellipse in its box (xywh)."""
    mask = encode(ellipse(box))
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "area": float(rle.area(mask)),
        "iscrowd": crowd,
        "segmentation": mask,
    }


def result(rng, image_id, category, box, score=None):
    """Return a COCO result; scores are coarse on purpose, so that ties occur."""
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "score": float(np.round(rng.random(), 1)) if score is None else score,
        "segmentation": encode(ellipse(box)),
    }


def random_box(rng):
    width, height = np.exp(rng.uniform(np.log(6), np.log(120), 2))
    x, y = rng.uniform(0, SIZE - width), rng.uniform(0, SIZE - height)
    return x, y, width, height


def jitter(rng, box):
    x, y, width, height = box
    return (
        x + rng.normal(0, 0.06) * width,
        y + rng.normal(0, 0.06) * height,
        width * np.exp(rng.normal(0, 0.08)),
        height * np.exp(rng.normal(0, 0.08)),
    )


def ellipse(box):
    x, y, width, height = box
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1


def encode(mask):
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
