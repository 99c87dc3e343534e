"""Whether an image file is there, safe to open, whole, and of the size that its annotations assume."""

import errno
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import ExifTags, Image, UnidentifiedImageError

from shards.errors import BadInput
from shards.storage.folder import Folder, RemoteFolder
from shards.validation.findings import ACTION, Finding
from shards.validation.heard import heard_errors
from shards.validation.jpeg import decodes
from shards.validation.png import DAMAGE, DEPTH, SIGNATURE, unsafe_png
from shards.validation.source import ImageRow

EXTENSIONS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# What phones write: a JPEG with further pictures behind it, which a decoder of JPEG does not see.
CONTAINED = {"MPO": "JPEG"}
# 179 megapixels: what Pillow holds for an attack; a decoded RGB image of this size takes half a gigabyte.
MAX_PIXELS = 178_956_970
# What is told from its first bytes, so that no further decoder is let near files from elsewhere.
OTHER_FORMATS = {
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c-\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "HEIC": re.compile(rb"....ftyp(hei[cxms]|mif1|msf1)", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
}
# The EXIF orientations that are not "as stored"; from 5 on they swap width and height.
TURNED = range(2, 9)
SWAPPED = range(5, 9)
# What a PNG with an orientation holds somewhere; the second is ImageMagick's.
PNG_EXIF = (b"eXIf", b"Raw profile type exif")
# What trains as RGB, and is not the same as RGB to everyone.
ALPHA = (
    "has an alpha channel, which training does not see",
    "flatten it, if any pixel is transparent",
)
MODES = {
    "1": ("is black and white", "nothing: it trains as RGB"),
    "L": ("is greyscale", "nothing: it trains as RGB"),
    "LA": ALPHA,
    "RGBA": ALPHA,
    "CMYK": ("is CMYK, which training turns into RGB without a profile", "convert it, if its colours matter"),
}
DEEP = ("has 16 bits a channel, of which training sees the upper 8", "scale it to 8, if it fills fewer")
# What is wrong with a name or a file; anything else is wrong with the disk or the network.
ABSENT = FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError
UNUSABLE = {errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
# What libjpeg says of damage that it passes over; it says other things of other matters.
JPEG_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
RESTORE = "restore the file or remove the image"

# (severity, kind, message, remedy)
Fault = tuple[str, str, str, str]


@dataclass(frozen=True)
class ImageFile:
    """A checked image: its member extension (without dot), its bytes' number and SHA-256."""

    extension: str
    size: int
    sha256: str


def check_image(
    row: ImageRow, images: Folder, max_pixels: int
) -> tuple[ImageFile | None, bytes, list[Finding]]:
    """Return what the shard needs to know of an image, None if it cannot be used, its bytes, its findings.

    A JPEG passes if its markers and tables are such that training's decoder reads it to the last row; that
    decoder itself is asked of all others: greyscale, CMYK, transparent and 16-bit images decode to RGB as
    they are, and are listed. An EXIF orientation is ignored, as COCO's boxes do, and warned of, and so is
    damage that the decoder passes over, where it is asked. Errors have action "refused".

    Args:
        max_pixels: width x height beyond which an image is not decoded.

    Raises:
        OSError: the disk or the network fails, which says nothing of the image.
    """
    content, faults = b"", _name_faults(row.file_name)
    if not faults:
        content, faults = _read(images, row.file_name)
    if not faults:
        faults = _content_faults(content, row, max_pixels, _pixel_faults)
    # repr: a hostile name shall not write control characters to the terminal.
    name = images.name_of(row.file_name) if row.file_name.isprintable() else repr(row.file_name)
    findings = [
        Finding(severity, kind, name, message, remedy, row.image_id, action=ACTION[severity])
        for severity, kind, message, remedy in faults
    ]
    if any(finding.severity == "error" for finding in findings):
        return None, content, findings
    checksum = hashlib.sha256(content).hexdigest()
    return ImageFile(_extension(row.file_name)[1:], len(content), checksum), content, findings


def leads_out(file_name: str) -> bool:
    """Return whether a file_name of the source is anything but a path inside the image folder."""
    plain = file_name.replace("\\", "/")
    path = PurePosixPath(plain)
    # A drive of Windows, or what fsspec takes for another place; 12:30.jpg is a name like any other.
    elsewhere = re.match("[A-Za-z]:(/|$)", plain) or "://" in plain or "::" in plain
    return bool(path.is_absolute() or ".." in path.parts or "\0" in plain or not path.parts or elsewhere)


def _extension(file_name: str) -> str:
    return PurePosixPath(file_name).suffix.lower()


def _name_faults(file_name: str) -> list[Fault]:
    if leads_out(file_name):
        message = "file_name leads out of the image folder"
        return [("error", "image_path", message, "use a path inside --images")]
    if _extension(file_name) not in EXTENSIONS:
        return [("error", "image_format", "is neither .jpg nor .png", "convert it")]
    return []


def _read(images: Folder, name: str) -> tuple[bytes, list[Fault]]:
    try:
        return images.read(name), []
    except BadInput:
        # Of the whole store: no access, no driver.
        raise
    except OSError as error:
        refused = isinstance(error, PermissionError) and isinstance(images, RemoteFolder)
        if refused or (not isinstance(error, ABSENT) and error.errno not in UNUSABLE):
            raise OSError(
                error.errno or errno.EIO, error.strerror or str(error), images.name_of(name)
            ) from error
        reason = error.strerror or "no such file"
    except ValueError:
        reason = "no usable name"
    remedy = "restore the file, correct --images, or remove the image"
    if "\\" in name:
        remedy = "write / where file_name has a backslash, unless the file is missing"
    return b"", [("error", "image_missing", f"cannot be read ({reason})", remedy)]


def decoding_faults(content: bytes, row: ImageRow, max_pixels: int) -> list[Fault]:
    """Return the errors of an image, also of a JPEG by decoding it, and what its decoder complains of."""
    faults = _content_faults(content, row, max_pixels, _decoded_faults)
    return [fault for fault in faults if fault[1] not in ("image_orientation", "image_mode")]


def _content_faults(
    content: bytes, row: ImageRow, max_pixels: int, look: Callable[[Image.Image, bytes], list[Fault]]
) -> list[Fault]:
    try:
        with _without_pillows_cap(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
            # Before any other look: Pillow decodes a PNG to tell its orientation.
            if image.width * image.height > max_pixels:
                message = f"decodes to {image.width} x {image.height}, more than {max_pixels} pixels"
                return [("error", "image_pixels", message, "scale it down or raise --max-pixels")]
            orientation = _orientation(image, content)
            faults = _header_faults(image, row, orientation) or look(image, content)
            return [*faults, *_turn_faults(orientation), *_mode_faults(image, content)]
    except UnidentifiedImageError:
        form = _other_format(content)
        if form is not None:
            return [("error", "image_format", f"is a {form} file by its content", "convert it")]
        what = "is no JPEG or PNG, whatever its name" if content else "is empty"
        return [("error", "image_truncated", what, RESTORE)]
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Not Pillow's, which has no number: the machine has no room for temporary files, or the like.
            raise
        if "MAX_TEXT" in str(error):
            # Pillow's own limits on the texts in a PNG; the file is whole.
            message = "holds more text beside its pixels than is read"
            return [("error", "image_format", message, "convert it, without its texts")]
        return [("error", "image_truncated", f"cannot be decoded ({error})", RESTORE)]


def _other_format(content: bytes) -> str | None:
    return next((form for form, begins in OTHER_FORMATS.items() if begins.match(content)), None)


@contextmanager
def _without_pillows_cap() -> Iterator[None]:
    """Let Pillow open what is larger than its own constant: ours is measured first, and may be higher."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _header_faults(image: Image.Image, row: ImageRow, orientation: int) -> list[Fault]:
    found = CONTAINED.get(image.format, image.format)
    if found != EXTENSIONS[_extension(row.file_name)]:
        return [("error", "image_format", f"is a {found} file by its content", "rename or convert it")]
    if image.size == (row.width, row.height):
        return []
    message = f"is {image.width} x {image.height}, declared as {row.width} x {row.height}"
    if orientation in SWAPPED and image.size == (row.height, row.width):
        message += f" as its EXIF orientation {orientation} turns it"
        return [("error", "image_size", message, "turn the pixels and remove the orientation")]
    return [("error", "image_size", message, "correct width and height, and check that the boxes fit")]


def _pixel_faults(image: Image.Image, content: bytes) -> list[Fault]:
    if image.format == "JPEG" and decodes(content):
        return []
    return _decoded_faults(image, content)


def _decoded_faults(image: Image.Image, content: bytes) -> list[Fault]:
    """Return what the decoder that training uses makes of a file: an error, or a warning of complaints."""
    fault = unsafe_png(content) if content.startswith(SIGNATURE) else None
    if fault is not None:
        return [("error", "image_truncated", f"cannot be decoded ({fault})", RESTORE)]
    import torch  # seconds, so only where an image is really decoded
    from torchvision.io import ImageReadMode, decode_image

    try:
        with heard_errors() as heard:
            pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            decoded = decode_image(pixels, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        # PyTorch names its own source file before the reason.
        reason = str(error).split("\n")[0].rsplit(", ", 1)[-1]
        return [("error", "image_truncated", f"cannot be decoded ({reason})", RESTORE)]
    if tuple(decoded.shape) != (3, image.height, image.width):
        return [("error", "image_truncated", "decodes to another size than its head says", RESTORE)]
    damage = [line for line in heard if line.startswith(JPEG_DAMAGE)]
    remedy = "look at it, and restore the file if a part is grey or shifted"
    return [("warning", "image_corrupt", f"decodes, but: {line}", remedy) for line in damage[:1]]


def _turn_faults(orientation: int) -> list[Fault]:
    if orientation not in TURNED:
        return []
    message = f"has EXIF orientation {orientation}, which viewers follow and training does not"
    remedy = "check that its boxes fit the pixels as stored, or turn those and remove the orientation"
    return [("warning", "image_orientation", message, remedy)]


def _mode_faults(image: Image.Image, content: bytes) -> list[Fault]:
    deep = content.startswith(SIGNATURE) and content[DEPTH] == 16
    # A PNG may name a colour of its palette, or one grey, for transparent.
    see_through = ALPHA if "transparency" in image.info else MODES.get(image.mode)
    told = DEEP if deep else see_through
    return [("warning", "image_mode", *told)] if told else []


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return the EXIF orientation, 1 (as stored) where there is none that can be read."""
    # A PNG may have it behind its pixels, and Pillow decodes those to look there.
    if image.format == "PNG" and not any(mark in content for mark in PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1
    return value if value in TURNED else 1
