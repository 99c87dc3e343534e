"""What is wrong with a sample of finished shards whose bytes are those that somebody wrote."""

from typing import Any

from shards.errors import CorruptSample
from shards.read import ShardDataset
from shards.validation.check_annotation import check_annotation
from shards.validation.check_image import MAX_PIXELS, decoding_faults
from shards.validation.source import ImageRow

AGAIN = "make the shards again"


def checked_sample(dataset: ShardDataset, place: int) -> tuple[dict[str, Any], list[str]]:
    """Return the KEY.json of a sample, and a line for damage that its image's decoder passes over.

    Image and annotations go through the checks that `mrrcnn shard` makes before it writes; its own pass.

    Raises:
        CorruptSample: with the first fault that keeps the sample from being trained on.
        BadInput: its shard cannot be read.
    """
    entry, name = dataset.entries[place], dataset.image_name(place)
    row = ImageRow(entry["image_id"], name, entry["width"], entry["height"], 0, 0, b"")
    complaints = []
    for severity, _, message, remedy in decoding_faults(
        dataset.image_bytes(place), row, _max_pixels(dataset)
    ):
        complaints.append(f"{name}: {message}; {remedy}")
        if severity == "error":
            raise CorruptSample(complaints[-1])
    tree = dataset.annotations(place)
    of_index = (row.image_id, row.width, row.height, entry["num_instances"])
    annotations = tree["annotations"] if isinstance(tree["annotations"], list) else []
    if (tree["image_id"], tree["width"], tree["height"], len(annotations)) != of_index:
        raise CorruptSample(f"{name}: its JSON is not that of its index; {AGAIN}")
    for annotation in annotations:
        _check(annotation, row, dataset.label_of)
    return tree, complaints


def _check(annotation: Any, row: ImageRow, labels: dict[int, int]) -> None:
    ids = [annotation.get(key) for key in ("id", "category_id")] if isinstance(annotation, dict) else [None]
    if any(type(found) is not int for found in ids) or ids[1] not in labels:
        raise CorruptSample(
            f"{row.file_name}: an annotation has no id, or no category of dataset.json; {AGAIN}"
        )
    _, findings = check_annotation(annotation, row, row.file_name, repair=False)
    for finding in findings:
        if finding.severity == "error":
            raise CorruptSample(finding.line)


def _max_pixels(dataset: ShardDataset) -> int:
    """Return how large an image may be: as large as `mrrcnn shard` was told."""
    source = dataset.description.get("source")
    told = source.get("max_pixels") if isinstance(source, dict) else None
    return told if type(told) is int else MAX_PIXELS
