"""Interleaved timing: A B C, B C A, ..., and the median of each, because a machine's speed drifts."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def one_thread() -> None:
    """Bind this process to one core and its libraries to one thread; call it before they are imported."""
    threads(1)


def threads(count: int) -> None:
    """Bind this process, and those it starts, to this many cores, and their libraries to as many threads."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ["NPROC"] = str(count)  # for JAX
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def medians(
    calls: Mapping[Name, Callable[[], object]],
    rounds: int = 11,
    shortest: float = 0.0,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, float]:
    """Return the median seconds of each call, over `rounds` rounds after two to compile and warm up.

    Each round has a different order, because a call pays for the state in which the one before it has left
    caches and memory. A call is repeated until a sample takes `shortest` seconds by the clock, which is the
    CPU time of this process by default.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for round_ in range(-2, rounds):
        shuffle(order)
        for name in order:
            call = calls[name]
            begin = clock()
            for _ in range(repeats[name]):
                call()
            seconds = (clock() - begin) / repeats[name]
            repeats[name] = max(1, math.ceil(shortest / seconds))
            if round_ >= 0:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def device_clock(device: str) -> Callable[[], float]:
    """Return a clock for a torch device: wall time after synchronising, on a CPU the process's CPU time."""
    if not device.startswith("cuda"):
        return time.process_time
    import torch

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock
