"""`python -m benchmarks.scaling`: one step by 1, 2, ... processes (torch) or devices (JAX) of this machine.

Each has its part of every batch and one thread, so that N of them need N cores; perturb at p = inf, without
dropout, on synthetic inputs. Medians of epochs, of launches in turn. A step takes

    t(N) = work / N + exchange,    exchange = what t(N) exceeds t(1) / N by,

and exchanges the weight gradients once: in a ring, 2 (N - 1) / N times their bytes leave each process. From
the bytes a second that the largest N attains, the last lines say how it would go on with more of them, and
what rate would keep nine tenths of the speed.
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

STEPS, EPOCHS, ROUNDS = 10, 7, 3
INPUTS, CLASSES = (1, 28, 28), 10


def main() -> None:
    """Print the table, or as one of the processes measured take part."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--model", choices=("sigmoid-mlp", "maxout", "conv-maxout"), default="maxout")
    parser.add_argument("--batch-size", type=int, default=400)
    parser.add_argument("--most", type=int, default=cores, help="processes (default: one a core)")
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        _member(options.backend, options.model, options.batch_size)
        return
    counts = [2**power for power in range(int(math.log2(options.most)) + 1)]
    samples: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            measured = _launched(options, count)
            samples[count] += measured["seconds"]
    _print(options, {count: statistics.median(s) for count, s in samples.items()}, measured["parameters"])


def _launched(options: argparse.Namespace, count: int) -> dict[str, object]:
    """Return what the processes, or the process of several devices, say."""
    own = ["benchmarks.scaling", "--member", "--backend", options.backend, "--model", options.model]
    command = ["-m", *own, "--batch-size", str(options.batch_size)]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if options.backend == "torch":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *command]
    else:
        environment["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
        )
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{count} processes ended with code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _member(name: str, model: str, batch: int) -> None:
    """Train as one of the processes; the first says how long the epochs took."""
    import dataclasses

    import numpy as np

    from lpfamily.training import backends, recipes
    from lpfamily.training.draws import Draws
    from lpfamily.training.leading import follow, leading
    from lpfamily.training.networks import initial_state, parameter_shapes

    backend = backends.find(name)
    team = backend.join("cpu")
    if team.rank:
        follow(backend, team)
        team.leave()
        return
    recipe = recipes.default(model, "mnist", "perturb", math.inf, math.prod(INPUTS))
    recipe = dataclasses.replace(recipe, dropout=(), lr=1e-3)
    network, count, rng = recipes.network_of(recipe, INPUTS, CLASSES), STEPS * batch, np.random.default_rng(0)
    x, labels = rng.random((count, network.inputs), np.float32), rng.integers(CLASSES, size=count)
    task = backends.Task(network, recipes.objective_of(recipe), x, labels, batch, team=team)
    with leading(backend, team) as leader:
        trainer = leader.trainer(task, initial_state(network, 0, "float32"))
        seconds = []
        for epoch in range(EPOCHS + 2):  # two to compile and warm up
            draws, rates = Draws(0, epoch), recipes.rates(recipe, epoch, STEPS)
            begin = time.perf_counter()
            trainer.epoch(draws.order(count), rates, draws)
            seconds.append((time.perf_counter() - begin) / STEPS)
    team.leave()
    parameters = sum(map(math.prod, parameter_shapes(network).values()))
    print(json.dumps({"seconds": seconds[2:], "parameters": parameters}))


def _print(options: argparse.Namespace, times: dict[int, float], parameters: int) -> None:
    size = 4 * parameters
    what = "processes" if options.backend == "torch" else "devices"
    print(f"{options.backend}, {options.model}, batches of {options.batch_size}; {what} of one thread")
    print(f"{what:>10}{'ms a step':>12}{'speed-up':>10}{'exchange ms':>13}{'MB sent':>9}{'GB/s':>7}")
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
    """Return the bytes that leave each of `count` in a ring that adds `size` bytes up."""
    return 2 * (count - 1) / count * size


if __name__ == "__main__":
    main()
