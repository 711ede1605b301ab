"""`python -m benchmarks.ball`: the step in a box and the projection, compared with a step that is clipped.

It runs in a single thread, pinned where the system allows it, and prints CPU time, as medians of interleaved
rounds; every call allocates its result. `epsilon` in a box is compared with
np.clip(x + epsilon(grad, p, sigma), 0, 1), and `project` with np.clip(x + c * v, 0, 1) where c = min(1, sigma
/ ||v||_2). Three quarters of x are at a bound and the others random, or x takes four values (clustered). The
goals that are met follow the tables. `--threads 2` compares the wall time of two threads with that of one.
All of it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import medians, threads

SHAPES = ((512, 3072), (128, 784), (8, 150528))
EXPONENTS = (1.0, 1.3, 1.5, 2.0, 2.7, 3.0, 4.0, 6.0, 10.0, 20.0, math.inf)
KINDS = {
    "random": "random walls",
    "clustered": "clustered walls",
    "zeros": "77 % zeros",
    "decades": "12 decades",
}
FUNCTIONS = ("epsilon in a box", "project", "project in a box")
LIBRARIES = ("NumPy", "torch", "float16", "bfloat16", "jax", "jax.jit", "jax.vmap", "torch.compile")

Row = tuple[str, str, str]
"""A kind of data, a function, and the library that computes it, or CLIPPED."""
Times = dict[float, dict[Row, float]]
CLIPPED = "clipped"


def main() -> None:
    """Print the tables and the goals of each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument(
        "--shape", type=int, choices=range(len(SHAPES)), help=f"one of {SHAPES}, by its index"
    )
    parser.add_argument("--p", type=float, nargs="+", default=EXPONENTS)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--function", nargs="+", choices=FUNCTIONS, default=FUNCTIONS)
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=["NumPy"])
    parser.add_argument("--threads", type=int, default=1, help="with more than 1, wall time (default: 1)")
    options = parser.parse_args()
    threads(options.threads)
    for shape in SHAPES if options.shape is None else (SHAPES[options.shape],):
        times = {p: _measure(shape, p, options) for p in options.p}
        _print_table(shape, times)
        _print_goals(shape, times)


def sigma_of(p: float, d: int) -> float:
    """Return the norm of d entries of 1/32, which is close to 8/255 at p = inf."""
    return float(d ** (1 / p) / 32)


def _data(shape: tuple[int, int], kind: str) -> tuple[Any, Any]:
    """Return a gradient, or a point to project, and the input."""
    import numpy as np

    rng = np.random.default_rng(0)
    grad, x = rng.standard_normal(shape) / 10, rng.random(shape)
    if kind == "clustered":
        x = np.round(3 * x) / 3
    else:
        at_wall = rng.random(shape) < 0.75
        x[at_wall] = np.round(x[at_wall])
    if kind == "zeros":
        grad[rng.random(shape) < 0.77] = 0
    elif kind == "decades":
        grad *= 10 ** rng.uniform(-12, 0, shape)
    return grad.astype(np.float32), x.astype(np.float32)


def _measure(shape: tuple[int, int], p: float, options: argparse.Namespace) -> dict[Row, float]:
    import numpy as np

    from lpfamily import epsilon

    sigma = sigma_of(p, shape[1])
    calls: dict[Row, Callable[[], object]] = {}
    for kind in options.kind:
        grad, x = _data(shape, kind)
        for name in options.function:
            if name == FUNCTIONS[0]:
                step = functools.partial(epsilon, grad, p, sigma)
            else:
                step = functools.partial(_scaled, grad, sigma)
            calls[kind, name, CLIPPED] = functools.partial(lambda x, step: np.clip(x + step(), 0, 1), x, step)
            for library in options.library:
                calls[kind, name, library] = _call(library, name, grad, x, p, sigma)
    shortest = 1e-2 if shape == SHAPES[1] else 0.0
    return medians(calls, options.rounds, shortest, time.process_time if options.threads == 1 else time.time)


def _scaled(v: Any, sigma: float) -> Any:
    import numpy as np

    return v * np.minimum(1, sigma / np.sqrt(np.vecdot(v, v)))[:, None]


