"""Segmentations in other forms than COCO's, as some programs write them, and what they mean in COCO's."""

from typing import Any

# Coordinates of a triangle.
SHORTEST = 6
NUMBERS = {int, float}


def in_cocos_form(segmentation: Any) -> tuple[Any, str | None]:
    """Return a segmentation in COCO's form and what is said of it as it is, None where COCO's own words do.

    Only what can mean nothing else is changed: an RLE in a list, whole numbers written as 30.0, counts as
    Python writes its bytes, one polygon without the list around it, points `[x, y]` for coordinates, polygons
    of fewer than 3 points beside others. Any other segmentation comes back as it is. Whether the result is a
    mask is for the caller to try.
    """
    if isinstance(segmentation, dict):
        python = _is_python(segmentation.get("counts"))
        form = (
            "counts as Python writes bytes, b'...'"
            if python
            else "numbers that are not written as whole ones"
        )
        return _in_json(segmentation), f"is an RLE with {form}"
    if not isinstance(segmentation, list):
        return segmentation, None
    if len(segmentation) == 1 and isinstance(segmentation[0], dict):
        lone = segmentation[0].keys() == {"size", "counts"}
        return _in_json(segmentation[0]) if lone else segmentation, "is an RLE in a list"
    if _are_numbers(segmentation):
        return [segmentation], "is one polygon without a list around it"
    if _are_points(segmentation):
        return _joined([segmentation]), "is a list of points [x, y]; a polygon is [x, y, x, y, ...]"
    if all(map(_are_points, segmentation)):
        return _joined(segmentation), "has polygons of points [x, y]; a polygon is [x, y, x, y, ...]"
    return _without_lines(segmentation), None


def _is_python(counts: Any) -> bool:
    # No quotation mark is a character of packed counts.
    return (
        isinstance(counts, str) and len(counts) > 3 and counts[:2] in ("b'", 'b"') and counts[1] == counts[-1]
    )


def _in_json(runs: dict) -> dict:
    found = {name: _whole(value) if isinstance(value, list) else value for name, value in runs.items()}
    if _is_python(runs.get("counts")):
        # Of what Python writes otherwise than it is, packed counts hold the backslash only.
        found["counts"] = runs["counts"][2:-1].replace("\\\\", "\\")
    return found


def _whole(numbers: list) -> list:
    return [int(number) if type(number) is float and number.is_integer() else number for number in numbers]


def _are_numbers(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and NUMBERS.issuperset(map(type, part))


def _are_points(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(_are_numbers(p) and len(p) == 2 for p in part)


def _joined(polygons: list) -> list:
    return _without_lines([[number for point in polygon for number in point] for polygon in polygons])


def _without_lines(polygons: list) -> list:
    """Leave out what has no area, where something is left: a point or a line covers no pixel."""
    return [p for p in polygons if not isinstance(p, list) or len(p) % 2 or len(p) >= SHORTEST] or polygons
