"""Back to the names of other programs, bit for bit."""

from functools import partial

import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from configs.schema import Model
from pipeline.importing.categories import read_categories
from pipeline.importing.convert import recognise
from pipeline.importing.detectron2_source import DETECTRON2
from pipeline.importing.export import TARGETS, export_weights
from pipeline.importing.files import read_checkpoint
from pipeline.importing.importer import import_weights
from pipeline.importing.maskrcnn_benchmark_source import MASKRCNN_BENCHMARK
from pipeline.importing.source import SCORES, STEM
from pipeline.importing.torchvision_source import TORCHVISION
from pipeline.importing.words import rows_in_words, to_build, unlike
from pipeline.model import load_model
from pipeline.network.weights import load_weights
from shards.errors import BadInput
from tests.pipeline.importing.made import checkpoint

# What the command names of torchvision.
NAMED = {
    "MaskRCNN": MaskRCNN,
    "resnet_fpn_backbone": resnet_fpn_backbone,
    "partial": partial,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
}


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
        assert back.keys() == tensors.keys() | {"pixel_mean", "pixel_std"}
        assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    import_weights(tmp_path / f"out.{suffix}", second)
    (ours, meta), (again, other) = load_weights(first), load_weights(second)
    assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)
    assert meta["model"] == other["model"] and meta["categories"] == other["categories"]


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_own_pixel_statistics_come_back(channels, detectron2, tmp_path):
    pixels = {
        "pixel_mean": torch.tensor([90.5, 100.25, 110.1]).view(3, 1, 1),
        "pixel_std": torch.tensor([50.1, 51.2, 52.3]).view(3, 1, 1),
    }
    torch.save({"model": {**detectron2, **pixels}}, tmp_path / "in.pth")

    def adjust(model):
        return model.model_copy(update={"profile": model.profile.model_copy(update={"channels": channels})})

    import_weights(tmp_path / "in.pth", tmp_path / "1", adjust=adjust)
    export_weights(tmp_path / "1", "detectron2", tmp_path / "out.pkl")
    back = read_checkpoint(tmp_path / "out.pkl").tensors
    assert all(torch.equal(back[key], value) for key, value in pixels.items())
    import_weights(tmp_path / "out.pkl", tmp_path / "2", adjust=adjust)
    models = [load_weights(tmp_path / name)[1]["model"] for name in "12"]
    assert models[0] == models[1] and 90.5 in models[1]["profile"]["pixel_mean"]


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
    deformable = {"format": 1, "model": {"backbone": "resnet101_dcn"}}
    save_weights(tmp_path / "deformable", {}, deformable)
    with pytest.raises(BadInput, match=r"resnet101_dcn, but torchvision has no deformable Mask R-CNN"):
        export_weights(tmp_path / "deformable", "torchvision", tmp_path / "out.pth")
    save_weights(tmp_path / "plain", {}, {"format": 1, "model": {}})
    with pytest.raises(BadInput, match=r"torchvision reads \.pth"):
        export_weights(tmp_path / "plain", "torchvision", tmp_path / "out.pkl")


