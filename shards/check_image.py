"""Whether an image file is there, safe to open, whole, and of the size that its annotations assume."""

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from shards.findings import Finding
from shards.source import ImageRow

EXTENSIONS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# What phones write: a JPEG with further pictures behind it, which a decoder of JPEG does not see.
CONTAINED = {"MPO": "JPEG"}
# 179 megapixels: what Pillow holds for an attack; a decoded RGB image of this size takes half a gigabyte.
MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class ImageFile:
    """A checked image: its member extension (without dot), its bytes' number and SHA-256."""

    extension: str
    size: int
    sha256: str


def check_image(row: ImageRow, directory: Path) -> ImageFile | Finding:
    """Return what the shard needs to know of an image, or the error that it has.

    The file is decoded to its last row; its EXIF orientation is ignored, as COCO's boxes do.
    """
    fault = _name_fault(row.file_name)
    if fault is None:
        path = directory / row.file_name
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no usable name"
            fault = ("image_missing", f"cannot be read ({reason})", "restore the file or remove the image")
        else:
            fault = _content_fault(content, row)
    if fault is not None:
        kind, message, remedy = fault
        # repr: a hostile name shall not write control characters to the terminal.
        name = str(directory / row.file_name) if row.file_name.isprintable() else repr(row.file_name)
        return Finding("error", kind, name, message, remedy, row.image_id)
    return ImageFile(_extension(row.file_name)[1:], len(content), hashlib.sha256(content).hexdigest())


def leads_out(file_name: str) -> bool:
    """Return whether a file_name of the source is anything but a path inside the image folder."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    return (
        path.is_absolute()
        or ".." in path.parts
        or "\0" in file_name
        or not path.parts
        or ":" in path.parts[0]
    )


def _extension(file_name: str) -> str:
    return PurePosixPath(file_name).suffix.lower()


def _name_fault(file_name: str) -> tuple[str, str, str] | None:
    if leads_out(file_name):
        return "image_path", "file_name leads out of the image folder", "use a path inside --images"
    if _extension(file_name) not in EXTENSIONS:
        return "image_format", "is neither .jpg nor .png", "convert it"
    return None


def _content_fault(content: bytes, row: ImageRow) -> tuple[str, str, str] | None:
    remedy = "restore the file or remove the image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
            if image.width * image.height > MAX_PIXELS:
                return "image_pixels", f"decodes to more than {MAX_PIXELS} pixels", "scale it down"
            found = CONTAINED.get(image.format, image.format)
            if found != EXTENSIONS[_extension(row.file_name)]:
                return "image_format", f"is a {found} file by its content", "rename or convert it"
            if image.size != (row.width, row.height):
                sizes = f"is {image.width} x {image.height}, declared as {row.width} x {row.height}"
                return "image_size", sizes, "correct width and height, and check that the boxes fit"
            image.load()
    # Pillow raises SyntaxError for broken PNG chunks and its own bomb error before we can measure.
    except Image.DecompressionBombError:
        return "image_pixels", f"decodes to more than {MAX_PIXELS} pixels", "scale it down"
    except UnidentifiedImageError:
        what = "is no JPEG or PNG, whatever its name" if content else "is empty"
        return "image_truncated", what, remedy
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, OverflowError, struct.error) as error:
        return "image_truncated", f"cannot be decoded ({error})", remedy
    return None
