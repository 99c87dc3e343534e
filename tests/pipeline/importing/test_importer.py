"""Class rows of unknown meaning, and new ones."""

import pytest
import torch

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from pipeline.importing.categories import numbered_categories
from pipeline.importing.class_layers import with_fresh_classes
from pipeline.importing.convert import convert
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.importer import import_weights
from pipeline.importing.source import CLASS_LAYERS, DELTAS, SCORES
from pipeline.importing.words import summary
from pipeline.network.weights import load_meta
from shards.errors import BadInput
from tests.pipeline.importing.made import WIDTH, checkpoint


def test_other_numbers_of_classes_need_names_or_new_layers(tmp_path):
    tensors = detectron2_checkpoint(None, classes=5, width=WIDTH)
    torch.save({"model": tensors}, tmp_path / "five.pth")
    out = tmp_path / "five.safetensors"
    with pytest.raises(BadInput, match=r"cls_score\.weight has 6 classes") as error:
        import_weights(tmp_path / "five.pth", out)
    assert "--keep-classes" in str(error.value) and not out.exists()
    with pytest.raises(BadInput, match="has 6 classes with background, --categories names 4"):
        import_weights(tmp_path / "five.pth", out, numbered_categories(4), keep_classes=True)
    kept = import_weights(tmp_path / "five.pth", out, numbered_categories(5), keep_classes=True)
    assert kept.fresh == [] and load_meta(out)["categories"] == numbered_categories(5)
    fresh = import_weights(tmp_path / "five.pth", out, num_classes=3)
    assert fresh.tensors[SCORES[0]].shape == (4, 16) and fresh.tensors[DELTAS[0]].shape == (16, 16)
    assert any("NEW" in line for line in summary(fresh)) and load_meta(out)["source"]["fresh"]


def test_new_class_layers_are_the_same_every_time_and_the_rest_is_the_files(detectron2):
    found = convert(checkpoint(detectron2), DETECTRON2)
    one, other = (with_fresh_classes(found, numbered_categories(3)) for _ in range(2))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert 0.005 < one.tensors[SCORES[0]].std() < 0.02 and not one.tensors[SCORES[1]].any()
    assert all(one.tensors[name] is found.tensors[name] for name in found.tensors if name not in CLASS_LAYERS)
    assert one.fresh == list(CLASS_LAYERS) and len(one.categories) == 3


@pytest.mark.parametrize(
    ("make", "classes", "own"),
    [(detectron2_checkpoint, 90, 81), (benchmark_checkpoint, 91, 81), (torchvision_checkpoint, 81, 91)],
)
def test_as_many_rows_as_another_programs_coco_model_are_no_coco_categories(make, classes, own, tmp_path):
    torch.save(make(None, classes=classes, width=WIDTH), tmp_path / "foreign.pth")
    with pytest.raises(BadInput, match=rf"classes with background, COCO models of \w+ have {own}; name them"):
        import_weights(tmp_path / "foreign.pth", tmp_path / "ours.safetensors")
