"""What an earlier call left in the target of shards: nothing, a part, or all of what is asked for."""

import hashlib
import json
from typing import Any

from shards.description import DESCRIPTION, is_intact
from shards.errors import BadInput
from shards.index import index_name
from shards.source_images import LIST
from shards.storage.files import encode_json
from shards.storage.folder import Folder, LocalFolder
from shards.tars import remove_shards
from shards.validation.check_image import check_image, leads_out
from shards.validation.source import Source

FIELDS = {"severity", "kind", "image_id", "annotation_id", "action"}
PROGRESS = "progress.json"
REPORT = "report.json"


def finished(out: Folder, identity: dict[str, Any]) -> dict | None:
    """Return the description of what is finished there, None if it is to be begun or gone on with.

    Raises:
        BadInput: what is finished there is of another source, or made with other options.
    """
    if not out.has(DESCRIPTION):
        return None
    description = _json_of(out, DESCRIPTION)
    if description.get("source") != identity:
        raise BadInput(
            f"{out}: holds shards of another source or other options; choose another --out or delete it "
            "(in a run directory: --redo shard)"
        )
    # Left by a call that was killed, or found the disk full, at its very last step.
    out.remove(PROGRESS)
    return description if _is_whole(out, description) else None


def begin(out: Folder, identity: dict[str, Any]) -> None:
    """Note what is being made; what another call began to make, and did not finish, is removed."""
    if out.has(PROGRESS):
        earlier = _json_of(out, PROGRESS)
        if earlier != identity and isinstance(earlier.get("name"), str):
            remove_shards(earlier["name"], out)
    out.remove(REPORT)
    out.write(PROGRESS, encode_json(identity))
    out.remove(DESCRIPTION)


def abandon(out: Folder, identity: dict[str, Any]) -> None:
    """Remove what has been made so far."""
    remove_shards(identity["name"], out)
    for file in (LIST, PROGRESS):
        out.remove(file)


def images_changed(source: Source, images: Folder, out: Folder, max_pixels: int) -> bool:
    """Return whether finished shards may be of other images than those there now, of the same sizes.

    Their times tell, where both are local; they are compared with that of dataset.json, in which they cannot
    be written: the same images give the same bytes. Else only the images that were found bad are looked at.
    """
    rows = [row for row in source.rows if not leads_out(row.file_name)]
    if isinstance(images, LocalFolder) and isinstance(out, LocalFolder):
        return images.changed_since((row.file_name for row in rows), out, DESCRIPTION)
    bad = _refused_images(out)
    return any(check_image(row, images, max_pixels)[0] for row in rows if row.image_id in bad)


def _is_whole(out: Folder, description: dict) -> bool:
    """Whether every shard and every index is there to the last byte, the description, and its report."""
    try:
        report = _json_of(out, REPORT)
        told = {"images": description["images"], "annotations": description["instances"]}
        if report["kept"] != told or not all(finding.keys() >= FIELDS for finding in report["findings"]):
            # Also of a later call, which refused the images that it found.
            return False
        return is_intact(description) and all(_holds(out, shard) for shard in description["shards"])
    except (KeyError, TypeError, AttributeError, OSError, BadInput):
        # Damage that left JSON behind: then everything is looked at and written anew.
        return False


def _holds(out: Folder, shard: dict) -> bool:
    index = index_name(shard["name"])
    whole = out.has(index) and hashlib.sha256(out.read(index)).hexdigest() == shard["index_sha256"]
    return whole and out.holds(shard["name"], shard["bytes"], shard["sha256"])


def _refused_images(out: Folder) -> set[int]:
    return {
        one["image_id"]
        for one in _json_of(out, REPORT)["findings"]
        if one["severity"] == "error" and one["annotation_id"] is None and one["kind"].startswith("image_")
    }


def _json_of(out: Folder, name: str) -> dict:
    try:
        return dict(json.loads(out.read(name)))
    except (ValueError, TypeError, RecursionError):
        raise BadInput(f"{out.name_of(name)}: is damaged; delete the folder and shard again") from None
