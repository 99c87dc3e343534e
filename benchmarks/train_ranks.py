"""One rank of `benchmarks.train`: trains as a launcher's worker does, and notes when each step began."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.train import BLOCK
from configs.load import load_config
from pipeline.notice import Notice, Preempted
from pipeline.train import TrainJob, train

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


class Ticks:
    """What training asks once a step: notes the clocks, and has a checkpoint written where one is due."""

    def __init__(self, blocks: list[bool], steps: int):
        self.seen: list[dict[str, float]] = []
        self._blocks, self._steps = blocks, steps

    def __call__(self) -> Notice:
        place = len(self.seen)
        self.seen.append({"wall": time.monotonic(), "cpu": time.process_time()})
        block = place // BLOCK
        # At the start of its block, so that all of the writing falls into it.
        due = place % BLOCK == 0 and block < len(self._blocks) and self._blocks[block]
        stop = bool(self._steps) and place == self._steps
        return Notice(save=due or stop, stop=stop)


def main(order_file: Path) -> None:
    """Train and leave the ticks beside the order."""
    order, rank = json.loads(order_file.read_text()), os.environ["RANK"]
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    never = 10**8
    settings = [
        f"checkpoint_every={never}",
        f"train.baseline.iters={order['iters']}",
        f"train.log_every={never}",
    ]
    config = load_config(DEMO, settings)
    ticks = Ticks(order["blocks"], order["steps"])
    job = TrainJob(config, "baseline", order["run_dir"], order["shards"], None, order["attempt"])
    try:
        train(job, ticks)
    except Preempted:
        pass
    finally:
        order_file.with_name(f"ticks-{rank}.json").write_text(json.dumps(ticks.seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
