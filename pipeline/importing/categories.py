"""What the class rows of a checkpoint stand for."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from shards.errors import BadInput

Category = dict[str, Any]

UNUSED = "N/A"
# COCO's 80 categories by id; the numbers left out were never used.
COCO_NAMES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
    9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
    16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
    24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
    34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
    40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana",
    53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table",
    70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone",
    78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock",
    86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
# What class row 1, 2, ... of a COCO model stands for: the used ids in turn, or every id.
NUMBERED_ON = [{"id": key, "name": name} for key, name in COCO_NAMES.items()]
BY_ID = [{"id": key, "name": COCO_NAMES.get(key, UNUSED)} for key in range(1, 91)]


def numbered_categories(count: int) -> list[Category]:
    """Return categories 1 to `count` without better names."""
    return [{"id": number, "name": f"class {number}"} for number in range(1, count + 1)]


def read_categories(path: str | Path) -> list[Category]:
    """Return the categories of a COCO annotation file, or of a JSON list of {"id", "name"}, by increasing id.

    Raises:
        BadInput: no such file, no JSON, or no categories with ids from 1 that differ, and names.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a COCO annotation file") from None
    except ValueError as error:
        raise BadInput(f"{path}: is no JSON ({error}); give a COCO annotation file") from None
    listed = tree.get("categories") if isinstance(tree, dict) else tree
    if not isinstance(listed, list) or not listed or not all(_is_category(item) for item in listed):
        raise BadInput(
            f'{path}: holds no list of categories, each {{"id": 1 or more, "name": ...}}; '
            "give a COCO annotation file or such a list"
        )
    found = sorted(({"id": item["id"], "name": item["name"]} for item in listed), key=lambda item: item["id"])
    for one, other in pairwise(found):
        if one["id"] == other["id"]:
            raise BadInput(f"{path}: has category {one['id']} twice; give each its own id")
    return found


def _is_category(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return False
    return type(item.get("id")) is int and item["id"] >= 1
