"""Loading the compiled library, and going on without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import backend_info

ROOT = Path(__file__).parents[2]


def run_python(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def copy_of_ops(folder):
    shutil.copytree(
        ROOT / "ops", folder / "ops", ignore=shutil.ignore_patterns("*.so", "csrc", "__pycache__")
    )
    return folder


REPORT = """
import torch, ops
out = ops.sa_roi_align(torch.ones(1, 2, 9, 9), torch.tensor([[0, 1.0, 1, 8, 8]]), torch.ones(1, 4, 4), 2)
assert torch.equal(out, torch.ones(1, 2, 2, 2)), out
print(ops.backend_info())
"""


def test_backend_info_tells_what_is_in_use():
    info = backend_info()
    library = ROOT / "ops" / "_C_cpu.so"
    expected = library.exists() and os.environ.get("MRRCNN_REFERENCE", "0") == "0"
    assert info["library"] == (str(library) if expected else None)
    assert ("cpu" in info["backend"]) == expected
    assert expected or info["reason"]
    for name in ("sa_roi_align", "sa_roi_align_backward"):
        assert ("\nCPU: " in torch._C._dispatch_dump(f"mrrcnn::{name}")) == expected


def test_backend_info_is_a_copy():
    backend_info()["backend"] = "nonsense"
    assert backend_info()["backend"] != "nonsense"


def test_without_a_library_the_reference_serves(tmp_path):
    done = run_python("-W", "error", "-c", REPORT, cwd=copy_of_ops(tmp_path), MRRCNN_REFERENCE="0")
    assert done.returncode == 0, done.stderr
    assert "'backend': 'reference'" in done.stdout
    assert "_C_cpu.so is not built" in done.stdout


def test_a_broken_library_is_named_and_the_reference_serves(tmp_path):
    copy_of_ops(tmp_path)
    (tmp_path / "ops" / "_C_cpu.so").write_bytes(b"not a library")
    done = run_python("-c", REPORT, cwd=tmp_path, MRRCNN_REFERENCE="0")
    assert done.returncode == 0, done.stderr
    assert "'backend': 'reference'" in done.stdout
    assert "_C_cpu.so does not load" in done.stderr


@pytest.mark.parametrize(("cuda", "loaded"), [(None, False), ("13.0", True)])
def test_the_cuda_library_is_loaded_only_where_torch_has_cuda(tmp_path, cuda, loaded):
    """One that is linked with CUDA cannot load in a torch without it: no reason to warn."""
    copy_of_ops(tmp_path)
    (tmp_path / "ops" / "_C_cuda.so").write_bytes(b"not a library")
    done = run_python(
        "-c", f"import torch\ntorch.version.cuda = {cuda!r}\n{REPORT}", cwd=tmp_path, MRRCNN_REFERENCE="0"
    )
    assert done.returncode == 0, done.stderr
    assert "'cuda_library': None" in done.stdout
    assert ("_C_cuda.so does not load" in done.stderr) == loaded
    assert ("_C_cuda.so" in done.stdout + done.stderr) == loaded


@pytest.mark.skipif(not (ROOT / "ops" / "_C_cpu.so").exists(), reason="no compiled CPU library")
@pytest.mark.parametrize(
    ("changed", "stale"), [(None, False), ("geometry.h", True), ("cuda/turn.cuh", False)]
)
def test_a_library_older_than_its_sources_is_named(tmp_path, changed, stale):
    """Its numbers may be those of a mended mistake."""
    copy_of_ops(tmp_path)
    shutil.copytree(ROOT / "ops" / "csrc", tmp_path / "ops" / "csrc")
    shutil.copy(ROOT / "ops" / "_C_cpu.so", tmp_path / "ops")
    if changed:
        with (tmp_path / "ops" / "csrc" / changed).open("a") as file:
            file.write("// newer\n")
    done = run_python("-c", REPORT, cwd=tmp_path, MRRCNN_REFERENCE="0")
    assert done.returncode == 0, done.stderr
    assert "'backend': 'cpu'" in done.stdout
    message = "_C_cpu.so was built from other sources than ops/csrc"
    assert [message in done.stdout, message in done.stderr] == [changed == "geometry.h"] * 2


def test_the_reference_passes_the_operators_tests():
    """Whoever has no compiler runs the very same operator: numbers, gradients, layouts, torch.compile."""
    names = ("oracles", "gradients", "precision", "inputs", "torch_op", "torchvision")
    files = [f"tests/ops/test_{name}.py" for name in names]
    unlike = "not [reference and not wrong"  # those never reach the operator
    done = run_python("-m", "pytest", "-q", "-x", "-k", unlike, *files, MRRCNN_REFERENCE="1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_where_there_is_a_compiler_the_kernels_are_built():
    """The build goes on without what fails, so a broken kernel would otherwise pass every test unseen."""
    if os.environ.get("MRRCNN_REFERENCE", "0") == "0":
        assert backend_info()["library"], backend_info()["reason"]
