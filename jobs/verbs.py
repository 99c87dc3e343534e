"""What the short verbs of the command do, from parsed arguments to printed result."""

import os
from pathlib import Path
from typing import Any

from configs.load import ConfigError, apply_override, load_config, parse_config
from configs.schema import Config, Test
from jobs.console import say
from shards.errors import BadInput
from shards.storage.remote import shown


def shard_source(
    images: str, annotations: str, out: str, workers: int | None, address: str | None, options: dict[str, Any]
) -> None:
    """Shard a COCO data set, here or on a Ray cluster, and show what was found."""
    from jobs.launching.ray_tasks import ray_tasks
    from jobs.summary import showing_findings
    from shards.write import write_shards

    if out.startswith("memory://"):
        raise BadInput(f"{out}: is gone when the command ends; choose a folder or a store as --out")
    spreading = None if address is None else ray_tasks(address, workers)
    with showing_findings(out):
        write_shards(
            images, annotations, out, workers=workers or os.cpu_count() or 1, spreading=spreading, **options
        )


def run_config(
    config: str,
    overrides: list[str] | None,
    run_dir: str | None,
    workers: int | None,
    launcher: str,
    address: str | None,
    redo: str | None,
    min_workers: int | None,
) -> None:
    """Run a config's stages and show what came out."""
    from jobs.checks import check_elastic, check_sources

    check_elastic(launcher, address, min_workers)
    settings = _told(config, overrides)
    run_dir = run_dir or f"runs/{Path(config).stem}"
    check_sources(settings)
    if settings.model.weights is not None:
        settings = _as_its_weights(settings)
    from jobs.stages import run_pipeline
    from jobs.summary import show_summary

    workers = default_workers(workers, launcher, 1)
    run_pipeline(settings, run_dir, workers, launcher, address, redo, min_workers)
    show_summary(Path(run_dir).resolve())


def submit_config(
    config: str,
    overrides: list[str] | None,
    run_dir: str,
    workers: int,
    address: str,
    redo: str | None,
    min_workers: int | None,
) -> int:
    """Return the exit code of the same run as a job of a Ray cluster."""
    settings = _told(config, overrides)
    from jobs.checks import check_workers, run_path
    from jobs.submission.submit import submit

    run_path(run_dir)
    check_workers(settings, workers, "ray", min_workers)
    return submit(settings, run_dir, workers, address, redo, min_workers)


def _told(config: str, overrides: list[str] | None) -> Config:
    notes: list[str] = []
    settings = load_config(config, overrides or (), notes)
    for note in notes:
        say(note)
    return settings


def _as_its_weights(settings: Config) -> Config:
    from pipeline.network.pretrained import with_source

    model, changed = with_source(settings.model, settings.model.weights)
    if changed:
        say(f"{settings.model.weights}: imported; the model takes its {', '.join(changed)}")
    return settings.model_copy(update={"model": model})


def evaluate_checkpoint(
    checkpoint: Path,
    shards: str,
    out: Path,
    overrides: list[str] | None,
    workers: int | None,
    launcher: str,
    address: str | None,
) -> None:
    """Detect with a weights file on shards, score, and show the AP.

    Raises:
        BadInput: weights and shards do not fit each other, or `out` is a run's or another command's.
        JobFailed: the workers failed.
    """
    from jobs.checks import check_no_run
    from jobs.summary import show_metrics
    from shards.read import ShardDataset

    check_no_run(out)
    test = test_settings(overrides or [], checkpoint)
    ShardDataset(shards, verify=False)
    from jobs.evaluation import detect_and_score

    workers = default_workers(workers, launcher, 1)
    metrics = detect_and_score(checkpoint, shards, out, test, workers, launcher, address)
    if metrics:
        show_metrics({checkpoint.stem: metrics})
    say(f"results are in {out}" + ("" if metrics else "; there are no annotations, and so no AP"))


def predict_files(
    checkpoint: Path, images: list[Path], out: Path, score: float, overrides: list[str]
) -> None:
    """Detect on image files and say where the results are."""
    from pipeline.predict import check_readable, predict

    for image in images:
        check_readable(image)
    results = predict(checkpoint, images, out, score=score, test=test_settings(overrides, checkpoint))
    say(f"{out / 'results.json'}: {len(results)} detections on {len(images)} image(s)")


def test_settings(overrides: list[str], checkpoint: Path | None = None) -> Test:
    """Return inference settings, a weights file's own or the default, with `test.KEY=VALUE` applied."""
    from pipeline.model import own_settings
    from pipeline.network.weights import load_weights

    # Whole, so that a damaged file is refused before anything runs.
    own = own_settings({} if checkpoint is None else load_weights(checkpoint)[1])
    # Through the whole schema, for its explanations of what is wrong.
    tree = {"data": {"train": "-", "val": "-"}, "test": own.model_dump()}
    for override in overrides:
        if not override.startswith("test.") or "=" not in override:
            raise ConfigError(f"--set {override}: only test.KEY=VALUE can change for finished weights")
        apply_override(tree, override)
    return parse_config(tree, "--set").test


def inspect_directory(directory: str, out: Path | None) -> None:
    """Verify a directory or URL of shards, show its statistics, draw them and a contact sheet."""
    from jobs.summary import show_statistics
    from shards.inspection.inspect import inspect_shards

    found = inspect_shards(directory, out and out / "contact_sheet.png")
    show_statistics(found)
    if found["damaged"]:
        raise BadInput(
            f"{shown(directory)}: {len(found['damaged'])} damaged, as listed; write these shards again"
        )


def report_runs(run_dirs: list[Path], out: Path | None) -> None:
    """Write the report of finished runs."""
    for run_dir in run_dirs:
        if not (run_dir / "ledger.json").is_file():
            raise BadInput(f"{run_dir}: is no run directory (it holds no ledger.json)")
    from pipeline.report.document import write_report

    out = out or (run_dirs[0] / "report" if len(run_dirs) == 1 else Path("comparison"))
    write_report(run_dirs, out)
    say(f"report: {out.resolve() / 'report.html'}")


def default_workers(workers: int | None, launcher: str, without_gpu: int, most: int | None = None) -> int:
    """Return the number of ranks: as asked, else one per GPU of this machine, else `without_gpu`."""
    if workers is not None:
        return workers
    if launcher == "local":
        return 1
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return min(gpus, most or gpus) or without_gpu
