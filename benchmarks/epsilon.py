"""`python -m benchmarks.epsilon`: the step compared with a copy, a power, bare formulas, and other packages.

It runs in a single thread, pinned where the system allows it, and prints CPU time, as medians of interleaved
rounds; every call allocates its result. For each shape it prints a table for each kind of gradient, in units
of np.copyto, and then the goals that are met. Last come the step over all weights of a network, as a tree,
and the context manager that moves a model's weights by that step. All of it takes about twenty minutes and
2 GB of memory. Libraries that are not installed are left out, and so is torch.compile without a C++ compiler;
`pip install --group benchmarks` (pip 25.1) installs the other packages, the peers.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.timing import medians, one_thread

SHAPES = ((128, 784), (512, 3072), (64, 150528))
EXPONENTS = (1.0, 1.01, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0, math.inf)
UNNAMED = (1.01, 2.5)
"""These stand for every p that the goals do not name."""
KINDS = {"normal": "normal", "zeros": "77 % zeros", "decades": "12 decades"}
MODULES = {"NumPy": "numpy", "torch": "torch", "jax.jit": "jax", "torch.compile": "torch", "peers": "numpy"}

RESNET_18 = (
    (64, 3, 7, 7), *[(64,)] * 2,
    *[(64, 64, 3, 3), *[(64,)] * 2] * 4,
    *[shape for n in (128, 256, 512) for shape in (
        (n, n // 2, 3, 3), *[(n,)] * 2, (n, n, 3, 3), *[(n,)] * 2, (n, n // 2, 1, 1), *[(n,)] * 2,
        *[(n, n, 3, 3), *[(n,)] * 2] * 2,
    )],
    (1000, 512), (1000,),
)  # fmt: skip
"""The shapes of its 62 weights, in the order of its layers: 11.7 million entries."""

COPY, POWER = "np.copyto", "np.power(np.abs)"

Row = tuple[str, str]
"""A kind of gradient, and the name of the call on it."""
Times = dict[float, dict[Row, float]]
"""Seconds by p and row; infinite for a peer that fails."""


def main() -> None:
    """Print the tables and the goals of each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="(default: 11)")
    parser.add_argument(
        "--shape",
        type=int,
        choices=range(len(SHAPES) + 1),
        help=f"one of {SHAPES}, by its index, or {len(SHAPES)} for the tree of weights",
    )
    parser.add_argument("--p", type=float, nargs="+", default=EXPONENTS)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--library", nargs="+", choices=MODULES, default=_installed())
    options = parser.parse_args()
    one_thread()
    for shape in SHAPES if options.shape is None else SHAPES[options.shape : options.shape + 1]:
        grads = {kind: _gradient(shape, kind) for kind in options.kind}
        times = {p: _measure(grads, p, options.library, options.rounds) for p in options.p}
        for kind in grads:
            _print_table(shape, kind, times)
        _print_goals(shape, times)
    if options.shape in (None, len(SHAPES)):
        _print_tree(
            options.p, [name for name in options.library if name in ("NumPy", "torch")], options.rounds
        )


def _print_tree(exponents: list[float], libraries: list[str], rounds: int) -> None:
    """Print the time of the step over a network's weights, relative to one tensor with as many entries."""
    import numpy as np

    from lpfamily import epsilon

    rng = np.random.default_rng(0)
    leaves = [rng.standard_normal(shape).astype(np.float32) for shape in RESNET_18]
    row = np.concatenate([leaf.ravel() for leaf in leaves])
    calls: dict[Any, Callable[[], object]] = {}
    for name in libraries:
        _, convert, _ = _library(name)
        for kind, given in ("tree", list(map(convert, leaves))), ("row", convert(row)):
            for p in exponents:
                calls[name, kind, p] = functools.partial(epsilon, given, p, 1.0, batch_ndim=0)
    times = medians(calls, rounds)
    bounds = [1.5 if p in (2, math.inf) else 2.5 for p in exponents]
    print(f"\n{len(leaves)} weights of a ResNet-18 as a tree; ratios to one tensor of {row.size} entries")
    _print_line("", [f"p = {p:g}" for p in exponents])
    _print_line("at most", [f"{bound:.2f}" for bound in bounds])
    for name in libraries:
        ratios = [times[name, "tree", p] / times[name, "row", p] for p in exponents]
        missed = [
            f"{p:g}" for p, ratio, bound in zip(exponents, ratios, bounds, strict=True) if ratio > bound
        ]
        verdict = f"missed at p = {', '.join(missed)}" if missed else "met"
        _print_line(f"lpfamily, {name}", [f"{ratio:.2f}" for ratio in ratios], verdict)
    if "torch" in libraries:
        _print_block(rounds)


