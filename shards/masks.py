"""COCO segmentations as run lengths and as pixel masks: polygons, compressed and uncompressed runs."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from shards.errors import BadInput

NUMBERS = {int, float}


class RunLengths(TypedDict):
    """A mask in a hundredth of its size, in pycocotools' form: `[height, width]` and packed counts."""

    size: list[int]
    counts: bytes


def decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Return the mask, uint8 `[height, width]` of 0 and 1.

    Arguments and errors are those of `compress_mask`.
    """
    return coco_mask.decode(compress_mask(segmentation, height, width))


def compress_mask(segmentation: list | dict, height: int, width: int) -> RunLengths:
    """Return the mask as checked run lengths, which `coco_mask.decode` takes as they are.

    Args:
        segmentation: as in COCO: a list of polygons `[x, y, x, y, ...]` in pixels (their union), or
            `{"size": [h, w], "counts": list or str}`. An empty list gives an empty mask.
        height, width: of the image, in pixels.

    Raises:
        BadInput: no segmentation of an image of this size; the message names the fault, not the place.
    """
    if isinstance(segmentation, dict):
        return _compress_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise BadInput(f"segmentation is {type(segmentation).__name__}, neither a list of polygons nor RLE")
    if not segmentation:
        return _pack([height * width], height, width)
    for polygon in segmentation:
        _check_polygon(polygon, height, width)
    parts = coco_mask.frPyObjects(segmentation, height, width)
    # The union is taken on the run lengths: one decode, however many polygons.
    return parts[0] if len(parts) == 1 else coco_mask.merge(parts)


def measure_mask(segmentation: list | dict, height: int, width: int) -> list[float]:
    """Return x, y, width, height and area of the mask in pixels; zeros for an empty mask.

    Told from the run lengths: nothing is decoded. Arguments and errors are those of `compress_mask`.
    """
    runs = compress_mask(segmentation, height, width)
    area = float(coco_mask.area(runs))
    return [*coco_mask.toBbox(runs).tolist(), area] if area else [0.0] * 5


def run_lengths(counts: Sequence[int] | str | bytes) -> np.ndarray:
    """Return the lengths, int64 `[R]`, of the runs of 0, 1, 0, ... down the columns.

    Raises:
        BadInput: `counts` is neither whole numbers of 0 or more nor a COCO RLE string.
    """
    if isinstance(counts, str | bytes):
        return _unpack(counts)
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise BadInput("RLE counts hold something other than whole numbers")
    if any(not 0 <= count < 1 << 40 for count in counts):
        raise BadInput("RLE counts hold a run of negative or absurd length")
    return np.array(counts, np.int64)


def _compress_runs(segmentation: dict, height: int, width: int) -> RunLengths:
    size = segmentation.get("size")
    # Readers of COCO files stop at 30.0, and at True for 1.
    whole = isinstance(size, list | tuple) and all(type(side) is int for side in size)
    if not whole or list(size) != [height, width]:
        raise BadInput(f"RLE size is {repr(size)[:40]}, the image's [height, width] is [{height}, {width}]")
    if "counts" not in segmentation:
        raise BadInput("RLE counts are missing")
    runs = run_lengths(segmentation["counts"])
    if runs.sum() != height * width:
        raise BadInput(f"RLE counts add up to {runs.sum()}, the image has {height * width} pixels")
    return _pack(runs.tolist(), height, width)


def _pack(runs: list[int], height: int, width: int) -> RunLengths:
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _unpack(text: str | bytes) -> np.ndarray:
    """Undo COCO's packing: 5 bits a character from the low end, and from the fourth run on differences.

    Source: rleFrString in cocoapi/common/maskApi.c, which trusts its input; this one does not.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise BadInput("RLE counts hold characters that are not ASCII") from None
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise BadInput("RLE counts are damaged: a character out of range, or cut in the middle of a number")
    first = np.flatnonzero(np.concatenate([[True], codes[:-1] & 32 == 0]))
    digit = np.arange(len(codes)) - np.repeat(first, np.diff([*first, len(codes)]))
    if digit.max() > 7:
        raise BadInput("RLE counts hold a run of absurd length")
    numbers = np.add.reduceat((codes & 31) << 5 * digit, first)
    last = np.append(first[1:], len(codes)) - 1
    numbers -= np.where(codes[last] & 16, 1 << 5 * (digit[last] + 1), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0:
        raise BadInput("RLE counts are damaged: a run of negative length")
    return numbers


def _check_polygon(polygon: object, height: int, width: int) -> None:
    if not isinstance(polygon, list):
        raise BadInput("a polygon is no list of coordinates")
    if len(polygon) % 2:
        raise BadInput(f"a polygon has {len(polygon)} coordinates, an odd number")
    if len(polygon) < 6:
        raise BadInput(f"a polygon has {len(polygon) // 2} points, fewer than 3")
    if not NUMBERS.issuperset(map(type, polygon)):
        raise BadInput("a polygon holds something other than numbers")
    # Beyond this the rasteriser's integers overflow. NaN may hide from min and max, never from a sum.
    reach = 16 * (height + width)
    if not -reach <= min(polygon) <= max(polygon) <= reach or math.isnan(sum(polygon)):
        raise BadInput("a polygon has a coordinate that is not finite or far outside the image")
