"""The Kullback-Leibler divergence between two outputs of a classifier, and its gradient.

The divergence D(x + eps) = KL(f(x) || f(x + eps)) is 0 at x, and so is its gradient: eq. 3 there would be a
step along rounding errors. A loop therefore starts at a random point r of the ball. To second order D(x + r)
is r'Hr / 2, where H is the Fisher information of f in the input, and its gradient is H r. A step is thus one
step of power iteration: for p = 2 towards the leading eigenvector of H. Miyato et al. take the gradient at
1e-6 r / ||r||, where float32 rounds the difference of the outputs to zero; r itself has no scale to choose.

References
----------
Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan: Theoretically Principled Trade-off between Robustness and Accuracy,
2019; Miyato, Maeda, Koyama, Ishii: Virtual Adversarial Training, 2018.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from lpfamily._arrays import namespace_of
from lpfamily.libraries import constant
from lpfamily.trees import mapped, named_leaves

BITS = 16
"""Outputs that move by at most this many units in the last place count as unchanged."""


def divergence(outputs: Any, log_probabilities: Any) -> Any:
    """Return KL(f || g), the Kullback-Leibler divergence of two distributions over classes.

    f is given by its logarithms and g by its logits; classes are along the last axis. As f and g both sum to
    1, KL is the sum of f (e^u - 1 - u) with u = log(g / f). Unlike the terms -f u, these terms and their
    derivatives do not round to zero where f and g are confident of the same class.
    """
    xp, log_g = namespace_of(outputs), log_softmax(outputs)
    apart = xp.exp(log_probabilities) * (log_g - log_probabilities)
    return xp.sum(_moved(log_g, log_probabilities) - apart, axis=-1)


def divergence_slope(outputs: Any, log_probabilities: Any) -> Any:
    """Return the gradient of `divergence` with respect to the logits of g."""
    xp, log_g = namespace_of(outputs), log_softmax(outputs)
    moved = _moved(log_g, log_probabilities)
    # g - f sums to zero in exact arithmetic, but the difference of a likely class rounds to zero
    return moved - xp.exp(log_g) * xp.sum(moved, axis=-1, keepdims=True)


def _moved(log_g: Any, log_f: Any) -> Any:
    """Return g - f."""
    xp, f, u = namespace_of(log_g), namespace_of(log_f).exp(log_f), log_g - log_f
    return xp.where(u > 1, xp.exp(log_g) - f, f * xp.expm1(xp.where(u > 1, 0.0, u)))


def log_softmax(outputs: Any) -> Any:
    """Return the logarithms of the class probabilities."""
    xp = namespace_of(outputs)
    shifted = outputs - constant(xp.max(outputs, axis=-1, keepdims=True))
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def check_beta(beta: float | None, by_outputs: bool, objective: str, clean_weight: float) -> None:
    """Raise ValueError unless beta is a valid weight and fits the objective."""
    if not by_outputs:
        if beta is not None:
            raise ValueError("beta weighs a divergence between outputs; this objective has none")
        return
    if beta is None or not 0 <= beta < math.inf:
        raise ValueError(
            "beta, the weight of the divergence between outputs, "
            f"must be a number of at least 0; got {beta}: "
            "TRADES has 6, virtual adversarial training 1"
        )
    if objective != "perturb" or clean_weight:
        raise ValueError(
            "between outputs the objective is L(x) + beta KL(f(x) || f(x + eps)): it has no penalty, as the "
            "divergence has no gradient at x, and no clean_weight"
        )


def divergence_of_moved(clean: Any, logits: Any, moved: Any, batch_ndim: int, rounding: float) -> Any:
    """Return `divergence_between` for an ascent; it and its gradient are 0 where only rounding moved outputs.

    `moved` is a mask of the examples whose input differs from that of `clean`, and `rounding` is the eps of
    the outputs' dtype.
    """
    xp, values = namespace_of(logits), divergence_between(clean, logits, batch_ndim)
    apart = xp.abs(log_softmax(constant(logits)) - log_softmax(clean))
    inner = tuple(range(batch_ndim, logits.ndim))
    seen = ~(xp.max(apart, axis=inner) <= BITS * rounding * xp.max(xp.abs(clean), axis=inner))
    return xp.where(seen & moved, values, xp.zeros_like(values))


def divergence_between(clean: Any, logits: Any, batch_ndim: int) -> Any:
    """Return KL(f || g) of two softmaxes over the last axis, summed over all positions of an example."""
    xp, values = namespace_of(logits), divergence(logits, log_softmax(clean))
    return xp.sum(values, axis=tuple(range(batch_ndim, values.ndim))) if values.ndim > batch_ndim else values


def differs(x: Any, at: Any, batch_ndim: int) -> Any:
    """Return a mask of the examples that have an entry in which `at` differs from x."""
    different = mapped(lambda x, at: _any_inner(x != at, batch_ndim), x, at)
    return functools.reduce(operator.or_, [leaf for _, leaf in named_leaves(different, "x")])


def _any_inner(condition: Any, batch_ndim: int) -> Any:
    return namespace_of(condition).any(condition, axis=tuple(range(batch_ndim, condition.ndim)))
