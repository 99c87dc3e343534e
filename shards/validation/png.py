"""Whether a PNG is whole: torchvision's decoder crashes the process where libpng finds it damaged."""

import io
import struct
import warnings
import zlib

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Where the bits of a channel stand, if the head is the first chunk.
DEPTH = 24
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
EXCESS = 1 << 16
# What Pillow raises on damage, depending on where it sits; SyntaxError is for broken PNG chunks.
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, EOFError, OverflowError, struct.error)
# First column and row, and the distance to the next, of the seven passes of an interlaced image.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def unsafe_png(content: bytes) -> str | None:
    """Return why a PNG must not come before torchvision's decoder, None if it may.

    Args:
        content: a file that Pillow has opened as a PNG, of no more pixels than may be decoded.
    """
    try:
        return png_fault(content) or _load(content)
    except DAMAGE as error:
        return str(error) or type(error).__name__


def _load(content: bytes) -> None:
    """Decode once more, for what else libpng finds: Pillow survives it."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.load()


def png_fault(content: bytes) -> str | None:
    """Return what is wrong with the chunks or the compressed pixels of a PNG, None if nothing is.

    Every chunk must match its checksum, the last one must be there, and the pixels must unpack to their end,
    to as many bytes as the head declares; a little more is what some programs write.

    Args:
        content: a file whose signature and head have been read as a PNG's.
    """
    if content[len(SIGNATURE) :][4:8] != b"IHDR":
        return "the head is not the first chunk"
    needed, inflate = _packed_bytes(content), zlib.decompressobj()
    unpacked, most = 0, needed + EXCESS
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + size]
        checksum = content[place + 8 + size : place + 12 + size]
        if len(checksum) < 4 or zlib.crc32(kind + body) != int.from_bytes(checksum, "big"):
            return f"chunk {kind!r} does not match its checksum"
        if kind == b"IEND":
            return None if inflate.eof and unpacked >= needed else "pixels are missing"
        if kind == b"IDAT":
            try:
                unpacked += len(inflate.decompress(body, most + 1 - unpacked))
            except zlib.error as error:
                return f"the compressed pixels are damaged: {error}"
            if unpacked > most:
                return "there are more pixels than the head declares"
        place += 12 + size
    return "the end is missing"


def _packed_bytes(content: bytes) -> int:
    """Return how many bytes the pixels have, a byte for the filter of each row among them."""
    start = len(SIGNATURE) + 8
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, start)
    bits = depth * CHANNELS.get(colour, 4)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
