"""Small models and batches for tests of the network."""

import torch
from torch import Tensor

from configs.schema import Model, Refine, Sara, Test
from pipeline.model import build_model

CLASSES = 4
MODEL = Model(
    backbone="resnet18",
    norm="group",
    trainable_layers=5,
    fpn_channels=32,
    box_head_dim=48,
    mask_head_channels=32,
    anchor_sizes=(8, 16, 32, 64, 128),
    min_size=96,
    max_size=96,
    rpn_pre_nms_train=200,
    rpn_post_nms_train=100,
    rpn_pre_nms_test=100,
    rpn_post_nms_test=40,
    rpn_batch_per_image=64,
    rois_per_image=48,
)
# Random weights are sure of nothing: keep every score.
TEST = Test(score=0.0, topk=20)


def tiny_base(test: Test = TEST, model_seed: int = 0, **model):
    """Return a Mask R-CNN with random weights."""
    torch.manual_seed(model_seed)
    return build_model(MODEL.model_copy(update=model), CLASSES, None, Sara(), test)


def tiny_refined(refine: Refine | None = None, sara: Sara | None = None, test: Test = TEST, **model):
    """Return an MR R-CNN whose base is `tiny_base()` and whose module was initialised from it."""
    base = tiny_base(**model)
    torch.manual_seed(1)
    config = MODEL.model_copy(update=model)
    refined = build_model(config, CLASSES, refine or Refine(), sara or Sara(), test)
    batch = ([tiny_image(0)], [tiny_target(0)], 0)
    refined.load_baseline(base.state_dict(), batch)
    return refined


def tiny_image(seed: int, height: int = 96, width: int = 96) -> Tensor:
    """Return noise [3, H, W] in 0..1."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def tiny_target(position: int, objects: int = 3, height: int = 96, width: int = 96) -> dict:
    """Return a target of elliptic objects."""
    generator = torch.Generator().manual_seed(100 + position)
    corner = torch.rand(objects, 2, generator=generator) * 50
    side = torch.rand(objects, 2, generator=generator) * 25 + 18
    boxes = torch.cat([corner, corner + side], 1)
    boxes[:, 0::2].clamp_(max=width)
    boxes[:, 1::2].clamp_(max=height)
    masks = (
        torch.stack([_ellipse(box, height, width) for box in boxes])
        if objects
        else torch.zeros(0, height, width)
    )
    labels = torch.randint(1, CLASSES, (objects,), generator=generator)
    return {"boxes": boxes, "labels": labels, "masks": masks.to(torch.uint8), "position": position}


def total(losses: dict) -> Tensor:
    """Return the loss as one process sums it."""
    return sum(loss / count.clamp(min=1) for loss, count in losses.values())


def _ellipse(box: Tensor, height: int, width: int) -> Tensor:
    x1, y1, x2, y2 = box
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
