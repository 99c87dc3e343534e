"""Starting weights: our own files, or an ImageNet trunk."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.network.torch_files import load_torch, state_dict_of, unwrapped
from pipeline.network.weights import fill, is_safetensors, load_meta, load_weights
from shards.errors import BadInput
from shards.storage.files import LOST

CLASSES = "roi_heads.box_predictor.cls_score.weight"
# What a weights file says of its model that no config can make otherwise ...
ARCHITECTURE = ("backbone", "norm", "fpn_channels", "box_head_dim", "mask_head_channels")
# ... and what an imported one decides.
DECIDED = ("stride_in_1x1", "norm_eps", "anchor_sizes", "box_beta", "profile")
TRUNK = "layer1.0.conv1.weight"
DETECTORS = ("backbone.", "proposal_generator.", "rpn.", "roi_heads.")
IMPORT = "mrrcnn import-weights FILE --out FILE.safetensors"


def load_pretrained(
    model: nn.Module, path: str | Path, categories: list[dict[str, Any]] | None = None
) -> str:
    """Load weights into a model of `build_model`, told apart by content; return one line for the log.

    A safetensors file of a run or an import, or a PyTorch file holding the state dict of a torchvision ResNet
    (into the trunk; its classifier is left out). Half precision is widened. The refining module of an
    MR R-CNN may be absent and is left alone.

    Args:
        model: a model of `build_model`.
        path: the file.
        categories: for weights that are used as they are, the data set's categories: a trunk alone is
            then refused, and so is a file that was trained on other categories, or not yet on these.

    Raises:
        BadInput: anything else, another program's Mask R-CNN that was not imported, or weights of another
            model; key and remedy are named.
        OSError: the file cannot be read just now.
    """
    if not _is_safetensors(path):
        return _load_trunk(model, path, categories)
    tensors, meta = load_weights(path)
    _check_profile(model.config, meta, path)
    _check_classes(model, tensors, path)
    if categories is not None:
        _check_trained(meta, path)
        _check_categories(meta["categories"], categories, path)
    fill(model, tensors, str(path), may_lack="refine.")
    return f"{path}: {'MR R-CNN' if meta['refine'] else 'Mask R-CNN'}, {len(tensors)} tensors"


def with_source(config: Model, path: str | Path) -> tuple[Model, list[str]]:
    """Return a model config as the weights file it starts from needs it, and what was changed, in words.

    An imported file brings the rules of its program: profile, place of the stride, eps of the norms, sizes of
    the anchors, box loss. Sizes of images and numbers of proposals stay the config's. Any other file changes
    nothing.

    Raises:
        BadInput: the file holds another architecture than the config; the key is named.
    """
    if not _is_safetensors(path):
        return config, []
    said = load_meta(path).get("model", {})
    if "profile" not in said:
        return config, []
    found = Model(**said)
    for key in ARCHITECTURE:
        if getattr(found, key) != getattr(config, key):
            raise BadInput(
                f"{path}: holds a model with {key} {getattr(found, key)}, the config has model.{key}="
                f"{getattr(config, key)}; set model.{key}={getattr(found, key)}, or give other weights"
            )
    changes = {key: getattr(found, key) for key in DECIDED if getattr(found, key) != getattr(config, key)}
    return config.model_copy(update=changes), [_in_words(key, value) for key, value in changes.items()]


def _in_words(key: str, value: Any) -> str:
    return f"model.profile of {value.name}" if key == "profile" else f"model.{key}={value}"


def _load_trunk(model: nn.Module, path: str | Path, categories: list[dict[str, Any]] | None) -> str:
    tensors = state_dict_of(unwrapped(load_torch(path)), path)
    if TRUNK not in tensors:
        raise _unknown(tensors, path)
    if categories is not None:
        raise BadInput(
            f"{path}: holds a trunk without heads, which is no trained Mask R-CNN; "
            "set train.baseline.iters above 0, or model.weights to a whole Mask R-CNN"
        )
    trunk = {k: v for k, v in tensors.items() if not k.startswith("fc.")}
    if model.config.norm != "frozen_bn":
        raise BadInput(
            f"{path}: bn1.running_mean has no place in a trunk with model.norm={model.config.norm}; "
            "an ImageNet trunk needs model.norm=frozen_bn"
        )
    body = model.backbone.body
    # An ImageNet trunk has no offsets: deformable convolutions then start as ordinary ones.
    offsets = {name: tensor for name, tensor in body.state_dict().items() if ".offset." in name}
    fill(body, {**offsets, **trunk}, str(path))
    return f"{path}: ImageNet trunk, {len(trunk)} tensors"


def _unknown(tensors: dict[str, Tensor], path: str | Path) -> BadInput:
    key = next(iter(tensors), "nothing")
    if key.removeprefix("module.").startswith(DETECTORS):
        return BadInput(
            f"{path}: holds {key}, and is no weights file of a run but perhaps another program's Mask R-CNN; "
            f"import it first: {IMPORT}"
        )
    return BadInput(
        f"{path}: holds {key}, which is neither a torchvision ResNet nor a weights file of a run; "
        f"set model.weights to one of these, or import another program's Mask R-CNN: {IMPORT}"
    )


def _check_profile(config: Model, meta: dict[str, Any], path: str | Path) -> None:
    found = SourceProfile(**meta["model"].get("profile", {}))
    for key, value in found.model_dump().items():
        if value != getattr(config.profile, key):
            raise BadInput(
                f"{path}: was made for model.profile.{key}={value}, the model has "
                f"{getattr(config.profile, key)}; give the model the file's profile"
            )


def _check_trained(meta: dict[str, Any], path: str | Path) -> None:
    fresh = meta["source"].get("fresh")
    if fresh:
        raise BadInput(
            f"{path}: its class layers ({fresh[0]}, ...) were initialised anew on import and know nothing; "
            "set train.baseline.iters above 0"
        )


def _check_categories(learnt: list[dict[str, Any]], wanted: list[dict[str, Any]], path: str | Path) -> None:
    for ours, theirs in zip(learnt, wanted, strict=True):
        if (ours["id"], ours["name"]) != (theirs["id"], theirs["name"]):
            raise BadInput(
                f"{path}: has learnt category {ours['id']} {ours['name']!r} where data.train has "
                f"{theirs['id']} {theirs['name']!r}; give weights of the same categories, or train them on "
                "with train.baseline.iters above 0"
            )


def _check_classes(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    if CLASSES not in tensors:
        raise BadInput(f"{path}: lacks {CLASSES}; give a weights file of a run or an import")
    found = len(tensors[CLASSES])
    if found != model.num_classes:
        raise BadInput(
            f"{path}: {CLASSES} has {found} classes with background, the data have {model.num_classes}; "
            "take weights trained on the same categories, or only an ImageNet trunk, or import with new "
            "class layers: mrrcnn import-weights --categories"
        )


def _is_safetensors(path: str | Path) -> bool:
    try:
        return is_safetensors(path)
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise BadInput(f"{path}: cannot be read ({error.strerror}); correct model.weights") from None
