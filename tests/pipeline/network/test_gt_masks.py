"""Ground-truth masks travel as run lengths: the same bits as tensors, but only those that a RoI needs."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.network import gt_masks
from pipeline.network.gt_masks import GroundTruthMasks, resize_masks
from pipeline.network.targets import Assigned, mask_targets, to_rois
from shards.masks import compress_mask
from tests.pipeline.tiny import tiny_base, tiny_image, tiny_refined, tiny_target

SIDES = st.integers(1, 40)


def compressed(masks):
    """The masks of a tensor uint8 [G, H, W] as what the loader makes of COCO's segmentations."""
    encoded = [coco_mask.encode(np.asfortranarray(mask.numpy())) for mask in masks]
    runs = [compress_mask(item, *masks.shape[1:]) for item in encoded]
    return GroundTruthMasks(runs, tuple(masks.shape[1:]))


def lazily(target):
    return {**target, "masks": compressed(target["masks"])}


@pytest.fixture
def rasterised(monkeypatch):
    """The counts of every mask that is rasterised, in turn."""
    calls = []
    decode = coco_mask.decode
    monkeypatch.setattr(gt_masks.coco_mask, "decode", lambda runs: calls.append(runs) or decode(runs))
    return calls


@given(st.integers(0, 4), SIDES, SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 99))
def test_rows_have_the_bits_of_decoding_mirroring_and_resizing_all(count, h, w, new_h, new_w, mirror, seed):
    stored = torch.randint(0, 2, (count, h, w), generator=torch.Generator().manual_seed(seed)).byte()
    masks, wanted = compressed(stored), stored
    if mirror:
        masks, wanted = masks.flip(), wanted.flip(-1)
    masks, wanted = masks.resize((new_h, new_w)), resize_masks(wanted, (new_h, new_w))
    rows = torch.arange(count).flip(0)
    assert len(masks) == count and torch.equal(masks[rows], wanted[rows])
    assert torch.equal(pickle.loads(pickle.dumps(masks))[rows], wanted[rows])


def test_mirroring_twice_is_nothing_and_forgets_what_was_rasterised():
    stored = tiny_target(3)["masks"]
    masks, rows = compressed(stored), torch.arange(3)
    assert torch.equal(masks[rows], stored)
    assert torch.equal(masks.flip()[rows], stored.flip(-1))
    assert torch.equal(masks.flip().flip()[rows], stored)
    assert torch.equal(masks.resize((48, 50))[rows], resize_masks(stored, (48, 50)))


@pytest.mark.parametrize("build", [tiny_base, tiny_refined], ids=["base", "refined"])
def test_losses_are_those_of_all_masks_decoded_bit_for_bit(build):
    model = build().train()
    images = [tiny_image(0), tiny_image(1, 70, 96), tiny_image(2)]
    targets = [tiny_target(7), tiny_target(4, 2, 70, 96), tiny_target(5, 0)]
    expected = model(images, targets, 3)
    found = model(images, [lazily(target) for target in targets], 3)
    assert expected["loss_mask"][1] > 0
    for name, (loss, count) in expected.items():
        assert torch.equal(found[name][0], loss) and torch.equal(found[name][1], count), name


def test_only_masks_that_a_roi_is_matched_to_are_rasterised(rasterised):
    target = lazily(tiny_target(7, 4))
    rois = to_rois([target["boxes"][[2, 0, 2, 0]]])
    matched = torch.tensor([2, 0, 2, 0])
    assigned = Assigned(rois, target["labels"][matched], matched, matched < 0)
    crops = mask_targets(assigned, [target])
    assert rasterised == [target["masks"].runs[0], target["masks"].runs[2]]
    assert torch.equal(crops, mask_targets(assigned, [tiny_target(7, 4)]))
    assert mask_targets(assigned.take(matched[:0]), [target]).shape == (0, 28, 28)


def test_two_mask_losses_of_a_step_rasterise_a_mask_once(rasterised):
    tiny_refined().train()([tiny_image(0)], [lazily(tiny_target(7))], 3)
    assert len(rasterised) == len({runs["counts"] for runs in rasterised}) == 3
