"""A segmentation in another form than COCO's is refused by name, and --repair loses nothing of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.evaluate import measure
from shards.errors import BadInput
from shards.read import ShardDataset
from shards.validation.forms import in_cocos_form
from tests.shards.coco_case import HEIGHT, WIDTH, compressed, polygon, rectangle

SQUARE = polygon(4, 5, 20, 10)
POINTS = np.reshape(SQUARE[0], (-1, 2)).tolist()
RUNS = {"size": [HEIGHT, WIDTH], "counts": [302, 20, 878]}
PACKED = compressed(rectangle(4, 5, 20, 10))
FLOATS = {**RUNS, "size": [30.0, 40.0]}

# As written, as COCO has it, words of the message.
FORMS = {
    "an RLE in a list": ([PACKED], PACKED, "is an RLE in a list"),
    "an RLE of floats": (FLOATS, RUNS, "not written as whole ones"),
    "runs of floats": ({**FLOATS, "counts": [302.0, 20, 878]}, RUNS, "not written as whole ones"),
    "an RLE of floats in a list": ([FLOATS], RUNS, "is an RLE in a list"),
    "Python's bytes": (
        {**PACKED, "counts": str(PACKED["counts"].encode())},
        PACKED,
        "as Python writes bytes",
    ),
    "Python's bytes in a list": ([{**PACKED, "counts": str(PACKED["counts"].encode())}], PACKED, "in a list"),
    "one flat polygon": (SQUARE[0], SQUARE, "one polygon without a list"),
    "points": (POINTS, SQUARE, "a list of points"),
    "polygons of points": ([POINTS, POINTS], SQUARE * 2, "has polygons of points"),
    "a line beside a polygon": ([*SQUARE, [1, 2, 3, 4]], SQUARE, "2 points, fewer than 3"),
    "nothing beside a polygon": ([[], *SQUARE], SQUARE, "0 points, fewer than 3"),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_form_is_refused_by_name_and_repaired_without_a_loss(case, name):
    written, meant, words = FORMS[name]
    case.annotation(1)["segmentation"] = written
    with pytest.raises(BadInput, match=rf"annotation 1, image 7: .*{words}.* \(--repair\)"):
        case.shard()
    case.shard(repair=True)
    [sample] = [one for one in ShardDataset(case.out) if one.image_id == 7]
    assert sample.annotations[0]["segmentation"] == meant
    assert case.report()["dropped"]["annotations"] == 0
    [found] = [one for one in case.report()["findings"] if one["severity"] == "error"]
    assert found["action"] == found["repair"]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_counts_as_python_writes_bytes_are_the_counts_again(runs):
    """Backslashes are among the characters, and are doubled in what Python writes."""
    packed = coco_mask.frPyObjects({"size": [1, sum(runs) or 1], "counts": runs}, 1, sum(runs) or 1)["counts"]
    written = {"size": [30, 40], "counts": str(packed)}
    assert in_cocos_form(written)[0] == {"size": [30, 40], "counts": packed.decode()}


def test_each_rle_that_is_kept_can_be_scored(case):
    """faster_coco_eval takes no size of 30.0."""
    case.annotation(3)["segmentation"] = FLOATS
    case.shard(repair=True)
    truth = ShardDataset(case.out).to_coco()
    found = {**{key: case.annotation(2)[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
    results = [found | {"segmentation": case.annotation(2)["segmentation"]}]
    assert measure(truth, results, "faster_coco_eval")["segm"]["AP50"] > 0


UNCERTAIN = [
    *([[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [*SQUARE, [1, 2, 3]], ["1", "2", "3", "4", "5", "6"], [[]]),
    *([PACKED, PACKED], [*SQUARE, PACKED], [{**PACKED, "x": float("nan")}], [[[1, 2, 3]] * 3], "x", 7),
    *({**RUNS, "size": [30.5, 40]}, {**RUNS, "counts": [302, 20.5, 877.5]}, {**RUNS, "size": [40.0, 30.0]}),
]


@pytest.mark.parametrize("segmentation", UNCERTAIN, ids=repr)
def test_what_could_mean_something_else_is_no_mask(case, segmentation):
    case.annotation(1)["segmentation"] = segmentation
    with pytest.raises(BadInput, match="annotation 1, image 7"):
        case.shard()
    case.shard(repair=True)
    assert case.report()["dropped"]["annotations"] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
)
NUMBER_LISTS = st.lists(st.lists(st.integers(0, 40) | st.floats(), max_size=8), max_size=4)


@given(JSON | NUMBER_LISTS)
def test_whatever_it_is_given_it_does_not_fail_and_is_done_at_once(segmentation):
    meant, _ = in_cocos_form(segmentation)
    assert repr(in_cocos_form(meant)[0]) == repr(meant)
