"""The repairs of an annotation that are certain: everything that its mask decides."""

from dataclasses import replace

from shards.validation.findings import Finding
from shards.validation.source import ImageRow

BOX_FROM_MASK = {"box_malformed", "box_outside", "box_zero_size", "bbox_disagrees"}
AREA_FROM_MASK = {"area_malformed", "area_disagrees", "area_missing"}
DROPPED = "annotation dropped"


def repaired(
    annotation: dict, findings: list[Finding], measured: list[float] | None, row: ImageRow
) -> tuple[dict | None, list[Finding]]:
    """Return the annotation mended, or None if it has to go, and the findings with what that does for each.

    A box past the edge is clipped; a box or an area that is wrong or disagrees with the mask is taken from
    it; an annotation without a usable mask is dropped. What else is wrong stays as it was.

    Args:
        measured: x, y, width, height and area of the mask in pixels, or None without a usable mask.
    """
    if measured is None:
        return None, [replace(finding, repair=DROPPED) for finding in findings]
    kinds = {finding.kind for finding in findings}
    mended, done = dict(annotation), {}
    if "box_past_edge" in kinds:
        mended["bbox"] = _clipped(annotation["bbox"], row)
        done["box_past_edge"] = f"bbox clipped to {mended['bbox']}"
    if kinds & BOX_FROM_MASK:
        mended["bbox"] = measured[:4]
        # That of a clipped box as well: what was done is what is in the shard.
        done |= dict.fromkeys(
            BOX_FROM_MASK | {"box_past_edge"}, f"bbox taken from the mask: {mended['bbox']}"
        )
    if kinds & AREA_FROM_MASK:
        mended["area"] = measured[4]
        done |= dict.fromkeys(AREA_FROM_MASK, f"area taken from the mask: {mended['area']:.0f}")
    return mended, [replace(finding, repair=done.get(finding.kind)) for finding in findings]


def _clipped(box: list[float], row: ImageRow) -> list[float]:
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, row.width) - left, min(y + h, row.height) - top]
