"""Trains the baseline of a config alone, as `mrrcnn run` would: python one_stage.py RUN CONFIG SHARDS ...

Exits as the command does: 0, 1 for a failed job, 143 when it was asked to stop.
"""

import sys
from pathlib import Path

from configs.load import load_config
from jobs.errors import JobFailed, Stopped
from jobs.launching.launch import launch
from jobs.launching.worker import train_stage
from pipeline.lease import acquire


def main(run: str, config: str, shards: str, launcher: str, workers: str, *overrides: str) -> int:
    """Return the exit code of one attempt."""
    settings = load_config(config, overrides)
    with acquire(run) as lease:
        jobs = Path(run).resolve() / ".jobs"
        jobs.mkdir(exist_ok=True)
        payload = {
            "config": settings.model_dump(mode="json", exclude={"tracking"}),
            "stage": "baseline",
            "run_dir": str(Path(run).resolve()),
            "shards": shards,
            "init_weights": None,
            "attempt": lease.attempt,
            "stop_file": str(jobs / f"{lease.attempt}.stop"),
        }
        try:
            launch(train_stage, payload, jobs / f"baseline-{lease.attempt}", int(workers), launcher)
        except JobFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 143 if isinstance(error, Stopped) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
