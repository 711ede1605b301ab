"""`python -m benchmarks.training`: a training step of each backend, with its FLOPs, beside other packages.

Minibatches have 100 synthetic examples of MNIST's shape: uniform inputs and random labels. All code trains in
float32 on the CPU with momentum, at p = inf, without dropout. The other packages, the peers, have no norm
constraints, so these are left out unless --max-norm asks for the recipe's. A sample is an epoch of few steps.
Times are wall times, as medians of interleaved rounds; each framework has a separate process, and the peers
run in torch's.

With F the FLOPs of a forward pass and F1 those of the first layer's product, a step needs

    plain 3F - F1    perturb 5F - F1    penalty 6F - F1,

for the matrix products and convolutions that no implementation can avoid. `GFLOP/s` counts these alone. `of
peak` divides by the rate of the fastest product of large square matrices in the same process. `x plain` is
the ratio to the time of the same code's plain step, and `x floor` is that ratio divided by the ratio of the
FLOPs. `products alone` are the products of perturb in a dense network, one after the other: a batch has only
100 rows, and the weights are not in the caches when they are needed, so these also stay below the peak. The
goals of torch are for its compiled steps. The peers come with `pip install --group benchmarks` (pip 25.1);
torchattacks comes with `pip install --no-deps torchattacks`, as none of its attacks imports torchvision,
which it requires.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from benchmarks.timing import threads
from benchmarks.workers import Row, medians

BATCH, IMAGE, CLASSES = 100, (1, 28, 28), 10
STEPS = {"sigmoid-mlp": 20, "maxout": 20, "conv-maxout": 2}
"""By model, the number of steps in a sample."""
FLOORS: dict[str, tuple[int, int]] = {
    "plain": (3, 1),
    "perturb": (5, 1),
    "penalty by gradient": (6, 1),
    "penalty by difference": (6, 1),
}
"""By objective, the FLOPs of a step: (a, b) stands for a F - b F1."""
PEERS = {"ART": "art", "torchattacks": "torchattacks", "foolbox": "foolbox", "cleverhans": "cleverhans"}
"""By peer, the name of its module."""
SIZES = (1024, 2048)
"""The sizes of the square matrices whose product gives the peak."""

OURS, COMPILED, ROUNDED = "lpfamily", "lpfamily --compile", "lpfamily --bf16"
ALONE = "products alone"

Key = tuple[str, Row]
Times = dict[Key, float]
"""Seconds per step, or per call of a matrix product, by framework, code and objective."""


def main() -> None:
    """Print the table of each model, and the goals that are met."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    frameworks, peers = _installed({name: name for name in ("numpy", "torch", "jax")}), _installed(PEERS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--backends", nargs="+", choices=frameworks, default=frameworks)
    parser.add_argument("--objectives", nargs="+", choices=FLOORS, default=list(FLOORS))
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="with torch")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument(
        "--threads", type=int, choices=range(1, cores + 1), default=cores, help="(default: one per core)"
    )
    parser.add_argument("--max-norm", action="store_true", help="keep the recipe's norm constraints")
    options = parser.parse_args()
    for name in (name for name in PEERS if name not in peers):
        print(f"{name} is not installed and left out; --help says how to install it")
    environments = _bind(options.threads)
    print(", ".join(f"{name} {version(name)}" for name in options.backends))
    times: dict[str, Times] = {}
    for model in options.models:
        arguments = {
            name: (name, model, options.objectives, options.peers, options.max_norm)
            for name in options.backends
        }
        times[model] = medians(_calls, arguments, environments, options.rounds)
        for key in times[model]:
            times[model][key] /= 1 if _is_product(key) else STEPS[model]
        _print_table(model, times[model])
    _print_goals(times)


def _installed(modules: dict[str, str]) -> list[str]:
    return [name for name, module in modules.items() if importlib.util.find_spec(module)]


def _bind(count: int) -> dict[str, dict[str, str]]:
    threads(count)
    os.environ["TQDM_DISABLE"] = "1"  # ART's trainer draws bars
    # Without binding, two OpenMP threads may share a core; with it, other libraries get only one core.
    environments = {"torch": {"OMP_PROC_BIND": "true"}} if count > 1 else {}
    print(f"{count} threads" if count > 1 else "1 thread", end=" per process, on as many cores")
    print("; OMP_PROC_BIND=true for torch" if environments else "")
    return environments


