"""maskrcnn-benchmark's e2e_mask_rcnn_*_FPN: names and profile.

Source of the facts: its modeling/, structures/ and config/defaults.py, and the YAML files of these models.
"""

from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.importing.categories import NUMBERED_ON
from pipeline.importing.source import Source, shifted

PROFILE = SourceProfile(
    name="maskrcnn_benchmark",
    channels="bgr",
    pixel_range=255,
    pixel_mean=(122.7717, 115.9465, 102.9801),
    pixel_std=(1.0, 1.0, 1.0),
    resize="pillow",
    size_rounding="legacy",
    anchors="legacy",
    anchor_strides="fixed",
    straddle_px=0.0,
    proposal_scores="sigmoid",
    proposal_min_side=None,
    nms="separate",
    legacy_boxes=True,
    level_eps_in_log=True,
    detection_min_side=None,
    keep_ties=True,
)


def describe(_: dict[str, Tensor], sizes: Model) -> Model:
    """Return the model: the stride is in the 1x1 convolution, but for ResNeXt; the norms have no eps."""
    original = not sizes.backbone.startswith("resnext")
    changes = {"stride_in_1x1": original, "norm_eps": 0.0, "profile": PROFILE}
    return sizes.model_copy(update=changes)


MASKRCNN_BENCHMARK = Source(
    name="maskrcnn_benchmark",
    mark="backbone.body.stem.conv1.weight",
    rules=(
        (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.body.stem.\1."),
        *shifted(r"^backbone\.fpn\.inner_blocks\.{n}\.0\.", "backbone.fpn.fpn_inner{n}.", range(4), 1),
        *shifted(r"^backbone\.fpn\.layer_blocks\.{n}\.0\.", "backbone.fpn.fpn_layer{n}.", range(4), 1),
        (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"^roi_heads\.box_head\.", "roi_heads.box.feature_extractor."),
        (r"^roi_heads\.box_predictor\.", "roi_heads.box.predictor."),
        *shifted(
            r"^roi_heads\.mask_head\.{n}\.0\.", "roi_heads.mask.feature_extractor.mask_fcn{n}.", range(4), 1
        ),
        (r"^roi_heads\.mask_predictor\.", "roi_heads.mask.predictor."),
    ),
    deformable_rules=((r"^(backbone\.body\.layer[234]\.\d+\.conv2)\.weight$", r"\1.conv.weight"),),
    left=((r"^rpn\.anchor_generator\.cell_anchors\.\d$", "compared with the profile's anchors"),),
    coco=NUMBERED_ON,
    background_last=False,
    profile=PROFILE,
    describe=describe,
)
