"""Checkpoint files: whole, safe, and the same from every container."""

import io
import pickle
import random
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch

from pipeline.importing.files import read_checkpoint
from pipeline.importing.unpickle import load_arrays
from shards.errors import BadInput


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
    ("tensor", "message"),
    [
        (torch.ones(2, 2).to_sparse(), "a is no dense tensor"),
        (torch.ones(2, dtype=torch.complex64), r"a is no dense tensor of .* \(torch.complex64\)"),
        (torch.ones(2, device="meta"), "a is no dense tensor"),
        (torch.ones(1).expand(1000, 1000), r"a repeats its numbers, \[1000, 1000\] out of fewer"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused_by_its_name(tensor, message, tmp_path):
    torch.save({"model": {"fine": torch.ones(1), "a": tensor}}, tmp_path / "odd.pth")
    with pytest.raises(BadInput, match=rf"odd\.pth: {message}"):
        read_checkpoint(tmp_path / "odd.pth")


def test_a_pickled_array_of_other_numbers_is_refused(tmp_path):
    for kind in ("longdouble", "complex64"):
        (tmp_path / "odd.pkl").write_bytes(pickle.dumps({"a": np.zeros(2, kind)}))
        with pytest.raises(BadInput, match=r"odd\.pkl: .*it asks for an array of"):
            read_checkpoint(tmp_path / "odd.pkl")


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    deflated = zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, deflated:
        for member in plain.namelist():
            deflated.writestr(member, plain.read(member))
    assert read_checkpoint(tmp_path / "plain.pth").tensors["a"].shape == (100_000,)
    with pytest.raises(BadInput, match=r"^\S+deflated\.pth: unpacks to \d+ bytes, more than its size"):
        read_checkpoint(tmp_path / "deflated.pth")


def test_what_stands_beside_a_state_dict_is_reported_and_arguments_are_admitted(tmp_path):
    """torchvision's training script saves its arguments; a state dict is sought under one `model` alone."""
    content = {"model": {"a": torch.ones(1)}, "epoch": 3, "args": Namespace(lr=0.02, device="cuda")}
    torch.save(content, tmp_path / "trained.pth")
    found = read_checkpoint(tmp_path / "trained.pth")
    assert list(found.tensors) == ["a"] and found.others == ["epoch", "args"]
    torch.save({"model": content}, tmp_path / "twice.pth")
    with pytest.raises(BadInput, match=r"twice\.pth: holds no state dict"):
        read_checkpoint(tmp_path / "twice.pth")
