"""detectron2's mask_rcnn_*_FPN: names and profile.

Source of the facts: its modeling/, layers/, structures/ and config/defaults.py, and the YAML files of these
models.
"""

from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.importing.categories import NUMBERED_ON
from pipeline.importing.source import Source, shifted

PROFILE = SourceProfile(
    name="detectron2",
    channels="bgr",
    pixel_range=255,
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(1.0, 1.0, 1.0),
    resize="pillow",
    size_rounding="half_up",
    anchors="exact",
    anchor_strides="fixed",
    proposal_scores="logit",
    proposal_min_side=0.0,
    aligned=True,
    sampling_ratio=0,
    level_eps=1e-8,
    level_eps_in_log=True,
    detection_min_side=None,
    drop_empty=True,
    rpn_beta=0.0,
    paste="exact",
)
RESNEXT_STD = (58.395, 57.12, 57.375)


def describe(_: dict[str, Tensor], sizes: Model) -> Model:
    """Return the model: stride in the 1x1 convolution and std 1, but for ResNeXt; absolute box losses."""
    original = not sizes.backbone.startswith("resnext")
    profile = PROFILE if original else PROFILE.model_copy(update={"pixel_std": RESNEXT_STD})
    changes = {"stride_in_1x1": original, "norm_eps": 1e-5, "box_beta": 0.0, "profile": profile}
    return sizes.model_copy(update=changes)


DETECTRON2 = Source(
    name="detectron2",
    mark="backbone.bottom_up.stem.conv1.weight",
    rules=(
        (r"^backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
        (r"^backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        *shifted(r"^backbone\.body\.layer{n}\.", "backbone.bottom_up.res{n}.", range(1, 5), 1),
        (r"(?<=\.)bn(\d)\.", r"conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"\.conv2\.offset\.", ".conv2_offset."),
        *shifted(r"^backbone\.fpn\.inner_blocks\.{n}\.0\.", "backbone.fpn_lateral{n}.", range(4), 2),
        *shifted(r"^backbone\.fpn\.layer_blocks\.{n}\.0\.", "backbone.fpn_output{n}.", range(4), 2),
        (r"^rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
        (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
        (r"^roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
        (r"^roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
        *shifted(r"^roi_heads\.mask_head\.{n}\.0\.", "roi_heads.mask_head.mask_fcn{n}.", range(4), 1),
        (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
        (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
    ),
    left=(
        (
            r"^proposal_generator\.anchor_generator\.cell_anchors\.\d$",
            "compared with the profile's anchors",
        ),
        (r"^pixel_(mean|std)$", "taken into the profile"),
        (r"\.num_batches_tracked$", "frozen norms count no batches"),
    ),
    coco=NUMBERED_ON,
    background_last=True,
    offset=".conv2_offset.",
    # Files of the first years hold them.
    statistics=("pixel_mean", "pixel_std"),
    profile=PROFILE,
    describe=describe,
)
