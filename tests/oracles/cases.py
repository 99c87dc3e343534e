"""What the comparisons with the oracles have in common: images, sizes, and what agreement means."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Model, Sara, Test
from pipeline.importing.convert import Imported, convert, recognise
from pipeline.importing.files import Checkpoint
from pipeline.importing.importer import import_weights
from pipeline.model import build_model, load_model

PRE, POST = 200, 60
SMALL = (128, 192, PRE, POST)
CLASSES = 7
# Pixels of a probability nearer to one half than this are decided by rounding.
UNDECIDED = 1e-4
CATEGORIES = [{"id": 2 * label, "name": f"thing {label}"} for label in range(1, CLASSES + 1)]


def limited(model: Model, limits: tuple[int, int, int, int] = SMALL) -> Model:
    """Return a model for images of such sides, short and long, and proposals before and after NMS."""
    keys = ("min_size", "max_size", "rpn_pre_nms_test", "rpn_post_nms_test")
    return model.model_copy(update=dict(zip(keys, limits, strict=True)))


def picture(seed: int, height: int, width: int) -> Tensor:
    """Return blurred blots with noise, uint8 [3, H, W]: the three colours differ."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = F.interpolate(blots, size=(height, width), mode="bilinear")[0]
    return (smooth * 200 + torch.rand(3, height, width, generator=generator) * 55).to(torch.uint8)


def imported(
    tensors: dict[str, Tensor], folder: Path, name: str, limits: tuple[int, int, int, int] = SMALL
) -> tuple[nn.Module, Imported]:
    """Return the model of a checkpoint that went through a file, and the import's report."""
    source, out = folder / f"{name}.pth", folder / f"{name}.safetensors"
    torch.save({"model": tensors}, source)
    found = import_weights(source, out, CATEGORIES, keep_classes=True, adjust=partial(limited, limits=limits))
    source.unlink()
    return load_model(out, score_threshold=0.0), found


def converted(tensors: dict[str, Tensor]) -> tuple[nn.Module, Imported]:
    """Return the model of a checkpoint in memory, its norms not folded, and the import's report."""
    checkpoint = Checkpoint(Path("made"), tensors, [], "")
    found = convert(checkpoint, recognise(checkpoint), CATEGORIES, limited)
    return built(found, found.model), found


def built(found: Imported, config: Model) -> nn.Module:
    """Return a model with the tensors of an import, its norms not folded, that keeps every score."""
    test = Test(score=0.0, paste=config.profile.paste)
    model = build_model(config, CLASSES + 1, None, Sara(), test)
    model.load_state_dict(found.tensors)
    model.category_ids = [category["id"] for category in CATEGORIES]
    return model.eval()


def differences(
    model: nn.Module, image: Tensor, maps: list[Tensor], expected: dict[str, Tensor]
) -> list[str]:
    """Return in what ways a model's output is not the oracle's; empty where it is.

    Features differ by 1e-4 of their largest value at most, boxes by 0.01 px, scores by 1e-5 at most, and
    the IoU of masks is 0.999 at least, over all pixels but those whose probability rounding decides on.
    Detections of equal label are paired by their boxes: programs order them differently.

    Args:
        model: an imported model.
        image: uint8 [3, H, W].
        maps: the oracle's P2 to P6.
        expected: the oracle's boxes (xyxy, exclusive), labels as category ids, scores, masks and
            their probabilities (soft [D, H, W]).
    """
    with torch.inference_mode():
        batch, _ = model.transform([image.float() / 255])
        features = list(model.backbone(batch.tensors).values())
        found = model([image])[0]
    wrong = []
    for level, (ours, theirs) in enumerate(zip(features, maps, strict=True)):
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 1e-4 * theirs.abs().max():
            wrong.append(f"P{level + 2}")
    if len(found["boxes"]) != len(expected["boxes"]):
        return [*wrong, f"{len(found['boxes'])} detections, not {len(expected['boxes'])}"]
    distance = (found["boxes"][:, None] - expected["boxes"]).abs().amax(2)
    distance[found["labels"][:, None] != expected["labels"]] = float("inf")
    nearest, pair = distance.min(1)
    wrong += [f"{(nearest > 0.01).sum()} boxes"] if (nearest > 0.01).any() else []
    if len(pair.unique()) != len(pair):
        return [*wrong, "detections without a partner"]
    off = (found["scores"] - expected["scores"][pair]).abs().max()
    wrong += [f"scores by {off:.1e}"] if off > 1e-5 else []
    ours, theirs = found["masks"], expected["masks"][pair]
    decided = (expected["soft"][pair] - 0.5).abs() >= UNDECIDED
    different, either = (((how & decided).flatten(1).sum(1)) for how in (ours ^ theirs, ours | theirs))
    bad = different > 0.001 * either
    if bad.any():
        wrong.append(f"{bad.sum()} masks, one by {different.max()} pixels")
    return wrong
