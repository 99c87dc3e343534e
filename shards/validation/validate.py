"""The checks that an image and its annotations pass on their way into a shard."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from shards.errors import BadInput
from shards.storage.files import encode_json
from shards.storage.folder import Folder
from shards.validation.check_annotation import check_annotation
from shards.validation.check_image import ImageFile, check_image, leads_out
from shards.validation.findings import ACTION, Finding
from shards.validation.source import ImageRow


@dataclass(frozen=True)
class Rules:
    """What is done about what is found.

    Attributes:
        file: the annotation file, for messages.
        annotated: whether it has an annotation list; then an image without annotations is worth a warning.
        max_pixels: width x height beyond which an image is an error and is not decoded.
        skip: leave out an image or annotation with an error. Without, such come back as "refused", and
            nothing should be kept of what is written: an annotation with an error is among it.
        repair: do what `Finding.repair` says.
    """

    file: str
    annotated: bool
    max_pixels: int
    skip: bool
    repair: bool


@dataclass(frozen=True)
class Record:
    """One sample as it lies in a shard: the image, and size and SHA-256 of its KEY.json."""

    image_id: int
    file_name: str
    width: int
    height: int
    num_instances: int
    image: ImageFile
    json_size: int
    json_sha256: str

    @property
    def key(self) -> str:
        """The name of the sample in its shard: the image id in 12 digits."""
        return f"{self.image_id:012d}"


class Sample(NamedTuple):
    """A record with the bytes of its image and of its KEY.json."""

    record: Record
    image: bytes
    json: bytes


def check_row(
    row: ImageRow, size: int | None, images: Folder, rules: Rules
) -> tuple[Sample | None, list[Finding]]:
    """Return the sample of an image, None if it has none, and all findings, each with what was done.

    Args:
        size: of the file in bytes when this was planned: -1 if there was none, None if nobody told.

    Raises:
        BadInput: the file has another size by now.
        OSError: the disk or the network fails, which says nothing of the image.
    """
    image, content, findings = check_image(row, images, rules.max_pixels)
    _check_unchanged(row, size, content, images)
    if image is None:
        told = "annotation goes" if row.num_annotations == 1 else "annotations go"
        lost = f" (its {row.num_annotations} {told} with it)" if row.num_annotations else ""
        return None, settled([replace(one, message=one.message + lost) for one in findings], rules)
    kept, found = _check_annotations(row, rules)
    findings += found
    if rules.annotated and not kept:
        findings.append(_emptiness(row, rules))
    return _sample(row, image, content, kept), settled(findings, rules)


def settled(findings: Iterable[Finding], rules: Rules) -> list[Finding]:
    """Return the findings, each with what the rules make of what would be refused."""
    if not rules.skip:
        return list(findings)
    return [replace(one, action="skipped") if one.action == "refused" else one for one in findings]


def source_findings(findings: Iterable[Finding], rules: Rules) -> list[Finding]:
    """Return the findings of entries that `read_source` left out, each with what that was."""
    done = [
        replace(one, action=one.repair if rules.repair and one.repair else ACTION[one.severity])
        for one in findings
    ]
    return settled(done, rules)


def _check_unchanged(row: ImageRow, size: int | None, content: bytes, images: Folder) -> None:
    if size is None or (not content and leads_out(row.file_name)):
        return
    # A file that was not read, for its name or for want of a right to, has no content.
    now = len(content) if content else images.size(row.file_name)
    if now != size:
        name = images.name_of(row.file_name)
        raise BadInput(f"{name}: image {row.image_id} changed while it was sharded; run it again")


def _emptiness(row: ImageRow, rules: Rules) -> Finding:
    kind, message = "image_empty", "has no annotation"
    remedy = "nothing, if nothing is in it: it trains as background"
    if listed := row.num_annotations + row.num_broken:
        kind, message = "image_emptied", f"keeps no annotation of {listed}"
        remedy = "mend one or remove the image: it trains as background"
    return Finding("warning", kind, rules.file, message, remedy, row.image_id)


def _check_annotations(row: ImageRow, rules: Rules) -> tuple[list[bytes], list[Finding]]:
    kept, findings, sound = [], [], []
    for annotation in row.annotations:
        encoded, found = check_annotation(annotation, row, rules.file, rules.repair)
        findings += found
        refused = any(finding.action == "refused" for finding in found)
        if encoded is not None and not (rules.skip and refused):
            kept.append(encoded)
            sound.append(annotation)
    return kept, [*findings, *_repeats(sound, row.image_id, rules.file)]


def _repeats(annotations: list[dict], image_id: int, file: str) -> list[Finding]:
    """Return a warning for each annotation that is another one of the image but for its id."""
    alike: dict[str, list[dict]] = {}
    findings = []
    for annotation in annotations:
        # Few share a box; comparing those is cheap, and encoding every annotation once more is not.
        others = alike.setdefault(repr(annotation.get("bbox")), [])
        same = next((one for one in others if {**one, "id": 0} == {**annotation, "id": 0}), None)
        others.append(annotation)
        if same is not None:
            message = f"repeats annotation {same['id']} under another id"
            remedy = "remove one: it is counted twice"
            ids = (image_id, annotation["id"])
            findings.append(Finding("warning", "annotation_repeated", file, message, remedy, *ids))
    return findings


def _sample(row: ImageRow, image: ImageFile, content: bytes, annotations: list[bytes]) -> Sample:
    # The annotations are encoded already; they are joined in, not parsed and encoded again.
    head = encode_json({"file_name": row.file_name, "height": row.height, "image_id": row.image_id})
    text = b'{"annotations":[%b],%b,"width":%d}' % (b",".join(annotations), head[1:-1], row.width)
    record = Record(
        row.image_id,
        row.file_name,
        row.width,
        row.height,
        len(annotations),
        image,
        len(text),
        hashlib.sha256(text).hexdigest(),
    )
    return Sample(record, content, text)