def _calls(
    framework: str, model: str, objectives: list[str], peers: list[str], max_norm: bool
) -> dict[Row, Callable[[], object]]:
    """Return calls for an epoch of each objective and peer, and for products; runs in their process."""
    import numpy as np

    from lpfamily.training import backends, recipes
    from lpfamily.training.choices import extract
    from lpfamily.training.draws import Draws
    from lpfamily.training.networks import initial_state
    from lpfamily.training.tasks import Machine, Objective, Task

    count = STEPS[model] * BATCH
    rng = np.random.default_rng(0)
    x = rng.random((count, math.prod(IMAGE)), np.float32)
    labels = rng.integers(CLASSES, size=count)
    recipe = _recipe(model, "perturb", max_norm)
    network = recipes.network_of(recipe, IMAGE, CLASSES)
    task = Task(network, extract(recipe, Objective), x, labels, BATCH)
    state, draws = initial_state(network, 0, "float32"), Draws(0, 0)
    rates = recipes.rates(recipe, 0, STEPS[model])
    backend, calls = backends.find(framework), _products(framework)
    if all(type(layer) in backend.layers for layer in network.layers):
        for name in objectives:
            objective = extract(_recipe(model, name, max_norm), Objective)
            for code in (OURS, COMPILED, ROUNDED) if framework == "torch" else (OURS,):
                machine = Machine(compile=code == COMPILED, bf16=code == ROUNDED)
                changed = dataclasses.replace(task, objective=objective, machine=machine)
                trainer = backend.trainer(changed, state)
                calls[code, name] = functools.partial(trainer.epoch, draws.order(count), rates, draws)
    if model != "conv-maxout":
        calls[ALONE, "perturb"] = _together(framework, _operands(network, rng), STEPS[model])
    if framework == "torch":
        from benchmarks.training_peers import loops

        calls |= loops(peers, task, state, recipe.sigma, recipe.lr, recipe.momentum)
    return calls


def _recipe(model: str, objective: str, max_norm: bool) -> Any:
    from lpfamily.training import recipes

    name, _, form = objective.partition(" by ")
    recipe = recipes.default(model, "mnist", name, math.inf, math.prod(IMAGE))
    changes: dict[str, Any] = {"dropout": (), "lr": 1e-3}  # a small rate, so that the work stays the same
    changes |= {"penalty_by": form} if form else {}
    return dataclasses.replace(recipe, **changes | ({} if max_norm else {"max_norm": (0.0,)}))


def _products(framework: str) -> dict[Row, Callable[[], object]]:
    import numpy as np

    calls: dict[Row, Callable[[], object]] = {}
    for size in SIZES:
        matrix = np.random.default_rng(0).standard_normal((size, size), np.float32)
        if framework == "torch":
            import torch

            calls["product", str(size)] = functools.partial(torch.mm, *[torch.from_numpy(matrix)] * 2)
        elif framework == "jax":
            import jax

            array, product = jax.numpy.asarray(matrix), jax.jit(jax.numpy.matmul)
            calls["product", str(size)] = lambda a=array, f=product: f(a, a).block_until_ready()
        else:
            calls["product", str(size)] = functools.partial(np.matmul, matrix, matrix)
    return calls


def _operands(network: Any, rng: Any) -> list[tuple[Any, Any]]:
    """Return the factors of perturb's products: first for the input gradient, then for the weights'."""
    from lpfamily.training.networks import parameter_shapes

    first: list[tuple[Any, Any]] = []
    second: list[tuple[Any, Any]] = []
    for index in range(len(network.layers)):
        inputs, outputs = parameter_shapes(network)[f"layers.{index}.weight"]
        weight, x, delta = (
            rng.standard_normal(shape, "float32")
            for shape in ((inputs, outputs), (BATCH, inputs), (BATCH, outputs))
        )
        first += [(x, weight), (delta, weight.T)]
        second += [(x, weight), (x.T, delta)] + ([(delta, weight.T)] if index else [])
    return first + second


def _together(framework: str, operands: list[tuple[Any, Any]], times: int) -> Callable[[], object]:
    """Return a call that multiplies all pairs this many times."""
    if framework == "torch":
        import torch

        pairs = [tuple(map(torch.from_numpy, pair)) for pair in operands]
        outs = [torch.mm(*pair) for pair in pairs]
        return lambda: [
            torch.mm(*p, out=out) for _ in range(times) for p, out in zip(pairs, outs, strict=True)
        ]
    if framework == "jax":
        import jax

        arrays = jax.device_put(operands)
        products = jax.jit(lambda pairs: [a @ b for a, b in pairs])
        return lambda: [jax.block_until_ready(products(arrays)) for _ in range(times)]
    import numpy as np

    outs = [a @ b for a, b in operands]
    return lambda: [
        np.matmul(*pair, out=out) for _ in range(times) for pair, out in zip(operands, outs, strict=True)
    ]


def _is_product(key: Key) -> bool:
    return key[1][0] == "product"


def _flops(model: str) -> dict[str, float]:
    """Return the FLOPs that a step of each objective needs."""
    from lpfamily.training.networks import parameter_shapes, shapes
    from lpfamily.training.recipes import network_of

    network = network_of(_recipe(model, "plain", False), IMAGE, CLASSES)
    weights, products = parameter_shapes(network), []
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        shape = weights[f"layers.{index}.weight"] + layer.positions(entering)
        products.append(2.0 * BATCH * math.prod(shape))
    forward, first = sum(products), products[0]
    return {name: a * forward - b * first for name, (a, b) in FLOORS.items()}


