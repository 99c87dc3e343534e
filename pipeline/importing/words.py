"""The report of an import: what was read, written and left, and by which rules the model computes."""

from collections import Counter

from configs.schema import Model
from pipeline.importing.categories import Category
from pipeline.importing.convert import Imported
from pipeline.importing.source import Source

RESIZE = {"tensor": "bilinear interpolation of the normalised image", "pillow": "Pillow's bilinear, of bytes"}
ROUNDING = {
    "floor": "both sides rounded down",
    "half_up": "both sides rounded half up",
    "legacy": "the short side exact, the long one truncated",
}
ANCHORS = {
    "rounded": "rounded to whole pixels, centred on the cell's corner",
    "exact": "not rounded, centred on the cell's corner",
    "legacy": "quantised, centred on half a stride",
}
STRIDES = {"grid": "the padded side over the map's", "fixed": "4, 8, 16, 32, 64"}
SCORES = {
    "sigmoid_late": "the logit when each level's best are taken, the probability in NMS",
    "logit": "logit",
    "sigmoid": "probability",
}
# The keys of Model that change what the same tensors give, and the form of the box loss.
RULES = (
    "norm_eps", "stride_in_1x1", "fpn_channels", "box_head_dim", "mask_head_channels", "anchor_sizes",
    "min_size", "max_size", "rpn_pre_nms_test", "rpn_post_nms_test", "box_beta",
)  # fmt: skip


def profile_in_words(model: Model) -> list[str]:
    """Return one line a rule."""
    p = model.profile
    place = "1x1" if model.stride_in_1x1 else "3x3"
    return [
        f"rules: {p.name}'s",
        f"colours: the file's first layer reads {p.channels.upper()}",
        f"pixels: 0..{p.pixel_range}, mean {_list(p.pixel_mean)}, std {_list(p.pixel_std)} (R, G, B)",
        f"resizing: {RESIZE[p.resize]}; {ROUNDING[p.size_rounding]}",
        f"trunk: {model.backbone}, stride 2 in the {place} convolution, "
        f"norms frozen with eps {model.norm_eps:g}",
        f"anchors: sizes {_list(model.anchor_sizes)}, {ANCHORS[p.anchors]}; "
        f"strides {STRIDES[p.anchor_strides]}",
        f"proposals: ranked by {SCORES[p.proposal_scores]}, {model.rpn_pre_nms_test} a level before NMS and "
        f"{model.rpn_post_nms_test} an image after it; {_dropped(p.proposal_min_side)}",
        f"boxes: {'inclusive ends (+1)' if p.legacy_boxes else 'exclusive ends'}, deltas in units of "
        f"{_list(p.box_coder)}, log scale at most {p.delta_clip:.4g}",
        f"RoIAlign: aligned={str(p.aligned).lower()}, sampling ratio {p.sampling_ratio or 'adaptive'}; "
        f"levels with eps {p.level_eps:g} {'inside' if p.level_eps_in_log else 'outside'} the logarithm",
        f"detections: NMS {p.nms}, {_dropped(p.detection_min_side)}"
        + ("; empty ones dropped at last" if p.drop_empty else "")
        + ("; ties with the last one kept" if p.keep_ties else ""),
        f"masks: {p.paste} paste",
        f"in training: box loss beta {model.box_beta:g}, RPN {p.rpn_beta:.3g}; "
        + (
            "all anchors"
            if p.straddle_px is None
            else f"anchors ending more than {p.straddle_px:g} px outside ignored"
        )
        + f"; {model.rpn_post_nms_train} proposals an image",
    ]


def unlike(model: Model, source: Source) -> list[str]:
    """Return the rules that a program does not compute by unless it is told to, each with its own."""
    theirs = source.describe({}, Model(backbone=model.backbone))
    rules = [(key, getattr(model, key), getattr(theirs, key)) for key in RULES]
    rules += [(key, value, getattr(theirs.profile, key)) for key, value in model.profile if key != "name"]
    return [f"{key} {ours} (there {own})" for key, ours, own in rules if ours != own]