def _call(library: str, name: str, grad: Any, x: Any, p: float, sigma: float) -> Callable[[], object]:
    from lpfamily import epsilon, project

    function: Callable[..., Any] = epsilon if name == FUNCTIONS[0] else project

    def call(grad: Any, x: Any, batch_ndim: int = 1) -> Any:
        box = {} if name == "project" else {"x": x, "bounds": (0, 1)}
        return function(grad, p, sigma, batch_ndim=batch_ndim, **box)

    if library == "NumPy":
        return functools.partial(call, grad, x)
    if library.startswith("jax"):
        import jax

        mapped = jax.vmap(functools.partial(call, batch_ndim=0))
        run = {"jax": call, "jax.jit": jax.jit(call), "jax.vmap": jax.jit(mapped)}[library]
        arrays = [jax.numpy.asarray(a) for a in (grad, x)]
        return lambda: run(*arrays).block_until_ready()
    import torch

    torch.compiler.reset()
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(library, torch.float32)
    tensors = [torch.from_numpy(a).to(dtype) for a in (grad, x)]
    return functools.partial(torch.compile(call, fullgraph=True) if "compile" in library else call, *tensors)


def _print_table(shape: tuple[int, int], times: Times) -> None:
    print(f"\n{shape} float32; ratios to the time of a clipped step, which is in ns per entry")
    _print_line("", [f"p = {p:g}" for p in times])
    for row in dict.fromkeys(row for column in times.values() for row in column):
        kind, name, library = row
        if library == CLIPPED:
            cells = [f"{1e9 * column[row] / math.prod(shape):.2f}" for column in times.values()]
            _print_line(f"{KINDS[kind]}: {name}, clipped (ns)", cells)
        else:
            cells = [f"{column[row] / column[kind, name, CLIPPED]:.1f}" for column in times.values()]
            _print_line(f"{name}, {library}", cells)


def _print_goals(shape: tuple[int, int], times: Times) -> None:
    """Print the goal of each ratio, and the p at which it is missed.

    The goals are for easy data of shape (512, 3072); other data and shapes may miss them by a factor.
    """
    print(f"\n{shape}: goals, as ratios of times")
    _print_line("", [f"p = {p:g}" for p in times])
    more = {SHAPES[0]: 1.0, SHAPES[1]: 3.0, SHAPES[2]: 1.5}[shape]
    for kind, name, library in dict.fromkeys(row for column in times.values() for row in column):
        if library == CLIPPED:
            continue
        if library == "NumPy":
            factor = more * (1.5 if kind in ("zeros", "decades") else 1.0)
            goals = {p: factor * goal(name, p) for p in times}
            other = CLIPPED
        else:
            other = {"float16": "torch", "bfloat16": "torch"}.get(library, "NumPy")
            goals = dict.fromkeys(times, {"torch": 1.5, "float16": 2.0, "bfloat16": 2.0}.get(library, 3.0))
        if (kind, name, other) not in times[next(iter(times))]:
            continue
        ratios = {p: times[p][kind, name, library] / times[p][kind, name, other] for p in times}
        missed = ", ".join(f"{p:g}" for p in times if ratios[p] > goals[p])
        row = f"{KINDS[kind]}: {name}, {library} / {other}"
        cells = [f"{ratios[p]:.1f}/{goals[p]:.1f}" for p in times]
        _print_line(row, cells, f"missed at p = {missed}" if missed else "met")


def goal(name: str, p: float) -> float:
    """Return the most time that a function may take, in units of the clipped step."""
    named, others = {
        "epsilon in a box": ({1: 7.0, math.inf: 1.6, 1.5: 3.0, 2: 3.0, 3: 3.0, 4: 3.0, 10: 3.0}, 4.0),
        "project": ({2: 1.3, math.inf: 1.5, 1: 12.0}, 60.0),
        "project in a box": ({2: 5.0, math.inf: 2.0, 1: 20.0}, 80.0),
    }[name]
    return named.get(p, others)


def _print_line(name: str, cells: list[str], end: str = "") -> None:
    print(f"{name:56}" + "".join(f"{cell:>11}" for cell in cells) + f"  {end}", flush=True)


if __name__ == "__main__":
    main()
