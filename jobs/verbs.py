"""What the short verbs of the command do, from parsed arguments to printed result."""

import os
import tempfile
from pathlib import Path
from typing import Any

from configs.load import ConfigError, apply_override, load_config, parse_config
from configs.schema import Test
from jobs.console import say
from shards.errors import BadInput


def shard_source(
    images: str, annotations: str, out: str, workers: int | None, address: str | None, options: dict[str, Any]
) -> None:
    """Shard a COCO data set, here or on a Ray cluster, and show what was found."""
    from jobs.ray_tasks import ray_tasks
    from jobs.summary import showing_findings
    from shards.write import write_shards

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
) -> None:
    """Run a config's stages and show what came out."""
    settings = load_config(config, overrides or ())
    run_dir = run_dir or f"runs/{Path(config).stem}"
    from jobs.stages import run_pipeline
    from jobs.summary import show_summary

    run_pipeline(settings, run_dir, default_workers(workers, launcher, 1), launcher, address, redo)
    show_summary(Path(run_dir).resolve())


def submit_config(
    config: str, overrides: list[str] | None, run_dir: str, workers: int, address: str, redo: str | None
) -> int:
    """Return the exit code of the same run as a job of a Ray cluster."""
    settings = load_config(config, overrides or ())
    from jobs.checks import check_workers, local_path
    from jobs.submit import submit

    local_path(run_dir)
    check_workers(settings, workers, "ray")
    return submit(settings, run_dir, workers, address, redo)


def evaluate_checkpoint(
    checkpoint: Path,
    shards: str,
    out: Path,
    overrides: list[str] | None,
    workers: int | None,
    launcher: str,
    address: str | None,
) -> None:
    """Detect with a weights file on shards, score, and show the AP."""
    from jobs.summary import show_metrics
    from pipeline.network.weights import load_weights
    from shards.read import ShardDataset

    load_weights(checkpoint)
    ShardDataset(shards, verify=False)
    test = test_settings(overrides or [])
    from jobs.evaluation import detect_and_score

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluate-", dir=out.resolve()) as scratch:
        workers = default_workers(workers, launcher, 1)
        metrics = detect_and_score(
            checkpoint, shards, out, test, Path(scratch, "work"), workers, launcher, address
        )
    if metrics:
        show_metrics({checkpoint.stem: metrics})
    say(f"results are in {out}" + ("" if metrics else "; there are no annotations, and so no AP"))


def test_settings(overrides: list[str]) -> Test:
    """Return the default inference settings with `test.KEY=VALUE` overrides applied."""
    # Through the whole schema, for its explanations of what is wrong.
    tree = {"data": {"train": "-", "val": "-"}}
    for override in overrides:
        if not override.startswith("test.") or "=" not in override:
            raise ConfigError(f"--set {override}: only test.KEY=VALUE can change for finished weights")
        apply_override(tree, override)
    return parse_config(tree, "--set").test


def inspect_directory(directory: Path, out: Path | None) -> None:
    """Verify a directory of shards, show its statistics, draw them and a contact sheet."""
    from jobs.summary import show_statistics
    from shards.inspect import inspect_shards

    found = inspect_shards(directory, out and out / "contact_sheet.png")
    show_statistics(found)
    if found["damaged"]:
        raise BadInput(f"{directory}: {len(found['damaged'])} damaged, as listed; write these shards again")


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