def to_build(model: Model, source: Source, classes: int) -> str:
    """Return what has to be said to a program for a model that the weights fit."""
    p = model.profile
    if source.name == "torchvision":
        return (
            f"norms with eps {model.norm_eps:g}: build with FrozenBatchNorm2d, eps {model.norm_eps:g} (its "
            "own maskrcnn_resnet50_fpn has BatchNorm2d of eps 1e-05 unless it fetches weights): "
            f'MaskRCNN(resnet_fpn_backbone(backbone_name="{model.backbone}", weights=None, '
            f"norm_layer=partial(FrozenBatchNorm2d, eps={model.norm_eps})), num_classes={classes + 1})"
        )
    turn = 1 if p.channels == "rgb" else -1
    return (
        f"MODEL.ROI_HEADS.NUM_CLASSES {classes} INPUT.FORMAT {p.channels.upper()} "
        f'MODEL.PIXEL_MEAN "[{_list(p.pixel_mean[::turn])}]" MODEL.PIXEL_STD "[{_list(p.pixel_std[::turn])}]"'
    )


def rows_in_words(categories: list[Category], first_row: int) -> str:
    """Return how many classes there are, and what the first rows of the class scores stand for."""
    named = ", ".join(f"row {r} = {c['id']} {c['name']}" for r, c in enumerate(categories[:3], first_row))
    background = "row 0" if first_row else f"row {len(categories)}"
    more = ", ..." if len(categories) > 3 else ""
    return f"{len(categories)} classes: {named}{more}; background is {background}"


def summary(found: Imported) -> list[str]:
    """Return what the terminal shows of an import."""
    parts = Counter(".".join(name.split(".")[:2]) for name in found.taken)
    lines = [
        f"{found.checkpoint.path}: {found.source.name} Mask R-CNN, {found.model.backbone}, "
        f"{len(found.checkpoint.tensors)} tensors, sha256 {found.checkpoint.sha256}",
        f"read {len(found.taken)} and wrote {len(found.tensors)}, each once: "
        + ", ".join(f"{part} {count}" for part, count in parts.items()),
    ]
    reasons = Counter(found.left.values())
    lines += [f"left {count} ({reason})" for reason, count in reasons.items()]
    lines += [f"left the file's entry {name!r}, which is no weights" for name in found.checkpoint.others]
    named = ", ".join(f"{c['id']} {c['name']}" for c in found.categories[:3])
    lines.append(f"{len(found.categories)} categories: {named}, ...")
    if found.fresh:
        lines.append(
            "the class layers are NEW, for fine-tuning: detections mean nothing before it ("
            + ", ".join(found.fresh)
            + ")"
        )
    if found.model.profile.channels == "bgr":
        lines.append("the first layer's BGR was reordered to RGB, which every model here reads")
    return [*lines, *profile_in_words(found.model)]


def whole_report(found: Imported) -> str:
    """Return the report as text: the summary, every tensor with its shape, every category."""
    lines = [*summary(found), "", "TENSORS (ours <- theirs, their shape -> ours)"]
    for name, (theirs, shape) in found.taken.items():
        fresh = "  NEW, not read" if name in found.fresh else ""
        lines.append(f"{name} <- {theirs}  {shape} -> {list(found.tensors[name].shape)}{fresh}")
    lines += ["", "LEFT"]
    lines += [f"{name}: {reason}" for name, reason in found.left.items()]
    lines += [f"{name}: not under the weights" for name in found.checkpoint.others]
    lines += ["", "CATEGORIES (label: id name)"]
    lines += [f"{label}: {c['id']} {c['name']}" for label, c in enumerate(found.categories, 1)]
    return "\n".join(lines) + "\n"


def _dropped(side: float | None) -> str:
    if side is None:
        return "none dropped for its size"
    return f"those with a side under {side:g} px dropped" if side else "those without area dropped"


def _list(values: tuple) -> str:
    return ", ".join(f"{value:.7g}" for value in values)
