"""From 28x28 mask probabilities to masks of the image's size."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pipeline.scoring.coco_results import encode_mask

CHUNK_BYTES = 64 * 2**20


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], how: Literal["legacy", "exact"]
) -> Tensor:
    """Return masks bool [D, H, W] of probabilities [D, 28, 28] and boxes [D, 4] xyxy in image pixels.

    "legacy" is torchvision's and maskrcnn-benchmark's paste, which rounds boxes to pixels; "exact"
    reads the mask at every pixel's centre, as detectron2 does. Apart from the result, memory is
    bounded whatever the number of masks.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for rows, chunk in _chunks(masks, boxes, size, how):
        pasted[rows] = chunk
    return pasted


def paste_runs(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], how: Literal["legacy", "exact"]
) -> list[dict[str, Any]]:
    """Return the run lengths (COCO's compressed RLE, counts as a string) of what `paste_masks` returns.

    Only a chunk of the masks is ever there in pixels, whatever their number.
    """
    return [
        encode_mask(mask) for _, chunk in _chunks(masks, boxes, size, how) for mask in chunk.cpu().numpy()
    ]


def _chunks(masks: Tensor, boxes: Tensor, size: tuple[int, int], how: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows, masks bool [c, H, W]) until all are pasted."""
    step = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
    for rows in torch.arange(len(masks), device=masks.device).split(step) if len(masks) else ():
        if how == "exact":
            chunk = torch.zeros(len(rows), *size, dtype=torch.bool, device=masks.device)
            for canvas, mask, box in zip(chunk, masks[rows], boxes[rows], strict=True):
                _paste_exact(canvas, mask, box)
        else:
            chunk = paste_masks_in_image(masks[rows, None], boxes[rows], size)[:, 0] > 0.5
        yield rows, chunk


def _paste_exact(canvas: Tensor, mask: Tensor, box: Tensor) -> None:
    (height, width), (x1, y1, x2, y2) = canvas.shape, box.tolist()
    left, top = max(0, int(x1)), max(0, int(y1))
    right, bottom = min(width, int(x2) + 1), min(height, int(y2) + 1)
    xs = torch.arange(left, right, device=mask.device) + 0.5
    ys = torch.arange(top, bottom, device=mask.device) + 0.5
    if len(xs) and len(ys):
        # In float32 and in this order, as detectron2: a cell of one half falls on the same side.
        grid_x = (xs - box[0]) / (box[2] - box[0]) * 2 - 1
        grid_y = (ys - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([grid_x.expand(len(ys), -1), grid_y[:, None].expand(-1, len(xs))], -1)
        read = F.grid_sample(mask[None, None], grid[None].to(mask), align_corners=False)[0, 0]
        canvas[top:bottom, left:right] = read >= 0.5
