"""Pasting masks: which pixels a mask may and must cover."""

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pipeline.network import paste
from pipeline.network.paste import paste_masks, paste_runs
from pipeline.scoring.coco_results import encode_mask

SIZE = (60, 80)
BOXES = torch.tensor(
    [[10.3, 5.2, 50.9, 47.7], [0.0, 0.0, 80.0, 60.0], [70.1, 3.3, 80.0, 9.9], [20.2, 30.1, 20.7, 30.9]]
)


def pixel_centres():
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return x, y


def test_exact_paste_of_ones_covers_the_box_up_to_its_corners():
    """M15: no pixel whose centre is outside; inside, only those near two edges at once may miss."""
    pasted = paste_masks(torch.ones(len(BOXES), 28, 28), BOXES, SIZE, "exact")
    x, y = pixel_centres()
    for mask, (x1, y1, x2, y2) in zip(pasted, BOXES.tolist(), strict=True):
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        assert not (mask & ~inside).any()
        half_x, half_y = (x2 - x1) / 56, (y2 - y1) / 56
        near_x = torch.minimum(x - x1, x2 - x) < half_x
        near_y = torch.minimum(y - y1, y2 - y) < half_y
        assert not (inside & ~mask & ~(near_x & near_y)).any()
    assert pasted[0].sum() > 1600


def test_legacy_paste_of_ones_differs_from_the_box_by_at_most_a_pixel():
    pasted = paste_masks(torch.ones(len(BOXES), 28, 28), BOXES, SIZE, "legacy")
    x, y = pixel_centres()
    for mask, (x1, y1, x2, y2) in zip(pasted, BOXES.tolist(), strict=True):
        assert not (mask & ~((x > x1 - 1) & (x < x2 + 1) & (y > y1 - 1) & (y < y2 + 1))).any()
    x1, y1, x2, y2 = BOXES[0]
    assert pasted[0][(x > x1 + 2) & (x < x2 - 2) & (y > y1 + 2) & (y < y2 - 2)].all()


def test_legacy_paste_is_torchvisions_in_any_chunking(monkeypatch):
    masks = torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(0))
    expected = paste_masks_in_image(masks[:, None], BOXES, SIZE)[:, 0] > 0.5
    assert torch.equal(paste_masks(masks, BOXES, SIZE, "legacy"), expected)
    monkeypatch.setattr(paste, "CHUNK_BYTES", 1)
    assert torch.equal(paste_masks(masks, BOXES, SIZE, "legacy"), expected)


def test_exact_paste_reads_a_mask_at_its_cells_centres():
    """A box of 28 pixels a side on whole pixels: every pixel is one cell."""
    mask = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(1))
    pasted = paste_masks(mask, torch.tensor([[7.0, 11.0, 35.0, 39.0]]), SIZE, "exact")[0]
    # A cell of almost exactly one half may round either way.
    sure = (mask[0] - 0.5).abs() > 1e-3
    assert torch.equal(pasted[11:39, 7:35][sure], (mask[0] > 0.5)[sure])
    assert pasted.sum() == pasted[11:39, 7:35].sum()


@pytest.mark.parametrize("how", ["legacy", "exact"])
def test_no_masks_paste_to_none(how):
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE, how).shape == (0, *SIZE)


@pytest.mark.parametrize("how", ["legacy", "exact"])
def test_run_lengths_are_those_of_the_pasted_masks_a_chunk_at_a_time(how, monkeypatch):
    masks = torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(3))
    expected = [encode_mask(mask.numpy()) for mask in paste_masks(masks, BOXES, SIZE, how)]
    assert paste_runs(masks, BOXES, SIZE, how) == expected
    # Two masks a chunk.
    monkeypatch.setattr(paste, "CHUNK_BYTES", 2 * 4 * SIZE[0] * SIZE[1])
    assert paste_runs(masks, BOXES, SIZE, how) == expected
    assert max(len(chunk) for _, chunk in paste._chunks(masks, BOXES, SIZE, how)) == 2
    assert paste_runs(masks[:0], BOXES[:0], SIZE, how) == []
