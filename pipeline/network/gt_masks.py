"""The ground-truth masks of an image, rasterised only where a RoI needs them."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from shards.masks import RunLengths


@dataclass(frozen=True)
class GroundTruthMasks:
    """What a tensor uint8 [G, h, w] would hold, as run lengths: indexing rasterises those rows alone.

    A row is rasterised once, however often it is asked for: the base's mask loss and the refining
    module's share it. The bits are those of decoding all rows, mirroring and resizing them.

    Attributes:
        runs: one mask of the image as stored each, [G]; all of one size.
        size: (h, w) of the rows, in pixels.
        mirrored: left to right.
    """

    runs: list[RunLengths]
    size: tuple[int, int]
    mirrored: bool = False
    _rows: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the masks of the given rows, int64 [R], as uint8 [R, h, w] on the CPU."""
        if not len(rows):
            return torch.zeros(0, *self.size, dtype=torch.uint8)
        return torch.stack([self._row(row) for row in rows.tolist()])

    def flip(self) -> "GroundTruthMasks":
        """Return the masks mirrored left to right."""
        return replace(self, mirrored=not self.mirrored, _rows={})

    def resize(self, size: tuple[int, int]) -> "GroundTruthMasks":
        """Return the masks at (h, w), each pixel that of the stored mask's nearest."""
        return replace(self, size=size, _rows={})

    def _row(self, row: int) -> Tensor:
        if row not in self._rows:
            self._rows[row] = self._rasterise(self.runs[row])
        return self._rows[row]

    def _rasterise(self, runs: RunLengths) -> Tensor:
        mask = torch.from_numpy(coco_mask.decode(runs))
        return resize_masks((mask.flip(1) if self.mirrored else mask)[None], self.size)[0]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks [G, H, W] at (h, w), each pixel its nearest; G may be 0."""
    if not len(masks):
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[:, None], size=size)[:, 0]
