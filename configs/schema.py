"""The typed configuration: every key, its default and its legal values, in one place.

Sections hold plain values only, so a resolved config is a YAML file and nothing else. Unknown
keys are refused by `configs.load`, which also names the nearest known key.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from configs.profile import SourceProfile
from configs.section import Section

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class CocoSource(Section):
    """A COCO image folder and its annotation file, sharded by the `shard` stage."""

    images: str
    annotations: str


# A plain string is a directory or URL of shards. The tags keep pydantic from complaining of both forms.
Source = Annotated[
    Annotated[str, Tag("shards")] | Annotated[CocoSource, Tag("coco")],
    Discriminator(lambda value: "shards" if isinstance(value, str) else "coco"),
]


class Data(Section):
    """Where samples come from: shards, or images and annotations to be sharded first.

    Shards may be at an fsspec URL (s3://, gs://, https://, ...): each machine then keeps whole shards under
    `cache_dir` (else MRRCNN_CACHE, else ~/.cache/mrrcnn), at most `cache_gb` of them, the last used ones.

    `order=full` shuffles all samples of an epoch; `order=window`, for shards on a cold object store, takes
    whole shards in turn and shuffles `order_window` samples at a time. `on_corrupt=quarantine` trains on
    another sample in the place of one that is damaged in the shards; evaluation never does.
    """

    train: Source
    val: Source
    on_bad: Literal["fail", "skip"] = "fail"
    repair: bool = False
    max_pixels: Positive = 178_956_970
    shard_size_mb: Positive = 256
    on_corrupt: Literal["fail", "quarantine"] = "fail"
    order: Literal["full", "window"] = "full"
    order_window: Positive = 8192
    cache_dir: str | None = None
    cache_gb: PositiveFloat = 20.0
    loader_workers: Annotated[int, Field(ge=0)] = 2


class Model(Section):
    """The Mask R-CNN that both stages share. Sizes are in pixels of the network's input.

    A `_dcn` trunk has deformable 3x3 convolutions in its last three stages. `profile` and what belongs to it
    come from the weights file, if that is an imported one.
    """

    backbone: Literal[
        "resnet18", "resnet50", "resnet101", "resnext101_32x8d", "resnet50_dcn", "resnet101_dcn"
    ] = "resnet50"
    norm: Literal["frozen_bn", "group"] = "frozen_bn"
    norm_eps: Annotated[float, Field(ge=0)] = 1e-5
    stride_in_1x1: bool = False
    weights: str | None = None
    trainable_layers: Annotated[int, Field(ge=0, le=5)] = 3
    fpn_channels: Positive = 256
    box_head_dim: Positive = 1024
    mask_head_channels: Positive = 256
    anchor_sizes: tuple[Positive, Positive, Positive, Positive, Positive] = (32, 64, 128, 256, 512)
    min_size: Positive = 800
    max_size: Positive = 1333
    rpn_pre_nms_train: Positive = 2000
    rpn_post_nms_train: Positive = 1000
    rpn_pre_nms_test: Positive = 1000
    rpn_post_nms_test: Positive = 1000
    rpn_batch_per_image: Positive = 256
    rois_per_image: Positive = 512
    box_beta: Annotated[float, Field(ge=0)] = 1.0
    mask_chunk: Positive = 256
    profile: SourceProfile = SourceProfile()

    @model_serializer(mode="wrap")
    def _without_default_profile(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Weights files and run directories from before there were profiles stay what they are.
        return _leave_out(handler(self), "profile", self.profile == SourceProfile())


class Sara(Section):
    """Shape-aware RoIAlign: the paper's section 3.1 and the readings of its equation 5."""

    aligned: Literal["source"] | bool = "source"
    sampling_ratio: Annotated[int, Field(gt=0, le=4096)] = 2
    delta: Literal[0.5, 0.0] = 0.5
    guidance: Literal["mul", "residual"] = "mul"


class RefineLossWeights(Section):
    """Weights of the refining module's three losses."""

    cls: Annotated[float, Field(ge=0)] = 1.0
    box: Annotated[float, Field(ge=0)] = 1.0
    mask: Annotated[float, Field(ge=0)] = 1.0


class Refine(Section):
    """The refining module and how it is trained: the paper's sections 3.2 and 3.3."""

    use_sara: bool = True
    iou: Fraction = 0.5
    coder: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    resample: bool = False
    gt: Literal["plain", "zero_delta"] = "plain"
    detach_mask: bool = False
    init_gain: Literal["none", "mean_mask"] = "none"
    freeze_base: bool = False
    fminus: Literal["literal", "htc", "relative"] = "literal"
    conv_res_init: Literal["zero", "kaiming", "identity"] = "zero"
    conv_res_act: Literal["none", "relu"] = "none"
    base_mask_on: Literal["B", "R"] = "B"
    mask_pos_cap: Positive = 128
    loss_w: RefineLossWeights = RefineLossWeights()
    train_mask_label: Literal["gt", "pred"] = "gt"

    @model_validator(mode="after")
    def _dead_branch(self):
        if self.conv_res_init == "zero" and self.conv_res_act == "relu":
            raise ValueError(
                "refine.conv_res_init=zero with refine.conv_res_act=relu never trains "
                "(the derivative of ReLU at 0 is 0); choose conv_res_act=none or another init"
            )
        return self


class Schedule(Section):
    """One training stage. `batch` is the global batch; `iters` counts optimizer steps.

    `accumulate` cuts each global batch into that many slices, run one after the other: losses are means
    over a slice of all ranks, and a step's gradient is the mean over its slices. In a file,
    `reference_batch` is the batch that lr, iters, steps and warmup are for: with another batch they are
    scaled (configs.scaling) and the key is gone from the resolved config.

    Every `eval_every` steps (0: never) a process of its own evaluates the weights on `data.val` while
    training goes on, and the best by mask AP are kept. With `patience`, training ends when so many
    evaluations in a row have brought no better ones.
    """

    iters: Annotated[int, Field(ge=0)] = 90000
    batch: Positive = 16
    reference_batch: Positive | None = None
    lr: Annotated[float, Field(gt=0)] = 0.02
    steps: tuple[Positive, ...] = (60000, 80000)
    gamma: Annotated[float, Field(gt=0)] = 0.1
    warmup: Annotated[int, Field(ge=0)] = 500
    warmup_factor: Fraction = 1 / 3
    accumulate: Positive = 1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    bias_lr: Annotated[float, Field(gt=0)] = 2.0
    bias_wd: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(ge=0)] = 0.0
    eval_every: Annotated[int, Field(ge=0)] = 0
    patience: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        if self.patience and not self.eval_every:
            raise ValueError(f"patience={self.patience} counts evaluations, but eval_every is 0; set it too")
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} is not divisible by accumulate={self.accumulate}")
        return self

    @model_serializer(mode="wrap")
    def _without_reference(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _leave_out(handler(self), "reference_batch", self.reference_batch is None)


class Train(Section):
    """Both trained stages; `control` follows `refine`'s schedule by definition."""

    baseline: Schedule = Schedule()
    refine: Schedule = Schedule(iters=9000, lr=0.002, steps=(6000,))
    precision: Literal["fp32", "bf16"] = "fp32"
    hflip: Fraction = 0.5
    aspect_window: Annotated[int, Field(ge=0)] = 16
    log_every: Positive = 20


class Test(Section):
    """Inference and scoring: changing any of it redoes `evaluate` and `report` only, and evaluations
    beside a training that has not ended.

    `scorer` computes the AP: faster_coco_eval gives pycocotools' numbers (to 1e-10) in a fifth of its time.
    """

    # Not a test case, whatever pytest makes of the name.
    __test__: ClassVar[bool] = False

    alpha: Annotated[float, Field(ge=0)] = 1.0
    cls: bool = True
    reg: bool = True
    order: Literal["refine_all", "refine_after_nms"] = "refine_all"
    score: Fraction = 0.05
    nms: Fraction = 0.5
    topk: Positive = 100
    paste: Literal["legacy", "exact"] = "legacy"
    cls_scores: Literal["fused", "refined"] = "fused"
    scorer: Literal["faster_coco_eval", "pycocotools"] = "faster_coco_eval"


class DeepSpeed(Section):
    """ZeRO stage; 1 is the measured default."""

    stage: Literal[0, 1, 2] = 1


class Debug(Section):
    """What to write for whoever doubts the order of samples."""

    log_samples: bool = False


class Tracking(Section):
    """Where MLflow lives; without `uri`, MLFLOW_TRACKING_URI or a local sqlite file."""

    uri: str | None = None
    experiment: str = "mrrcnn"


class Config(Section):
    """One run of the whole pipeline.

    A checkpoint is written every `checkpoint_every` steps. The `keep_checkpoints` newest are kept, and those
    whose step is a multiple of `keep_checkpoint_every` (0: none) for good.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    data: Data
    model: Model = Model()
    sara: Sara = Sara()
    refine: Refine = Refine()
    train: Train = Train()
    test: Test = Test()
    checkpoint_every: Positive = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    keep_checkpoint_every: Annotated[int, Field(ge=0)] = 0
    deepspeed: DeepSpeed = DeepSpeed()
    debug: Debug = Debug()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _kept_are_written(self):
        if self.keep_checkpoint_every % self.checkpoint_every:
            raise ValueError(
                f"keep_checkpoint_every={self.keep_checkpoint_every} is no multiple of "
                f"checkpoint_every={self.checkpoint_every}, so most of those steps have no checkpoint to keep"
            )
        return self


def _leave_out(tree: dict[str, Any], key: str, absent: bool) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != key} if absent else tree
