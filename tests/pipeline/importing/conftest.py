"""A narrow checkpoint of each program."""

import pytest

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from tests.pipeline.importing.made import WIDTH


@pytest.fixture(scope="session")
def detectron2():
    return detectron2_checkpoint(width=WIDTH)


@pytest.fixture(scope="session")
def benchmark():
    return benchmark_checkpoint(width=WIDTH)


@pytest.fixture(scope="session")
def torchvision():
    return torchvision_checkpoint(width=WIDTH)
