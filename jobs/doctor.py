"""What this machine has for training, what is missing, and what to do about it."""

import fcntl
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.console import say

LEAST_DISK_GB, LEAST_SHM_GB = 5, 1
LOCAL_LOCKS = ("local_lock=flock", "local_lock=all", "nolock")
PACKAGES = ("torch", "torchvision", "deepspeed", "ray", "mlflow", "webdataset", "faster-coco-eval")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, what was found, and the remedy if it is not well."""

    name: str
    found: str
    remedy: str = ""
    essential: bool = False


def examine(run_dir: Path) -> int:
    """Print every finding; return 1 if something essential is missing, else 0."""
    findings = [*_software(), *_operator(), *_tools(), *_machine(), *_storage(run_dir)]
    for item in findings:
        mark = "ok" if not item.remedy else "MISSING" if item.essential else "note"
        say(f"{mark:8}{item.name:18}{item.found}" + (f" -> {item.remedy}" if item.remedy else ""))
    return int(any(item.essential and item.remedy for item in findings))


def _software() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    old = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    yield Finding("python", version, old, essential=True)
    for name in PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            remedy = f"pip install {name} -c constraints.txt"
            yield Finding(name, "not installed", remedy, essential=True)
    try:
        # The job server's part of ray[default]; without it `ray start` has no dashboard.
        importlib.metadata.version("aiohttp-cors")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "ray[default]", "not installed", "for submit: pip install 'ray[default]' -c constraints.txt"
        )


def _operator() -> Iterator[Finding]:
    try:
        import torch

        from ops import backend_info
    except ImportError as error:
        yield Finding("operator", str(error), "install torch first", essential=True)
        return
    cuda = torch.version.cuda or "none"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    yield Finding(
        "CUDA", f"built for {cuda}; " + (", ".join(gpus) if gpus else "no GPU, training uses the CPU")
    )
    info = backend_info()
    slow = info["backend"] == "reference"
    remedy = "slow but right; build it: python setup.py build_ext --inplace" if slow else ""
    yield Finding(
        "operator", info["backend"] + (f" ({info['reason']})" if info.get("reason") else ""), remedy
    )


def _tools() -> Iterator[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    yield Finding(
        "compiler", compiler or "none", "" if compiler else "install g++; the operator is built with it"
    )
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    yield Finding("ninja", ninja or "none", "" if ninja else "pip install ninja -c constraints.txt")


def _machine() -> Iterator[Finding]:
    yield Finding("cores", str(os.cpu_count()))
    mode = os.environ.get("RAY_AUTH_MODE")
    yield Finding(
        "Ray auth", f"RAY_AUTH_MODE={mode}" if mode else "private clusters get a token of their own"
    )
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free / 1e9
        low = f"Ray wants {LEAST_SHM_GB} GB; docker run --shm-size=4g" if free < LEAST_SHM_GB else ""
        yield Finding("/dev/shm", f"{free:.1f} GB free", low)


def _storage(run_dir: Path) -> Iterator[Finding]:
    place = run_dir.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    low = f"checkpoints want {LEAST_DISK_GB} GB; choose another --run-dir" if free < LEAST_DISK_GB else ""
    yield Finding("disk", f"{free:.0f} GB free at {place}", low)
    wrong = try_file_system(place)
    remedy = "runs need a POSIX file system with rename and flock; choose another --run-dir" if wrong else ""
    yield Finding("file system", wrong or "rename and flock work", remedy, essential=True)
    option = local_lock(place, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if option:
        remedy = "on several machines mount it without, so that flock excludes between them (local_lock=none)"
        yield Finding("locks", f"NFS is mounted with {option}: flock excludes on this machine only", remedy)


def local_lock(place: Path, mounts: str) -> str:
    """Return the mount option that keeps the locks in a directory on its own machine, or an empty string.

    Args:
        place: the directory.
        mounts: the content of /proc/self/mountinfo.
    """
    found, length = "", -1
    for fields, kind in (line.split(" - ", 1) for line in mounts.splitlines()):
        # The kernel writes a blank as \040, and all that is not ASCII as it is.
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= length:
            length, options = len(point.parts), kind.split()[-1].split(",")
            bad = [option for option in options if option in LOCAL_LOCKS]
            found = bad[0] if kind.startswith("nfs") and bad else ""
    return found


def try_file_system(directory: Path) -> str:
    """Return what does not work of atomic rename and flock in a directory, or an empty string."""
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as folder:
            first, second = Path(folder, "first"), Path(folder, "second")
            first.write_text("1")
            second.write_text("2")
            os.replace(first, second)
            # To write: NFS refuses an exclusive lock to who may only read.
            with second.open("r+") as one, second.open("r+") as other:
                fcntl.flock(one, fcntl.LOCK_EX)
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return ""
                return "flock does not exclude"
    except OSError as error:
        return f"cannot be written ({error.strerror})"
