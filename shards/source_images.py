"""Which image files a directory of shards was made of, so that other ones under the same list are noticed."""

import json
from collections.abc import Iterable
from pathlib import Path

from shards.errors import BadInput
from shards.storage.files import encode_json
from shards.storage.folder import Folder

LIST = "source_images.json"


def note_images(out: Folder, images: Iterable[tuple[str, int]]) -> None:
    """Write OUT/source_images.json: file_name and size in bytes of each image."""
    out.write(LIST, encode_json(list(images)))


def first_changed(out: Path, folder: Path) -> str | None:
    """Return the file_name of the first image that is missing in `folder` or has another size; None if none.

    None also where nothing was noted, and where there is no such folder: shards need their source no more.

    Raises:
        BadInput: the list is damaged.
    """
    if not (out / LIST).is_file() or not folder.is_dir():
        return None
    for file_name, size in _noted(out / LIST):
        path = folder / file_name
        if not path.is_file() or path.stat().st_size != size:
            return file_name
    return None


def _noted(path: Path) -> list[tuple[str, int]]:
    try:
        return [(str(file_name), int(size)) for file_name, size in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError):
        raise BadInput(f"{path}: is damaged; delete it, or make the shards again (--redo shard)") from None
