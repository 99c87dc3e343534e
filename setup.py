"""Builds the operator's libraries into ops/; the rest of the package's description is in pyproject.toml.

    pip install --no-build-isolation -e .        or        python setup.py build_ext --inplace

The CPU library is built wherever torch and a C++20 compiler are found, the CUDA library where nvcc and a CUDA
torch are too (no GPU is needed to compile). What cannot be built is left out: the package installs, runs that
part on ops/reference.py, and one line says so (pip shows it with -v; `ops.backend_info()` at any time).

Read from the environment: CUDA_HOME, TORCH_CUDA_ARCH_LIST (default "7.5;8.0;9.0+PTX": T4 and newer),
MAX_JOBS, CXX, and FORCE_CUDA (1: a CUDA library that cannot be built is an error; 0: do not try).
"""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")


def find_cuda_home() -> str | None:
    """Returns the folder of the CUDA toolkit, past shell scripts and links named nvcc."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named or os.environ.get("FORCE_CUDA") == "0":
        return named
    nvcc = shutil.which("nvcc")
    if nvcc:
        # Its own folder may be a wrapper's; nvcc itself knows where it lives.
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
        if top:
            return os.path.realpath(top[1].strip())
    return "/usr/local/cuda" if Path("/usr/local/cuda/bin/nvcc").exists() else None


def why_no_cpu() -> str | None:
    """Returns why the CPU library cannot be built here, or None."""
    if torch is None:
        return "torch is not installed here (pip install --no-build-isolation)"
    compiler = os.environ.get("CXX") or "c++"
    found = shutil.which(compiler.split()[0]) or shutil.which("g++")
    return None if found else f"no C++ compiler ({compiler})"


def why_no_cuda() -> str | None:
    """Returns why the CUDA library cannot be built here, or None."""
    if os.environ.get("FORCE_CUDA") == "0":
        return "FORCE_CUDA is 0"
    if why_no_cpu():
        return why_no_cpu()  # nvcc needs them as well
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    home = os.environ.get("CUDA_HOME")
    if home is None or not Path(home, "bin", "nvcc").exists():
        return "no nvcc" if home is None else f"no nvcc in CUDA_HOME {home}"
    return None


cuda_home = find_cuda_home()
if cuda_home:
    os.environ["CUDA_HOME"] = cuda_home  # cpp_extension reads it when it is imported
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError:
    torch = None

# The stable ABI: a library built here is made to load in torch 2.10 and later, under any Python.
# docs/performance.md says which were tried; `make abi` tries another.
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-std=c++20", "-O3"]
# Else every error message would hold the path of the folder that the library was built in.
NAMELESS = f"-ffile-prefix-map={Path.cwd()}/="
HOST = [*STABLE, NAMELESS, "-fvisibility=hidden", "-ffp-contract=off"]
CPU_SOURCES = sorted(str(p) for p in Path("ops/csrc/cpu").glob("*.cpp"))
HEADERS = sorted(str(p) for p in Path("ops/csrc").rglob("*.*h"))


def extensions() -> list[Extension]:
    """Returns what can be built here; a plain placeholder, never compiled, where nothing can."""
    if why_no_cpu():
        return [Extension("ops._C_cpu", [], optional=True)]
    options = {"py_limited_api": True, "depends": HEADERS}
    flags = {"cxx": [*HOST, sources("cpu")]}
    found = [CppExtension("ops._C_cpu", CPU_SOURCES, extra_compile_args=flags, **options)]
    if not why_no_cuda():
        common = ["-DUSE_CUDA", sources("cuda")]
        flags = {"cxx": [*HOST, *common], "nvcc": [*STABLE, "-Xcompiler", NAMELESS, *common]}
        found.append(
            CUDAExtension("ops._C_cuda", ["ops/csrc/cuda/binding.cu"], extra_compile_args=flags, **options)
        )
    return found


def sources(library: str) -> str:
    """Returns the flag that tells a library which sources it was built from."""
    digest = runpy.run_path("ops/sources.py")["digest"]
    return f"-DMRRCNN_SOURCES={digest(Path('ops/csrc'), library)}"


class BuildOperators(build_ext if torch is None else BuildExtension):
    """Builds each library on its own, goes on without those that fail, and says in one line what there is."""

    def __init__(self, *args, **kwargs):
        options = {} if torch is None else {"no_python_abi_suffix": True}
        super().__init__(*args, **kwargs, **options)

    def build_extensions(self):
        wanted, failed = self.extensions, {"cpu": why_no_cpu(), "cuda": why_no_cuda()}
        for one in wanted if not failed["cpu"] else []:
            self.extensions, one.optional = [one], False
            try:
                super().build_extensions()
            except (BaseError, CCompilerError, RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed[one.name.rpartition("_")[2]] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            one.optional = True  # there may be no file to copy
        self.extensions = wanted
        self.remove_stale([name for name, reason in failed.items() if reason])
        if failed["cuda"] and os.environ.get("FORCE_CUDA") == "1":
            raise SystemExit(
                f"mrrcnn: FORCE_CUDA is 1 but the CUDA operator was not built ({failed['cuda']})"
            )
        print(summary(failed), flush=True)

    def remove_stale(self, not_built):
        """Removes older libraries of what was not built: they would go on serving newer sources."""
        for name in not_built:
            for folder in (Path(), Path(self.build_lib)):
                (folder / "ops" / f"_C_{name}.so").unlink(missing_ok=True)


def summary(failed: dict[str, str | None]) -> str:
    """Returns the line that says what was built and what was not, and why."""
    architectures = re.findall(r"(\d+)\.(\d+)", os.environ["TORCH_CUDA_ARCH_LIST"])
    cuda = f"CUDA ({', '.join(f'sm_{major}{minor}' for major, minor in architectures)})"
    if failed["cpu"] and failed["cuda"]:
        return f"mrrcnn: built no operators, the plain torch reference is used ({failed['cpu']})"
    if failed["cpu"]:
        return f"mrrcnn: built the {cuda} operator, CPU tensors use the reference ({failed['cpu']})"
    if failed["cuda"]:
        return f"mrrcnn: built the CPU operator, CUDA tensors use the reference ({failed['cuda']})"
    return f"mrrcnn: built CPU and {cuda} operators"


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
