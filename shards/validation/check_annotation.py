"""Whether an annotation agrees with its image and with itself."""

from dataclasses import replace
from typing import Any

from shards.errors import BadInput
from shards.masks import measure_mask
from shards.storage.files import encode_json
from shards.validation.findings import ACTION, Finding
from shards.validation.forms import in_cocos_form
from shards.validation.repair import Mask, repaired
from shards.validation.source import NOT_FINITE, ImageRow, encoded_or_none, is_number, unfit_fields

AREA_SHARE, AREA_PX = 0.15, 30
BBOX_PX = 3
# Rounding in the last digit is no fault.
EDGE_PX = 1e-3
# Thinner boxes have no area in float32.
MIN_SIDE_PX = 1e-2
# NaN in these is told by their own checks, and the mask may decide what to put there.
CHECKED = {"bbox", "area", "segmentation"}

# (severity, kind, message, remedy)
Fault = tuple[str, str, str, str]


def check_annotation(
    annotation: dict, row: ImageRow, file: str, repair: bool
) -> tuple[bytes | None, list[Finding]]:
    """Return the annotation as it goes into the shard, None if it cannot or is dropped, and its findings.

    Errors come back with action "refused", the annotation still there: what to do about them is the
    caller's. Each finding says what the certain repairs make of it; with `repair` they are done.
    """
    encoded = encoded_or_none(annotation)
    unfit = [] if encoded is not None else _unfit(annotation)
    faults, mask = (unfit, None) if unfit else _faults(annotation, row)
    if not faults:
        return encoded, []
    ids = {"image_id": row.image_id, "annotation_id": annotation["id"]}
    findings = [
        Finding(severity, kind, file, message, remedy, action=ACTION[severity], **ids)
        for severity, kind, message, remedy in faults
    ]
    if unfit:
        return None, findings
    mended, findings = repaired(annotation, findings, mask, row)
    if not repair:
        return encoded, findings
    findings = [replace(finding, action=finding.repair or finding.action) for finding in findings]
    return None if mended is None else encode_json(mended), findings


def _unfit(annotation: dict) -> list[Fault]:
    """Return a fault for each field that JSON or its readers cannot hold, and no other check tells of."""
    return [
        ("error", "not_finite", f"{name!r:.40} holds {what}", "correct or remove it")
        for name, what in unfit_fields(annotation).items()
        if what != NOT_FINITE or not _is_checked(name, annotation[name])
    ]


def _is_checked(name: str, value: object) -> bool:
    return name in CHECKED and not (isinstance(value, dict) and value.keys() - {"size", "counts"})


def _faults(annotation: dict, row: ImageRow) -> tuple[list[Fault], Mask | None]:
    """Return all faults of an annotation, and its mask if that can be used."""
    faults = _box_faults(annotation.get("bbox"), row) + _flag_faults(annotation)
    mask, fault = _mask(annotation.get("segmentation"), row)
    faults += fault
    if mask is None:
        return faults, None
    kinds = {kind for severity, kind, *_ in faults if severity == "error"}
    if "area_malformed" not in kinds:
        faults += _area_disagreement(annotation.get("area"), mask.area)
    if not kinds & {"box_malformed", "box_outside"}:
        faults += _box_disagreement(annotation["bbox"], mask.box)
    return faults, mask


def _mask(segmentation: Any, row: ImageRow) -> tuple[Mask | None, list[Fault]]:
    remedy = "draw it again or remove the annotation"
    if not segmentation:
        add = "add a polygon or an RLE, or remove the annotation"
        return None, [("error", "segmentation_missing", "has no segmentation", add)]
    try:
        mask, faults = _measured(segmentation, row), []
    except BadInput as error:
        mask, faults = _meant(segmentation, str(error), row)
        if mask is None:
            return None, [("error", _segmentation_kind(str(error)), str(error), remedy)]
    if not mask.area:
        return None, [*faults, ("warning", "mask_empty", "its mask covers no pixel of the image", remedy)]
    return mask, faults


def _measured(segmentation: Any, row: ImageRow) -> Mask:
    *box, area = measure_mask(segmentation, row.height, row.width)
    return Mask(segmentation, box, area)


def _meant(segmentation: Any, refusal: str, row: ImageRow) -> tuple[Mask | None, list[Fault]]:
    """Return the mask of what can be meant by a segmentation that was refused, and the fault that it is."""
    meant, form = in_cocos_form(segmentation)
    try:
        mask = _measured(meant, row)
    except BadInput:
        return None, []
    if form is None:
        return mask, [("error", _segmentation_kind(refusal), refusal, "leave it out (--repair)")]
    return mask, [("error", "segmentation_form", f"segmentation {form}", "write it as COCO does (--repair)")]


def _segmentation_kind(message: str) -> str:
    for words, kind in (
        ("an odd number", "polygon_odd"),
        ("fewer than 3", "polygon_short"),
        ("RLE size", "rle_size"),
        ("RLE counts", "rle_counts"),
    ):
        if words in message:
            return kind
    return "segmentation_malformed"


def _box_faults(box: object, row: ImageRow) -> list[Fault]:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(number) for number in box):
        return [
            ("error", "box_malformed", f"bbox is {repr(box)[:60]}", "give [x, y, width, height] in pixels")
        ]
    x, y, w, h = box
    if w < 0 or h < 0:
        return [("error", "box_malformed", f"bbox {box} has a negative size", "give [x, y, width, height]")]
    image = f"the image of {row.width} x {row.height}"
    touches = x < row.width and y < row.height and x + w > 0 and y + h > 0
    if (w * h > 0 and not touches) or x > row.width or y > row.height or x + w < 0 or y + h < 0:
        return [("error", "box_outside", f"bbox {box} lies outside {image}", "correct or remove it")]
    faults = []
    if w < MIN_SIDE_PX or h < MIN_SIDE_PX:
        faults.append(("warning", "box_zero_size", f"bbox {box} has no area", "correct or remove it"))
    if min(x, y) < -EDGE_PX or x + w > row.width + EDGE_PX or y + h > row.height + EDGE_PX:
        faults.append(
            ("warning", "box_past_edge", f"bbox {box} reaches out of {image}", "clip it (--repair)")
        )
    return faults


def _flag_faults(annotation: dict) -> list[Fault]:
    faults = []
    if annotation.get("iscrowd", 0) not in (0, 1):
        faults.append(("error", "annotation_malformed", "iscrowd is neither 0 nor 1", "correct it"))
    if not is_number(annotation.get("area", 0)):
        message = f"area is {repr(annotation['area'])[:60]}, no number"
        faults.append(
            ("error", "area_malformed", message, "give it in pixels, or take it from the mask (--repair)")
        )
    return faults


def _area_disagreement(area: float | None, measured: float) -> list[Fault]:
    remedy = "take it from the mask (--repair)"
    if area is None:
        return [("warning", "area_missing", "has no area", remedy)]
    off = abs(area - measured)
    if area < 0 or (off > AREA_SHARE * area and off > AREA_PX):
        return [("warning", "area_disagrees", f"area is {area}, its mask covers {measured:.0f} px", remedy)]
    return []


def _box_disagreement(box: list[float], measured: list[float]) -> list[Fault]:
    if max(abs(one - other) for one, other in zip(box, measured, strict=True)) <= BBOX_PX:
        return []
    message = f"bbox is {box}, its mask's is {measured}"
    return [("warning", "bbox_disagrees", message, "take it from the mask (--repair)")]
