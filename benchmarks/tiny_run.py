"""A run so small that it takes a minute: for what is shown and tested about failures."""

from pathlib import Path
from typing import Any

import yaml

from shards.synthetic.synth import write_synthetic
from shards.write import write_shards

MODEL = {
    "backbone": "resnet18", "norm": "group", "trainable_layers": 5, "fpn_channels": 16, "box_head_dim": 16,
    "mask_head_channels": 16, "anchor_sizes": [8, 16, 32, 64, 128], "min_size": 64, "max_size": 64,
    "rpn_pre_nms_train": 60, "rpn_post_nms_train": 30, "rpn_pre_nms_test": 60, "rpn_post_nms_test": 20,
    "rpn_batch_per_image": 32, "rois_per_image": 16,
}  # fmt: skip


def write_tiny(folder: Path, baseline: int, refine: int, **more: Any) -> Path:
    """Return a config file whose stages take so many steps, after writing its shards beside it.

    16 synthetic images of 64 pixels to learn from and to be evaluated on; global batches of 4.
    """
    write_synthetic(folder / "coco", images=16, seed=1, size=64)
    annotations = folder / "coco" / "annotations" / "instances_train2017.json"
    write_shards(folder / "coco" / "train2017", annotations, folder / "shards")
    schedule = {"batch": 4, "lr": 0.01, "warmup": 2, "steps": [1000], "clip": 5.0}
    tree = {
        "data": {"train": str(folder / "shards"), "val": str(folder / "shards"), "loader_workers": 0},
        "model": MODEL,
        "train": {
            "baseline": {**schedule, "iters": baseline},
            "refine": {**schedule, "iters": refine},
            "log_every": 5,
            "aspect_window": 0,
        },
        "checkpoint_every": 5,
        "debug": {"log_samples": True},
        **more,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path
