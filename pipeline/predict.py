"""From a weights file and image files to results.json and a picture of each image."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from configs.schema import Test
from pipeline.report.overlay import draw_instances, to_pil
from pipeline.scoring.coco_results import Result, coco_results
from shards.errors import BadInput
from shards.storage.files import write_atomic
from shards.validation.check_image import MAX_PIXELS
from shards.validation.png import unsafe_png

log = logging.getLogger(__name__)
Detector = Callable[[list[Tensor]], list[dict[str, Tensor]]]


def predict(
    checkpoint: str | Path,
    images: list[str | Path],
    out: str | Path,
    score: float = 0.5,
    test: Test | None = None,
) -> list[Result]:
    """Return the COCO results of image files, each with its `file_name`; writes them and the pictures.

    Writes OUT/results.json and, for the i-th image, OUT/NNNNNN-NAME.png with NNNNNN = i from 0, so that
    images of the same name in different folders do not collide. Boxes and masks are in the pixels of
    the image as stored; an EXIF orientation is ignored, as COCO and training do.

    Args:
        checkpoint: a weights file.
        images: image files; `image_id` is the place in this list.
        out: a directory; made if absent.
        score: what the pictures show; results.json has everything from the model's own threshold up.
        test: inference settings; by default those of `configs.schema.Test`.

    Raises:
        BadInput: no image, or one that is missing, broken or too large; checked before the model runs.
    """
    from pipeline.model import load_model

    if not images:
        raise BadInput("predict: no image given; name one or more image files")
    for path in images:
        check_readable(Path(path))
    model = load_model(checkpoint, test=test)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return predict_images(model.to(device), images, Path(out), score, device)


def predict_images(
    model: Detector,
    images: list[str | Path],
    out: Path,
    score: float = 0.5,
    device: torch.device | str = "cpu",
) -> list[Result]:
    """Return what `predict` does, for a model in memory that has `categories`."""
    out.mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in model.categories}
    results: list[Result] = []
    for place, path in enumerate(map(Path, images)):
        image = read_image(path)
        with torch.inference_mode():
            (detections,) = model([image.to(device)])
        found = coco_results(detections, place)
        results += [{**result, "file_name": str(path)} for result in found]
        picture = out / picture_name(place, path)
        to_pil(draw_instances(image, found, names, score)).save(picture)
        sure = sum(result["score"] >= score for result in found)
        log.info("%s: %d instances of score %g or more -> %s", path, sure, score, picture)
    write_atomic(out / "results.json", json.dumps(results).encode() + b"\n")
    return results


def picture_name(place: int, path: Path) -> str:
    """Return the picture's file name: unique by its place, recognisable by the image's name."""
    stem = re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII)[:80]
    return f"{place:06d}-{stem}.png"


def check_readable(path: Path) -> str:
    """Return the format of an image file by its header; nothing is decoded.

    Raises:
        BadInput: names the file, what is wrong and the remedy.
    """
    try:
        with Image.open(path) as image:
            pixels, kind = image.width * image.height, image.format
    except Image.DecompressionBombError:
        pixels, kind = MAX_PIXELS + 1, ""
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such file; give the path of an image") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"{path}: is not an image that can be read ({_one_line(error)}); give a JPEG or PNG"
        ) from None
    if pixels > MAX_PIXELS:
        raise BadInput(f"{path}: decodes to more than {MAX_PIXELS} pixels; scale it down")
    return kind


def read_image(path: Path) -> Tensor:
    """Return an image file as uint8 [3, H, W] RGB, its pixels as stored.

    Raises:
        BadInput: missing, broken or too large.
    """
    kind = check_readable(path)
    try:
        image = _decode(path.read_bytes(), kind) if kind in ("JPEG", "PNG") else _decode_other(path)
    except (RuntimeError, OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{path}: cannot be decoded ({_one_line(error)}); restore or convert it") from None
    return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)


def _decode(content: bytes, kind: str) -> Tensor:
    """Decode as shards are decoded, so that predict and evaluate see the same pixels."""
    fault = unsafe_png(content) if kind == "PNG" else None
    if fault is not None:
        raise ValueError(fault)
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _decode_other(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def _one_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:120]