def _print_block(rounds: int) -> None:
    """Print the time of an empty `with` block of moved weights, relative to one written by hand."""
    import torch

    from lpfamily_torch import perturbed_weights

    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ParameterList([torch.randn(shape, generator=generator) for shape in RESNET_18])
    weights = list(model.parameters())
    grads = [torch.randn(shape, generator=generator) for shape in RESNET_18]

    def block(p: float) -> None:
        with perturbed_weights(model, grads, p=p):
            pass

    @torch.no_grad()
    def by_hand() -> None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        steps = torch._foreach_mul(grads, 0.05 / (norm + 1e-12))
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, steps)
        torch._foreach_copy_(weights, before)

    calls = {p: functools.partial(block, p) for p in (2.0, math.inf)}
    times = medians({"by hand": by_hand, **calls}, rounds)
    ratios = [times[p] / times["by hand"] for p in calls]
    verdict = "met" if max(ratios) <= 1.25 else "missed"
    print("\nperturbed_weights of them; ratios to a block of p = 2 by torch._foreach, at most 1.25")
    _print_line("", [f"p = {p:g}" for p in calls])
    _print_line("lpfamily, torch", [f"{ratio:.2f}" for ratio in ratios], verdict)


def _installed() -> list[str]:
    names = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    if not shutil.which(os.environ.get("CXX", "g++")) and "torch.compile" in names:
        names.remove("torch.compile")
    return names


def _gradient(shape: tuple[int, int], kind: str) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    # with entries near 1 most powers in the bare formulas are normal numbers; subnormal ones are slow
    grad = rng.standard_normal(shape)
    if kind == "zeros":
        grad[rng.random(shape) < 0.77] = 0
    elif kind == "decades":
        grad *= 10 ** rng.uniform(-12, 0, shape)
    return grad.astype(np.float32)


def _measure(grads: dict[str, Any], p: float, libraries: list[str], rounds: int) -> dict[Row, float]:
    import numpy as np

    from benchmarks.peers import peers

    calls: dict[Row, Callable[[], object]] = {}
    for kind, grad in grads.items():
        calls[kind, COPY] = functools.partial(np.copyto, np.empty_like(grad), grad)
        calls[kind, POWER] = functools.partial(lambda grad: np.power(np.abs(grad), np.float32(0.7)), grad)
    for library in libraries:
        if library != "peers":
            calls |= _calls(library, grads, p)
    failed = {}
    with np.errstate(all="ignore"):
        if "peers" in libraries:
            for kind, grad in grads.items():
                for name, call in peers(grad, p).items():
                    try:
                        call()
                        calls[kind, name] = call
                    except AssertionError:
                        failed[kind, name] = math.inf
        # repeated, so that the smallest arrays are in the second-level cache
        shortest = 1e-2 if grad.shape == SHAPES[0] else 0.0
        return medians(calls, rounds, shortest) | failed


def _calls(library: str, grads: dict[str, Any], p: float) -> dict[Row, Callable[[], object]]:
    from lpfamily import epsilon

    xp, convert, compiled = _library(library)
    forms: dict[str, Callable[[Any], Any]] = {"lpfamily": lambda grad: epsilon(grad, p, 1.0)}
    if library in ("jax.jit", "torch.compile"):
        forms["no guards"] = lambda grad: _without_guards(xp, grad, p)
    if 1 < p < math.inf:
        forms["as written"] = lambda grad: _as_written(xp, grad, p)
    arrays = {kind: convert(grad) for kind, grad in grads.items()}
    return {
        (kind, f"{form}, {library}"): functools.partial(function, array)
        for form, function in zip(forms, map(compiled, forms.values()), strict=True)
        for kind, array in arrays.items()
    }


def _library(name: str) -> tuple[Any, Callable[[Any], Any], Callable[..., Any]]:
    """Return the namespace, a function that converts to its arrays, and one that compiles a function."""
    if name == "NumPy":
        import numpy as np

        return np, np.asarray, lambda function: function
    if name == "jax.jit":
        import jax

        return jax.numpy, jax.numpy.asarray, lambda f: functools.partial(_wait, jax.jit(f))
    import array_api_compat.torch
    import torch

    torch.set_num_threads(1)
    torch.compiler.reset()  # else it gives up after recompiling a function for a few values of p
    compiled = functools.partial(torch.compile, fullgraph=True)
    return array_api_compat.torch, torch.from_numpy, compiled if name == "torch.compile" else lambda f: f


def _wait(function: Callable[[Any], Any], array: Any) -> Any:
    return function(array).block_until_ready()


def _as_written(xp: Any, grad: Any, p: float) -> Any:
    norm = xp.sum(xp.abs(grad) ** (p / (p - 1)), axis=1, keepdims=True) ** ((p - 1) / p)
    return xp.sign(grad) * (xp.abs(grad) / norm) ** (1 / (p - 1))


