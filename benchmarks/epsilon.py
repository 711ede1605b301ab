"""`python -m benchmarks.epsilon`: the step against a copy, a power, and the formula as written.

Single thread, pinned where the system allows it; CPU time, medians of interleaved rounds; every
call allocates its result. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

from benchmarks.timing import medians, one_thread

SHAPES = ((128, 784), (512, 3072), (64, 150528))
EXPONENTS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0, math.inf)
GRADIENTS = ("normal", "77 % zeros", "12 decades")


def main() -> None:
    """Print a table for each shape and kind of gradient."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="(default: 11)")
    parser.add_argument(
        "--shape", type=int, choices=range(len(SHAPES)), help=f"one of {SHAPES}, by its index"
    )
    options = parser.parse_args()
    one_thread()
    shapes = SHAPES if options.shape is None else (SHAPES[options.shape],)
    for shape in shapes:
        for kind in GRADIENTS:
            _table(shape, kind, options.rounds)


def _table(shape: tuple[int, int], kind: str, rounds: int) -> None:
    grad = _gradient(shape, kind)
    columns = {p: medians(_calls(grad, p), rounds) for p in EXPONENTS}
    print(f"\n{shape} float32, {kind}; times np.copyto, which takes ", end="")
    copies = [column["np.copyto"] for column in columns.values()]
    print(f"{1e9 * min(copies) / grad.size:.2f} to {1e9 * max(copies) / grad.size:.2f} ns an entry")
    print(f"{'':24}" + "".join(f"{f'p = {p:g}':>9}" for p in EXPONENTS))
    for name in max(columns.values(), key=len):
        cells = [columns[p].get(name, math.nan) / columns[p]["np.copyto"] for p in EXPONENTS]
        print(f"{name:24}" + "".join(f"{'' if math.isnan(cell) else f'{cell:.1f}':>9}" for cell in cells))


def _gradient(shape: tuple[int, int], kind: str) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    grad = 1e-3 * rng.standard_normal(shape)
    if kind == "77 % zeros":
        grad[rng.random(shape) < 0.77] = 0
    elif kind == "12 decades":
        grad *= 10 ** rng.uniform(-12, 0, shape)
    return grad.astype(np.float32)


def _calls(grad: Any, p: float) -> dict[str, Callable[[], object]]:
    import numpy as np

    from lpfamily import epsilon

    out = np.empty_like(grad)
    calls: dict[str, Callable[[], object]] = {
        "np.copyto": lambda: np.copyto(out, grad),
        "np.power(np.abs)": lambda: np.power(np.abs(grad), np.float32(0.7)),
        "lpfamily, NumPy": lambda: epsilon(grad, p, 1.0),
    }
    if 1 < p < math.inf:
        calls["eq. 3 as written, NumPy"] = lambda: _as_written(np, grad, p)
    if importlib.util.find_spec("torch"):
        calls |= _torch_calls(grad, p)
    if importlib.util.find_spec("jax"):
        import jax

        array = jax.numpy.asarray(grad)
        step = jax.jit(functools.partial(epsilon, p=p, sigma=1.0))
        calls["lpfamily, jax.jit"] = lambda: step(array).block_until_ready()
        if 1 < p < math.inf:
            unsafe = jax.jit(functools.partial(_as_written, jax.numpy, p=p))
            calls["eq. 3 as written, jit"] = lambda: unsafe(array).block_until_ready()
    return calls


def _torch_calls(grad: Any, p: float) -> dict[str, Callable[[], object]]:
    import torch

    from lpfamily import epsilon

    tensor = torch.from_numpy(grad)
    calls: dict[str, Callable[[], object]] = {"lpfamily, torch": lambda: epsilon(tensor, p, 1.0)}
    if 1 < p < math.inf:

        def as_written() -> torch.Tensor:
            norm = tensor.abs().pow(p / (p - 1)).sum(1, keepdim=True) ** ((p - 1) / p)
            return tensor.sign() * (tensor.abs() / norm) ** (1 / (p - 1))

        calls["eq. 3 as written, torch"] = as_written
    return calls


def _as_written(xp: Any, grad: Any, p: float) -> Any:
    norm = xp.sum(xp.abs(grad) ** (p / (p - 1)), axis=1, keepdims=True) ** ((p - 1) / p)
    return xp.sign(grad) * (xp.abs(grad) / norm) ** (1 / (p - 1))


if __name__ == "__main__":
    main()
