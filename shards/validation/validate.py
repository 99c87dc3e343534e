"""The checks that a COCO data set passes before anything of it is written."""

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from tqdm import tqdm

from shards.errors import BadInput
from shards.pool import Spread
from shards.storage.files import encode_json
from shards.storage.folder import Folder, LocalFolder
from shards.validation.check_annotation import check_annotation
from shards.validation.check_image import ImageFile, check_image
from shards.validation.findings import ACTION, Finding
from shards.validation.source import ImageRow, Source

CHUNK = 64
# Starting a process costs about as much as checking this many chunks.
CHUNKS_A_WORKER = 4


@dataclass(frozen=True)
class Record:
    """One image as it goes into a shard: its file, and the bytes of its KEY.json with their SHA-256."""

    image_id: int
    file_name: str
    width: int
    height: int
    num_instances: int
    image: ImageFile
    json: bytes
    json_sha256: str

    @property
    def key(self) -> str:
        """The name of the sample in its shard: the image id in 12 digits."""
        return f"{self.image_id:012d}"


def validate(
    source: Source, images: Folder, *, max_pixels: int, on_bad: str, repair: bool, spread: Spread
) -> tuple[list[Record], list[Finding]]:
    """Return the records to write, by increasing image id, and all findings, each with what was done.

    Every image is decoded and every mask rasterised. With `on_bad="fail"` errors come back as "refused"
    (their images and annotations are among the records all the same: nothing should be written); with
    "skip" the image or annotation is left out.

    Args:
        spread: a `map` in order, over chunks of images.
    """
    rename = {"refused": "skipped"} if on_bad == "skip" else {}
    findings = [_settled(finding, repair) for finding in source.findings]
    records = []
    check = partial(
        _check_rows,
        images=images,
        max_pixels=max_pixels,
        file=source.file,
        repair=repair,
        skip=on_bad == "skip",
        annotated=source.has_annotations,
    )
    # None: on a terminal only.
    with tqdm(total=len(source.rows), desc="checking", unit=" images", disable=None) as progress:
        for chunk_records, chunk_findings in spread(check, _chunks(source.rows)):
            records += chunk_records
            findings += chunk_findings
            progress.update(min(CHUNK, len(source.rows) - progress.n))
    return records, [replace(f, action=rename.get(f.action, f.action)) for f in findings]


def useful_workers(images: int) -> int:
    """Return how many processes are worth their start for so many images."""
    return max(1, images // (CHUNK * CHUNKS_A_WORKER))


def _chunks(rows: list[ImageRow]) -> Iterator[list[ImageRow]]:
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK]


def _settled(finding: Finding, repair: bool) -> Finding:
    """Say by which right an entry that is broken as such was left out already."""
    return replace(finding, action=finding.repair if repair and finding.repair else ACTION[finding.severity])


def _check_rows(
    rows: list[ImageRow],
    images: Folder,
    max_pixels: int,
    file: str,
    repair: bool,
    skip: bool,
    annotated: bool,
) -> tuple[list[Record], list[Finding]]:
    if isinstance(images, LocalFolder) and not images.exists():
        # It was there before; but this may be another machine.
        raise BadInput(
            f"{images}: is no folder on {socket.gethostname()}; put the images where every machine that "
            "shards sees them, or shard on one machine"
        )
    records, findings = [], []
    for row in rows:
        image, found = check_image(row, images, max_pixels)
        if image is None:
            lost = f" (its {row.num_annotations} annotations go with it)" if row.num_annotations else ""
            findings += [replace(finding, message=finding.message + lost) for finding in found]
            continue
        findings += found
        kept, found = _check_annotations(row, file, repair, skip)
        findings += found
        if annotated and not row.num_annotations:
            remedy = "nothing, if nothing is in it: it trains as background"
            findings.append(
                Finding("warning", "image_empty", file, "has no annotation", remedy, row.image_id)
            )
        records.append(_record(row, image, kept))
    return records, findings


def _check_annotations(
    row: ImageRow, file: str, repair: bool, skip: bool
) -> tuple[list[bytes], list[Finding]]:
    kept, findings, sound = [], [], []
    for annotation in row.annotations:
        encoded, found = check_annotation(annotation, row, file, repair)
        findings += found
        refused = any(finding.action == "refused" for finding in found)
        if encoded is not None and not (skip and refused):
            kept.append(encoded)
            sound.append(annotation)
    return kept, [*findings, *_repeats(sound, row.image_id, file)]


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


def _record(row: ImageRow, image: ImageFile, annotations: list[bytes]) -> Record:
    # The annotations are encoded already; they are joined in, not parsed and encoded again.
    head = encode_json({"file_name": row.file_name, "height": row.height, "image_id": row.image_id})
    text = b'{"annotations":[%b],%b,"width":%d}' % (b",".join(annotations), head[1:-1], row.width)
    size, checksum = (row.width, row.height), hashlib.sha256(text).hexdigest()
    return Record(row.image_id, row.file_name, *size, len(annotations), image, text, checksum)
