"""Data sets to shard and shards to read."""

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.synthetic.synth import write_synthetic
from shards.write import write_shards
from tests.shards.coco_case import HEIGHT, TREE, WIDTH, Case


@pytest.fixture
def case(tmp_path) -> Case:
    made = Case(tmp_path, copy.deepcopy(TREE))
    rng = np.random.default_rng(0)
    for image in made.tree["images"]:
        path = made.images / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return made


@pytest.fixture
def a_shard_an_image(monkeypatch) -> None:
    """Shards of one image each, for a data set of a few."""
    monkeypatch.setattr("shards.tars.MAX_PACKED_BYTES", 1)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """A synthetic data set of 60 training images; read only."""
    root = tmp_path_factory.mktemp("synthetic")
    write_synthetic(root, 60, seed=3, size=64)
    return root


@pytest.fixture(scope="session")
def sharded(synthetic, tmp_path_factory) -> Path:
    """Its training images in shards; read only."""
    out = tmp_path_factory.mktemp("sharded")
    write_shards(synthetic / "train2017", synthetic / "annotations/instances_train2017.json", out)
    return out
