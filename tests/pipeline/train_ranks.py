"""Run by torchrun in test_train.py: trains one stage on every rank, as a launcher would."""

import json
import logging
import os
import sys
from pathlib import Path

import torch.distributed as dist

from configs.load import parse_config
from pipeline.train import TrainJob, train


def main(job_file: str) -> None:
    logging.basicConfig(level=logging.INFO)
    job = json.loads(Path(job_file).read_text())
    try:
        train(TrainJob(**{**job, "config": parse_config(job["config"])}))
    except Exception as error:
        if os.environ["RANK"] == "0":
            Path(job_file).with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        raise
    # Threads of the process group that outlive the interpreter end it with SIGABRT.
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
