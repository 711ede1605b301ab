"""Interleaved calls of several frameworks, each in a separate process that is idle while another measures.

In one process their threads would disturb each other: the threads of one framework still spin, or are bound
to cores, when the next one starts.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Row = tuple[str, str]
"""The code that is measured, and its objective or task."""
Build = Callable[..., Mapping[Row, Callable[[], object]]]

PAUSE = 0.02
"""The seconds to wait before a sample, as threads spin for some milliseconds after their last work."""


def medians(
    build: Build,
    arguments: Mapping[str, tuple[Any, ...]],
    environments: Mapping[str, dict[str, str]],
    rounds: int,
) -> dict[tuple[str, Row], float]:
    """Return the median wall seconds of the calls that `build(*arguments[name])` returns in process `name`.

    Two rounds to compile and warm up come first. Each round has a different order over all processes.
    `environments[name]` has variables that the libraries of that process read when they are imported.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, given in arguments.items():
        pipes[name], end = context.Pipe()
        before = dict(os.environ)
        os.environ.update(environments.get(name, {}))
        processes.append(context.Process(target=_serve, args=(end, build, given), daemon=True))
        processes[-1].start()
        os.environ.clear()
        os.environ.update(before)
        end.close()  # so that the pipe ends when the process does
    order = [(name, row) for name, pipe in pipes.items() for row in _received(name, pipe)]
    times: dict[tuple[str, Row], list[float]] = {key: [] for key in order}
    shuffle = random.Random(0).shuffle
    for round_ in range(-2, rounds):
        shuffle(order)
        for name, row in order:
            time.sleep(PAUSE)
            pipes[name].send(row)
            seconds = _received(name, pipes[name])
            if round_ >= 0:
                times[name, row].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return {key: statistics.median(samples) for key, samples in times.items()}


def _serve(pipe: Connection, build: Build, arguments: tuple[Any, ...]) -> None:
    calls = build(*arguments)
    pipe.send(list(calls))
    while (row := pipe.recv()) is not None:
        begin = time.perf_counter()
        calls[row]()
        pipe.send(time.perf_counter() - begin)


def _received(name: str, pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(
            f"the process of {name} ended: its error is above; fix it, or run without {name}"
        ) from None
