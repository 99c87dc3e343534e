"""Run by test_timeouts.py on two ranks: rank 1 is stopped before the gradients are reduced."""

import os
import signal

import torch
import torch.distributed as dist

import pipeline.engine
from configs.load import parse_config
from pipeline.engine import start_engine
from tests.pipeline.toy_ranks import Toy


def main() -> None:
    pipeline.engine.TIMEOUT_S = 3
    data = {"train": "-", "val": "-"}
    config = parse_config({"data": data, "train": {"baseline": {"batch": 8}}})
    torch.manual_seed(0)
    engine = start_engine(Toy(), config.train.baseline, config, 2)
    total, count = engine(torch.randn(4, 5), torch.randn(4, 3), torch.ones(4, dtype=torch.bool))
    dist.barrier()
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    engine.backward(total / count)
    engine.step()


if __name__ == "__main__":
    main()
