"""A contact sheet: samples side by side, every instance's mask in a colour of its own."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.masks import decode_mask
from shards.read import Sample, ShardDataset

COLUMNS, ROWS = 6, 4
TILE_PX, GAP_PX = 256, 4
CAPTION_PX, FONT_PX = 18, 12
INK = "#20262c"
TINT = 0.45
# Steps of the golden angle around the colour wheel: any few in a row are far apart.
HUE_STEP = 0.618
CROWD = (255, 255, 255)


def draw_sheet(dataset: ShardDataset, places: list[int], path: Path) -> str | None:
    """Return the path of a PNG of at most 24 of the samples, evenly spread; None if there are none.

    Under each stand its image id and what its instances are called. The folder of `path` exists.
    """
    if not places:
        return None
    count = min(len(places), COLUMNS * ROWS)
    chosen = [places[round(step)] for step in np.linspace(0, len(places) - 1, count)]
    rows = -(-count // COLUMNS)
    across, down = TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (min(count, COLUMNS) * across - GAP_PX, rows * down - GAP_PX), "white")
    names = {category["id"]: category["name"] for category in dataset.categories}
    for number, place in enumerate(chosen):
        row, column = divmod(number, COLUMNS)
        sheet.paste(_tile(dataset[place], names), (column * across, row * down))
    sheet.save(path, "PNG")
    return str(path)


def caption(sample: Sample, names: dict[int, str]) -> str:
    """Return one line: the image id, and how many annotations of which categories, crowds too, it has."""
    counts = Counter(names[annotation["category_id"]] for annotation in sample.annotations)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))
    listed = ", ".join(f"{name} {counts[name]}" for name in frequent)
    return " ".join(f"{sample.image_id}: {listed or 'no annotations'}".split())


def _tile(sample: Sample, names: dict[int, str]) -> Image.Image:
    picture = Image.fromarray(draw_instances(sample))
    scale = TILE_PX / max(picture.size)
    picture = picture.resize(
        [max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR
    )
    tile = Image.new("RGB", (TILE_PX, TILE_PX + CAPTION_PX), "white")
    tile.paste(picture, ((TILE_PX - picture.width) // 2, (TILE_PX - picture.height) // 2))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_PX)
    line = _fitting(caption(sample, names), lambda text: draw.textlength(text, font))
    draw.text((TILE_PX // 2, TILE_PX + CAPTION_PX // 2), line, INK, font, "mm")
    return tile


def _fitting(text: str, length: Callable[[str], float]) -> str:
    """Return the text, cut at its end where it would be wider than a tile."""
    if length(text) <= TILE_PX:
        return text
    while length(text + "...") > TILE_PX:
        text = text[:-1]
    return text + "..."


def draw_instances(sample: Sample) -> np.ndarray:
    """Return the image with tinted, outlined masks, uint8 `[H, W, 3]`; crowds in white."""
    picture = sample.image.permute(1, 2, 0).numpy().astype(np.float32)
    for number, annotation in enumerate(sample.annotations):
        mask = decode_mask(annotation["segmentation"], sample.height, sample.width).astype(bool)
        colour = np.array(CROWD if annotation.get("iscrowd", 0) else _colour(number), np.float32)
        picture[mask] += TINT * (colour - picture[mask])
        picture[mask & ~_eroded(mask)] = colour
    return picture.round().astype(np.uint8)


def _eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _colour(number: int) -> np.ndarray:
    wheel = np.abs((number * HUE_STEP * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return 255 * np.clip(wheel, 0, 1)
