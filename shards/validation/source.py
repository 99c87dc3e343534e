"""A COCO annotation file, read into a compact form: annotations are packed from here on, not objects."""

import gc
import hashlib
import json
import marshal
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.storage.files import encode_json
from shards.storage.remote import read_file, shown
from shards.validation.findings import Finding

MAX_IMAGE_ID = 10**12 - 1
MAX_NUMBER = 1e12
GZIP = b"\x1f\x8b"
# Far beyond COCO's 4 levels, far below where Python's JSON gives up, on whatever stack a reader stands.
MAX_DEPTH = 100
NOT_FINITE = "NaN or infinity"
TOO_DEEP = f"lists or objects nested deeper than {MAX_DEPTH} levels"
REPEATED = "entry dropped: it repeats the first one word for word"
UNCLEAR = (
    "is listed twice, as different images: which one its annotations belong to is unclear",
    "give each image its own id",
)


@dataclass(frozen=True)
class ImageRow:
    """One image of the source, its annotations packed; `num_broken` more are told in the findings."""

    image_id: int
    file_name: str
    width: int
    height: int
    num_annotations: int
    num_broken: int
    packed: bytes

    @property
    def annotations(self) -> list[dict]:
        """The annotation objects, in the source's order, unpacked anew."""
        return marshal.loads(self.packed)


@dataclass(frozen=True)
class Source:
    """A whole annotation file.

    Attributes:
        file: path or URL, for messages.
        rows: by increasing image id.
        findings: errors of ids and structure; what they concern is not among the rows.
        counts: "images" and "annotations" in the file.
        has_annotations: whether the file has an annotation list (test-dev's image_info has none).
    """

    file: str
    sha256: str
    categories: list[dict]
    rows: list[ImageRow]
    findings: list[Finding]
    counts: dict[str, int]
    has_annotations: bool


def read_source(path: str | Path) -> Source:
    """Return the images, annotations and categories of a COCO instances file.

    Raises:
        BadInput: no JSON, no COCO structure, no images, or category ids that are not unique: faults of the
            file as a whole, which skipping cannot pass over.
    """
    file = shown(path)
    with _collector_paused():
        return _read(path, file)


