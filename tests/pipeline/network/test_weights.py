"""Weights files: the same bytes, whole or absent, enough to give a model back."""

import errno
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from configs.schema import Refine, Sara, Test
from pipeline.model import build_model, load_model
from pipeline.network.pretrained import load_pretrained
from pipeline.network.torch_files import load_torch
from pipeline.network.weights import load_weights, save_weights
from shards.errors import BadInput
from tests.pipeline.tiny import MODEL, tiny_base, tiny_image, tiny_refined

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "brush"}]
WRITE = """
import sys, torch
from pipeline.network.weights import save_weights
tensors = {"b": torch.ones(2), "a": torch.arange(6.0).view(2, 3).T}
save_weights(sys.argv[1], tensors, {"format": 1, "z": 1, "a": {"y": 2, "b": 3}})
"""


def meta(model, refine=None):
    return {
        "format": 1,
        "model": model.config.model_dump(mode="json", exclude={"weights"}),
        "sara": Sara(guidance="residual").model_dump(mode="json"),
        "refine": refine and refine.model_dump(mode="json"),
        "test": Test(score=0.0, topk=7).model_dump(mode="json"),
        "categories": CATEGORIES,
        "source": {"name": "mrrcnn"},
    }


@pytest.fixture
def saved(tmp_path):
    model = tiny_refined(sara=Sara(guidance="residual"), test=Test(score=0.0, topk=7))
    path = tmp_path / "weights.safetensors"
    save_weights(path, model.state_dict(), meta(model, Refine()))
    return model.eval(), path


def test_tensors_and_description_come_back(tmp_path):
    tensors = {"a": torch.rand(3, 4).T, "b": torch.tensor(2), "c": torch.zeros(0, 5)}
    tensors["shared"] = tensors["a"]
    save_weights(tmp_path / "w.safetensors", tensors, {"format": 1, "name": "\u00e4"})
    found, description = load_weights(tmp_path / "w.safetensors")
    assert description == {"format": 1, "name": "\u00e4"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_weights_are_equal_bytes_in_every_process(tmp_path):
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / seed)], check=True, env=environment)
    assert len({(tmp_path / seed).read_bytes() for seed in "12"}) == 1


def test_the_order_in_which_the_description_was_made_does_not_show(tmp_path):
    tensors = {"a": torch.ones(2)}
    save_weights(tmp_path / "1", tensors, {"format": 1, "test": {"nms": 0.5, "alpha": 1}})
    save_weights(tmp_path / "2", tensors, {"test": {"alpha": 1, "nms": 0.5}, "format": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(1)}, {"format": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_weights(path, {"a": torch.ones(2)}, {"format": float("nan")})
    with pytest.raises(AttributeError):
        save_weights(path, {"a": "no tensor"}, {"format": 1})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_weights_file_alone_gives_the_model_back_with_category_ids(saved):
    model, path = saved
    loaded = load_model(path, test=model.test)
    assert (
        not loaded.training and loaded.categories == CATEGORIES and loaded.meta["source"]["name"] == "mrrcnn"
    )
    image = torch.randint(0, 256, (3, 70, 96), dtype=torch.uint8)
    expected, found = model([image])[0], loaded([image])[0]
    ids = torch.tensor([0, 3, 17, 90])
    assert torch.equal(found["labels"], ids[expected["labels"]])
    assert all(torch.equal(found[k], expected[k]) for k in ("boxes", "scores", "masks"))
    assert found["masks"].dtype == torch.bool and found["masks"].shape == (7, 70, 96)


def test_overrides_change_inference_only(saved):
    _, path = saved
    image = [tiny_image(0)]
    assert len(load_model(path, detections_per_image=3)(image)[0]["boxes"]) == 3
    assert len(load_model(path, score_threshold=0.999)(image)[0]["boxes"]) == 0
    assert load_model(path, test=Test(alpha=5.0), score_threshold=0.2).test == Test(alpha=5.0, score=0.2)


def test_a_plain_model_comes_back_plain(tmp_path):
    model = tiny_base()
    save_weights(tmp_path / "w", model.state_dict(), meta(model))
    assert not hasattr(load_model(tmp_path / "w"), "refine")


@pytest.mark.parametrize("content", [None, b"", b"not a file of weights at all", "foreign", "future"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "some.safetensors"
    if content == "foreign":
        save_file({"a": torch.ones(1)}, path, metadata={"format": "pt"})
    elif content == "future":
        save_weights(path, {"a": torch.ones(1)}, {"format": 2})
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"some\.safetensors: ") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_their_description_are_refused(saved, tmp_path):
    model, _ = saved
    tensors = model.state_dict()
    missing = {k: v for k, v in tensors.items() if k != "refine.conv_res.bias"}
    path = tmp_path / "w"
    for wrong, key in (
        (missing, "lacks refine.conv_res.bias"),
        ({**tensors, "extra": torch.ones(1)}, "extra"),
    ):
        save_weights(path, wrong, meta(model, Refine()))
        with pytest.raises(BadInput, match=key):
            load_model(path)
    save_weights(path, {**tensors, "refine.conv_res.bias": torch.ones(7)}, meta(model, Refine()))
    with pytest.raises(BadInput, match=r"conv_res\.bias.*; use the model config"):
        load_model(path)


def trunk_model(**changes):
    config = MODEL.model_copy(update={"norm": "frozen_bn", **changes})
    return build_model(config, 4, None, Sara(), Test())


def test_an_imagenet_trunk_of_half_precision_fills_the_trunk_and_nothing_else(tmp_path):
    trunk = resnet18()
    torch.nn.init.uniform_(trunk.bn1.running_mean)
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in trunk.state_dict().items()},
        tmp_path / "t.pth",
    )
    model = trunk_model()
    head = model.roi_heads.box_head.fc6.weight.clone()
    assert "ImageNet trunk" in load_pretrained(model, tmp_path / "t.pth")
    found = model.backbone.body.state_dict()
    assert set(trunk.state_dict()) - set(found) == {
        k for k in trunk.state_dict() if k.startswith("fc.") or k.endswith("num_batches_tracked")
    }
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, trunk.state_dict()[name].half().float())
    assert torch.equal(model.roi_heads.box_head.fc6.weight, head)


