"""Multi-step ascent in an Lp ball, for the inner maximum of eq. 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lpfamily._arrays import Array
from lpfamily.steepest import epsilon


def frank_wolfe(
    gradient: Callable[[Array], Array], x: Array, p: float, sigma: Any, steps: int, start: Array | None = None
) -> Array:
    """Return a perturbation that raises a loss in the Lp ball of radius sigma, after `steps` gradients.

    The inner maximum of eq. 1 by the Frank-Wolfe method: each step goes towards the maximiser of the
    loss linearised at x + eps, which is eq. 3::

        eps <- eps + 2 / (k + 2) * (epsilon(gradient(x + eps), p, sigma) - eps),    k = 0, 1, ...

    An average of points of the ball stays in it, so no projection is needed, for any p in [1, inf].
    One step from x is eq. 3 itself.

    Parameters
    ----------
    gradient
        Maps inputs of x's shape to the gradient of the loss with respect to them.
    x
        The inputs, examples along the first axis.
    p, sigma
        As in `lpfamily.epsilon`.
    steps
        The number of gradients, at least 1.
    start
        Where in the ball the first gradient is taken; None means its centre, x itself.
    """
    eps = epsilon(gradient(x if start is None else x + start), p, sigma)
    for k in range(1, steps):
        eps = eps + 2 / (k + 2) * (epsilon(gradient(x + eps), p, sigma) - eps)
    return eps
