"""Interleaved timing: A B C, A B C, ..., and the median of each, since a machine's speed drifts."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping


def one_thread() -> None:
    """Bind this process to one core and its libraries to one thread; call it before they are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def medians(calls: Mapping[str, Callable[[], object]], rounds: int = 11) -> dict[str, float]:
    """Return the median CPU seconds of each call, over `rounds` rounds after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if round_:
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in times.items()}
