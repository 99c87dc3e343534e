"""`mrrcnn bench`: the benchmarks of a checkout, run as programs of their own."""

import subprocess
import sys
from pathlib import Path

from configs.load import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def bench_ops(device: str, threads: list[int], repeats: int, out: Path | None) -> int:
    """Return the exit code of benchmarks/ops.py."""
    if not (ROOT / "benchmarks" / "ops.py").is_file():
        raise ConfigError(f"{ROOT} has no benchmarks; run `mrrcnn bench` from a checkout of the repository")
    command = [sys.executable, "-m", "benchmarks.ops", "--device", device, "--repeats", str(repeats)]
    command += ["--threads", *map(str, threads), *(["--out", str(out.resolve())] if out else [])]
    return subprocess.run(command, cwd=ROOT).returncode
