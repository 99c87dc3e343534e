"""Damaged PNGs are told from whole ones before a decoder sees them that crashes on them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.validation.png import SIGNATURE, png_fault

NOISE = np.random.default_rng(0).integers(0, 255, (13, 21, 3), np.uint8)


def saved(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def made(packed: bytes, width=21, height=13, depth=8, colour=2, interlaced=0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_whole_ones_pass(mode):
    assert png_fault(saved(mode)) is None
    assert png_fault(saved(mode) + b"more") is None


@pytest.mark.parametrize("missing", [0, 1, 600])
def test_missing_pixels_are_noticed_although_all_checksums_hold(missing):
    packed = bytes(13 * (1 + 21 * 3) - missing)
    assert png_fault(made(packed)) == ("pixels are missing" if missing else None)


@pytest.mark.parametrize(("size", "packed"), [((1, 1), 2), ((3, 2), 2 + 2 + 2 + 4), ((8, 8), 79)])
def test_an_interlaced_one_has_the_bytes_of_its_seven_passes(size, packed):
    width, height = size
    grey = {"width": width, "height": height, "colour": 0, "interlaced": 1}
    assert png_fault(made(bytes(packed), **grey)) is None
    assert png_fault(made(bytes(packed - 1), **grey)) == "pixels are missing"
    Image.open(io.BytesIO(made(bytes(packed), **grey))).load()


def test_any_cut_and_any_flipped_byte_is_noticed():
    whole = saved("RGB")
    for place in range(34, len(whole)):
        assert png_fault(whole[:place])
        assert png_fault(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


def test_a_head_in_another_place_is_noticed():
    whole = saved("RGB")
    assert "head" in png_fault(whole[:8] + chunk(b"tEXt", b"a\0b") + whole[8:])


def test_a_little_more_than_the_head_declares_passes_and_a_bomb_is_not_unpacked():
    assert png_fault(made(bytes(100), 2, 2)) is None
    assert png_fault(made(bytes(200_000_000), 2, 2)) == "there are more pixels than the head declares"