def stem_and_model(tensors, target, tmp_path):
    """Return the stem that export writes, and the model it returns."""
    torch.save({"model": tensors}, tmp_path / "in.pth")
    import_weights(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    model = export_weights(tmp_path / "ours.safetensors", target, tmp_path / "out.pth").model
    written = read_checkpoint(tmp_path / "out.pth").tensors
    return written[recognise(checkpoint(written)).names(STEM, False)[0]], model


def test_another_programs_colours_and_pixels_become_the_targets(torchvision, benchmark, tmp_path):
    """detectron2 reads BGR of 0..255, torchvision RGB of 0..1, whatever the weights came from."""
    stem, model = stem_and_model(torchvision, "detectron2", tmp_path)
    assert torch.equal(stem.flip(1), torchvision[STEM])
    assert (model.profile.channels, model.profile.pixel_range) == ("bgr", 255)
    assert model.profile.pixel_mean == (123.675, 116.28, 103.53)
    assert model.profile.pixel_std == (58.395, 57.12, 57.375)
    stem, model = stem_and_model(benchmark, "torchvision", tmp_path)
    assert torch.equal(stem.flip(1), benchmark["backbone.body.stem.conv1.weight"])
    assert (model.profile.channels, model.profile.pixel_range) == ("rgb", 1)
    assert model.profile.pixel_mean == pytest.approx(
        [x / 255 for x in (122.7717, 115.9465, 102.9801)], rel=1e-6
    )
    assert model.profile.pixel_std == pytest.approx([1 / 255] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("program", "target", "classes", "first_row"),
    [("benchmark", "torchvision", 80, 1), ("torchvision", "detectron2", 90, 0)],
)
def test_what_the_class_rows_stand_for_goes_along(program, target, classes, first_row, request, tmp_path):
    """Rows are as many as they were, not as in the target's COCO models: the listing says what they are."""
    torch.save({"model": request.getfixturevalue(program)}, tmp_path / "in.pth")
    import_weights(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    done = export_weights(tmp_path / "ours.safetensors", target, tmp_path / "out.pth")
    rows = read_checkpoint(tmp_path / "out.pth").tensors[TARGETS[target].names(SCORES[0], False)[0]]
    assert (len(rows), len(done.categories), done.first_row) == (classes + 1, classes, first_row)
    with pytest.raises(BadInput, match=f"has {classes + 1} classes with background"):
        import_weights(tmp_path / "out.pth", tmp_path / "again.safetensors")
    listed = read_categories(done.listing)
    import_weights(tmp_path / "out.pth", tmp_path / "again.safetensors", listed, keep_classes=True)
    ours, again = (load_weights(tmp_path / f"{name}.safetensors") for name in ("ours", "again"))
    assert again[1]["categories"] == ours[1]["categories"] == done.categories
    names = [name for name in SCORES if torch.equal(ours[0][name], again[0][name])]
    assert names == list(SCORES)
    told = rows_in_words(done.categories, done.first_row)
    assert told.startswith(f"{classes} classes: row {first_row} = 1 person, row {first_row + 1} = 2 bicycle")
    assert told.endswith(f"background is row {0 if first_row else classes}")
    assert (f"num_classes={classes + 1}" if first_row else f"NUM_CLASSES {classes} ") in to_build(
        done.model, TARGETS[target], classes
    )


def test_what_the_target_computes_otherwise_is_named():
    sources = {"detectron2": DETECTRON2, "torchvision": TORCHVISION, "benchmark": MASKRCNN_BENCHMARK}
    models = {name: source.describe({}, Model()) for name, source in sources.items()}
    others = unlike(models["benchmark"], DETECTRON2)
    assert "legacy_boxes True (there False)" in others and "norm_eps 0.0 (there 1e-05)" in others
    assert not any(rule.startswith(("name", "stride_in_1x1", "pixel_range", "channels")) for rule in others)
    assert "stride_in_1x1 True (there False)" in unlike(models["benchmark"], TORCHVISION)
    assert all(unlike(models[name], source) == [] for name, source in sources.items())
    # The model itself says nothing of what the target's own would be.
    small = {"anchor_sizes": (16, 32, 64, 128, 256), "min_size": 640, "rpn_post_nms_test": 300}
    for name in ("detectron2", "torchvision"):
        named = [rule.split()[0] for rule in unlike(models[name].model_copy(update=small), sources[name])]
        assert named == list(small)


def test_torchvision_builds_as_the_command_says_and_computes_the_same(torchvision, tmp_path):
    """Its own builder would take BatchNorm2d with another eps, and load the same file without a word."""
    torch.save(torchvision, tmp_path / "in.pth")
    import_weights(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    model = export_weights(tmp_path / "ours.safetensors", "torchvision", tmp_path / "out.pth").model
    told = to_build(model, TORCHVISION, 90)
    assert "norms with eps 0: build with FrozenBatchNorm2d, eps 0" in told
    with torch.device("meta"):
        theirs = eval(told.partition("): ")[2], dict(NAMED))
    stored = torch.load(tmp_path / "out.pth")
    trunk = theirs.backbone.body
    trunk.load_state_dict(
        {k.removeprefix("backbone.body."): v for k, v in stored.items() if k.startswith("backbone.body.")},
        assign=True,
    )
    image = torch.rand(1, 3, 64, 64)
    ours = load_model(tmp_path / "ours.safetensors").backbone.body
    with torch.inference_mode():
        pairs = zip(ours(image).values(), trunk.eval()(image).values(), strict=True)
        assert all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4 * other.abs().max()) for one, other in pairs
        )
    assert theirs.roi_heads.box_predictor.cls_score.out_features == 91
