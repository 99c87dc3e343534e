"""maskrcnn-benchmark's inference of a Mask R-CNN with FPN, one image, in its own inclusive coordinates.

Read from maskrcnn-benchmark: Resize, Normalize, ResNet, AnchorGenerator, BoxCoder, RPNPostProcessor,
LevelMapper, ROIAlign, PostProcessor, BoxList.resize, Masker. A box here ends ON its last pixel.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align

from benchmarks.made_checkpoints import BLOCKS
from tests.oracles.network import box_head, mask_head, padded, per_level, pyramid, rpn_head

MEAN_BGR = (102.9801, 115.9465, 122.7717)
STRIDES = (4, 8, 16, 32, 64)
CLAMP = math.log(1000 / 16)
SHORT_NAMES = {
    "rpn_conv": "rpn.head.conv",
    "rpn_logits": "rpn.head.cls_logits",
    "rpn_deltas": "rpn.head.bbox_pred",
    "fc1": "roi_heads.box.feature_extractor.fc6",
    "fc2": "roi_heads.box.feature_extractor.fc7",
    "scores": "roi_heads.box.predictor.cls_score",
    "deltas": "roi_heads.box.predictor.bbox_pred",
    "deconv": "roi_heads.mask.predictor.conv5_mask",
    "mask_logits": "roi_heads.mask.predictor.mask_fcn_logits",
    "stem": "backbone.body.stem.conv1",
    "stem_norm": "backbone.body.stem.bn1",
}
LAYERS = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1", "offset": "conv2.offset"}


class Benchmark:
    """A state dict, and what its configuration file says."""

    def __init__(self, tensors: dict[str, Tensor], arch="R50", short=800, long=1333, pre=1000, post=1000):
        self.tensors, self.blocks, self.short, self.long = tensors, BLOCKS[arch], short, long
        self.pre, self.post, self.stride_in_1x1 = pre, post, arch != "X101"

    def name(self, short: str) -> str:
        """Return the checkpoint's name of a short one."""
        head, _, kind = short.rpartition(".")
        if head in SHORT_NAMES:
            return f"{SHORT_NAMES[head]}.{kind}"
        for prefix, own in (("lateral", "backbone.fpn.fpn_inner"), ("output", "backbone.fpn.fpn_layer")):
            if head.startswith(prefix):
                return f"{own}{head.removeprefix(prefix)}.{kind}"
        if head.startswith("mask"):
            return f"roi_heads.mask.feature_extractor.mask_fcn{head[4:]}.{kind}"
        stage, block, layer = head.split(".")
        name = f"backbone.body.layer{stage}.{block}.{LAYERS.get(layer, layer)}.{kind}"
        deformable = name.replace("conv2.weight", "conv2.conv.weight")
        return deformable if deformable in self.tensors else name

    def get(self, short: str) -> Tensor:
        """Return a tensor by its short name."""
        return self.tensors[self.name(short)]

    def has(self, short: str) -> bool:
        """Return whether the checkpoint has a tensor."""
        return self.name(short) in self.tensors

    def resize(self, image: Tensor) -> Tensor:
        """Return the RGB image, uint8, at the network's size."""
        height, width = image.shape[-2:]
        short = self.short
        low, high = float(min(width, height)), float(max(width, height))
        if high / low * short > self.long:
            short = round(self.long * low / high)
        size = (
            (short, int(short * height / width)) if width < height else (int(short * width / height), short)
        )
        if low == short:
            size = (width, height)
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.BILINEAR)
        return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)

    def features(self, image: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Return P2 to P6 and the size of the image before padding."""
        pixels = (self.resize(image).float() / 255)[[2, 1, 0]] * 255
        pixels = pixels - torch.tensor(MEAN_BGR).view(3, 1, 1)
        maps = pyramid(padded(pixels), self.get, self.has, self.blocks, self.stride_in_1x1, 0.0)
        return maps, tuple(pixels.shape[-2:])

    def proposals(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the best proposals [n, 4]; each level is suppressed by itself."""
        boxes, scores = [], []
        for level, x in enumerate(maps):
            logits, deltas = rpn_head(x, self.get)
            best, index = logits.sigmoid().topk(min(self.pre, len(logits)))
            found = clip(decode(deltas[index], self.anchors(x, level)[index], (1, 1, 1, 1)), size)
            kept = nms(found, best, 0.7)
            boxes.append(found[kept])
            scores.append(best[kept])
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        return boxes[scores.topk(min(self.post, len(scores))).indices]

    def anchors(self, x: Tensor, level: int) -> Tensor:
        """Return the anchors [A, 4] of a map, out of the checkpoint's own buffers."""
        cell = self.tensors[f"rpn.anchor_generator.cell_anchors.{level}"]
        ys, xs = (torch.arange(n) * float(STRIDES[level]) for n in x.shape[-2:])
        shift_y, shift_x = torch.meshgrid(ys, xs, indexing="ij")
        return (torch.stack([shift_x, shift_y, shift_x, shift_y], -1).view(-1, 1, 4) + cell).view(-1, 4)

    def detect(self, image: Tensor, score=0.05, topk=100) -> dict[str, Tensor]:
        """Return boxes (x, y, w, h as in its COCO results), labels (from 1), scores, masks and
        their probabilities before the threshold (soft)."""
        maps, size = self.features(image)
        rois = self.proposals(maps, size)
        logits, deltas = box_head(pool(maps, rois, 7), self.get)
        probabilities, classes = logits.softmax(1), logits.shape[1]
        boxes = decode(deltas.view(-1, 4), rois.repeat_interleave(classes, 0), (10, 10, 5, 5))
        boxes = clip(boxes, size).view(-1, classes, 4)
        found = []
        for label in range(1, classes):
            rows = torch.where(probabilities[:, label] > score)[0]
            rows = rows[nms(boxes[rows, label], probabilities[rows, label], 0.5)]
            found += [(boxes[row, label], label, probabilities[row, label]) for row in rows]
        boxes, labels = torch.stack([f[0] for f in found]), torch.tensor([f[1] for f in found])
        scores = torch.stack([f[2] for f in found])
        if len(scores) > topk:
            kept = scores >= scores.kthvalue(len(scores) - topk + 1).values
            boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
        masks = mask_head(pool(maps, boxes, 14), self.get)[torch.arange(len(boxes)), labels].sigmoid()
        height, width = image.shape[-2:]
        boxes = boxes * torch.tensor([width / size[1], height / size[0]] * 2)
        pasted = torch.stack([paste(m, b, height, width) for m, b in zip(masks, boxes, strict=True)])
        xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], 1)
        return {"boxes": xywh, "labels": labels, "scores": scores, "masks": pasted > 0.5, "soft": pasted}


