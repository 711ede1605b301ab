"""The robustness of any JAX classifier in Lp balls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpfamily import ensemble, error_log_odds
from lpfamily._arrays import Bounds, Numbers
from lpfamily.measured import Robustness
from lpfamily.trees import mapped, named_leaves
from lpfamily_jax.padding import padded


def robustness(
    logits: Callable[[Array], Array],
    x: Any,
    y: Any = None,
    *,
    p: float | Sequence[float] = (1, 2, math.inf),
    sigma: ensemble.Sigmas,
    bounds: Bounds | None = None,
    scale: Numbers | None = None,
    effort: ensemble.Effort = "standard",
    batch_size: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Robustness:
    """Return the errors of a JAX classifier in Lp balls, and the smallest radii that cause an error.

    The attacks, the parameters and the meaning of the numbers are those of `lpfamily.robustness`. The
    function is compiled for few batch sizes, to which batches are padded; NumPy computes the steps.

    Parameters
    ----------
    logits
        A function that JAX can trace and differentiate. It maps inputs to logits, of shape (n, classes), each
        example independently of the others.
    x, y
        The inputs, a floating array whose first axis indexes examples, or a pytree of them, and their
        classes, integers of shape (n,); or, without y, an iterable of such pairs.
    p, sigma, bounds, scale, effort, batch_size, seed, progress
        As in `lpfamily.robustness`.

    Returns
    -------
    Robustness
        Errors by p and sigma, the attack that fooled each example, the smallest radii, and findings.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.robustness`.
    """

    def value(x: Array, y: Array, targets: Array) -> tuple[Array, tuple[Array, Array]]:
        z = logits(x)
        rows = jnp.arange(len(y))
        margins = z[rows, jnp.maximum(targets, 0)] - z[rows, y]
        values = jnp.where(targets < 0, error_log_odds(z, y), margins)
        return values.sum(), (z, values)

    compiled, forward = jax.jit(jax.grad(value, has_aux=True)), jax.jit(logits)

    def evaluate(x: Any, y: Any, targets: Any) -> tuple[Any, Any, Any]:
        targets = np.full(len(y), -1) if targets is None else targets
        grad, (z, values) = compiled(*(mapped(padded, each) for each in (x, y, targets)))
        z, values, grad = (
            mapped(lambda leaf: np.asarray(leaf)[: len(y)], result) for result in (z, values, grad)
        )
        return z, values, grad

    def evaluate_logits(x: Any) -> Any:
        _, first = next(named_leaves(x, "x"))
        return np.asarray(forward(mapped(padded, x)))[: len(first)]

    classifier = ensemble.Classifier(evaluate, evaluate_logits)
    data = ensemble.batches(x, y, batch_size)
    return ensemble.measure(classifier, data, p, sigma, bounds, scale, effort, seed, progress)
