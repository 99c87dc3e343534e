"""Starting from weights with a profile and with more classes than the data have."""

import pytest

from configs.profile import SourceProfile
from configs.schema import Model
from pipeline.labels import adopt_labels
from pipeline.network.pretrained import load_pretrained, with_source
from pipeline.network.weights import save_weights
from shards.errors import BadInput
from tests.pipeline.tiny import MODEL, tiny_base

ROWS = [{"id": key, "name": name} for key, name in ((1, "person"), (2, "N/A"), (3, "car"), (5, "cat"))]


class Data:
    """What of a data set has to do with labels."""

    def __init__(self, *categories):
        self.categories = [{"id": key, "name": name, "supercategory": "x"} for key, name in categories]
        self.category_of, self.label_of = [0, 1, 3], {1: 1, 3: 2}


@pytest.fixture
def weights(tmp_path):
    def write(model=MODEL, source=None, **changes):
        config = model.model_copy(update=changes)
        meta = {
            "format": 1,
            "model": config.model_dump(mode="json", exclude={"weights"}),
            "categories": ROWS,
            "refine": None,
            "source": source or {"name": "detectron2"},
        }
        save_weights(tmp_path / "w.safetensors", tiny_base().state_dict(), meta)
        return tmp_path / "w.safetensors"

    return write


def test_data_take_the_labels_of_weights_that_know_all_their_categories_and_more(weights):
    data = Data((1, "person"), (3, "car"))
    adopt_labels(data, weights())
    assert data.categories == ROWS and data.category_of == [0, 1, 2, 3, 5]
    assert data.label_of == {1: 1, 2: 2, 3: 3, 5: 4}


@pytest.mark.parametrize("categories", [((1, "person"), (3, "bus")), ((1, "person"), (4, "car"))])
def test_weights_of_other_categories_change_no_labels(weights, categories):
    data = Data(*categories)
    adopt_labels(data, weights())
    assert data.category_of == [0, 1, 3] and data.label_of == {1: 1, 3: 2}


def test_equal_categories_no_weights_and_other_files_change_nothing(weights, tmp_path):
    same = Data(*((row["id"], row["name"]) for row in ROWS))
    before = list(same.categories)
    adopt_labels(same, weights())
    adopt_labels(same, None)
    (tmp_path / "trunk.pth").write_bytes(b"PK\x03\x04 and more")
    adopt_labels(same, tmp_path / "trunk.pth")
    assert same.categories == before


PROFILE = SourceProfile(name="detectron2", aligned=True)


def test_a_model_takes_the_rules_of_imported_weights_and_says_so(weights):
    rules = {"norm_eps": 0.5, "stride_in_1x1": True, "box_beta": 0.0, "anchor_sizes": (4, 8, 16, 32, 64)}
    path = weights(profile=PROFILE, **rules, min_size=64, rpn_post_nms_test=9)
    found, said = with_source(MODEL, path)
    assert found == MODEL.model_copy(update={"profile": PROFILE, **rules})
    assert said == ["model.stride_in_1x1=True", "model.norm_eps=0.5", "model.anchor_sizes=(4, 8, 16, 32, 64)",
                    "model.box_beta=0.0", "model.profile of detectron2"]  # fmt: skip
    assert with_source(found, path) == (found, [])


def test_weights_of_a_run_change_no_rules(weights):
    assert with_source(MODEL, weights(norm_eps=0.5)) == (MODEL, [])


def test_imported_weights_of_another_architecture_are_refused_by_key(weights):
    with pytest.raises(BadInput, match=r"holds a model with backbone resnet18.*set model\.backbone=resnet18"):
        with_source(Model(), weights(profile=PROFILE))


def test_weights_are_not_loaded_into_a_model_of_other_rules(weights):
    with pytest.raises(BadInput, match=r"made for model\.profile\.name=detectron2, the model has mrrcnn"):
        load_pretrained(tiny_base(), weights(profile=PROFILE))


def test_new_class_layers_are_no_finished_baseline(weights):
    path = weights(source={"name": "detectron2", "fresh": ["roi_heads.box_predictor.cls_score.weight"]})
    categories = ROWS[:3]
    with pytest.raises(BadInput, match=r"initialised anew on import .* train\.baseline\.iters above 0"):
        load_pretrained(tiny_base(), path, categories)
    load_pretrained(tiny_base(), path)
