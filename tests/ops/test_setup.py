"""setup.py's own decisions: what it builds where, what it goes on without, and the one line that says so.

A stand-in for torch compiles nothing and takes milliseconds; every real installation runs the real thing.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDER = """
import os
from pathlib import Path
from setuptools import Extension
from setuptools.command.build_ext import build_ext

class BuildExtension(build_ext):
    def __init__(self, *args, no_python_abi_suffix=False, **kwargs):
        super().__init__(*args, **kwargs)

    def get_ext_filename(self, name):
        return name.replace(".", "/") + ".so"

    def build_extension(self, one):
        if one.name in os.environ.get("FAIL", ""):
            raise RuntimeError("Error compiling objects for extension")
        target = Path(self.get_ext_fullpath(one.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("new")

def CppExtension(name, sources, extra_compile_args, py_limited_api, depends):
    return Extension(name, sources, depends=depends)

CUDAExtension = CppExtension
"""


@pytest.fixture
def build(tmp_path):
    """Runs `setup.py build_ext --inplace` in a copy; returns (exit code, mrrcnn's lines, libraries)."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "ops", project / "ops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "setup.py", project)
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "c++", "exit 1")

    def run(torch="fake", cuda="'13.2'", **environment):
        make_torch(tmp_path / "site" / "torch", torch, cuda)
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": str(tmp_path / "bin"), **environment}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("mrrcnn:")]
        return done.returncode, lines, sorted(one.name for one in (project / "ops").glob("*.so"))

    run.project, run.bin = project, tmp_path / "bin"
    return run


def make_torch(package, kind, cuda):
    (package / "utils").mkdir(parents=True, exist_ok=True)
    missing = "raise ImportError('no torch')\n" if kind == "missing" else ""
    (package / "__init__.py").write_text(f"{missing}class version:\n    cuda = {cuda}\n")
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "cpp_extension.py").write_text(BUILDER)


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def toolkit(folder):
    script(folder / "bin" / "nvcc", f"echo '#$ TOP={folder}/bin/..' >&2")
    return folder


def test_cpu_and_cuda(build, tmp_path):
    status, lines, libraries = build(CUDA_HOME=str(toolkit(tmp_path / "cuda")))
    assert (status, libraries) == (0, ["_C_cpu.so", "_C_cuda.so"])
    assert lines == ["mrrcnn: built CPU and CUDA (sm_75, sm_80, sm_90) operators"]


def test_the_architectures_asked_for_are_named(build, tmp_path):
    _, lines, _ = build(CUDA_HOME=str(toolkit(tmp_path / "cuda")), TORCH_CUDA_ARCH_LIST="7.5 10.0+PTX")
    assert lines == ["mrrcnn: built CPU and CUDA (sm_75, sm_100) operators"]


def test_nvcc_on_the_path_may_be_a_wrapper(build, tmp_path):
    real = toolkit(tmp_path / "cuda-13.0")
    script(build.bin / "nvcc", f'exec {real}/bin/nvcc "$@"')
    status, _, libraries = build()
    assert (status, libraries) == (0, ["_C_cpu.so", "_C_cuda.so"])
    # Found at the wrapper's folder, the toolkit would have no nvcc after this:
    (real / "bin" / "nvcc").rename(real / "bin" / "nvcc-away")
    script(build.bin / "nvcc", f"echo '#$ TOP={real}' >&2")
    assert f"no nvcc in CUDA_HOME {real}" in build()[1][0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cuda": "None"}, "this torch has no CUDA"),
        ({"FORCE_CUDA": "0"}, "FORCE_CUDA is 0"),
        ({"CUDA_HOME": "/nowhere"}, "no nvcc in CUDA_HOME /nowhere"),
        ({"FAIL": "ops._C_cuda"}, "RuntimeError: Error compiling"),
    ],
)
def test_without_cuda_there_is_the_cpu_operator(build, tmp_path, settings, reason):
    status, lines, libraries = build(**{"CUDA_HOME": str(toolkit(tmp_path / "cuda")), **settings})
    assert (status, libraries, len(lines)) == (0, ["_C_cpu.so"], 1)
    assert lines[0].startswith("mrrcnn: built the CPU operator, CUDA tensors use the reference")
    assert reason in lines[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"torch": "missing"}, "torch is not installed"),
        ({"CXX": "no-such-compiler", "PATH": "/nowhere"}, "no C++ compiler (no-such-compiler)"),
        ({"FAIL": "ops._C_cpu", "FORCE_CUDA": "0"}, "RuntimeError: Error compiling"),
    ],
)
def test_without_anything_it_still_installs(build, settings, reason):
    (build.project / "ops" / "_C_cpu.so").write_text("old")
    status, lines, libraries = build(**settings)
    assert (status, len(lines)) == (0, 1)
    assert lines[0].startswith("mrrcnn: built no operators, the plain torch reference is used")
    assert reason in lines[0]
    assert libraries == []


def test_cuda_alone_is_said(build, tmp_path):
    _, lines, libraries = build(FAIL="ops._C_cpu", CUDA_HOME=str(toolkit(tmp_path / "cuda")))
    assert libraries == ["_C_cuda.so"]
    assert lines[0].startswith(
        "mrrcnn: built the CUDA (sm_75, sm_80, sm_90) operator, CPU tensors use the reference"
    )


def test_cuda_that_is_forced_and_fails_is_an_error(build, tmp_path):
    status, lines, _ = build(FORCE_CUDA="1", FAIL="ops._C_cuda", CUDA_HOME=str(toolkit(tmp_path / "cuda")))
    assert status != 0
    assert "FORCE_CUDA is 1 but the CUDA operator was not built" in lines[0]
