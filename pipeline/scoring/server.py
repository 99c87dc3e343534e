"""The archive that the COCO evaluation server takes for test-dev, and whether a file is one.

Named `detections_test-dev2017_ALG_results.zip`, with one member, the same name ending in .json: a list of
results with bbox and segmentation, so that one file serves both tasks. Source: cocodataset.org, "Upload".
"""

import io
import json
import math
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from shards.errors import BadInput
from shards.masks import compress_mask
from shards.storage.files import encode_json, write_atomic

NAME = re.compile(r"detections_test-dev2017_[A-Za-z0-9.-]+(?:_[A-Za-z0-9.-]+)*_results")
MOST_AN_IMAGE = 100


def server_name(algorithm: str) -> str:
    """Return the archive's name without its ending; what the server may not like becomes a dash."""
    return f"detections_test-dev2017_{re.sub(r'[^A-Za-z0-9.]+', '-', algorithm).strip('-')}_results"


def write_server_zip(out: Path, results: list[dict[str, Any]], algorithm: str = "mrrcnn") -> Path:
    """Return the archive of COCO results, written to `out`; equal results make equal bytes."""
    name = server_name(algorithm)
    # ZipInfo's own fixed date keeps the archive the same for the same results.
    member = zipfile.ZipInfo(f"{name}.json")
    member.compress_type = zipfile.ZIP_DEFLATED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, encode_json(results))
    path = out / f"{name}.zip"
    write_atomic(path, buffer.getvalue())
    return path


def check_server_zip(path: Path, images: dict[int, tuple[int, int]], categories: set[int]) -> int:
    """Return how many results an archive holds.

    Args:
        path: of the archive.
        images: image id -> (height, width) of every image of the test set.
        categories: ids that the test set knows.

    Raises:
        BadInput: the server would not take it; names the file, the result and what is wrong with it.
    """
    if path.suffix != ".zip" or not NAME.fullmatch(path.stem):
        raise BadInput(f"{path}: is not named detections_test-dev2017_ALG_results.zip; rename it")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [f"{path.stem}.json"]:
                held = ", ".join(archive.namelist()) or "nothing"
                raise BadInput(f"{path}: holds {held}; it must hold {path.stem}.json alone")
            results = json.loads(archive.read(f"{path.stem}.json"))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: cannot be read ({error}); write it again") from None
    if not isinstance(results, list):
        raise BadInput(f"{path}: holds no list of results; write it again")
    for place, result in enumerate(results):
        if wrong := _fault(result, images, categories):
            raise BadInput(f"{path}: result {place}: {wrong}; write it again")
    for image, number in Counter(result["image_id"] for result in results).items():
        if number > MOST_AN_IMAGE:
            raise BadInput(f"{path}: image {image} has {number} results, more than 100; lower test.topk")
    return len(results)


def _fault(result: Any, images: dict[int, tuple[int, int]], categories: set[int]) -> str | None:
    if not isinstance(result, dict):
        return "is no object"
    missing = {"image_id", "category_id", "bbox", "segmentation", "score"} - result.keys()
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    if type(result["image_id"]) is not int or result["image_id"] not in images:
        return f"image_id {result['image_id']!r} is not in the test set"
    if type(result["category_id"]) is not int or result["category_id"] not in categories:
        return f"category_id {result['category_id']!r} is not in the test set"
    if not _numbers([result["score"]]) or not 0 <= result["score"] <= 1:
        return f"score {result['score']!r} is not from 0 to 1"
    box = result["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not _numbers(box) or min(box[2:]) < 0:
        return f"bbox {box!r} is not [x, y, width, height]"
    return _mask_fault(result["segmentation"], images[result["image_id"]])


def _mask_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str):
        return "segmentation is not compressed RLE with counts as a string"
    try:
        rle.area(compress_mask(segmentation, *size))
    except BadInput as error:
        return f"segmentation: {error}"
    return None


def _numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
