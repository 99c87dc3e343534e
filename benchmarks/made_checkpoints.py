"""Random checkpoints under each program's own names, spread so that scores and boxes differ.

Written from the programs' name lists, not from the importer's rules: tests hold the importer against them,
and `benchmarks.pretrained` shows with them what is done with the programs' own files.
"""

import math

import torch
from torch import Tensor

BLOCKS = {"R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "X101": (3, 4, 23, 3)}
BENCHMARK_CELLS = (
    ((-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)),
    ((-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)),
    ((-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)),
    ((-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)),
    ((-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)),
)
# Raw 0..255 pixels are some 70 times as large as normalised ones.
RAW = 1 / 70
# Standard deviation of what the trunk's convolutions give.
SMALL = 0.03
# As many as the largest tensor of the trunks has.
ZEROS = torch.zeros(2048 * 2048)


class Draw:
    """Draws tensors in the order they are asked for: the same seed gives the same checkpoint.

    Without a seed there are zeros that share their memory, for tests of names and shapes alone.
    """

    def __init__(self, seed: int | None):
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def _drawn(self, how, shape: tuple[int, ...], factor: float, start: float) -> Tensor:
        if self.generator is None:
            return ZEROS[: math.prod(shape)].view(shape)
        return how(shape, generator=self.generator) * factor + start

    def normal(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Weights that keep the variance of their input, times the gain."""
        fan_in = math.prod(shape[1:])
        self.tensors[name] = self._drawn(torch.randn, shape, gain * math.sqrt(2 / fan_in), 0.0)

    def uniform(self, name: str, size: int, low: float, high: float) -> None:
        """Numbers between two."""
        self.tensors[name] = self._drawn(torch.rand, (size,), high - low, low)

    def layer(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """A layer with bias."""
        self.normal(f"{name}.weight", *shape, gain=gain)
        self.uniform(f"{name}.bias", shape[0], -0.1, 0.1)

    def norm(self, name: str, size: int, scale: float = 1.0) -> None:
        """A frozen batch norm after a trunk's convolution; its variances are so small that eps shows."""
        self.uniform(f"{name}.weight", size, 0.6 * scale, 1.2 * scale)
        self.uniform(f"{name}.bias", size, -0.2, 0.2)
        self.uniform(f"{name}.running_mean", size, -SMALL, SMALL)
        self.uniform(f"{name}.running_var", size, 0.5 * SMALL**2, 1.5 * SMALL**2)


def detectron2_checkpoint(
    seed: int | None = 0, arch="R50", dcn=False, classes=80, width=32
) -> dict[str, Tensor]:
    """Return a state dict of mask_rcnn_*_FPN; background is the last class and has no box or mask."""
    draw = Draw(seed)
    _trunk(draw, arch, dcn, _detectron2_names)
    for level in range(2, 6):
        draw.layer(f"backbone.fpn_lateral{level}", width, 128 * 2 ** (level - 1), 1, 1, gain=0.5)
        draw.layer(f"backbone.fpn_output{level}", width, width, 3, 3, gain=0.7)
    rpn = "proposal_generator.rpn_head"
    _rpn(draw, width, f"{rpn}.conv", f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas")
    draw.layer("roi_heads.box_head.fc1", 2 * width, width * 49)
    draw.layer("roi_heads.box_head.fc2", 2 * width, 2 * width)
    draw.layer("roi_heads.box_predictor.cls_score", classes + 1, 2 * width, gain=2.0)
    draw.layer("roi_heads.box_predictor.bbox_pred", 4 * classes, 2 * width, gain=1.0)
    for index in range(1, 5):
        draw.layer(f"roi_heads.mask_head.mask_fcn{index}", width, width, 3, 3)
    _deconv(draw, "roi_heads.mask_head.deconv", width)
    draw.layer("roi_heads.mask_head.predictor", classes, width, 1, 1, gain=2.0)
    return draw.tensors


def benchmark_checkpoint(
    seed: int | None = 0, arch="R50", dcn=False, classes=81, width=32
) -> dict[str, Tensor]:
    """Return a state dict of e2e_mask_rcnn_*_FPN; its buffers of anchors are in it."""
    draw = Draw(seed)
    _trunk(draw, arch, dcn, _benchmark_names)
    for index in range(1, 5):
        draw.layer(f"backbone.fpn.fpn_inner{index}", width, 128 * 2**index, 1, 1, gain=0.5)
        draw.layer(f"backbone.fpn.fpn_layer{index}", width, width, 3, 3, gain=0.7)
    for level, cell in enumerate(BENCHMARK_CELLS):
        draw.tensors[f"rpn.anchor_generator.cell_anchors.{level}"] = torch.tensor(cell, dtype=torch.float32)
    _rpn(draw, width, "rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred")
    draw.layer("roi_heads.box.feature_extractor.fc6", 2 * width, width * 49)
    draw.layer("roi_heads.box.feature_extractor.fc7", 2 * width, 2 * width)
    draw.layer("roi_heads.box.predictor.cls_score", classes, 2 * width, gain=2.0)
    draw.layer("roi_heads.box.predictor.bbox_pred", 4 * classes, 2 * width, gain=1.0)
    for index in range(1, 5):
        draw.layer(f"roi_heads.mask.feature_extractor.mask_fcn{index}", width, width, 3, 3)
    _deconv(draw, "roi_heads.mask.predictor.conv5_mask", width)
    draw.layer("roi_heads.mask.predictor.mask_fcn_logits", classes, width, 1, 1, gain=2.0)
    return draw.tensors


def torchvision_checkpoint(seed: int | None = 0, classes=91, width=32) -> dict[str, Tensor]:
    """Return a state dict of maskrcnn_resnet50_fpn under the names of the published file, the older ones."""
    draw = Draw(seed)
    _trunk(draw, "R50", False, _torchvision_names, stem_gain=1.0)
    for index in range(4):
        draw.layer(f"backbone.fpn.inner_blocks.{index}", width, 256 * 2**index, 1, 1, gain=0.5)
        draw.layer(f"backbone.fpn.layer_blocks.{index}", width, width, 3, 3, gain=0.7)
    _rpn(draw, width, "rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred")
    draw.layer("roi_heads.box_head.fc6", 2 * width, width * 49)
    draw.layer("roi_heads.box_head.fc7", 2 * width, 2 * width)
    draw.layer("roi_heads.box_predictor.cls_score", classes, 2 * width, gain=2.0)
    draw.layer("roi_heads.box_predictor.bbox_pred", 4 * classes, 2 * width, gain=1.0)
    for index in range(1, 5):
        draw.layer(f"roi_heads.mask_head.mask_fcn{index}", width, width, 3, 3)
    _deconv(draw, "roi_heads.mask_predictor.conv5_mask", width)
    draw.layer("roi_heads.mask_predictor.mask_fcn_logits", classes, width, 1, 1, gain=2.0)
    return draw.tensors


def _trunk(draw: Draw, arch: str, dcn: bool, names, stem_gain: float = RAW) -> None:
    conv, norm, offset = names
    draw.normal(conv(0, 0, 1, False), 64, 3, 7, 7, gain=SMALL * stem_gain)
    draw.norm(norm(0, 0, 1), 64)
    for stage, blocks in enumerate(BLOCKS[arch], 1):
        middle = (256 if arch == "X101" else 64) * 2 ** (stage - 1)
        out, grouped = 256 * 2 ** (stage - 1), middle // 32 if arch == "X101" else middle
        for block in range(blocks):
            entry = out if block else (64 if stage == 1 else out // 2)
            deformable = dcn and stage > 1
            draw.normal(conv(stage, block, 1, False), middle, entry, 1, 1, gain=SMALL)
            draw.normal(conv(stage, block, 2, deformable), middle, grouped, 3, 3, gain=SMALL)
            draw.normal(conv(stage, block, 3, False), out, middle, 1, 1, gain=SMALL)
            for index, size in ((1, middle), (2, middle), (3, out)):
                draw.norm(norm(stage, block, index), size, 0.3 if index == 3 else 0.5)
            if not block:
                draw.normal(conv(stage, 0, 4, False), out, entry, 1, 1, gain=SMALL)
                draw.norm(norm(stage, 0, 4), out, 0.5)
            if deformable:
                draw.layer(offset(stage, block), 18, middle, 3, 3, gain=0.5)


def _rpn(draw: Draw, width: int, conv: str, scores: str, deltas: str) -> None:
    draw.layer(conv, width, width, 3, 3)
    draw.layer(scores, 3, width, 1, 1)
    draw.layer(deltas, 12, width, 1, 1, gain=0.5)


def _deconv(draw: Draw, name: str, width: int) -> None:
    # Stored [in, out, 2, 2]: one of the four taps makes an output.
    draw.layer(name, width, width, 2, 2, gain=2.0)


_DETECTRON2 = "backbone.bottom_up"
_detectron2_names = (
    lambda stage, block, index, _: _detectron2_conv(stage, block, index) + ".weight",
    lambda stage, block, index: _detectron2_conv(stage, block, index) + ".norm",
    lambda stage, block: f"{_DETECTRON2}.res{stage + 1}.{block}.conv2_offset",
)


def _detectron2_conv(stage: int, block: int, index: int) -> str:
    if not stage:
        return f"{_DETECTRON2}.stem.conv1"
    return f"{_DETECTRON2}.res{stage + 1}.{block}." + ("shortcut" if index == 4 else f"conv{index}")


def _torch_names(stem: str):
    def conv(stage: int, block: int, index: int, deformable: bool) -> str:
        if not stage:
            return f"{stem}conv1.weight"
        place = f"backbone.body.layer{stage}.{block}"
        if deformable:
            return f"{place}.conv2.conv.weight"
        return f"{place}.downsample.0.weight" if index == 4 else f"{place}.conv{index}.weight"

    def norm(stage: int, block: int, index: int) -> str:
        if not stage:
            return f"{stem}bn1"
        place = f"backbone.body.layer{stage}.{block}"
        return f"{place}.downsample.1" if index == 4 else f"{place}.bn{index}"

    return conv, norm, lambda stage, block: f"backbone.body.layer{stage}.{block}.conv2.offset"


_benchmark_names = _torch_names("backbone.body.stem.")
_torchvision_names = _torch_names("backbone.body.")
