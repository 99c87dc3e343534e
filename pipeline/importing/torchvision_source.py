"""torchvision's maskrcnn_resnet50_fpn (V1), and models built alike with other trunks: names and profile."""

from torch import Tensor

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.importing.categories import BY_ID
from pipeline.importing.source import Source, shifted

# The V1 weights were trained before torchvision gave both box losses a beta of 1/9: RPN L1, boxes beta 1.
PROFILE = SourceProfile(name="torchvision", rpn_beta=0.0)


def describe(tensors: dict[str, Tensor], sizes: Model) -> Model:
    """Return the model: stride in the 3x3 convolutions, and the norms' eps.

    torchvision forces 0 on its frozen norms when it loads the V1 weights. Norms that count batches were
    never frozen, and have the ordinary eps.
    """
    frozen = not any(name.endswith("num_batches_tracked") for name in tensors)
    rules = {"stride_in_1x1": False, "norm_eps": 0.0 if frozen else 1e-5, "box_beta": 1.0}
    return sizes.model_copy(update={**rules, "profile": PROFILE})


TORCHVISION = Source(
    name="torchvision",
    mark="backbone.body.conv1.weight",
    rules=(),
    older_rules=(
        (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
        (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        *shifted(r"^roi_heads\.mask_head\.{n}\.0\.", "roi_heads.mask_head.mask_fcn{n}.", range(4), 1),
    ),
    left=((r"\.num_batches_tracked$", "frozen norms count no batches"),),
    coco=BY_ID,
    background_last=False,
    profile=PROFILE,
    describe=describe,
)
