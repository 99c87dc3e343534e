"""What evaluation during training costs it: step wall time and weights with and without, alternating.

    python -m benchmarks.watching [--iters 60] [--eval-every 20] [--repeats 3] [--out FILE.json]

One rank trains the demo's baseline on one core; in every other run a process evaluates on another core.
Time runs from the first logged step to the last; said apart is how long the other process evaluated meanwhile, and
how long training then waited for the evaluation of its last step. The weights of all runs must be the same bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST = 1.05


def main() -> int:
    """Print medians and their ratio; write JSON if asked to."""
    arguments = parse()
    if arguments.train:
        return train_once(json.loads(arguments.train))
    if len(os.sched_getaffinity(0)) < 2:
        print("benchmarks.watching: needs two cores, one to train and one to evaluate", file=sys.stderr)
        return 2
    from benchmarks.parts import Bar
    from benchmarks.timing import machine
    from shards.storage.files import sha256_of
    from shards.synthetic.synth import write_synthetic
    from shards.write import write_shards

    seconds: dict[str, list[float]] = {"alone": [], "evaluated": []}
    beside: dict[str, list[float]] = {"evaluating": [], "waiting": []}
    hashes = set()
    with tempfile.TemporaryDirectory(prefix="mrrcnn-bench-") as scratch:
        data = Path(scratch, "data")
        write_synthetic(data, images=200, seed=0)
        for split in ("train", "val"):
            annotations = data / "annotations" / f"instances_{split}2017.json"
            write_shards(data / f"{split}2017", annotations, Path(scratch, split))
        for turn in range(arguments.repeats):
            for name, every in (("alone", 0), ("evaluated", arguments.eval_every)):
                run = Path(scratch, f"{name}-{turn}")
                job = {"scratch": scratch, "run": str(run), "iters": arguments.iters, "eval_every": every}
                command = [sys.executable, "-m", "benchmarks.watching", "--train", json.dumps(job)]
                subprocess.run(command, check=True)
                took = json.loads((run / "seconds.json").read_text())
                seconds[name].append(took["training"])
                for key in beside if every else ():
                    beside[key].append(took[key])
                hashes.add(sha256_of(run / "baseline" / "weights.safetensors"))
    if len(hashes) > 1:
        raise SystemExit("benchmarks.watching: the weights of the runs differ")
    if not min(beside["evaluating"]):
        raise SystemExit(
            "benchmarks.watching: nothing was evaluated while training went on; lower --eval-every"
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bar = Bar("wall with evaluation over without", medians["evaluated"] / medians["alone"], "x", "<=", MOST)
    print(
        f"{medians}  {bar.value:.3f} {bar.verdict}  (weights the same bytes in {2 * arguments.repeats} runs)"
    )
    print(f"seconds of evaluating meanwhile, and of waiting at the end: {beside}")
    if arguments.out:
        found = {
            "machine": machine("cpu"),
            "seconds": seconds | beside,
            "ratio": bar.value,
            "verdict": bar.verdict,
        }
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="benchmarks.watching", description=__doc__.split("\n")[0])
    parser.add_argument("--iters", type=int, default=60, help="steps a run")
    parser.add_argument("--eval-every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    return parser.parse_args()


def train_once(order: dict) -> int:
    """Train in this process on one core, and write the seconds from the first logged step to the last."""
    trains, evaluates = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {trains})
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": "0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    import torch
    import torch.distributed as dist

    from configs.load import load_config
    from jobs.demo import CONFIG
    from pipeline import evaluations
    from pipeline.lease import acquire
    from pipeline.runlog import RunLog
    from pipeline.train import TrainJob, train

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{order['run']}.store", rank=0, world_size=1)
    settings = [f"train.baseline.{key}={order[key]}" for key in ("iters", "eval_every")]
    scratch, logged = Path(order["scratch"]), []
    config = load_config(CONFIG, [*settings, "train.log_every=1", "checkpoint_every=1000000"])
    metrics, begin = RunLog.metrics, evaluations.Evaluations._start

    def noting(self, *rest):
        logged.append(time.monotonic())
        return metrics(self, *rest)

    def on_another_core(self):
        begin(self)
        os.sched_setaffinity(self._process.pid, {evaluates})

    RunLog.metrics, evaluations.Evaluations._start = noting, on_another_core
    with acquire(order["run"]) as lease:
        places = order["run"], str(scratch / "train"), None
        train(TrainJob(config, "baseline", *places, lease.attempt, str(scratch / "val")))
    ended, results = time.monotonic(), evaluations.results_of(Path(order["run"], "baseline"))
    took = {"training": logged[-1] - logged[0], "waiting": ended - logged[-1]}
    took["evaluating"] = sum(found["seconds"] for found in results if found["step"] < order["iters"])
    Path(order["run"], "seconds.json").write_text(json.dumps(took))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
