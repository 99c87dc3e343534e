"""detectron2's inference of a Mask R-CNN with FPN, one image at a time, as its code does it.

Read from detectron2: ResizeShortestEdge, ResNet, DefaultAnchorGenerator, Box2BoxTransform,
find_top_rpn_proposals, ROIPooler, fast_rcnn_inference, detector_postprocess, paste_masks_in_image.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from benchmarks.made_checkpoints import BLOCKS
from tests.oracles.network import box_head, mask_head, padded, per_level, pyramid, rpn_head

MEAN_BGR = (103.53, 116.28, 123.675)
SIZES, STRIDES, RATIOS = (32, 64, 128, 256, 512), (4, 8, 16, 32, 64), (0.5, 1.0, 2.0)
EPS = 1e-5
CLAMP = math.log(1000 / 16)
SHORT_NAMES = {
    "rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn_deltas": "proposal_generator.rpn_head.anchor_deltas",
    "fc1": "roi_heads.box_head.fc1",
    "fc2": "roi_heads.box_head.fc2",
    "scores": "roi_heads.box_predictor.cls_score",
    "deltas": "roi_heads.box_predictor.bbox_pred",
    "deconv": "roi_heads.mask_head.deconv",
    "mask_logits": "roi_heads.mask_head.predictor",
    "stem": "backbone.bottom_up.stem.conv1",
    "stem_norm": "backbone.bottom_up.stem.conv1.norm",
}


class Detectron2:
    """A state dict, and what its configuration file says."""

    def __init__(self, tensors: dict[str, Tensor], arch="R50", short=800, long=1333, pre=1000, post=1000):
        self.tensors, self.blocks, self.short, self.long = tensors, BLOCKS[arch], short, long
        self.pre, self.post, self.stride_in_1x1 = pre, post, arch != "X101"
        self.std_bgr = (57.375, 57.12, 58.395) if arch == "X101" else (1.0, 1.0, 1.0)

    def name(self, short: str) -> str:
        """Return the checkpoint's name of a short one."""
        head, _, kind = short.rpartition(".")
        if head in SHORT_NAMES:
            return f"{SHORT_NAMES[head]}.{kind}"
        for prefix, own in (("lateral", "backbone.fpn_lateral"), ("output", "backbone.fpn_output")):
            if head.startswith(prefix):
                return f"{own}{int(head.removeprefix(prefix)) + 1}.{kind}"
        if head.startswith("mask"):
            return f"roi_heads.mask_head.mask_fcn{head[4:]}.{kind}"
        stage, block, layer = head.split(".")
        layer = {"offset": "conv2_offset", "shortcut_norm": "shortcut.norm"}.get(layer, layer)
        layer = f"conv{layer[2:]}.norm" if layer.startswith("bn") else layer
        return f"backbone.bottom_up.res{int(stage) + 1}.{block}.{layer}.{kind}"

    def get(self, short: str) -> Tensor:
        """Return a tensor by its short name."""
        return self.tensors[self.name(short)]

    def has(self, short: str) -> bool:
        """Return whether the checkpoint has a tensor."""
        return self.name(short) in self.tensors

    def resize(self, image: Tensor) -> Tensor:
        """Return the BGR image 0..255 at the network's size."""
        height, width = image.shape[-2:]
        scale = self.short / min(height, width)
        new_h, new_w = (self.short, scale * width) if height < width else (scale * height, self.short)
        if max(new_h, new_w) > self.long:
            scale = self.long / max(new_h, new_w)
            new_h, new_w = new_h * scale, new_w * scale
        size = int(new_w + 0.5), int(new_h + 0.5)
        bgr = image.flip(0).permute(1, 2, 0).numpy()
        return torch.from_numpy(np.asarray(Image.fromarray(bgr).resize(size, Image.BILINEAR)).copy()).permute(
            2, 0, 1
        )

    def features(self, image: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Return P2 to P6 and the size of the image before padding."""
        pixels = self.resize(image).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN_BGR, self.std_bgr))
        maps = pyramid(
            padded((pixels - mean) / std), self.get, self.has, self.blocks, self.stride_in_1x1, EPS
        )
        return maps, tuple(pixels.shape[-2:])

    def proposals(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the best proposals [n, 4]."""
        boxes, scores, levels = [], [], []
        for level, x in enumerate(maps):
            logits, deltas = rpn_head(x, self.get)
            best, index = logits.topk(min(self.pre, len(logits)))
            boxes.append(decode(deltas[index], anchors(x, level)[index], (1, 1, 1, 1)))
            scores.append(best)
            levels.append(torch.full_like(index, level))
        boxes, scores, levels = clip(torch.cat(boxes), size), torch.cat(scores), torch.cat(levels)
        kept = nonempty(boxes)
        boxes, scores, levels = boxes[kept], scores[kept], levels[kept]
        return boxes[batched_nms(boxes, scores, levels, 0.7)[: self.post]]

    def detect(self, image: Tensor, score=0.05, topk=100) -> dict[str, Tensor]:
        """Return boxes (xyxy), labels (from 0), scores, masks, and those uncut (soft), in image pixels."""
        maps, size = self.features(image)
        rois = self.proposals(maps, size)
        logits, deltas = box_head(pool(maps, rois, 7), self.get)
        probabilities, classes = logits.softmax(1)[:, :-1], logits.shape[1] - 1
        boxes = decode(deltas.view(-1, 4), rois.repeat_interleave(classes, 0), (10, 10, 5, 5))
        boxes = clip(boxes, size).view(-1, classes, 4)
        rows, labels = torch.where(probabilities > score)
        boxes, scores = boxes[rows, labels], probabilities[rows, labels]
        kept = batched_nms(boxes, scores, labels, 0.5)[:topk]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        masks = mask_head(pool(maps, boxes, 14), self.get)[torch.arange(len(boxes)), labels].sigmoid()
        height, width = image.shape[-2:]
        boxes = boxes * torch.tensor([width / size[1], height / size[0]] * 2)
        boxes = clip(boxes, (height, width))
        kept = nonempty(boxes)
        boxes, scores, labels, masks = boxes[kept], scores[kept], labels[kept], masks[kept]
        pasted = torch.stack([paste(m, b, height, width) for m, b in zip(masks, boxes, strict=True)])
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": pasted >= 0.5, "soft": pasted}


def anchors(x: Tensor, level: int) -> Tensor:
    """Return the anchors [A, 4] of a map, in the order row, column, ratio."""
    widths = [math.sqrt(SIZES[level] ** 2 / ratio) for ratio in RATIOS]
    cell = torch.tensor([[-w / 2, -r * w / 2, w / 2, r * w / 2] for w, r in zip(widths, RATIOS, strict=True)])
    ys, xs = (torch.arange(n) * float(STRIDES[level]) for n in x.shape[-2:])
    shift_y, shift_x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], -1).view(-1, 1, 4)
    return (shifts + cell).view(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, weights: tuple) -> Tensor:
    """Return boxes [n, 4] moved and scaled by deltas [n, 4]."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + width / 2, boxes[:, 1] + height / 2
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=torch.float32)).unbind(1)
    x, y = x + dx * width, y + dy * height
    width, height = width * dw.clamp(max=CLAMP).exp(), height * dh.clamp(max=CLAMP).exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes inside of [0, width] x [0, height]."""
    height, width = size
    return torch.stack(
        [c.clamp(0, end) for c, end in zip(boxes.unbind(1), (width, height) * 2, strict=True)], 1
    )


def nonempty(boxes: Tensor) -> Tensor:
    """Return the boxes that have an area."""
    return torch.where((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))[0]


def pool(maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """RoIAlignV2 with as many samples as the box needs, from the level of its size."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(2, 5).long() - 2
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)

    def one(level: int, rows: Tensor) -> Tensor:
        return roi_align(maps[level], rois[rows], size, 1 / STRIDES[level], 0, True)

    return per_level(levels, one, torch.zeros(1, maps[0].shape[1], size, size))


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Read the mask at the centre of every pixel of the image; outside of it is 0."""
    x1, y1, x2, y2 = box
    gx = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    gy = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([gx.expand(height, width), gy[:, None].expand(height, width)], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
