"""`python -m benchmarks.scaling`: a step of 1, 2, ... processes (torch) or devices (JAX) of this machine.

Each has one core and takes a share of every batch. They train perturb at p = inf, without dropout, on
synthetic inputs. Times are medians over epochs of alternating launches. A step takes

    t(N) = work / N + exchange,    exchange = t(N) - t(1) / N,

and exchanges the weight gradients once: in a ring, 2 (N - 1) / N times their bytes leave each process. The
last lines extrapolate to more processes from the bytes per second of the largest N, and give the rate that
would keep nine tenths of the speed. Work that each process does for all examples, such as updating the
weights, counts as exchange, too.

`--loop ddp` measures torch's DistributedDataParallel instead, in a loop as a user writes it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

STEPS, EPOCHS, ROUNDS = 10, 7, 3
INPUTS, CLASSES = (1, 28, 28), 10


def main() -> None:
    """Print the table, or take part as one of the measured processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--model", choices=("sigmoid-mlp", "maxout", "conv-maxout"), default="maxout")
    parser.add_argument("--batch-size", type=int, default=400)
    parser.add_argument("--most", type=int, default=cores, help="processes (default: one per core)")
    parser.add_argument("--loop", choices=("lpfamily", "ddp"), default="lpfamily")
    parser.add_argument("--cores", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        _member(options)
        return
    counts = [2**power for power in range(int(math.log2(options.most)) + 1)]
    samples: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            measured = _launched(options, count)
            samples[count] += measured["seconds"]
    _print(options, {count: statistics.median(s) for count, s in samples.items()}, measured["parameters"])


def _launched(options: argparse.Namespace, count: int) -> dict[str, object]:
    """Return the output of the processes, or of the process with several devices."""
    member = ["benchmarks.scaling", "--member", "--backend", options.backend, "--model", options.model]
    command = ["-m", *member, "--batch-size", str(options.batch_size), "--loop", options.loop]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if options.backend == "torch":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *command]
    else:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        command += ["--cores", str(count)]  # the devices of one process share its threads, one per core
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{count} processes ended with code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _member(options: argparse.Namespace) -> None:
    """Train as one of the processes; the first prints how long the epochs took."""
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])

    import dataclasses

    import numpy as np

    from lpfamily.training import backends, recipes
    from lpfamily.training.choices import extract
    from lpfamily.training.networks import initial_state, parameter_shapes
    from lpfamily.training.tasks import Objective, Task

    backend = backends.find(options.backend)
    team = backend.join("cpu")
    recipe = recipes.default(options.model, "mnist", "perturb", math.inf, math.prod(INPUTS))
    recipe = dataclasses.replace(recipe, dropout=(), lr=1e-3, max_norm=(0.0,))
    network, rng = recipes.network_of(recipe, INPUTS, CLASSES), np.random.default_rng(0)
    count = STEPS * options.batch_size
    x, labels = rng.random((count, network.inputs), np.float32), rng.integers(CLASSES, size=count)
    task = Task(network, extract(recipe, Objective), x, labels, options.batch_size, team=team)
    state = initial_state(network, 0, "float32")
    seconds: list[float] = []

    def timed(epoch: Callable[[int], object]) -> None:
        for number in range(EPOCHS + 2):  # two to compile and warm up
            begin = time.perf_counter()
            epoch(number)
            seconds.append((time.perf_counter() - begin) / STEPS)

    (_ddp if options.loop == "ddp" else _ours)(backend, team, task, state, recipe, timed)
    team.leave()
    if team.rank == 0:
        parameters = sum(map(math.prod, parameter_shapes(network).values()))
        print(json.dumps({"seconds": seconds[2:], "parameters": parameters}))


def _ours(backend: Any, team: Any, task: Any, state: Any, recipe: Any, timed: Any) -> None:
    from lpfamily.training import recipes
    from lpfamily.training.backends.leading import follow, leading
    from lpfamily.training.draws import Draws

    if team.rank:
        follow(backend, team)
        return
    with leading(backend, team) as leader:
        trainer = leader.trainer(task, state)
        timed(
            lambda number: trainer.epoch(
                Draws(0, number).order(len(task.x)), recipes.rates(recipe, number, STEPS), Draws(0, number)
            )
        )


def _ddp(backend: Any, team: Any, task: Any, state: Any, recipe: Any, timed: Any) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.training_peers import plain_model

    model = plain_model(task.network, state)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True) if team.size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum)
    inputs, classes = torch.from_numpy(task.x), torch.from_numpy(task.labels)

    def epoch(number: int) -> None:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(number))
        for batch in order.split(task.batch_size):
            share = batch.chunk(team.size)[team.rank]
            at, labels = inputs[share].requires_grad_(), classes[share]
            (gradient,) = torch.autograd.grad(cross_entropy(model(at), labels), at)
            optimizer.zero_grad()
            loss = cross_entropy(wrapped(at.detach() + recipe.sigma * gradient.sign()), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    timed(epoch)


def _print(options: argparse.Namespace, times: dict[int, float], parameters: int) -> None:
    size = 4 * parameters
    what = "processes" if options.backend == "torch" else "devices"
    code = "DistributedDataParallel" if options.loop == "ddp" else options.backend
    print(f"{code}, {options.model}, batches of {options.batch_size}; {what} of one core")
    print(f"{what:>10}{'ms per step':>12}{'speed-up':>10}{'exchange ms':>13}{'MB sent':>9}{'GB/s':>7}")
    rate = math.inf
    for count, seconds in times.items():
        exchange, sent = seconds - times[1] / count, _sent(size, count)
        line = f"{count:>10}{1e3 * seconds:>12.2f}{times[1] / seconds:>10.2f}"
        if count > 1:
            rate = sent / exchange if exchange > 0 else math.inf
            line += f"{1e3 * exchange:>13.2f}{sent / 1e6:>9.2f}{rate / 1e9:>7.2f}"
        print(line)
    if len(times) == 1 or rate == math.inf:
        return
    for count in (2 * max(times), 4 * max(times), 8 * max(times)):
        alone, sent = times[1] / count, _sent(size, count)
        needed = sent / (alone / 9)
        print(
            f"{count:>10} at that rate: {1e3 * (alone + sent / rate):.2f} ms, "
            f"{times[1] / (alone + sent / rate):.2f} times as fast; nine tenths of {count} need "
            f"{needed / 1e9:.1f} GB/s"
        )


def _sent(size: int, count: int) -> float:
    """Return the bytes that leave each of `count` processes in a ring all-reduce of `size` bytes."""
    return 2 * (count - 1) / count * size


if __name__ == "__main__":
    main()
