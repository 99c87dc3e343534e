"""Whether a JPEG decodes without an error, told from its markers and tables: its pixels are not decoded."""

import io
import re
from functools import lru_cache
from itertools import cycle

from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF, SOS = (0xC0, 0xC1), 0xDA
# Huffman and quantisation tables, and how many blocks lie between two restart markers.
TABLES = (0xC4, 0xDB, 0xDD)
COMMENTS = (*range(0xE0, 0xF0), 0xFE)
# JFIF's and Adobe's segments say how colours are coded; the others say nothing to a decoder.
COLOUR = (0xE0, 0xEE)
# In coded pixels 0xff is followed by 0; anything else is a marker.
MARKER = re.compile(rb"\xff[^\0]")
RESTARTS = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
# So many zeros in a row are hardly ever coded pixels: a block of the disk that was never written.
ZEROS = bytes(32)
# Any number of pixels has the same tables; so few decode at once.
FEW_PX = (16).to_bytes(2, "big") * 2


def decodes(content: bytes) -> bool:
    """Return whether a JPEG of the common kind decodes without an error; False says nothing.

    Common: Huffman-coded, 8 bits, grey or of three components in one scan. Its segments must follow each
    other without a gap, its tables must be such that libjpeg begins to decode with them, and in its scan no
    marker may stand before that of the end. What then is wrong in coded pixels gives wrong pixels: libjpeg
    goes on to the end (and complains, mostly).
    """
    head, scan = _head(content)
    return bool(head) and _is_whole(content, scan) and _libjpeg_begins_with(head)


def _head(content: bytes) -> tuple[bytes, int]:
    """Return the segments that matter to a decoder and where the scan begins; none if it is uncommon."""
    parts, components, place = [SOI], 0, len(SOI)
    if content[:place] != SOI:
        return b"", 0
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind, size = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        end = place + 2 + size
        segment = content[place:end]
        if kind in SOF and not components and len(segment) > 9:
            components = segment[9]
            parts.append(segment[:5] + FEW_PX + segment[9:])
        elif kind == SOS:
            common = components in (1, 3) and segment[4:5] == bytes([components])
            return (b"".join([*parts, segment]) if common else b""), end
        elif kind in TABLES or kind in COLOUR:
            parts.append(segment)
        elif kind not in COMMENTS:
            break
        place = end
    return b"", 0


def _is_whole(content: bytes, scan: int) -> bool:
    if content.find(ZEROS, scan) >= 0:
        return False
    for marker, restart in zip(MARKER.finditer(content, scan), cycle(RESTARTS), strict=False):
        if marker[0] != restart:
            return marker[0] == EOI
    return False


@lru_cache(maxsize=64)
def _libjpeg_begins_with(head: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(head + EOI), formats=("JPEG",)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, IndexError):
        return False
    return True