def _read(path: str | Path, file: str) -> Source:
    tree, sha256 = _load(path, file)
    images, annotations, categories = _parts(tree, file)
    findings: list[Finding] = []
    seats = _unique_images(images, file, findings)
    findings += _shared_files(seats, file) + _shared_names(categories, file)
    told = len(findings)
    grouped = _group(annotations, seats, {category["id"] for category in categories}, file, findings)
    broken = Counter(finding.image_id for finding in findings[told:])
    rows = [
        ImageRow(
            image_id,
            seats[image_id]["file_name"],
            seats[image_id]["width"],
            seats[image_id]["height"],
            len(grouped[image_id]),
            broken[image_id],
            # Not JSON, which takes fifteen times as long, nor pickle, which gives up on deep trees. By
            # version 2 the bytes depend on the values alone, and so may the cut into shards.
            marshal.dumps(grouped[image_id], 2),
        )
        for image_id in sorted(seats)
    ]
    counts = {"images": len(images), "annotations": len(annotations)}
    return Source(file, sha256, categories, rows, findings, counts, "annotations" in tree)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number of sane size."""
    # NaN is not below anything; isfinite would fail on a whole number beyond floats.
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Spare the garbage collector its walks through a tree that is all alive: a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(path: str | Path, file: str) -> tuple[dict, str]:
    try:
        content = read_file(path)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({_reason(error)}); give a COCO annotation file") from None
    except MemoryError:
        raise BadInput(f"{file}: does not fit into memory; cut it into several data sets") from None
    if content.startswith(GZIP):
        raise BadInput(f"{file}: is compressed by gzip; unpack it (gunzip)")
    try:
        tree = json.loads(content, object_pairs_hook=_object)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    except RecursionError:
        raise BadInput(f"{file}: is nested too deep; give a COCO annotation file") from None
    except MemoryError:
        raise BadInput(f"{file}: does not fit into memory; cut it into several data sets") from None
    except ValueError as error:
        # Python adds advice to programmers behind a semicolon.
        reason = str(error).partition(";")[0]
        raise BadInput(f"{file}: is not JSON ({reason}); give a COCO annotation file") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{file}: holds no JSON object; COCO has one with images, annotations, categories")
    return tree, hashlib.sha256(content).hexdigest()


def _reason(error: OSError) -> str:
    # Drivers of URLs give no reason but the URL, which the message has already.
    return error.strerror or ("no such file" if isinstance(error, FileNotFoundError) else str(error))


def _object(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object; of a name given twice Python's JSON would silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next((name for name, value in pairs if value != found[name]), None)
        if twice is not None:
            # The place in the file is not known here; most objects of COCO have an id.
            whose = f"the object with id {repr(found['id'])[:40]}" if "id" in found else "an object"
            raise BadInput(f"{whose} has two different values of {twice!r:.40}; leave one, or merge them")
    return found


def _parts(tree: dict, file: str) -> tuple[list, list, list[dict]]:
    lists = []
    for name in ("images", "annotations", "categories"):
        part = tree.get(name, [])
        if not isinstance(part, list):
            raise BadInput(f"{file}: {name!r} is no list; COCO has a list of objects there")
        lists.append(part)
    images, annotations, categories = lists
    if not images:
        raise BadInput(f"{file}: holds no images; the data set is empty, give one with images")
    if annotations and not categories:
        raise BadInput(f"{file}: has annotations and no categories; add the list that category_id is of")
    _check_categories(categories, file)
    return images, annotations, sorted(categories, key=lambda category: category["id"])


def _check_categories(categories: list, file: str) -> None:
    for place, category in enumerate(categories):
        if not _is_category(category):
            raise BadInput(f"{file}: category number {place} lacks a whole-number id or a name; add it")
        for name, what in unfit_fields(category).items():
            raise BadInput(f"{file}: category {category['id']}: {name!r:.40} holds {what}; remove it")
    twice = [key for key, count in Counter(category["id"] for category in categories).items() if count > 1]
    if twice:
        raise BadInput(f"{file}: category id {twice[0]} is used twice; give each category its own id")


def _is_category(category: Any) -> bool:
    if not isinstance(category, dict) or type(category.get("id")) is not int:
        return False
    named = isinstance(category.get("name"), str) and category["name"].strip()
    return bool(named) and abs(category["id"]) <= MAX_IMAGE_ID


def _unique_images(images: list, file: str, findings: list[Finding]) -> dict[int, dict]:
    ids = [_image_id(image) for image in images]
    unclear = _unclear_ids(images, ids)
    seats: dict[int, dict] = {}
    for place, (image, image_id) in enumerate(zip(images, ids, strict=True)):
        fault, repair = _image_fault(image, place), None
        if fault is None and image_id in unclear:
            fault = ("duplicate_image_id", *UNCLEAR)
        elif fault is None and image_id in seats:
            fault = ("duplicate_image_id", "is listed twice", "give each image its own id")
            repair = REPEATED
        if fault is not None:
            kind, message, remedy = fault
            findings.append(Finding("error", kind, file, message, remedy, image_id, repair=repair))
        else:
            seats[image_id] = image
    return seats


def _shared_files(seats: dict[int, dict], file: str) -> list[Finding]:
    """Return a warning for each image whose file another image of a smaller id has too."""
    first: dict[str, int] = {}
    findings = []
    for image_id in sorted(seats):
        name = posixpath.normpath(seats[image_id]["file_name"])
        other = first.setdefault(name, image_id)
        if other != image_id:
            message = f"has the file of image {other}, {name[:80]!r}"
            remedy = "leave one, with the annotations of both"
            findings.append(Finding("warning", "image_file_shared", file, message, remedy, image_id))
    return findings


def _shared_names(categories: list[dict], file: str) -> list[Finding]:
    first: dict[str, int] = {}
    findings = []
    for category in categories:
        other = first.setdefault(category["name"], category["id"])
        if other != category["id"]:
            message = f"category {category['id']} has the name of category {other}, {category['name'][:40]!r}"
            remedy = "merge them, unless they are different things"
            findings.append(Finding("warning", "category_name_shared", file, message, remedy))
    return findings


def _image_id(image: Any) -> int | None:
    return image["id"] if isinstance(image, dict) and type(image.get("id")) is int else None


def _unclear_ids(images: list, ids: list[int | None]) -> set[int]:
    """Return the ids that entries of different content share: their annotations may belong to any of them."""
    first: dict[int, dict] = {}
    unclear = set()
    for image, image_id in zip(images, ids, strict=True):
        if image_id is not None and not _same(image, first.setdefault(image_id, image)):
            unclear.add(image_id)
    return unclear


def _image_fault(image: Any, place: int) -> tuple[str, str, str] | None:
    if not isinstance(image, dict):
        return "image_malformed", f"image number {place} is no JSON object", "remove it"
    image_id = image.get("id")
    if type(image_id) is not int or not 0 <= image_id <= MAX_IMAGE_ID:
        value = repr(image_id)[:40]
        return (
            "image_malformed",
            f"image number {place} has id {value}",
            "use a whole number of at most 12 digits",
        )
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        return "image_malformed", "has no file_name", "add it"
    for side in ("width", "height"):
        if type(image.get(side)) is not int or not 0 < image[side] < 1 << 31:
            value = repr(image.get(side))[:40]
            return "image_malformed", f"has {side} {value}", "state the file's own size in pixels"
    return None


def _group(
    annotations: list, seats: dict[int, dict], categories: set[int], file: str, findings: list[Finding]
) -> dict[int, list[dict]]:
    grouped: dict[int, list[dict]] = {image_id: [] for image_id in seats}
    # An annotation of an image that was itself refused is not a second fault, but is still lost: say so.
    refused = {finding.image_id for finding in findings if finding.image_id is not None} - set(seats)
    seen: set[int] = set()
    for place, annotation in enumerate(annotations):
        fault = _annotation_fault(annotation, place, seats, categories, seen, refused)
        if fault is None:
            seen.add(annotation["id"])
            grouped[annotation["image_id"]].append(annotation)
        else:
            findings.append(_finding(annotation, fault, file, grouped))
    return grouped


def _finding(
    annotation: Any, fault: tuple[str, str, str], file: str, grouped: dict[int, list[dict]]
) -> Finding:
    kind, message, remedy = fault
    ids = annotation if isinstance(annotation, dict) else {}
    image_id, annotation_id = (
        ids.get(name) if _is_id(ids.get(name)) else None for name in ("image_id", "id")
    )
    twice = kind == "duplicate_annotation_id"
    repeats = twice and any(_same(annotation, other) for other in grouped.get(image_id, ()))
    repair = REPEATED if repeats else None
    return Finding("error", kind, file, message, remedy, image_id, annotation_id, repair=repair)


def _annotation_fault(
    annotation: Any, place: int, seats: dict, categories: set[int], seen: set[int], refused: set
) -> tuple[str, str, str] | None:
    if not isinstance(annotation, dict):
        return "annotation_malformed", f"annotation number {place} is no JSON object", "remove it"
    for name in ("id", "image_id", "category_id"):
        if not _is_id(annotation.get(name)):
            value = repr(annotation.get(name))[:40]
            return (
                "annotation_malformed",
                f"annotation number {place} has {name} {value}",
                "use a whole number",
            )
    if annotation["id"] in seen:
        return "duplicate_annotation_id", "is listed twice", "give each annotation its own id"
    if annotation["image_id"] in refused:
        return "image_refused", "belongs to an image that is refused itself", "mend the image"
    if annotation["image_id"] not in seats:
        return (
            "unknown_image",
            "belongs to an image that is not listed",
            "list the image or remove the annotation",
        )
    if annotation["category_id"] not in categories:
        value = annotation["category_id"]
        return "unknown_category", f"has category_id {value}, which is not listed", "add it to categories"
    return None


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= 1 << 62


def _same(one: dict, other: dict) -> bool:
    if one is other:
        return True
    encoded = encoded_or_none(one)
    return encoded is not None and encoded == encoded_or_none(other)


def encoded_or_none(tree: object) -> bytes | None:
    """Return the bytes of a tree, None of one that JSON or its readers cannot hold."""
    try:
        encoded = encode_json(tree)
    except (ValueError, RecursionError):
        return None
    # Counting brackets is cheap, and so few cannot nest too deep.
    brackets = encoded.count(b"[") + encoded.count(b"{")
    return None if brackets > MAX_DEPTH and _too_deep(tree) else encoded


def unfit_fields(tree: dict) -> dict[str, str]:
    """Return what each field holds that makes `encoded_or_none` give None: NOT_FINITE or TOO_DEEP."""
    fields = {name: {name: value} for name, value in tree.items()}
    return {
        name: TOO_DEEP if _too_deep(field) else NOT_FINITE
        for name, field in fields.items()
        if encoded_or_none(field) is None
    }


def _too_deep(tree: object) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        nodes = [node.values() if isinstance(node, dict) else node for node in level if _has_children(node)]
        level = [child for children in nodes for child in children]
    return any(_has_children(node) for node in level)


def _has_children(node: object) -> bool:
    return isinstance(node, dict | list)
