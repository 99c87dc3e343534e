"""A JPEG that passes by its markers and tables is one that training's decoder reads to its last row."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from shards.validation.heard import heard_errors
from shards.validation.jpeg import decodes
from tests.shards.damage import damage_bytes

SIDES = st.integers(1, 70)
SEEDS = st.integers(0, 2**32 - 1)


def jpeg(width=40, height=30, mode="RGB", seed=0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (1 + height // 4, 1 + width // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def trained_on(content: bytes) -> tuple[int, int]:
    with heard_errors():
        pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return tuple(pixels.shape[1:])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 95},
        {"optimize": True},
        {"restart_marker_blocks": 2},
        {"exif": b"Exif\0\0" + b"\xff\xd9" * 9},
    ],
)
def test_common_ones_pass(mode, options):
    assert decodes(jpeg(mode=mode, **options))
    assert decodes(jpeg(mode=mode, **options) + b"further pictures")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_subsampling_passes(subsampling):
    assert decodes(jpeg(subsampling=subsampling))


@pytest.mark.parametrize(("mode", "options"), [("CMYK", {}), ("RGB", {"progressive": True})])
def test_uncommon_ones_are_left_to_the_decoder(mode, options):
    assert not decodes(jpeg(mode=mode, **options))


def test_no_cut_passes():
    whole = jpeg()
    assert not any(decodes(whole[:end]) for end in range(len(whole)))


@settings(max_examples=400)
@given(SIDES, SIDES, st.sampled_from(["RGB", "L"]), st.sampled_from([0, 2]), SEEDS, st.booleans())
def test_what_passes_damaged_decodes_to_its_size(width, height, mode, subsampling, seed, in_head):
    rng = random.Random(seed)
    whole = jpeg(width, height, mode, seed, restart_marker_blocks=rng.choice([0, 3]), subsampling=subsampling)
    head = whole.index(b"\xff\xda") + 14
    damaged = damage_bytes(whole[:head], rng) + whole[head:] if in_head else damage_bytes(whole, rng)
    if decodes(damaged):
        with Image.open(io.BytesIO(damaged)) as image:
            assert trained_on(damaged) == (image.height, image.width)


def test_a_stretch_that_was_never_written_is_left_to_the_decoder():
    whole = jpeg(200, 200)
    middle = len(whole) // 2
    assert not decodes(whole[:middle] + bytes(64) + whole[middle + 64 :])


def test_restarts_out_of_turn_are_left_to_the_decoder():
    whole = jpeg(restart_marker_blocks=1)
    first = whole.index(b"\xff\xd0")
    assert not decodes(whole[:first] + b"\xff\xd3" + whole[first + 2 :])
