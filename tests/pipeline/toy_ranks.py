"""Run by torchrun in test_engine.py: a toy model through our engine; prints rank 0's weights as JSON."""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from configs.load import parse_config
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.engine import momentum_by_name, restore, set_lr, start_engine

STEPS = 6


class Toy(nn.Module):
    """Two trained layers, a frozen one and a head whose share of the loss can be empty on a rank."""

    def __init__(self):
        super().__init__()
        self.frozen, self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 7), nn.Linear(7, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x, y, keep):
        predicted = self.head(torch.tanh(self.body(self.frozen(x))))[keep]
        return ((predicted - y[keep]) ** 2).sum(), torch.tensor(float(predicted.numel()))


def main(stage: int, accumulate: int, folder: str, save_at: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    schedule = {"batch": 8, "accumulate": accumulate, "iters": STEPS, "lr": 0.1, "clip": 1.0}
    config = parse_config(
        {"data": {"train": "-", "val": "-"}, "deepspeed": {"stage": stage}, "train": {"baseline": schedule}}
    )
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (
        torch.randn(STEPS, 8, 5, generator=generator),
        torch.randn(STEPS, 8, 3, generator=generator),
    )
    # The odd places of the second half have nothing to learn from: with two ranks, rank 1 has less.
    keep = torch.ones(8, dtype=torch.bool)
    keep[5:] = False
    torch.manual_seed(0)
    engine = start_engine(Toy(), config.train.baseline, config, world)
    first = 0
    if (Path(folder) / f"step-{save_at:09d}").exists():
        weights, momentum, state = load_checkpoint(Path(folder) / f"step-{save_at:09d}")
        restore(engine, weights, momentum)
        first = state["step"]
    for step in range(first, STEPS):
        set_lr(engine, 0.1 / (1 + step))
        for part in range(accumulate):
            mine = torch.arange(8).chunk(accumulate)[part][rank::world]
            total, count = engine(inputs[step, mine], outputs[step, mine], keep[mine])
            dist.all_reduce(count)
            engine.backward(total / count * world)
            engine.step()
        if step + 1 == save_at and not first:
            momentum = momentum_by_name(engine)
            if rank == 0:
                save_checkpoint(
                    Path(folder), save_at, engine.module.state_dict(), momentum, {"step": save_at}
                )
            dist.barrier()
    if rank == 0:
        flat = torch.cat([value.flatten() for value in engine.module.state_dict().values()])
        print("WEIGHTS", json.dumps(flat.double().tolist()), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    # Threads of the process groups that outlive the interpreter end it with SIGABRT; the engine's own
    # groups are only gone with the engine.
    gc.collect()
    dist.destroy_process_group()
