"""`mrrcnn bench`: the benchmarks of a checkout, run as programs of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.load import ConfigError
from pipeline.child import ROOT

# What each benchmark takes, and what it is given if nothing is said; None is not passed on.
OPTIONS: dict[str, dict[str, Any]] = {
    "ops": {"device": "cpu", "repeats": 10, "threads": [1], "out": None},
    "train": {"workers": 2, "repeats": 5, "out": None},
    "data": {"workers": 2, "repeats": 5, "images": None, "coco": None, "only": None, "out": None},
    "eval": {"images": 5000, "detections": 100, "repeats": 3, "out": None},
}


def run_benchmark(what: str, asked: dict[str, Any]) -> int:
    """Return the exit code of benchmarks/WHAT.py; options that were not asked for are None or empty."""
    asked = {name: value for name, value in asked.items() if value}
    for name in asked:
        if name not in OPTIONS[what]:
            takes = ", ".join(f"--{option}" for option in OPTIONS[what])
            raise ConfigError(f"bench {what}: --{name} does not apply; it takes {takes}")
    if "images" in asked and "coco" in asked:
        raise ConfigError("bench data: --images is for synthetic images, --coco brings its own; give one")
    if not (ROOT / "benchmarks" / f"{what}.py").is_file():
        raise ConfigError(f"{ROOT} has no benchmarks; run `mrrcnn bench` from a checkout of the repository")
    command = [sys.executable, "-m", f"benchmarks.{what}"]
    for name, default in OPTIONS[what].items():
        value = asked.get(name, default)
        if value is not None:
            command += [f"--{name}", *_words(value)]
    return subprocess.run(command, cwd=ROOT).returncode


def _words(value: Any) -> list[str]:
    """Return an option's value as a command line has it; the program runs elsewhere, so paths are full."""
    values = value if isinstance(value, list) else [value]
    return [str(one.resolve()) if isinstance(one, Path) else str(one) for one in values]
