"""`python -m benchmarks.margins`: margins of a linear softmax, in units of one X @ W of the same run.

There are 60,000 x 784 inputs in float32, as in MNIST's training set, and 10 classes. It runs in a single
thread, pinned where the system allows it, and prints CPU time, as medians of interleaved rounds; every call
allocates its result.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

from benchmarks.timing import medians, one_thread

EXAMPLES, INPUTS, CLASSES = 60_000, 784, 10
BLOCK = 512


def main() -> None:
    """Print the median of each call and its ratio to X @ W."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="(default: 11)")
    options = parser.parse_args()
    one_thread()
    times = medians(_calls(), options.rounds)
    for name, seconds in times.items():
        print(f"{name:42} {1000 * seconds:7.1f} ms {seconds / times['X @ W']:6.2f}")


def _calls() -> dict[str, Callable[[], object]]:
    import numpy as np

    from lpfamily import epsilon
    from lpfamily.margins import boundary_distance, flip_distance

    rng = np.random.default_rng(0)
    x = rng.random((EXAMPLES, INPUTS), dtype=np.float32)
    weights = rng.standard_normal((INPUTS, CLASSES), dtype=np.float32)
    bias = rng.standard_normal(CLASSES, dtype=np.float32)
    labels = np.argmax(x @ weights + bias, axis=1)
    direction = epsilon(rng.standard_normal(x.shape, dtype=np.float32), 2, 1.0)
    calls: dict[str, Callable[[], object]] = {
        "X @ W": lambda: x @ weights,
        "flip_distance, a given direction": lambda: flip_distance((weights, bias), x, direction, labels),
    }
    for p in 2, math.inf, 3:
        calls[f"boundary_distance, p={p}"] = functools.partial(boundary_distance, weights, bias, x, labels, p)
        calls[f"gradient, epsilon, flip_distance, p={p}"] = functools.partial(
            _line_search, weights, bias, x, labels, p
        )
    return calls


def _line_search(weights: Any, bias: Any, x: Any, labels: Any, p: float) -> Any:
    """Search along the gradient of the loss (V-A), by blocks of rows, and compute that direction, too."""
    import numpy as np

    from lpfamily import epsilon
    from lpfamily.margins import flip_distance

    blocks = []
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        right = labels[block, None] == np.arange(CLASSES)
        z = np.where(right, -np.inf, x[block] @ weights + bias)
        odds = np.exp(z - z.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)  # the gradient of the error log-odds is odds - right
        direction = epsilon((odds - right).astype(x.dtype) @ weights.T, p, 1.0)
        blocks.append(flip_distance((weights, bias), x[block], direction, labels[block]))
    return np.concatenate(blocks)


if __name__ == "__main__":
    main()