def _peak(times: Times, framework: str) -> float:
    products = {
        int(row[1]): t for (name, row), t in times.items() if name == framework and row[0] == "product"
    }
    return max(2 * size**3 / seconds for size, seconds in products.items())


def _print_table(model: str, times: Times) -> None:
    flops = _flops(model)
    ratios = ", ".join(f"{name} {flops[name] / flops['plain']:.2f}" for name in list(FLOORS)[1:])
    print(
        f"\n{model}, batch {BATCH}: a plain step needs {flops['plain'] / 1e9:.3f} GFLOP, {ratios} times that"
    )
    peaks = {framework: _peak(times, framework) / 1e9 for framework, _ in times}
    print("peaks in GFLOP/s:", ", ".join(f"{framework} {peak:.0f}" for framework, peak in peaks.items()))
    _print_line("", ["ms per step", "GFLOP/s", "of peak", "x plain", "x floor"])
    for key, seconds in times.items():
        if _is_product(key):
            continue
        framework, (code, objective) = key
        speed = flops[objective] / seconds
        cells = [f"{1e3 * seconds:.2f}", f"{speed / 1e9:.0f}", f"{speed / _peak(times, framework):.0%}"]
        if code == ALONE:
            _print_line(f"{framework}, {code}, {objective}", cells)
            continue
        is_ours = code in (OURS, COMPILED, ROUNDED)
        plain = times.get((framework, (code if is_ours else "eager loop", "plain")), 0.0)
        if plain and objective != "plain":
            ratio = seconds / plain
            cells += [f"{ratio:.2f}", f"{ratio * flops['plain'] / flops[objective]:.2f}"]
        _print_line(f"{framework}, {code}, {objective}", cells)


def _print_goals(times: dict[str, Times]) -> None:
    print("\ngoals, as ratios of times")
    _print_line("", [*times, "at most"])
    for what, than, bounds in _goals():
        ratios = {model: _ratio(model, times[model], what, than) for model in times if model in bounds}
        asked = {model: ratio for model, ratio in ratios.items() if not math.isnan(ratio)}
        if asked:
            missed = ", ".join(model for model, ratio in asked.items() if ratio > bounds[model])
            cells = [f"{asked[model]:.2f}" if model in asked else "" for model in times]
            limit = "/".join(dict.fromkeys(f"{bounds[model]:.2f}" for model in asked))
            _print_line(_comparison(what, than), [*cells, limit], f"missed: {missed}" if missed else "met")


def _goals() -> Iterator[tuple[Key, Key | None, dict[str, float]]]:
    """Yield goals: a key, the key that it is compared with, and the largest ratio of times by model.

    None in the place of the second key stands for the FLOPs of the first at the peak.
    """

    def ours(framework: str, objective: str) -> Key:
        return framework, (COMPILED if framework == "torch" else OURS, objective)

    yield ours("torch", "perturb"), None, {"sigmoid-mlp": 1 / 0.75, "maxout": 1 / 0.6}
    for peer, bound in ("ART", 1 / 2), ("torchattacks", 1 / 1.15):
        yield ours("torch", "perturb"), ("torch", (peer, "perturb")), dict.fromkeys(STEPS, bound)
    for objective in FLOORS:
        yield ours("jax", objective), ours("torch", objective), dict.fromkeys(STEPS, 1.15)
    for objective in "plain", "perturb":
        yield ours("numpy", objective), ("torch", ("eager loop", objective)), dict.fromkeys(STEPS, 1.0)
    for framework in "numpy", "torch", "jax":
        than = ours(framework, "perturb")
        yield ours(framework, "penalty by difference"), than, dict.fromkeys(STEPS, 1.3)


def _ratio(model: str, times: Times, what: Key, than: Key | None) -> float:
    if what not in times or (than and than not in times):
        return math.nan
    fastest = times[than] if than else _flops(model)[what[1][1]] / _peak(times, what[0])
    return times[what] / fastest


def _comparison(what: Key, than: Key | None) -> str:
    (framework, (_, objective)) = what
    if than is None:
        return f"{objective} / its FLOPs at the peak, {framework}"
    other = than[0] if than[1][0] in (OURS, COMPILED) else than[1][0]
    if objective == than[1][1]:
        return f"{framework} / {other}, {objective}"
    return f"{objective} / {than[1][1]}, {framework}"


def _print_line(name: str, cells: list[str], end: str = "") -> None:
    print(f"{name:48}" + "".join(f"{cell:>12}" for cell in cells) + f"  {end}", flush=True)


if __name__ == "__main__":
    main()
