"""Importing: every tensor once, nothing unsaid."""

import pytest
import torch

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint
from pipeline.importing.convert import convert, recognise
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.maskrcnn_benchmark_source import MASKRCNN_BENCHMARK
from pipeline.importing.source import CLASS_LAYERS, DELTAS, MASKS, SCORES, STEM
from pipeline.importing.torchvision_source import TORCHVISION
from shards.errors import BadInput
from tests.pipeline.importing.made import WIDTH, checkpoint


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

    def rgb(model):
        said = {"channels": "rgb", "pixel_std": (1.0, 1.0, 1.0)}
        return model.model_copy(update={"profile": model.profile.model_copy(update=said)})

    profile = convert(checkpoint(tensors), DETECTRON2, adjust=rgb).model.profile
    assert profile.pixel_mean == (1.5, 2.5, 103.53) and profile.pixel_std == (1.0, 1.0, 1.0)


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
        ({"roi_heads.box_head.fc2.weight": torch.ones(16, 15)}, r"fc2.weight is \[16, 15\], where"),
        ({"roi_heads.box_predictor.bbox_pred.bias": torch.ones(4)}, "bbox_pred.bias is .* of classes"),
        ({"backbone.bottom_up.stem.conv1.norm.bias": torch.full((64,), torch.inf)}, "is not finite"),
        ({"backbone.bottom_up.res2.0.conv2.weight": torch.ones(9, 9, 3, 3)}, "conv2.weight is .* no ResNet"),
        ({"backbone.bottom_up.res3.0.conv2_offset.weight": torch.ones(27, 128, 3, 3)}, "has 27 channels"),
        ({"roi_heads.box_predictor.cls_score.weight": None}, "lacks roi_heads.*cls_score.weight"),
        ({"pixel_mean": torch.ones(1)}, r"pixel_mean is \[1\.0\], no value for each colour"),
        ({"pixel_std": torch.zeros(3, 1, 1)}, r"pixel_std is \[0.0, 0.0, 0.0\], no value for each colour"),
        ({"backbone.bottom_up.stem.conv1.weight": torch.ones(7)}, r"stem.conv1.weight is \[7\], where"),
        ({"roi_heads.box_predictor.cls_score.bias": torch.tensor(1.0)}, r"cls_score.bias is \[\], which"),
        ({"roi_heads.box_predictor.bbox_pred.weight": torch.tensor(1.0)}, r"bbox_pred.weight is \[\], which"),
        ({"backbone.bottom_up.res3.0.conv2_offset.weight": torch.tensor(1.0)}, r"weight is \[\], which"),
        ({"roi_heads.box_head.fc1.weight": torch.ones(0, 5)}, r"fc1.weight is \[0, 5\], which holds no"),
        ({"roi_heads.box_head.fc1.weight": torch.tensor(1.0)}, r"fc1.weight is \[\], which holds no weights"),
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
