"""Contenders timed in turn in one process: what a shared and noisy machine can say is a ratio, not a time."""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torchvision

from ops import backend_info

Contenders = dict[str, Callable[[int], object]]
_HEAD_START_CYCLES = 5_000_000  # some three milliseconds


def alternate(
    contenders: Contenders, repeats: int, device: str, begin: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of every contender, wall and (on a CPU) processor time.

    A contender is called with the number of its turn, so that it can take other inputs each time. Once
    before anything is timed; then all of them in turn, `repeats` times. `begin` prepares each turn, untimed.
    Processor time is that of all threads and of the processes that the contender has waited for.
    """
    clock = _cuda_clock if device == "cuda" else _cpu_clock
    for run in contenders.values():
        begin()
        run(0)
    times = {name: [] for name in contenders}
    for turn in range(1, repeats + 1):
        for name, run in contenders.items():
            begin()
            times[name].append(clock(run, turn))
    kinds = times[next(iter(times))][0]
    return {name: {kind: _median(samples, kind) for kind in kinds} for name, samples in times.items()}


def _median(samples, kind):
    return statistics.median(sample[kind] for sample in samples)


def _cpu_clock(run, turn):
    wall, cpu = time.perf_counter(), _processor_s()
    run(turn)
    return {"wall": (time.perf_counter() - wall) * 1e3, "cpu": (_processor_s() - cpu) * 1e3}


def _processor_s():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _cuda_clock(run, turn):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The device is busy while the host gets ahead, so that it is timed and not the launching; whoever waits
    # for the device within the call pays for it still.
    torch.cuda._sleep(_HEAD_START_CYCLES)
    start.record()
    run(turn)
    end.record()
    torch.cuda.synchronize()
    return {"wall": start.elapsed_time(end)}


def machine(device: str) -> dict[str, object]:
    """Return what a reader needs to know of the machine and the versions."""
    info = backend_info()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "backend": info["backend"],
    }


def _processor():
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
