"""What class rows stand for."""

import json

import pytest

from pipeline.importing.categories import BY_ID, COCO_NAMES, NUMBERED_ON, read_categories
from shards.errors import BadInput


def test_cocos_categories_are_those_that_torchvision_names():
    from torchvision.models import get_weight

    names = get_weight("MaskRCNN_ResNet50_FPN_Weights.COCO_V1").meta["categories"]
    assert [category["name"] for category in BY_ID] == names[1:]
    assert [category["id"] for category in NUMBERED_ON] == sorted(COCO_NAMES) and len(COCO_NAMES) == 80


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON"),
        ("{}", "no list of categories"),
        ("[]", "no list of categories"),
        ('[{"id": 0, "name": "a"}]', "id"),
        ('[{"id": true, "name": "a"}]', "id"),
        ('[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "category 1 twice"),
    ],
)
def test_a_list_of_categories_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_categories(tmp_path / "c.json")


def test_categories_come_from_an_annotation_file_by_id(tmp_path):
    listed = [{"id": 9, "name": "b", "supercategory": "x"}, {"id": 2, "name": "a"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "categories": listed}))
    assert read_categories(tmp_path / "c.json") == [{"id": 2, "name": "a"}, {"id": 9, "name": "b"}]
