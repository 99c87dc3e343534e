"""`make faults`: the promises of docs/reliability.md, tried; exit 1 if one was broken.

python -m tests.faults [kills spread elastic preempt drain disk torn tracker] [--points 50] [--seed 0]
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import ray_folder
from tests.faults.disk import fill_disk
from tests.faults.elastic import change_workers
from tests.faults.matrix import kill_matrix
from tests.faults.outages import lose_tracker
from tests.faults.preempt import ask_to_stop, drain_node
from tests.faults.spread import lose_nodes
from tests.faults.torn import tear
from tests.faults.watch import nothing_left

Say = Callable[[str], None]


def main() -> int:
    """Return 0 when every promise was kept."""
    arguments = parse()
    folder = (arguments.keep or Path(tempfile.mkdtemp(prefix="mrrcnn-faults-"))).resolve()
    trials = {
        "kills": lambda place: kill_matrix(place, say, arguments),
        "spread": lambda place: lose_nodes(place, say),
        "elastic": lambda place: change_workers(place, say, [[2, 1, 2], [1, 4, 2]]),
        "preempt": lambda place: ask_to_stop(place, say, arguments.launchers),
        "drain": lambda place: drain_node(place, say),
        "disk": lambda place: fill_disk(place, say),
        "torn": lambda place: tear(place, say),
        "tracker": lambda place: lose_tracker(place, say),
    }
    faults: list[str] = []
    try:
        for name in arguments.trials or trials:
            say(f"# {name}")
            with nothing_left(folder / name):
                faults += trials[name](folder / name)
    finally:
        shutil.rmtree(ray_folder(), ignore_errors=True)
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    for fault in faults:
        say(f"BROKEN {fault}")
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("trials", nargs="*", help="some of those above; all if none")
    parser.add_argument("--points", type=int, default=50, help="kill points that must have struck")
    parser.add_argument("--seed", type=int, default=0, help="of the kill points")
    parser.add_argument("--first", type=int, default=1, help="the run of the seed to begin with")
    parser.add_argument("--launchers", nargs="+", default=["ray", "torchrun"], help="taken in turn")
    parser.add_argument("--keep", type=Path, help="work there and leave everything")
    return parser.parse_args()


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
