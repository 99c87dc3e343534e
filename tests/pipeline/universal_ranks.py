"""Run by torchrun in test_engine.py: goes on from one checkpoint in every ZeRO stage, and saves at once."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from configs.load import parse_config
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.engine import momentum_by_name, restore, start_engine
from tests.pipeline.toy_ranks import Toy


def main(checkpoint: Path, out: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for stage in (0, 1, 2):
        config = parse_config({
            "data": {"train": "-", "val": "-"},
            "deepspeed": {"stage": stage},
            "train": {"baseline": {"batch": 8, "iters": 1, "lr": 0.1}},
        })  # fmt: skip
        torch.manual_seed(stage)
        engine = start_engine(Toy(), config.train.baseline, config, world)
        weights, momentum, state = load_checkpoint(checkpoint)
        restore(engine, weights, momentum)
        gathered = momentum_by_name(engine)
        if rank == 0:
            folder = out / f"{world}-{stage}"
            save_checkpoint(folder, state["step"], engine.module.state_dict(), gathered, state)
        dist.barrier()
        engine.destroy()
    # Threads of the process group that outlive the interpreter end it with SIGABRT.
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
