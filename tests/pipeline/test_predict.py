"""Prediction from files: results in the image's own pixels, pictures that do not collide, clear refusals."""

import json
import struct
import zlib
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pipeline.predict import check_readable, picture_name, predict, predict_images, read_image
from shards.errors import BadInput


class FakeModel:
    """Finds the whole image, surely, and its left half, hardly."""

    categories = ({"id": 5, "name": "cat"},)

    def __call__(self, images):
        return [self.one(*image.shape[-2:]) for image in images]

    def one(self, height, width):
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0] = True
        masks[1, :, : width // 2] = True
        boxes = torch.tensor([[0.0, 0, width, height], [0, 0, width // 2, height]])
        return {
            "boxes": boxes,
            "labels": torch.tensor([5, 5]),
            "scores": torch.tensor([0.9, 0.1]),
            "masks": masks,
        }


def save(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)
    return path


def test_results_name_file_and_place_and_pictures_do_not_collide(tmp_path):
    images = [save(tmp_path / "a/cat.png"), save(tmp_path / "b/cat.png", (20, 50)), tmp_path / "a/cat.png"]
    returned = predict_images(FakeModel(), images, tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results == returned
    assert [item["image_id"] for item in results] == [0, 0, 1, 1, 2, 2]
    assert [item["file_name"] for item in results[::2]] == [str(path) for path in images]
    assert results[2]["bbox"] == [0, 0, 20, 50] and results[2]["segmentation"]["size"] == [50, 20]
    assert results[2]["category_id"] == 5
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["000000-cat.png", "000001-cat.png", "000002-cat.png"]


def test_orientation_in_exif_does_not_turn_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", (40, 30), exif=exif)
    assert read_image(path).shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("a.png", "P"), ("a.png", "L"), ("a.jpg", "CMYK"), ("a.bmp", "RGB")]
)
def test_every_common_kind_of_image_becomes_rgb(tmp_path, name, mode):
    image = read_image(save(tmp_path / name, mode=mode))
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8


def test_sixteen_bit_png_is_brought_to_eight(tmp_path):
    path = tmp_path / "deep.png"
    Image.new("I;16", (4, 4), 65535).save(path)
    assert (read_image(path) == 255).all()


def test_missing_broken_and_truncated_images_are_named_before_the_model_is_loaded(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    good = save(tmp_path / "good.png")
    for path, said in (
        (tmp_path / "gone.png", "no such file"),
        (text, "not an image"),
        (tmp_path, "not an image"),
    ):
        with pytest.raises(BadInput, match=said) as refusal:
            predict(tmp_path / "no-weights", [good, path], tmp_path / "out")
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match="no image given"):
        predict(tmp_path / "no-weights", [], tmp_path / "out")
    cut = tmp_path / "cut.png"
    cut.write_bytes(save(tmp_path / "whole.png", (300, 300)).read_bytes()[:60])
    with pytest.raises(BadInput, match=r"cut\.png: cannot be decoded"):
        read_image(cut)


def test_a_png_that_crashes_the_decoder_is_named_instead(tmp_path):
    """Its checksums hold, but rows of pixels are missing: libpng's error ends the process."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(BadInput, match=r"short\.png: cannot be decoded \(pixels are missing\)"):
        read_image(tmp_path / "short.png")


def test_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", (100, 100))
    monkeypatch.setattr("pipeline.predict.MAX_PIXELS", 9_999)
    with pytest.raises(BadInput, match="more than 9999 pixels"):
        check_readable(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(BadInput, match="more than 9999 pixels"):
        check_readable(path)


def test_hostile_names_stay_in_the_folder(tmp_path):
    name = picture_name(7, SimpleNamespace(stem="../..\n<b>ü" + "x" * 300))
    assert name.startswith("000007-.._.._b_x") and "/" not in name and len(name) < 100
