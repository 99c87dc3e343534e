"""Importing: nothing unsaid, nothing twice, nothing unsafe, and back again bit for bit."""

import io
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from pipeline.importing.categories import BY_ID, COCO_NAMES, NUMBERED_ON, numbered_categories, read_categories
from pipeline.importing.convert import convert, import_weights, recognise, with_fresh_classes
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.export import export_weights
from pipeline.importing.files import Checkpoint, read_checkpoint
from pipeline.importing.maskrcnn_benchmark_source import MASKRCNN_BENCHMARK
from pipeline.importing.source import CLASS_LAYERS, DELTAS, MASKS, SCORES, STEM
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.importing.unpickle import load_arrays
from pipeline.importing.words import profile_in_words, summary, whole_report
from pipeline.network.weights import load_meta, load_weights
from shards.errors import BadInput

WIDTH = 8


def checkpoint(tensors):
    return Checkpoint(Path("some.pth"), tensors, [], "0" * 64)


@pytest.fixture(scope="module")
def detectron2():
    return detectron2_checkpoint(width=WIDTH)


@pytest.fixture(scope="module")
def benchmark():
    return benchmark_checkpoint(width=WIDTH)


@pytest.fixture(scope="module")
def torchvision():
    return torchvision_checkpoint(width=WIDTH)


def test_every_checkpoint_is_recognised_by_its_keys(detectron2, benchmark, torchvision):
    sources = [recognise(checkpoint(tensors)) for tensors in (detectron2, benchmark, torchvision)]
    assert sources == [DETECTRON2, MASKRCNN_BENCHMARK, TORCHVISION]


@pytest.mark.parametrize("program", ["detectron2", "benchmark", "torchvision"])
def test_every_key_is_read_once_or_left_with_a_reason(program, request):
    tensors = request.getfixturevalue(program)
    tensors = {**tensors, "pixel_mean": torch.zeros(3, 1, 1)} if program == "detectron2" else tensors
    found = convert(checkpoint(tensors), recognise(checkpoint(tensors)))
    read = [theirs for theirs, _ in found.taken.values()]
    assert len(read) == len(set(read)) and not set(read) & set(found.left)
    assert set(read) | set(found.left) == set(tensors)
    assert found.taken.keys() == found.tensors.keys()
    for ours, (theirs, shape) in found.taken.items():
        assert list(tensors[theirs].shape) == shape
        if ours != STEM and ours not in CLASS_LAYERS:
            assert torch.equal(found.tensors[ours], tensors[theirs])
    assert found.left.keys() == {name for name in tensors if "cell_anchors" in name or "pixel" in name}


def test_background_and_colours_change_places(detectron2):
    found = convert(checkpoint(detectron2), DETECTRON2).tensors
    scores, deltas = detectron2["roi_heads.box_predictor.cls_score.bias"], DELTAS[1]
    assert torch.equal(found[SCORES[1]], torch.cat([scores[80:], scores[:80]]))
    assert torch.equal(found[deltas].view(81, 4)[1:], detectron2[deltas].view(80, 4))
    assert not found[deltas][:4].any() and not found[MASKS[0]][0].any()
    assert torch.equal(found[MASKS[0]][1:], detectron2["roi_heads.mask_head.predictor.weight"])
    assert torch.equal(found[STEM][:, [2, 1, 0]], detectron2["backbone.bottom_up.stem.conv1.weight"])


def test_pixel_statistics_in_a_file_decide(detectron2):
    tensors = {
        **detectron2,
        "pixel_mean": torch.tensor([1.5, 2.5, 103.53]).view(3, 1, 1),
        "pixel_std": torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1),
    }
    profile = convert(checkpoint(tensors), DETECTRON2).model.profile
    assert profile.pixel_mean == (103.53, 2.5, 1.5) and profile.pixel_std == (58.395, 57.12, 57.375)


