"""Back to the names of other programs, bit for bit."""

import pytest
import torch

from pipeline.importing.export import export_weights
from pipeline.importing.files import read_checkpoint
from pipeline.importing.importer import import_weights
from pipeline.network.weights import load_weights
from shards.errors import BadInput


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
