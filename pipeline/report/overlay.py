"""Pictures of instances: masks, boxes, names and scores over the image, and several side by side."""

import colorsys
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from shards.masks import decode_mask

# Below this, text and outlines hide what they are to show: small images are drawn enlarged.
LEGIBLE_PX = 360
MASK_ALPHA = 0.45
GAP, INK, PAPER = 12, (32, 33, 36), (255, 255, 255)


def draw_instances(
    image: Tensor, instances: list[dict[str, Any]], names: dict[int, str], score: float = 0.5
) -> Tensor:
    """Return the image, uint8 [3, k*H, k*W], with every instance in a colour of its own.

    k is the smallest whole number that makes the shorter side at least 360 px.

    Args:
        image: uint8 [3, H, W] RGB; it is not changed.
        instances: COCO results (drawn from `score` up, the surest on top) or annotations (all but
            crowds); boxes xywh in pixels of `image`.
        names: category id -> name; an id that is not there is shown as a number.
        score: below this a result is left out.
    """
    height, width = image.shape[-2:]
    factor = max(1, math.ceil(LEGIBLE_PX / min(height, width)))
    canvas = resize(image, [height * factor, width * factor], antialias=True)
    shown = [item for item in instances if item.get("score", 1.0) >= score and not item.get("iscrowd", 0)]
    if not shown:
        return canvas
    shown.sort(key=lambda item: item.get("score", 1.0))
    colours = instance_colours(len(shown))
    masks = torch.from_numpy(np.stack([decode_mask(item["segmentation"], height, width) for item in shown]))
    large = masks.bool().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    canvas = draw_segmentation_masks(canvas, large, alpha=MASK_ALPHA, colors=colours)
    boxes = torch.tensor([item["bbox"] for item in shown], dtype=torch.float64) * factor
    boxes[:, 2:] += boxes[:, :2]
    thickness = max(2, min(canvas.shape[-2:]) // 240)
    canvas = draw_bounding_boxes(canvas, boxes, colors=colours, width=thickness)
    return _label(canvas, boxes.tolist(), [_caption(item, names) for item in shown], colours)


def instance_colours(number: int) -> list[tuple[int, int, int]]:
    """Return RGB colours of which neighbours in the list differ strongly (golden-ratio hues)."""
    hues = [(0.08 + place * 0.618034) % 1 for place in range(number)]
    shades = [(0.85, 1.0), (1.0, 0.8), (0.6, 1.0)]
    colours = (colorsys.hsv_to_rgb(hue, *shades[place // 5 % 3]) for place, hue in enumerate(hues))
    return [tuple(round(255 * part) for part in colour) for colour in colours]


def side_by_side(rows: list[tuple[str, list[Tensor]]], titles: list[str]) -> Image.Image:
    """Return a figure with a column for each title and a captioned row of pictures for each image.

    Args:
        rows: (caption, pictures uint8 [3, h, w] of the same size within the row); at least one row.
        titles: one for each picture of a row.
    """
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    column = max(picture.shape[-1] for _, pictures in rows for picture in pictures)
    heights = [pictures[0].shape[-2] for _, pictures in rows]
    size = (len(titles) * (column + GAP) + GAP, 48 + sum(height + 40 for height in heights))
    figure = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(figure)
    for place, title in enumerate(titles):
        pen.text((GAP + place * (column + GAP), 14), title, INK, font)
    top = 48
    for (caption, pictures), height in zip(rows, heights, strict=True):
        for place, picture in enumerate(pictures):
            figure.paste(to_pil(picture), (GAP + place * (column + GAP), top))
        pen.text((GAP, top + height + 6), caption, INK, small)
        top += height + 40
    return figure


def to_pil(picture: Tensor) -> Image.Image:
    """Return uint8 [3, H, W] as a Pillow image."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def _caption(item: dict[str, Any], names: dict[int, str]) -> str:
    name = names.get(item["category_id"], str(item["category_id"]))
    return f"{name} {item['score']:.2f}" if "score" in item else name


def _label(canvas: Tensor, boxes: list[list[float]], captions: list[str], colours: list) -> Tensor:
    picture = to_pil(canvas)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(12, min(picture.size) // 36))
    for (x1, y1, x2, y2), caption, colour in zip(boxes, captions, colours, strict=True):
        left, top, right, bottom = pen.textbbox((0, 0), caption, font)
        # A label larger than its box hides the neighbours, and here there are always neighbours.
        if (right - left) * (bottom - top) > (x2 - x1) * (y2 - y1):
            continue
        # Inside the picture, above the box where there is room.
        x = max(0, min(x1, picture.width - (right - left) - 6))
        y = max(0, y1 - (bottom - top) - 6)
        pen.rectangle((x, y, x + right - left + 6, y + bottom - top + 6), fill=colour)
        pen.text((x + 3 - left, y + 3 - top), caption, _ink_on(colour), font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
