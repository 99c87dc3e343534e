"""`mrrcnn shard --address` on a cluster that loses a node, and one that loses its head."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.local_cluster import LocalCluster, local_cluster
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards
from tests.faults.case import ROOT, SIZE, contents, log_of
from tests.faults.watch import MARK, exit_code, wait_for

IMAGES, SHARD_MB, HEAD = 3000, 1, 0


def lose_nodes(folder: Path, say: Callable[[str], None]) -> list[str]:
    """Return what went wrong when one of two nodes was killed under a command that shards on both."""
    write_synthetic(folder / "coco", images=IMAGES, seed=1, size=SIZE)
    write_shards(*_source(folder), folder / "undisturbed", shard_size_mb=SHARD_MB)
    tries = [(node, sign) for node in (1, HEAD) for sign in ("task", "shard")]
    return [wrong for node, sign in tries if (wrong := _lose(folder, node, sign, say))]


def _lose(folder: Path, node: int, sign: str, say: Callable[[str], None]) -> str:
    name, out = f"{'head' if node == HEAD else 'node'} killed at the first {sign}", folder / f"{node}-{sign}"
    with local_cluster(2) as cluster:
        process = _shard(cluster, folder, out)
        signs = {
            "task": lambda: bool(cluster.processes(node, "ray::_call")),
            "shard": lambda: any(out.glob("*.tar")),
        }
        wait_for(process, signs[sign], out)
        began = time.monotonic()
        cluster.kill(node)
        code = exit_code(process, out)
        took = time.monotonic() - began
    # A lost node is the cluster's business; without a head there is no cluster, until somebody starts it.
    went_on = code == 0 if node != HEAD else _goes_on(folder, out)
    same = contents(out) == contents(folder / "undisturbed")
    kept = went_on and same
    say(f"{name}: exit {code} after {took:.0f} s; {'all the same' if kept else 'NOT the same'} in the end")
    return "" if kept else f"{name}: exit {code}, goes on {went_on}, same bytes {same}"


def _goes_on(folder: Path, out: Path) -> bool:
    with local_cluster(1) as cluster:
        return exit_code(_shard(cluster, folder, out), out) == 0


def _shard(cluster: LocalCluster, folder: Path, out: Path) -> subprocess.Popen:
    images, annotations = _source(folder)
    words = [sys.executable, "-m", "jobs.cli", "shard", "--images", str(images), "--out", str(out)]
    words += ["--annotations", str(annotations), "--shard-size-mb", str(SHARD_MB)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: str(out), **cluster.login}
    with log_of(out).open("ab") as log:
        return subprocess.Popen(
            [*words, "--address", f"127.0.0.1:{cluster.port}"],
            env={**os.environ, **own}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _source(folder: Path) -> tuple[Path, Path]:
    coco = folder / "coco"
    return coco / "train2017", coco / "annotations" / "instances_train2017.json"
