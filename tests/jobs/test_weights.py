"""The verbs that exchange weights: what they print, write and refuse."""

import json

import pytest
import torch

from benchmarks.made_checkpoints import benchmark_checkpoint, detectron2_checkpoint, torchvision_checkpoint
from configs.schema import Model, Sara, Test
from jobs.verbs import test_settings
from jobs.weights import export_file, import_file
from pipeline.importing.categories import read_categories
from pipeline.importing.files import read_checkpoint
from pipeline.model import build_model, own_settings
from pipeline.network.pretrained import load_pretrained
from pipeline.network.weights import load_meta
from shards.errors import BadInput
from tests.jobs.test_cli import command

test_settings.__test__ = False
SETTINGS = ("--set", "model.min_size=64", "--set", "model.profile.sampling_ratio=2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detectron2 checkpoint of zeros, imported by the command with two keys set."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": detectron2_checkpoint(None, width=8), "iteration": 7}, folder / "their.pth")
    import_file(folder / "their.pth", folder / "ours.safetensors", None, None, False, list(SETTINGS[1::2]))
    return folder


def test_import_writes_weights_and_report_and_says_everything(files, capsys):
    code, out, err = command(
        capsys, "import-weights", files / "their.pth", "--out", files / "again.safetensors", *SETTINGS
    )
    assert (code, err) == (0, "")
    assert "detectron2 Mask R-CNN, resnet50" in out and "80 categories: 1 person, 2 bicycle" in out
    assert "'iteration', which is no weights" in out and "sampling ratio 2" in out
    assert (files / "again.safetensors").read_bytes() == (files / "ours.safetensors").read_bytes()
    report = (files / "again.import.txt").read_text()
    assert "backbone.body.bn1.bias <- backbone.bottom_up.stem.conv1.norm.bias  [64] -> [64]" in report
    model = load_meta(files / "ours.safetensors")["model"]
    assert (model["min_size"], model["profile"]["sampling_ratio"], model["profile"]["paste"]) == (
        64,
        2,
        "exact",
    )


def test_evaluate_and_predict_paste_as_the_weights_program_unless_told(files):
    path = files / "ours.safetensors"
    assert own_settings(load_meta(path)).paste == test_settings([], path).paste == "exact"
    assert test_settings(["test.paste=legacy", "test.score=0.5"], path).paste == "legacy"
    assert test_settings([]).paste == "legacy"


def test_export_gives_the_names_back(files, capsys):
    export_file(files / "ours.safetensors", "detectron2", files / "back.pkl")
    out = capsys.readouterr().out
    assert "stride 2 in the 1x1 convolution" in out
    assert (
        "80 classes: row 0 = 1 person, row 1 = 2 bicycle" in out and "NUM_CLASSES 80 INPUT.FORMAT BGR" in out
    )
    assert "the file's first layer reads BGR\n" in out and "reordered" not in out
    assert len(read_categories(files / "back.categories.json")) == 80
    warning = out.splitlines()[-1]
    assert "min_size 64 (there 800)" in warning and warning.endswith("sampling_ratio 2 (there 0)")
    theirs = read_checkpoint(files / "their.pth").tensors
    back = read_checkpoint(files / "back.pkl").tensors
    assert back.keys() == theirs.keys() | {"pixel_mean", "pixel_std"}
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "3", "--categories", "CATEGORIES"], "--categories counts them already"),
        (["--keep-classes"], "--keep-classes: which categories they are is not said"),
        (["--set", "train.refine.lr=1"], "only model.KEY=VALUE can be said of a checkpoint"),
        (["--set", "model.profile.alined=true"], "did you mean model.profile.aligned?"),
        (["--set", "model.norm=group"], "for which this Mask R-CNN has no place"),
        (["--out", "weights.pth"], "give it the ending .safetensors"),
        (["--out", "nowhere/weights.safetensors"], "there is no folder nowhere"),
        (["--categories", "CATEGORIES", "--keep-classes"], "with background, --categories names 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(files, capsys, arguments, message):
    (files / "own.json").write_text(json.dumps({"categories": [{"id": 4, "name": "mine"}]}))
    arguments = [str(files / "own.json") if word == "CATEGORIES" else word for word in arguments]
    place = [] if "--out" in arguments else ["--out", files / "refused.safetensors"]
    code, _, err = command(capsys, "import-weights", files / "their.pth", *place, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (files / "refused.safetensors").exists()


def test_new_class_layers_are_said_to_be_new(files, capsys):
    (files / "own.json").write_text(json.dumps([{"id": 4, "name": "mine"}, {"id": 9, "name": "yours"}]))
    arguments = "--out", files / "fresh.safetensors", "--categories", files / "own.json"
    code, out, _ = command(capsys, "import-weights", files / "their.pth", *arguments)
    meta = load_meta(files / "fresh.safetensors")
    assert code == 0 and "the class layers are NEW, for fine-tuning" in out and "2 categories: 4 mine" in out
    assert [category["id"] for category in meta["categories"]] == [4, 9] and len(meta["source"]["fresh"]) == 6


@pytest.mark.parametrize("make", [torchvision_checkpoint, detectron2_checkpoint, benchmark_checkpoint])
def test_a_raw_checkpoint_as_model_weights_is_told_to_be_imported(make, tmp_path):
    """Read as it is, torchvision's would fit, and compute with another eps than its own."""
    tensors = make(None, classes=6, width=8)
    torch.save({"model": tensors}, tmp_path / "their.pth")
    model = build_model(Model(fpn_channels=8, box_head_dim=16, mask_head_channels=8), 6, None, Sara(), Test())
    with pytest.raises(BadInput, match=r"another program's .*; import it first: mrrcnn import"):
        load_pretrained(model, tmp_path / "their.pth")
