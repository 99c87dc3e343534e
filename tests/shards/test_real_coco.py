"""The real COCO, where MRRCNN_COCO names it: it shards with defaults and comes back whole."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from shards.masks import decode_mask
from shards.read import ShardDataset
from shards.write import write_shards

COCO = os.environ.get("MRRCNN_COCO")


@pytest.mark.skipif(not COCO, reason="MRRCNN_COCO names no directory of COCO 2017")
def test_real_images_shard_with_defaults_and_read_back_whole(tmp_path):
    annotations = Path(COCO) / "annotations/instances_val2017.json"
    source = json.loads(annotations.read_text())
    description = write_shards(Path(COCO) / "val2017", annotations, tmp_path, workers=2)
    assert description["images"] == len(source["images"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["errors"] == {}
    assert report["dropped"] == {"images": 0, "annotations": 0}
    data_set = ShardDataset(tmp_path)
    coco = data_set.to_coco()
    assert {a["id"]: a for a in coco["annotations"]} == {a["id"]: a for a in source["annotations"]}
    listed = Counter(finding["kind"] for finding in report["findings"])
    assert listed == Counter(report["warnings"])
    for place in range(min(len(data_set), 50)):
        sample = data_set[place]
        assert sample.image.shape == (3, sample.height, sample.width)
        for annotation in sample.annotations:
            mask = decode_mask(annotation["segmentation"], sample.height, sample.width)
            assert mask.shape == (sample.height, sample.width)
