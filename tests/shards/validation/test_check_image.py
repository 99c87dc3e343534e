"""Images as cameras, scanners and phones write them: they train as they are stored, or are named."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from configs.schema import Data
from jobs.cli import shard as shard_command
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.validation.check_image import MAX_PIXELS
from tests.shards.coco_case import HEIGHT, WIDTH

RAMP = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], 2)
PNG_IMAGE, JPEG_IMAGE = 30, 7


def name_of(case, image_id) -> str:
    return next(image for image in case.tree["images"] if image["id"] == image_id)["file_name"]


def stored(case, image_id) -> np.ndarray:
    """Return what training sees of an image, `[height, width, 3]`."""
    data_set = ShardDataset(case.out)
    place = data_set.entries.image_ids.tolist().index(image_id)
    sample = data_set[place]
    assert sample.image.dtype == torch.uint8
    return sample.image.permute(1, 2, 0).numpy()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(pixels: np.ndarray, colour_type: int) -> bytes:
    """Return a PNG of `[height, width, channels]` uint16, which Pillow does not write in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


ALPHA = "has an alpha channel, which training does not see"
MODES = {
    "L": ["is greyscale"],
    "1": ["is black and white"],
    "P": [],
    "LA": [ALPHA],
    "RGBA": [ALPHA],
    "CMYK": ["is CMYK, which training turns into RGB without a profile"],
}


def modes_listed(case) -> list[str]:
    """Return what the report says of images that are no RGB; nothing else is wrong."""
    report = case.report()
    assert report["errors"] == {} and report["warnings"].keys() <= {"image_empty", "image_mode"}
    return [found["message"] for found in report["findings"] if found["kind"] == "image_mode"]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_every_kind_of_png_trains_as_its_rgb(case, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(case.images / name_of(case, PNG_IMAGE))
    case.shard()
    expected = np.array(Image.open(case.images / name_of(case, PNG_IMAGE)).convert("RGB"))
    assert (stored(case, PNG_IMAGE) == expected).all()
    assert modes_listed(case) == MODES[mode]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_png_with_a_colour_for_transparent_is_listed_as_one_with_an_alpha_channel_is(case, mode):
    colour = (1, 2, 3) if mode == "RGB" else 3
    Image.fromarray(COLOURS).convert(mode).save(case.images / name_of(case, PNG_IMAGE), transparency=colour)
    case.shard()
    assert modes_listed(case) == ["has an alpha channel, which training does not see"]
    assert stored(case, PNG_IMAGE).shape == (HEIGHT, WIDTH, 3)


def test_a_backslash_in_a_name_is_told_where_there_is_no_such_file(case):
    """As Windows writes paths; here it is a character like any other, and a file may be called so."""
    case.tree["images"][2]["file_name"] = "sub\\b.jpg"
    with pytest.raises(BadInput, match=r"cannot be read .*; write / where file_name has a backslash"):
        case.shard()
    (case.images / "sub/b.jpg").rename(case.images / "sub\\b.jpg")
    assert case.shard()["images"] == 4


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2), (4, 6)])
def test_a_png_of_16_bits_trains_as_its_upper_8(case, channels, colour_type):
    colours = np.dstack([COLOURS, RAMP])[:, :, :channels]
    content = png_of_16_bits(colours.astype(np.uint16) << 8 | 0x5A, colour_type)
    (case.images / name_of(case, PNG_IMAGE)).write_bytes(content)
    case.shard()
    assert (stored(case, PNG_IMAGE) == np.broadcast_to(colours[:, :, :3], (HEIGHT, WIDTH, 3))).all()
    assert modes_listed(case) == ["has 16 bits a channel, of which training sees the upper 8"]


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_a_jpeg_that_is_cmyk_or_grey_trains_as_its_rgb(case, mode):
    smooth = np.broadcast_to(np.linspace(40, 200, WIDTH).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3))
    Image.fromarray(smooth.copy()).convert(mode).save(case.images / "a.jpg", quality=95)
    case.shard()
    assert np.abs(stored(case, JPEG_IMAGE).astype(int) - smooth).max() <= 4
    assert modes_listed(case) == MODES[mode]


def save_turned(case, orientation, size=(WIDTH, HEIGHT)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).resize(size).save(case.images / "a.jpg", exif=exif)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_an_exif_orientation_is_warned_of_and_training_sees_the_pixels_as_stored(case, orientation):
    save_turned(case, orientation)
    case.shard()
    [found] = [f for f in case.report()["findings"] if f["kind"] == "image_orientation"]
    assert (found["severity"], found["image_id"], found["action"]) == ("warning", 7, "kept")
    assert f"orientation {orientation}" in found["message"] and found["repair"] is None
    assert stored(case, JPEG_IMAGE).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_orientation_that_means_none_is_no_finding(case, orientation):
    save_turned(case, orientation)
    case.shard()
    assert case.report()["warnings"] == {"image_empty": 1}