def test_what_only_the_architecture_tells():
    for make, source in ((detectron2_checkpoint, DETECTRON2), (benchmark_checkpoint, MASKRCNN_BENCHMARK)):
        plain = convert(checkpoint(make(None, width=WIDTH)), source).model
        grouped = convert(checkpoint(make(None, "X101", width=WIDTH)), source).model
        assert (plain.backbone, plain.stride_in_1x1) == ("resnet50", True)
        assert (grouped.backbone, grouped.stride_in_1x1) == ("resnext101_32x8d", False)
        assert (plain.fpn_channels, plain.box_head_dim, plain.mask_head_channels) == (8, 16, 8)
        assert (plain.profile.pixel_std == grouped.profile.pixel_std) == (source is MASKRCNN_BENCHMARK)
    counted = {"backbone.body.bn1.num_batches_tracked": torch.tensor(3)}
    from pipeline.importing.torchvision_source import describe

    assert describe({}, plain).norm_eps == 0.0 and describe(counted, plain).norm_eps == 1e-5


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"backbone.fpn_lateral3.bias": None}, "lacks backbone.fpn_lateral3.bias"),
        ({"roi_heads.mask_head.deconv.weight": None}, "lacks roi_heads.mask_head.deconv.weight"),
        ({"backbone.bottom_up.res4.5.conv1.weight": None}, "res4.0.conv1.weight is one of 5 blocks"),
        ({"roi_heads.keypoint_head.x": torch.ones(1)}, "has roi_heads.keypoint_head.x"),
        ({"roi_heads.box_head.fc2.weight": torch.ones(16, 15)}, r"fc2.weight makes \[16, 15\] here"),
        ({"roi_heads.box_predictor.bbox_pred.bias": torch.ones(4)}, "bbox_pred.bias makes .* of classes"),
        ({"backbone.bottom_up.stem.conv1.norm.bias": torch.full((64,), torch.inf)}, "is not finite"),
        ({"backbone.bottom_up.res2.0.conv2.weight": torch.ones(9, 9, 3, 3)}, "conv2.weight is .* no ResNet"),
        ({"backbone.bottom_up.res3.0.conv2_offset.weight": torch.ones(27, 128, 3, 3)}, "has 27 channels"),
        ({"roi_heads.box_predictor.cls_score.weight": None}, "lacks roi_heads.*cls_score.weight"),
        (
            {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4)},
            r"cell_anchors.0 is not the anchors of sizes \[32, .*--set model.anchor_sizes",
        ),
    ],
)  # fmt: skip
def test_another_architecture_is_refused_by_its_key_in_one_line(detectron2, change, key):
    tensors = {name: change.get(name, tensor) for name, tensor in {**detectron2, **change}.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(BadInput, match=key) as error:
        convert(checkpoint(tensors), DETECTRON2)
    assert str(error.value).startswith("some.pth: ") and "\n" not in str(error.value)


def test_any_other_state_dict_is_refused(detectron2):
    with pytest.raises(BadInput, match=r"holds encoder.weight and 0 more, but none of backbone.bottom_up"):
        recognise(checkpoint({"encoder.weight": torch.ones(1)}))
    with pytest.raises(BadInput, match="holds nothing"):
        recognise(checkpoint({}))


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


def test_the_report_lists_everything(detectron2):
    found = replace(convert(checkpoint(detectron2), DETECTRON2), checkpoint=Checkpoint(
        Path("a.pkl"), detectron2, ["__author__"], "f" * 64))  # fmt: skip
    text = whole_report(found)
    assert all(f"<- {name} " in text for name in detectron2)
    assert all(f" {name}\n" in text for name in COCO_NAMES.values())
    assert "'__author__'" in text and "sha256 " + "f" * 64 in text
    assert (
        len(profile_in_words(found.model)) == 12 and "RoIAlign: aligned=true, sampling ratio adaptive" in text
    )


def write(tensors, path, kind):
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if kind == "pkl2":
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
    elif kind == "pkl5":
        path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}, protocol=5))
    elif kind == "old":
        torch.save({"model": tensors, "iteration": 9}, path, _use_new_zipfile_serialization=False)
    elif kind == "parallel":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["pkl2", "pkl5", "old", "parallel", "bare"])
def test_every_container_gives_the_same_tensors(kind, tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 4),
        "b": torch.tensor(2.5),
        "c": torch.arange(4),
        "d": torch.zeros(0, 2),
    }
    found = read_checkpoint(write(tensors, tmp_path / "file", kind))
    assert found.tensors.keys() == tensors.keys() and len(found.sha256) == 64
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert found.others == {
        "pkl2": ["__author__"],
        "pkl5": ["matching_heuristics"],
        "old": ["iteration"],
    }.get(kind, [])


