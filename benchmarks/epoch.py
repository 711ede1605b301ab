"""`python -m benchmarks.epoch`: an epoch of 60,000 examples by each backend, on one device.

It trains the recipes of MNIST, unchanged, in float32, with dropout, norm constraints and p = inf, on
synthetic inputs of its shape. Times are wall times from order and rates to metrics, and so include all random
numbers that the host draws; `drawing` is the time of one core for the random numbers of an epoch alone. They
are medians of interleaved rounds, after two that compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import medians
from lpfamily.training import backends, recipes
from lpfamily.training.choices import extract
from lpfamily.training.draws import Draws
from lpfamily.training.networks import initial_state
from lpfamily.training.tasks import Machine, Objective, Task

GOALS = {"sigmoid-mlp": 60.0, "maxout": 60.0, "conv-maxout": 300.0}
"""By model, the goal for an epoch on an H200, in milliseconds."""
DEVICES = {"torch": "cuda", "jax": "gpu"}


def main() -> None:
    """Print the milliseconds of an epoch."""
    installed = [name for name in DEVICES if importlib.util.find_spec(name)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=GOALS, default=list(GOALS))
    objectives = ("plain", "perturb", "penalty")
    parser.add_argument("--objectives", nargs="+", choices=objectives, default=["perturb"])
    parser.add_argument("--backends", nargs="+", choices=installed, default=installed)
    parser.add_argument("--device", help="(default: cuda for torch, gpu for JAX)")
    parser.add_argument("--tf32", action="store_true", help="as in lpfamily.train")
    parser.add_argument("--examples", type=int, default=60_000, help="(default: 60000)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    options = parser.parse_args()
    columns = ["drawing", *_columns(options.backends)]
    header = "".join(f"{name:>18}" for name in [*columns, "goal, H200"])
    print(f"{'ms per epoch':14}{'objective':10}{header}", flush=True)
    for model in options.models:
        for objective in options.objectives:
            calls = _calls(model, objective, options)
            times = medians(calls, options.rounds, clock=time.perf_counter)
            cells = "".join(f"{ms:18.1f}" for ms in [*(1e3 * times[name] for name in columns), GOALS[model]])
            print(f"{model:14}{objective:10}{cells}", flush=True)


def _columns(names: list[str]) -> list[str]:
    return [column for name in names for column in ([name, "torch --compile"] if name == "torch" else [name])]


def _calls(model: str, objective: str, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    x = rng.random((options.examples, 784), np.float32)
    labels = rng.integers(10, size=len(x))
    recipe = recipes.default(model, "mnist", objective, math.inf, 784)  # type: ignore[arg-type]
    network = recipes.network_of(recipe, (1, 28, 28), 10)
    task = Task(network, extract(recipe, Objective), x, labels, recipe.batch_size)
    state, draws = initial_state(network, 0, "float32"), Draws(0, 0)
    steps = -(-len(x) // recipe.batch_size)
    rates, order = recipes.rates(recipe, 0, steps), draws.order(len(x))

    def draw() -> None:
        for step in range(steps):
            draws.step(step, task, recipe.batch_size)

    calls: dict[str, Callable[[], object]] = {"drawing": draw}
    for column in _columns(options.backends):
        name = column.partition(" ")[0]
        device = options.device or DEVICES[name]
        on_device = dataclasses.replace(task, machine=Machine(device, options.tf32, column != name))
        trainer: Any = backends.find(name).trainer(on_device, state)
        calls[column] = functools.partial(trainer.epoch, order, rates, draws)
    return calls


if __name__ == "__main__":
    main()
