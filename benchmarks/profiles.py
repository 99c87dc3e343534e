"""What obeying a source profile costs at inference: its rules' share of it, and torchvision as a peer.

    python -m benchmarks.profiles [--repeats 5] [--size 800]

A random ResNet-50 on one image, its norms folded as `load_model` folds them; shares are of the processor
time of the whole detection. `rules` is spent in the small functions that look at the profile: clipping,
limits, levels, rescaling, sizes; the exit code is 1 where that is more than 2 %. `instead` is spent where a
profile chooses the way of doing what every Mask R-CNN does: resizing, anchors, suppression. A model without
profiles has its one way there, so this is no cost of obeying; it is shown because a program's way may be a
dear one. `peer` is the whole detection over that of torchvision's own model with the same tensors, whose
norms are not folded; torchvision's profile alone does the same work.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from benchmarks.timing import alternate, machine
from configs.schema import Model, Sara, Test
from pipeline.importing.detectron2_source import PROFILE as DETECTRON2
from pipeline.importing.maskrcnn_benchmark_source import PROFILE as MASKRCNN_BENCHMARK
from pipeline.importing.torchvision_source import PROFILE as TORCHVISION
from pipeline.model import build_model
from pipeline.network import anchors, detections, maskrcnn, pool, rpn, targets, transform
from pipeline.network.folding import fold_frozen_norms

RULES = [
    *((rpn, name) for name in ("clip_boxes", "image_limits", "sides_at_least")),
    *((targets, name) for name in ("clip_boxes",)),
    *(
        (maskrcnn, name)
        for name in ("rescale_boxes", "last_pixels", "clip_boxes", "image_limits", "sides_at_least")
    ),
    *((pool, name) for name in ("last_pixels", "pyramid_levels")),
    (detections, "sides_at_least"),
    (transform, "network_size"),
]
INSTEAD = [
    (transform.ImageTransform, "resize"),
    (anchors.Anchors, "grid_anchors"),
    *((module, "suppress") for module in (rpn, detections)),
]
CLASSES, TOPK = 81, 100
# The largest share of a detection that obeying may take.
LIMIT = 0.02


def build(profile, size: int, weights: dict):
    """Return a model that keeps 100 detections however unsure it is."""
    config = Model(norm_eps=0.0, min_size=size, max_size=size * 5 // 3, profile=profile)
    model = build_model(config, CLASSES, None, Sara(), Test(score=0.0, topk=TOPK, paste=profile.paste))
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    fold_frozen_norms(model.backbone.body)
    return model.eval()


def share_of(functions, model, image) -> float:
    """Return the share of a detection's processor time that these functions take."""
    spent = [0.0]

    def timed(function):
        def run(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.process_time() - began

        return run

    with ExitStack() as stack:
        for module, name in functions:
            stack.enter_context(patch.object(module, name, timed(getattr(module, name))))
        began = time.process_time()
        model([image])
        return spent[0] / (time.process_time() - began)


def torchvisions(size: int):
    """Return torchvision's own model with random weights."""
    torch.manual_seed(0)
    settings = {"box_score_thresh": 0.0, "box_detections_per_img": TOPK}
    limits = {"min_size": size, "max_size": size * 5 // 3}
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, **settings, **limits
    )
    return model.eval()


@torch.inference_mode()
def measure(repeats: int, size: int) -> dict:
    """Return shares and ratios, medians of alternating turns."""
    peer = torchvisions(size)
    weights = peer.state_dict()
    models = {p.name: build(p, size, weights) for p in (TORCHVISION, DETECTRON2, MASKRCNN_BENCHMARK)}
    image = torch.randint(0, 256, (3, size * 3 // 5, size * 4 // 5), dtype=torch.uint8)
    contenders = {name: lambda _, model=model: model([image]) for name, model in models.items()}
    contenders["peer"] = lambda _: peer([image.float() / 255])
    times = alternate(contenders, repeats, "cpu")
    return {
        "machine": machine("cpu"),
        "rules": shares(RULES, models, image, repeats),
        "instead": shares(INSTEAD, models, image, repeats),
        "peer": {name: round(found["cpu"] / times["peer"]["cpu"], 3) for name, found in times.items()},
    }


def shares(functions, models: dict, image, repeats: int) -> dict[str, float]:
    """Return each model's median share."""
    found = {
        name: sorted(share_of(functions, model, image) for _ in range(repeats))
        for name, model in models.items()
    }
    return {name: round(values[repeats // 2], 5) for name, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=800)
    asked = parser.parse_args()
    found = measure(asked.repeats, asked.size)
    print(json.dumps(found, indent=1))
    sys.exit(1 if max(found["rules"].values()) > LIMIT else 0)
