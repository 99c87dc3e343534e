"""A COCO ground truth and results on it of COCO's own size, drawn at random: made, not predicted."""

from typing import Any

import numpy as np
from pycocotools import mask as rle

CATEGORIES = 80
HEIGHT, WIDTH = 480, 640
# COCO val2017 has 36,781 annotations on 5,000 images, one in a hundred of them a crowd.
INSTANCES_AN_IMAGE, CROWDS = 7.36, 0.01
CORNERS = 24


def made_case(images: int, detections: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (COCO ground truth, COCO results) of `images` images with `detections` results each.

    Half of an image's results lie about one of its instances, more or less well and mostly of its
    category; the others anywhere. Masks are blobs, as RLE. Equal arguments give equal cases.
    """
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        members = _instances(rng, image_id, len(annotations))
        annotations += members
        results += [_result(rng, image_id, members) for _ in range(detections)]
    truth = {
        "images": [
            {"id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"{number}.jpg"}
            for number in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"kind {number}"} for number in range(1, CATEGORIES + 1)],
    }
    return truth, results


def _instances(rng, image_id, before):
    kinds = rng.integers(1, CATEGORIES + 1, 3)
    found = []
    for number in range(rng.poisson(INSTANCES_AN_IMAGE)):
        segmentation = _blob(rng, _box(rng))
        found.append(
            {
                "id": before + number + 1,
                "image_id": image_id,
                "category_id": int(rng.choice(kinds)),
                "bbox": rle.toBbox(segmentation).tolist(),
                "area": float(rle.area(segmentation)),
                "iscrowd": int(rng.random() < CROWDS),
                "segmentation": _text(segmentation),
            }
        )
    return found


def _result(rng, image_id, members):
    near = members and rng.random() < 0.5
    box, category = _box(rng), int(rng.integers(1, CATEGORIES + 1))
    if near:
        member = members[rng.integers(len(members))]
        box = np.array(member["bbox"]) + rng.normal(0, 6, 4)
        box[2:] = box[2:].clip(4)
        category = member["category_id"] if rng.random() < 0.9 else category
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": box.tolist(),
        "score": float(rng.beta(2, 2) if near else rng.beta(1, 4)),
        "segmentation": _text(_blob(rng, box)),
    }


def _box(rng):
    # Sides as COCO's: many small, few large.
    side = np.exp(rng.uniform(np.log(12), np.log(360), 2))
    corner = rng.uniform(0, 1, 2) * np.maximum(np.array([WIDTH, HEIGHT]) - side, 1)
    return np.concatenate([corner, side])


def _blob(rng, box):
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = rng.uniform(0.7, 1.0, CORNERS) / 2
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + 0.5
    polygon = (points * box[2:] + box[:2]).clip(0, [WIDTH, HEIGHT])
    return rle.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH)[0]


def _text(segmentation):
    return {"size": list(segmentation["size"]), "counts": segmentation["counts"].decode("ascii")}
