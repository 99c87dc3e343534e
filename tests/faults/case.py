"""A pipeline small enough to be killed fifty times: data, config, commands, and what must come out."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from jobs.ledger import Ledger
from jobs.stages import STAGES
from pipeline.evaluations import results_of
from pipeline.tracking.tracker import flatten
from shards.synthetic.synth import write_synthetic
from shards.write import write_shards
from tests.faults.watch import MARK, exit_code, nothing_left

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("baseline", "refine", "control")
NETWORKS = ("baseline", "control", "refined")
# Enough that sharding takes processes of its own, and small enough to be drawn in seconds.
TRAIN_IMAGES, VAL_IMAGES, SIZE = 1100, 50, 64
ITERS, CHECKPOINT_EVERY, LOG_EVERY = 10, 3, 2
# Of the baseline in whole pipelines: what an evaluating process is killed beside.
EVAL_EVERY = 5
MODEL = {
    "backbone": "resnet18", "norm": "group", "trainable_layers": 5, "fpn_channels": 16, "box_head_dim": 16,
    "mask_head_channels": 16, "anchor_sizes": [8, 16, 32, 64, 128], "min_size": 64, "max_size": 64,
    "rpn_pre_nms_train": 60, "rpn_post_nms_train": 30, "rpn_pre_nms_test": 60, "rpn_post_nms_test": 20,
    "rpn_batch_per_image": 32, "rois_per_image": 16,
}  # fmt: skip
SCHEDULE = {"iters": ITERS, "batch": 4, "lr": 0.01, "warmup": 2, "steps": [8], "clip": 5.0}


class Runs:
    """Starts attempts at a run directory by one and the same command; a subclass says by which."""

    def command(self, run: Path, launcher: str, *more: str) -> list[str]:
        """Return the command that begins a run, and goes on with it."""
        raise NotImplementedError

    def start(self, run: Path, launcher: str, *more: str) -> subprocess.Popen:
        """Begin a run or go on with it; what it prints is added to RUN.log."""
        with log_of(run).open("ab") as log:
            return subprocess.Popen(
                self.command(run, launcher, *more),
                env=environment(run),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, run: Path, launcher: str, *more: str) -> None:
        """Run to the end; an error if it ends with one."""
        with nothing_left(run):
            code = exit_code(self.start(run, launcher, *more), run)
        if code:
            raise RuntimeError(f"{run} ended with {code}: {log_of(run).read_text()[-2000:]}")


@dataclass(frozen=True)
class Pipeline(Runs):
    """The whole of `mrrcnn run`, in a folder with data, config and an empty MLflow database."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Pipeline":
        """Draw the data and write the config."""
        folder.mkdir(parents=True, exist_ok=True)
        write_synthetic(folder / "train", images=TRAIN_IMAGES, seed=1, size=SIZE)
        write_synthetic(folder / "val", images=1, seed=2, size=SIZE)
        config = _config(folder)
        config["train"]["baseline"] = {**SCHEDULE, "eval_every": EVAL_EVERY}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        subprocess.run([sys.executable, "-c", EMPTY_STORE, str(folder / "empty.db")], check=True)
        return cls(folder)

    def command(self, run: Path, launcher: str, *more: str) -> list[str]:
        store = run.parent / f"{run.name}.db"
        if not store.exists():
            shutil.copy(self.folder / "empty.db", store)
        config = [str(self.folder / "config.yaml"), "--set", f"tracking.uri=sqlite:///{store}"]
        where = ["--run-dir", str(run), "--launcher", launcher, "--workers", "2"]
        return [sys.executable, "-m", "jobs.cli", "run", *config, *where, *more]


@dataclass(frozen=True)
class OneStage(Runs):
    """The baseline alone, on few images: the cheap form, for all that happens inside a stage."""

    folder: Path
    workers: int = 2
    overrides: tuple[str, ...] = ()

    @classmethod
    def make(cls, folder: Path) -> "OneStage":
        """Draw the data, shard it and write the config."""
        folder.mkdir(parents=True, exist_ok=True)
        write_synthetic(folder / "train", images=12, seed=1, size=SIZE)
        coco = folder / "train"
        write_shards(coco / "train2017", coco / "annotations" / "instances_train2017.json", folder / "shards")
        (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder)))
        return cls(folder)

    def command(self, run: Path, launcher: str, *more: str) -> list[str]:
        script = str(Path(__file__).with_name("one_stage.py"))
        config, shards = str(self.folder / "config.yaml"), str(self.folder / "shards")
        where = [str(run), config, shards, launcher, str(self.workers)]
        return [sys.executable, script, *where, *self.overrides, *more]


def environment(run: Path) -> dict[str, str]:
    """Return the environment of a run's processes: one thread each, their own folder for Ray."""
    ray = ray_folder()
    ray.mkdir(exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray), MARK: str(run)}
    return {**os.environ, **own}


