"""The real COCO, where MRRCNN_COCO names it: it shards with defaults and comes back whole."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from shards.masks import decode_mask
from shards.read import ShardDataset
from shards.write import write_shards

COCO = os.environ.get("MRRCNN_COCO")


def disagreements(source: dict) -> Counter:
    """Count by pycocotools' own reading what the report has to find."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in source["images"]}
    found = Counter(image_empty=len(sizes.keys() - {a["image_id"] for a in source["annotations"]}))
    for annotation in source["annotations"]:
        runs = annotation["segmentation"]
        if isinstance(runs, list) or isinstance(runs["counts"], list):
            runs = coco_mask.frPyObjects(runs, *sizes[annotation["image_id"]])
        runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
        off = abs(float(coco_mask.area(runs)) - annotation["area"])
        found["area_disagrees"] += off > 0.15 * annotation["area"] and off > 30
        found["bbox_disagrees"] += np.abs(coco_mask.toBbox(runs) - annotation["bbox"]).max() > 3
    return found


@pytest.mark.skipif(not COCO, reason="MRRCNN_COCO names no directory of COCO 2017")
@pytest.mark.parametrize("split", ["val2017", "train2017"])
def test_real_images_shard_with_defaults_and_read_back_whole(tmp_path, split):
    annotations = Path(COCO) / f"annotations/instances_{split}.json"
    if not annotations.is_file():
        pytest.skip(f"MRRCNN_COCO has no {split}")
    source = json.loads(annotations.read_text())
    description = write_shards(Path(COCO) / split, annotations, tmp_path, workers=2)
    assert description["images"] == len(source["images"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["errors"] == {}
    assert report["dropped"] == {"images": 0, "annotations": 0}
    data_set = ShardDataset(tmp_path)
    coco = data_set.to_coco()
    assert {a["id"]: a for a in coco["annotations"]} == {a["id"]: a for a in source["annotations"]}
    expected = disagreements(source)
    assert {kind: report["warnings"].get(kind, 0) for kind in expected} == expected
    listed = Counter(finding["kind"] for finding in report["findings"])
    assert listed == Counter(report["warnings"])
    for place in range(min(len(data_set), 50)):
        sample = data_set[place]
        assert sample.image.shape == (3, sample.height, sample.width)
        for annotation in sample.annotations:
            mask = decode_mask(annotation["segmentation"], sample.height, sample.width)
            assert mask.shape == (sample.height, sample.width)