def test_a_trunk_without_its_classifier_is_a_trunk(tmp_path):
    trunk = {k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}
    torch.save(trunk, tmp_path / "t.pth")
    load_pretrained(trunk_model(), tmp_path / "t.pth")


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("trunk", {"norm": "group"}, "model.norm=frozen_bn"),
        ("trunk", {"backbone": "resnet50"}, "size mismatch"),
        ({"transformer.weight": torch.ones(1)}, {}, "transformer.weight, which is neither"),
        ({}, {}, "neither"),
        ([torch.ones(1)], {}, "no state dict"),
        ({"epoch": 3}, {}, "no state dict"),
        (b"junk", {}, "neither safetensors nor a PyTorch file"),
        (b"", {}, "neither safetensors nor a PyTorch file"),
        (None, {}, "cannot be read"),
    ],
)
def test_anything_else_is_refused_with_a_remedy_in_one_line(tmp_path, content, changes, message):
    path = tmp_path / "given.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(resnet18().state_dict() if content == "trunk" else content, path)
    with pytest.raises(BadInput, match=message) as error:
        load_pretrained(trunk_model(**changes), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize(
    ("opening", "load"),
    [
        ("pipeline.network.weights.open", load_weights),
        ("pipeline.network.weights.open", lambda path: load_pretrained(trunk_model(), path)),
        ("torch.serialization.open", load_torch),
    ],
    ids=["weights", "pretrained", "torch_files"],
)
def test_a_file_server_that_is_away_is_no_bad_input(tmp_path, monkeypatch, opening, load, code):
    """Bad input is final; what a server did not give for a minute is worth another try."""
    path = tmp_path / "w.pth"
    save_weights(path, {"a": torch.ones(1)}, {"format": 1})

    def fail(name, *_):
        raise OSError(code, os.strerror(code), str(name))

    monkeypatch.setattr(opening, fail, raising=False)
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        load(path)
    assert (raised.value.errno, raised.value.filename) == (code, str(path))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"layer1.0.conv1.weight": print}, tmp_path / "evil.pth")
    with pytest.raises(BadInput, match="tensors alone"):
        load_pretrained(trunk_model(), tmp_path / "evil.pth")


def test_a_runs_weights_start_another_run(tmp_path):
    model = tiny_base(model_seed=4)
    save_weights(tmp_path / "w", model.state_dict(), meta(model))
    base, refined = tiny_base(), build_model(MODEL, 4, Refine(), Sara(), Test())
    for other in (base, refined):
        assert "Mask R-CNN" in load_pretrained(other, tmp_path / "w")
        found = other.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BadInput, match="the data have 9"):
        load_pretrained(build_model(MODEL, 9, None, Sara(), Test()), tmp_path / "w")


@pytest.mark.parametrize("meta", [{"format": 1}, [], {"format": 1, "model": {"backbon": 1}}])
def test_a_description_that_is_not_of_a_run_is_refused(tmp_path, meta):
    described = {"sara": {}, "refine": None, "categories": []}
    if isinstance(meta, dict) and "model" in meta:
        meta = {**meta, **described}
    save_weights(tmp_path / "w", {}, meta)
    with pytest.raises(BadInput, match="descri"):
        load_model(tmp_path / "w")