def test_a_size_declared_as_a_viewer_turns_the_image_is_an_error_that_says_so(case):
    save_turned(case, 6, (HEIGHT, WIDTH))
    with pytest.raises(BadInput, match=r"is 30 x 40, declared as 40 x 30 as its EXIF orientation 6 turns it"):
        case.shard()


def test_broken_exif_is_no_reason_to_refuse_an_image(case):
    Image.fromarray(COLOURS).save(case.images / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\0\1\1\x12")
    case.shard()
    assert case.report()["errors"] == {}


@pytest.mark.parametrize("behind", [b"", b"eXIf"])
def test_a_png_beyond_the_cap_is_not_decoded_to_look_for_its_orientation(case, monkeypatch, behind):
    """A few bytes that say 16 billion pixels: Pillow takes 48 GB to tell whether they are turned."""
    path = case.images / name_of(case, PNG_IMAGE)
    content = bytearray(path.read_bytes())
    content[16:20] = (1 << 29).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content + behind)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    with pytest.raises(BadInput, match=r"decodes to 536870912 x 30, more than 178956970 pixels"):
        case.shard()
    assert case.report()["errors"] == {"image_pixels": 1}


def test_the_orientation_of_a_png_is_found_before_and_behind_its_pixels(case):
    path = case.images / name_of(case, PNG_IMAGE)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(COLOURS).save(path, exif=exif)
    content = path.read_bytes()
    case.shard()
    assert case.report()["warnings"]["image_orientation"] == 1
    place = content.index(b"eXIf") - 4
    end = place + 12 + int.from_bytes(content[place : place + 4], "big")
    path.write_bytes(content[:place] + content[end:-12] + content[place:end] + content[-12:])
    case.shard()
    assert case.report()["warnings"]["image_orientation"] == 1


def test_the_cap_of_pixels_is_the_users_and_holds_before_decoding(case):
    with pytest.raises(BadInput, match=r"decodes to 40 x 30, more than 1199 pixels .*--max-pixels"):
        case.shard(max_pixels=WIDTH * HEIGHT - 1)
    assert case.shard(max_pixels=WIDTH * HEIGHT)["source"]["max_pixels"] == WIDTH * HEIGHT


def test_the_cap_may_be_higher_than_pillows(case, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    case.shard()
    assert Image.MAX_IMAGE_PIXELS == 10


def test_another_cap_is_another_data_set(case):
    case.shard()
    with pytest.raises(BadInput, match="other options"):
        case.shard(max_pixels=MAX_PIXELS + 1)


def test_command_config_and_function_have_the_same_cap_by_default():
    assert Data(train="a", val="b").max_pixels == MAX_PIXELS
    assert shard_command.__defaults__.count(MAX_PIXELS) == 1


def test_damage_that_decoders_pass_over_is_warned_of(case, capfd):
    path = case.images / "empty.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes(40) + content[-2:])
    case.shard()
    [found] = [f for f in case.report()["findings"] if f["kind"] == "image_corrupt"]
    assert (found["severity"], found["image_id"]) == ("warning", 99)
    assert "extraneous bytes" in found["message"]
    assert capfd.readouterr().err == ""


def test_what_training_cannot_decode_is_an_error_although_others_can(case):
    """With its end marker zeroed Pillow loads a JPEG; the decoder of torchvision does not."""
    path = case.images / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2] + bytes(2))
    Image.open(path).load()
    with pytest.raises(BadInput, match=r"image 7: cannot be decoded \(Image is incomplete or truncated"):
        case.shard()


def test_a_failing_disk_is_no_fault_of_the_image(case, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shards.storage.folder.LocalFolder.read", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*a\.jpg'"):
        case.shard(on_bad="skip")
    assert not (case.out / "report.json").exists()


def test_a_pipe_under_an_images_name_does_not_hang(case):
    (case.images / "a.jpg").unlink()
    os.mkfifo(case.images / "a.jpg")
    with pytest.raises(BadInput, match=r"a\.jpg, image 7: cannot be read \(no regular file\)"):
        case.shard()


@pytest.mark.parametrize("form", ["WEBP", "GIF", "BMP", "TIFF"])
def test_a_whole_file_of_another_format_is_to_be_converted_not_restored(case, form):
    Image.fromarray(COLOURS).save(case.images / "a.jpg", form)
    with pytest.raises(BadInput, match=rf"image 7: is a (?i:{form}) file by its content .*; convert it$"):
        case.shard()
    assert case.report()["errors"] == {"image_format": 1}


def test_a_whole_png_with_more_text_than_is_read_is_to_be_converted(case):
    path = case.images / name_of(case, PNG_IMAGE)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50 << 20)))
    content = path.read_bytes()
    path.write_bytes(content[:33] + text + content[33:])
    with pytest.raises(BadInput, match=r"holds more text beside its pixels than is read .*; convert it"):
        case.shard()
    assert case.report()["errors"] == {"image_format": 1}
