"""The source profile: what the program that weights come from computes otherwise than another would.

The same tensors give other boxes in another program. A profile is data: it travels in the weights file, and
the model obeys it.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from configs.section import Section

Triple = tuple[float, float, float]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class SourceProfile(Section):
    """How a program turns pixels and weights into detections; the defaults are this project's own rules.

    What `Model` has keys for (stride_in_1x1, norm_eps, anchor sizes, proposal limits) is said there.

    Attributes:
        name: the program.
        channels: the order that the program's first layer reads colours in. Here it always reads RGB: the
            importer reorders it, the exporter puts it back.
        pixel_range: what full white is before the mean is subtracted.
        pixel_mean, pixel_std: of R, G, B, in units of `pixel_range`.
        resize: tensor is bilinear interpolation of the normalised image; pillow is Pillow's, of bytes.
        size_rounding: floor of both sides; half_up rounds them; legacy fixes the short side and truncates
            the long one.
        anchors: rounded to whole pixels and centred on the cell's corner; exact without rounding; legacy
            quantised and centred on half a stride.
        anchor_strides: grid is the padded image's side over the map's, rounded down; fixed is 4 to 64.
        straddle_px: in training, anchors further outside of the image than this are ignored; none is null.
        proposal_scores: what proposals are ranked by. sigmoid_late takes the best of each level by logit and
            suppresses by probability; logit and sigmoid take one of them for both.
        proposal_min_side: proposals with a shorter side, or without area, are dropped; null drops none.
        nms: joint over levels and classes (their boxes moved apart where they are few); separate for each.
        legacy_boxes: boxes were stored with inclusive ends: clipping, pooling, resizing, pasting follow that.
            The boxes that this project stores and returns are exclusive all the same.
        box_coder: units of the box head's deltas; delta_clip: their largest logarithm of a scale.
        aligned, sampling_ratio: RoIAlign's; 0 adapts to the box.
        level_eps, level_eps_in_log: added to the level of a box, or to the size whose logarithm it is.
        detection_min_side: detections with a shorter side are dropped before NMS; null drops none.
        drop_empty: detections without area in the image's own pixels are dropped.
        keep_ties: with more detections than asked for, those that score like the last one stay.
        rpn_beta: where the RPN's box loss turns from quadratic to linear; 0 is linear throughout.
        paste: how masks are brought to the image's size, unless `test.paste` says it.
    """

    name: Literal["mrrcnn", "torchvision", "detectron2", "maskrcnn_benchmark"] = "mrrcnn"
    channels: Literal["rgb", "bgr"] = "rgb"
    pixel_range: Literal[1, 255] = 1
    pixel_mean: Triple = (0.485, 0.456, 0.406)
    pixel_std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    resize: Literal["tensor", "pillow"] = "tensor"
    size_rounding: Literal["floor", "half_up", "legacy"] = "floor"
    anchors: Literal["rounded", "exact", "legacy"] = "rounded"
    anchor_strides: Literal["grid", "fixed"] = "grid"
    straddle_px: float | None = None
    proposal_scores: Literal["sigmoid_late", "logit", "sigmoid"] = "sigmoid_late"
    proposal_min_side: NotNegative | None = 1e-3
    nms: Literal["joint", "separate"] = "joint"
    legacy_boxes: bool = False
    box_coder: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    delta_clip: Positive = math.log(1000 / 16)
    aligned: bool = False
    sampling_ratio: Annotated[int, Field(ge=0, le=4096)] = 2
    level_eps: NotNegative = 1e-6
    level_eps_in_log: bool = False
    detection_min_side: NotNegative | None = 1e-2
    drop_empty: bool = False
    keep_ties: bool = False
    rpn_beta: NotNegative = 1 / 9
    paste: Literal["legacy", "exact"] = "legacy"