def ray_folder() -> Path:
    """Return where Ray's sessions of this process's runs lie; delete it in the end."""
    # Their sockets have names of 107 bytes at most, so it is not in the runs' own folder.
    return Path(tempfile.gettempdir(), f"mf-{os.getpid()}")


def log_of(run: Path) -> Path:
    """Return the file that holds what all attempts at a run have printed."""
    return run.parent / f"{run.name}.log"


EMPTY_STORE = """
import sys
from mlflow import MlflowClient
MlflowClient(f"sqlite:///{sys.argv[1]}").search_experiments()
"""


def _config(folder: Path) -> dict:
    train = {"baseline": SCHEDULE, "refine": SCHEDULE, "aspect_window": 0, "log_every": LOG_EVERY}
    data = {
        split: {
            "images": str(folder / split / f"{split}2017"),
            "annotations": str(folder / split / "annotations" / f"instances_{split}2017.json"),
        }
        for split in ("train", "val")
    }
    return {
        # Small shards: each is one process's work.
        "data": {**data, "loader_workers": 0, "shard_size_mb": 1},
        "model": MODEL,
        "train": train,
        "checkpoint_every": CHECKPOINT_EVERY,
        "debug": {"log_samples": True},
    }


def trained(run: Path, stage: str = "baseline") -> dict[str, str]:
    """Return a hash of all that must come out of one training."""
    return {
        f"weights {stage}": _sha(run / stage / "weights.safetensors"),
        f"samples {stage}": _sha(run / stage / "samples.jsonl"),
        f"metrics {stage}": _hash(series(run, stage)),
    }


def products(run: Path) -> dict[str, str]:
    """Return a hash of everything that must not depend on what happened on the way."""
    found = {f"shards {split}": _hash(contents(run / "shards" / split)) for split in ("train", "val")}
    for stage in TRAINED:
        found |= trained(run, stage)
    for name in NETWORKS:
        for file in ("coco_results", "metrics"):
            found[f"{file} {name}"] = _sha(run / "evaluate" / name / f"{file}.json")
    found["best baseline"] = _sha(run / "baseline" / "best.safetensors")
    return found | {"evaluations baseline": _hash(_timeless(results_of(run / "baseline"), "seconds"))}


def contents(shards: Path) -> dict[str, str]:
    """Return the hash of every file of a folder of shards, but for the report, which tells of the command."""
    files = sorted(shards.iterdir()) if shards.exists() else []
    return {path.name: _sha(path) for path in files if path.name != "report.json"}


def series(run: Path, stage: str) -> list[dict]:
    """Return a stage's metrics without the speed, the one thing that may differ."""
    path = run / stage / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return _timeless(lines, "images_per_s")


def _timeless(lines: Iterable[dict], clock: str) -> list[dict]:
    return [{key: value for key, value in line.items() if key != clock} for line in lines]


def untold(run: Path) -> list[str]:
    """Return in what MLflow differs from the run's own files: one finished run a stage, every point once."""
    with sqlite3.connect(run.parent / f"{run.name}.db") as store:
        runs = store.execute(RUNS).fetchall()
        told = {stage: _told(store, run_id) for stage, _, run_id in runs}
    count = Counter(stage for stage, _, _ in runs)
    wrong = [f"MLflow has {count[stage]} runs of {stage}" for stage in STAGES if count[stage] != 1]
    wrong += [f"MLflow's run of {stage} is {status}" for stage, status, _ in runs if status != "FINISHED"]
    expected = {stage: _trained_points(run, stage) for stage in TRAINED}
    expected["evaluate"] = _evaluated_points(run)
    differing = [stage for stage in expected if told.get(stage) != sorted(expected[stage])]
    return wrong + [f"MLflow's points of {stage} are not those of its files" for stage in differing]


RUNS = "SELECT value, status, run_uuid FROM tags JOIN runs USING (run_uuid) WHERE key = 'mrrcnn.stage'"
Points = list[tuple[str, int, float]]


def _told(store: sqlite3.Connection, run_id: str) -> Points:
    query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key != 'images_per_s'"
    return sorted(store.execute(query, (run_id,)).fetchall())


def _trained_points(run: Path, stage: str) -> Points:
    evaluated = [{"val": result, "step": result.pop("step")} for result in results_of(run / stage)]
    return [point for line in (*series(run, stage), *evaluated) for point in _points(line, line.pop("step"))]


def _evaluated_points(run: Path) -> Points:
    files = {name: run / "evaluate" / name / "metrics.json" for name in NETWORKS}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    for metrics in found.values():
        metrics.pop("per_category", None)
    return _points(found, Ledger.load(run).tree["stages"].get("evaluate", {}).get("attempt", 0))


def _points(tree: dict, step: int) -> Points:
    return [(key, step, float(value)) for key, value in flatten(tree).items() if value is not None]


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _hash(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()
