"""The whole pipeline on synthetic data, in minutes, on two CPU cores."""

import os
import shutil
from pathlib import Path

from jobs.console import say
from jobs.verbs import default_workers

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
# A fifth as many validation images come with them: 200.
IMAGES = 1000
DATA_SEED = 0


def run_demo(
    run_dir: str,
    seed: int,
    overrides: list[str] | None,
    workers: int | None,
    launcher: str,
    address: str | None = None,
) -> None:
    """Synthesise the data once, run configs/demo.yaml on it, and show AP, pictures and where MLflow is."""
    from configs.load import load_config
    from jobs.checks import run_path

    path = run_path(run_dir)
    settings = [f"seed={seed}"]
    for split in ("train", "val"):
        settings.append(f"data.{split}.images={path}/data/{split}2017")
        settings.append(f"data.{split}.annotations={path}/data/annotations/instances_{split}2017.json")
    config = load_config(CONFIG, [*settings, *(overrides or [])])
    from jobs.checks import check_workers
    from jobs.stages import run_pipeline
    from jobs.summary import show_summary

    workers = default_workers(workers, launcher, 2, most=2)
    check_workers(config, workers, launcher)
    make_data(path)
    run_pipeline(config, path, workers, launcher, address)
    show_summary(path)


def make_data(run_dir: Path) -> None:
    """Write RUN/data, wholly or not at all, unless it is there."""
    from pipeline.lease import acquire
    from shards.synthetic.synth import write_synthetic

    data, partial = run_dir / "data", run_dir / ".data.partial"
    if data.exists():
        return
    with acquire(run_dir):
        shutil.rmtree(partial, ignore_errors=True)
        say(f"data: drawing {IMAGES} training images of huddled shapes")
        write_synthetic(partial, IMAGES, DATA_SEED)
        os.rename(partial, data)