def _without_guards(xp: Any, grad: Any, p: float) -> Any:
    """Take one power per entry as lpfamily does, but do not scale, and ignore ties and special entries."""
    if p == math.inf:
        return xp.sign(grad)
    size = xp.abs(grad)
    if p == 1:
        largest = xp.argmax(size, axis=1, keepdims=True)
        return xp.where(xp.arange(grad.shape[1]) == largest, xp.sign(grad), 0.0)
    e = 1 / (p - 1)
    special = {1: lambda: size, 0.5: lambda: xp.sqrt(size), 2: lambda: size * size}
    u = special.get(e, lambda: xp.exp(e * xp.log(size)))()
    return xp.sign(grad) * u * xp.sum(u * size, axis=1, keepdims=True) ** (-1 / p)


def _print_table(shape: tuple[int, int], kind: str, times: Times) -> None:
    copies = [column[kind, COPY] / math.prod(shape) for column in times.values()]
    print(f"\n{shape} float32, {KINDS[kind]}; ratios to np.copyto, which takes ", end="")
    print(f"{1e9 * min(copies):.2f} to {1e9 * max(copies):.2f} ns per entry")
    _print_line("", [f"p = {p:g}" for p in times])
    fullest_first = sorted(times.values(), key=len, reverse=True)
    for row in dict.fromkeys(row for column in fullest_first for row in column if row[0] == kind):
        ratios = [column.get(row, math.nan) / column[kind, COPY] for column in times.values()]
        _print_line(
            row[1], ["" if math.isnan(r) else "fails" if r == math.inf else f"{r:.1f}" for r in ratios]
        )


def _print_goals(shape: tuple[int, int], times: Times) -> None:
    print(f"\n{shape}: goals, as ratios of times")
    _print_line("", [*(f"p = {p:g}" for p in times), "at most"])
    for row, than, exponents, bound in _goals(shape):
        asked = [p for p in times if p in exponents and row in times[p]]
        fastest = {p: min((times[p][other] for other in than if other in times[p]), default=0) for p in asked}
        ratios = {p: times[p][row] / fastest[p] for p in asked if fastest[p]}
        missed = ", ".join(f"{p:g}" for p, ratio in ratios.items() if ratio > bound)
        verdict = f"missed at p = {missed}" if missed else "met" if ratios else "not measured"
        if asked:
            cells = [f"{ratios[p]:.2f}" if p in ratios else "" for p in times]
            _print_line(_comparison(row, than), [*cells, f"{bound:.2f}"], verdict)


def _comparison(row: Row, than: list[Row]) -> str:
    kind, name = row
    if kind != than[0][0]:
        return f"{name}, {KINDS[kind]} / {than[0][0]}"
    return f"{name} / {'fastest peer' if len(than) > 1 else than[0][1].partition(',')[0]}"


def _goals(shape: tuple[int, int]) -> Iterator[tuple[Row, list[Row], tuple[float, ...], float]]:
    """Yield goals: a row, other rows, the p, and the largest ratio of its time to the fastest other."""
    from benchmarks.peers import ART_FORMULA, TORCH_PEERS

    peers = [("normal", name) for name in TORCH_PEERS]
    for row in ("normal", "lpfamily, NumPy"), ("normal", "lpfamily, torch"):
        if shape == SHAPES[0]:  # these arrays fit into the second-level cache
            yield row, peers, (2.0,), 1.5
            yield row, peers, (math.inf,), 3.5
            continue
        yield row, [("normal", COPY)], (2.0,), 2.5
        yield row, [("normal", COPY)], (math.inf,), 2.7
        yield row, [("normal", POWER)], (1.1, 1.5, 3.0, 4.0, 10.0), 1.8
        yield row, [("normal", POWER)], (1.0, *UNNAMED), 2.6
        for kind in "zeros", "decades":
            yield (kind, row[1]), [row], EXPONENTS, 1.5
        yield row, [("normal", ART_FORMULA)], (1.1, 1.5, 2.0, 3.0, 4.0, 10.0), 1 / 2
        yield row, [("normal", ART_FORMULA)], UNNAMED, 1 / 1.5
        yield row, [("normal", "ART")], EXPONENTS, 1 / 3
        yield row, peers, (1.0, 2.0), 1.0
        yield row, peers, (math.inf,), 1.3
    if shape != SHAPES[0]:
        for library in "jax.jit", "torch.compile":
            row, bare = (("normal", f"{form}, {library}") for form in ("lpfamily", "no guards"))
            yield row, [bare], EXPONENTS, 2.5


def _print_line(name: str, cells: list[str], end: str = "") -> None:
    print(f"{name:40}" + "".join(f"{cell:>9}" for cell in cells) + f"  {end}", flush=True)


if __name__ == "__main__":
    main()