def decode(deltas: Tensor, boxes: Tensor, weights: tuple) -> Tensor:
    """Return boxes [n, 4] moved and scaled by deltas [n, 4]; a width counts its last pixel."""
    width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    x, y = boxes[:, 0] + width / 2, boxes[:, 1] + height / 2
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=torch.float32)).unbind(1)
    x, y = x + dx * width, y + dy * height
    width, height = width * dw.clamp(max=CLAMP).exp(), height * dh.clamp(max=CLAMP).exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2 - 1, y + height / 2 - 1], 1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes whose ends are pixels of the image."""
    height, width = size
    ends = (width - 1, height - 1) * 2
    return torch.stack([c.clamp(0, end) for c, end in zip(boxes.unbind(1), ends, strict=True)], 1)


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Return the rows that no better one overlaps by more than `iou`; areas count the last pixel."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        top = torch.maximum(boxes[left, :2], boxes[best, :2])
        bottom = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        shared = (bottom - top + 1).clamp(min=0).prod(1)
        left = left[shared / (area[left] + area[best] - shared) <= iou]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def pool(maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """RoIAlign with two samples a bin and side, from the level of the box's size."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    levels = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5).long() - 2
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)

    def one(level: int, rows: Tensor) -> Tensor:
        return roi_align(maps[level], rois[rows], size, 1 / STRIDES[level], 2, False)

    return per_level(levels, one, torch.zeros(1, maps[0].shape[1], size, size))


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Pad the mask by a cell, enlarge its box alike, cut that to whole pixels, and resize the mask to it."""
    grid = F.pad(mask, (1, 1, 1, 1))[None, None]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * (30 / 28)
    x1, y1 = (centre - half).to(torch.int32).tolist()
    x2, y2 = (centre + half).to(torch.int32).tolist()
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    inside = F.interpolate(grid, size=(h, w), mode="bilinear", align_corners=False)[0, 0]
    canvas = torch.zeros(height, width)
    left, right, top, bottom = max(x1, 0), min(x2 + 1, width), max(y1, 0), min(y2 + 1, height)
    canvas[top:bottom, left:right] = inside[top - y1 : bottom - y1, left - x1 : right - x1]
    return canvas
