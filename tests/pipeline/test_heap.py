"""What a loader process frees for one sample it has for the next, without asking the system again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Three blocks of 8 MiB, as an image, its floats and its resized copy, freed together: more than glibc keeps.
FAULTS = """
import resource, sys
import numpy as np
from pipeline.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
def touch():
    blocks = [np.ones(8 << 20, np.uint8) for _ in range(3)]
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_not_given_back():
    assert faults("kept") * 10 < faults("given back")
