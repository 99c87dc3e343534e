"""The repairs of an annotation that are certain: everything that its mask decides."""

from dataclasses import replace
from typing import Any, NamedTuple

from shards.validation.findings import Finding
from shards.validation.source import ImageRow

BOX_FROM_MASK = {"box_malformed", "box_outside", "box_zero_size", "bbox_disagrees"}
AREA_FROM_MASK = {"area_malformed", "area_disagrees", "area_missing"}
DROPPED = "annotation dropped"
# Of an annotation that has a mask: in the form that COCO has, or of the polygons that are left.
SEGMENTATION = {
    "segmentation_form": "segmentation written in COCO's form",
    "polygon_short": "polygons of fewer than 3 points left out, the others kept",
}


class Mask(NamedTuple):
    """What an annotation's mask decides: its segmentation in COCO's form, x, y, width, height, area in px."""

    segmentation: Any
    box: list[float]
    area: float


def repaired(
    annotation: dict, findings: list[Finding], mask: Mask | None, row: ImageRow
) -> tuple[dict | None, list[Finding]]:
    """Return the annotation mended, or None if it has to go, and the findings with what that does for each.

    The segmentation is written in COCO's form. A box past the edge is clipped; a box or an area that is wrong
    or disagrees with the mask is taken from it; an annotation without a usable mask is dropped. What else is
    wrong stays as it was.

    Args:
        mask: of the annotation, or None without a usable one.
    """
    if mask is None:
        return None, [replace(finding, repair=DROPPED) for finding in findings]
    kinds = {finding.kind for finding in findings}
    mended, done = {**annotation, "segmentation": mask.segmentation}, dict(SEGMENTATION)
    if "box_past_edge" in kinds:
        mended["bbox"] = _clipped(annotation["bbox"], row)
        done["box_past_edge"] = f"bbox clipped to {mended['bbox']}"
    if kinds & BOX_FROM_MASK:
        mended["bbox"] = mask.box
        # That of a clipped box as well: what was done is what is in the shard.
        done |= dict.fromkeys(
            BOX_FROM_MASK | {"box_past_edge"}, f"bbox taken from the mask: {mended['bbox']}"
        )
    if kinds & AREA_FROM_MASK:
        mended["area"] = mask.area
        done |= dict.fromkeys(AREA_FROM_MASK, f"area taken from the mask: {mended['area']:.0f}")
    return mended, [replace(finding, repair=done.get(finding.kind)) for finding in findings]


def _clipped(box: list[float], row: ImageRow) -> list[float]:
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, row.width) - left, min(y + h, row.height) - top]