class Evil:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"a": Evil()}},
        {"model": {"a": np.array([Evil()], dtype=object)}},
        {"model": {"a": np.array(["text"])}},
        {"model": {"a": random.Random(0)}},
        {"model": {"a": io.BytesIO}},
    ],
)
def test_a_pickle_of_anything_but_arrays_is_refused_and_does_nothing(content, tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(BadInput, match=r"evil\.pkl: ") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_a_forged_pickle_cannot_ask_for_memory_codecs_or_other_arrays(tmp_path):
    """What is admitted is not numpy's functions but stand-ins that can do no more than restore an array."""
    for forged in (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nmatrix\nK\x00\x85U\x01b\x87R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    ):
        (tmp_path / "forged.pkl").write_bytes(forged)
        with pytest.raises(BadInput, match="it asks for"):
            load_arrays(tmp_path / "forged.pkl")


def test_a_pickle_gives_no_memory_that_it_does_not_fill(tmp_path):
    """numpy's own array and type, called or restored at will, are views of nothing or what the heap held."""
    array, shape = b"\x80\x02}(X\x01\x00\x00\x00acnumpy\nndarray\n", b"\x8a\x06\x00\x00\x00\x00\x00\x7f\x85"
    letter = b"X\x02\x00\x00\x00u1"
    for forged in (
        array + shape + letter + b"\x86Ru.",
        array + b"(" + shape + letter + b"C\x01aK\x00K\x00\x85tRu.",
        b"\x80\x02cnumpy\ndtype\nX\x08\x00\x00\x00V9999999\x85R.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",
        b"\x80\x02cnumpy\ndtype\n" + letter + b"\x85R(K\x03X\x01\x00\x00\x00>tb.",
    ):
        (tmp_path / "forged.pkl").write_bytes(forged)
        with pytest.raises(BadInput, match="is no whole pickle of numpy arrays alone"):
            load_arrays(tmp_path / "forged.pkl")
    empty = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + shape + b"U\x01b\x87R."
    (tmp_path / "huge.pkl").write_bytes(empty)
    assert load_arrays(tmp_path / "huge.pkl").content.size == 0


def test_an_array_under_many_names_is_in_memory_once(tmp_path):
    array = np.zeros(1000, np.float32)
    (tmp_path / "many.pkl").write_bytes(pickle.dumps({"model": {"a": array, "b": array, "c": array[::2]}}))
    found = read_checkpoint(tmp_path / "many.pkl").tensors
    assert found["a"].data_ptr() == found["b"].data_ptr() and found["c"].shape == (500,)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    tensors = {"a": torch.randn(50), "b": torch.randn(50)}
    for kind in ("pkl2", "pkl5", "old", "bare"):
        whole = write(tensors, tmp_path / "whole", kind).read_bytes()
        for length in {1, 12, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(BadInput, match="cut: "):
                read_checkpoint(tmp_path / "cut")
    for content in (b"", b"text", (12).to_bytes(8, "little") + b"{}"):
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(BadInput, match="cut: "):
            read_checkpoint(tmp_path / "cut")
    with pytest.raises(BadInput, match="nowhere: cannot be read"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("program", "target", "suffix"),
    [
        ("detectron2", "detectron2", "pkl"),
        ("torchvision", "torchvision", "pth"),
    ],
)
def test_there_and_back_is_bit_identical(program, target, suffix, request, tmp_path):
    tensors = request.getfixturevalue(program)
    torch.save({"model": tensors}, tmp_path / "in.pth")
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    import_weights(tmp_path / "in.pth", first)
    export_weights(first, target, tmp_path / f"out.{suffix}")
    back = read_checkpoint(tmp_path / f"out.{suffix}").tensors
    if program == "detectron2":
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    import_weights(tmp_path / f"out.{suffix}", second)
    ours, again = load_weights(first)[0], load_weights(second)[0]
    assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)


def test_what_a_program_has_no_place_for_is_not_exported(tmp_path, request):
    from pipeline.network.weights import save_weights
    from tests.pipeline.tiny import MODEL, tiny_refined

    meta = {"format": 1, "model": MODEL.model_dump(mode="json", exclude={"weights"})}
    save_weights(tmp_path / "refined", tiny_refined().state_dict(), meta)
    with pytest.raises(BadInput, match=r"holds refine\.\S+, for which torchvision has no place"):
        export_weights(tmp_path / "refined", "torchvision", tmp_path / "out.pth")
    save_weights(tmp_path / "grouped", {}, meta)
    with pytest.raises(BadInput, match=r"model\.norm=group"):
        export_weights(tmp_path / "grouped", "detectron2", tmp_path / "out.pkl")
    save_weights(tmp_path / "plain", {}, {"format": 1, "model": {}})
    with pytest.raises(BadInput, match=r"torchvision reads \.pth"):
        export_weights(tmp_path / "plain", "torchvision", tmp_path / "out.pkl")


def test_cocos_categories_are_those_that_torchvision_names():
    from torchvision.models import get_weight

    names = get_weight("MaskRCNN_ResNet50_FPN_Weights.COCO_V1").meta["categories"]
    assert [category["name"] for category in BY_ID] == names[1:]
    assert [category["id"] for category in NUMBERED_ON] == sorted(COCO_NAMES) and len(COCO_NAMES) == 80


@pytest.mark.parametrize(
    ("make", "classes", "own"),
    [(detectron2_checkpoint, 90, 81), (benchmark_checkpoint, 91, 81), (torchvision_checkpoint, 81, 91)],
)
def test_as_many_rows_as_another_programs_coco_model_are_no_coco_categories(make, classes, own, tmp_path):
    torch.save(make(None, classes=classes, width=WIDTH), tmp_path / "foreign.pth")
    with pytest.raises(BadInput, match=rf"classes with background, COCO models of \w+ have {own}; name them"):
        import_weights(tmp_path / "foreign.pth", tmp_path / "ours.safetensors")


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
