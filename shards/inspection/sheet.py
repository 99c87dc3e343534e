"""A contact sheet: samples side by side, every instance's mask in a colour of its own."""

from pathlib import Path

import numpy as np
from PIL import Image

from shards.masks import decode_mask
from shards.read import Sample, ShardDataset

COLUMNS, ROWS = 6, 4
TILE_PX, GAP_PX = 256, 4
TINT = 0.45
# Steps of the golden angle around the colour wheel: any few in a row are far apart.
HUE_STEP = 0.618
CROWD = (255, 255, 255)


def draw_sheet(dataset: ShardDataset, places: list[int], path: Path) -> str | None:
    """Return the path of a PNG of at most 24 of the samples, evenly spread; None if there are none.

    The folder of `path` exists.
    """
    if not places:
        return None
    count = min(len(places), COLUMNS * ROWS)
    chosen = [places[round(step)] for step in np.linspace(0, len(places) - 1, count)]
    rows = -(-count // COLUMNS)
    pitch = TILE_PX + GAP_PX
    sheet = Image.new("RGB", (min(count, COLUMNS) * pitch - GAP_PX, rows * pitch - GAP_PX), "white")
    for number, place in enumerate(chosen):
        row, column = divmod(number, COLUMNS)
        tile = Image.fromarray(draw_instances(dataset[place]))
        scale = TILE_PX / max(tile.size)
        tile = tile.resize([max(1, round(side * scale)) for side in tile.size], Image.Resampling.BILINEAR)
        left, top = (TILE_PX - tile.width) // 2, (TILE_PX - tile.height) // 2
        sheet.paste(tile, (column * pitch + left, row * pitch + top))
    sheet.save(path, "PNG")
    return str(path)


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
