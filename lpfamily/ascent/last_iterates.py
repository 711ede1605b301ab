"""Ascents that evaluate no value and return their last iterate: the perturbations that training takes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from lpfamily._arrays import A, Array, Bounds, Numbers
from lpfamily.ascent.scheduled import shares, towards
from lpfamily.balls import project
from lpfamily.step import epsilon
from lpfamily.trees import mapped


def frank_wolfe(
    gradient: Callable[[Array], Array],
    x: Array,
    p: float,
    sigma: Numbers,
    steps: int,
    start: Array | None = None,
    *,
    bounds: Bounds | None = None,
    **options: Any,
) -> Array:
    """Return the last iterate of Frank-Wolfe's method after `steps` gradients.

    Its steps are those of `ascend` with `method="frank-wolfe"`, with one gradient each and no value. Training
    perturbs with it. One step is eq. 3 at the gradient of the start.

    Parameters
    ----------
    gradient
        Maps inputs of x's shape to the gradient of the loss with respect to them.
    x
        The inputs; the first `batch_ndim` axes index examples.
    p, sigma, bounds
        As in `lpfamily.epsilon`.
    steps
        The number of gradients, at least 1.
    start
        The perturbation at which the first gradient is taken; None means 0, that is, x itself. It must be in
        ball and box, which is not checked.
    options
        `batch_ndim`, `mask` and `scale`, as in `lpfamily.epsilon`.

    Returns
    -------
    Array
        eps, like x.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; for less than one step.
    """
    if bounds is not None:
        options |= {"x": x, "bounds": bounds}
    return towards_vertices(lambda at: epsilon(gradient(at), p, sigma, **options), x, steps, start)


def towards_vertices(vertex: Callable[[A], A], x: A, steps: int, start: A | None = None) -> A:
    """Return the last iterate of `frank_wolfe` for an array or a tree.

    `vertex` maps inputs to the maximiser of the linearised loss there.
    """
    check_steps(steps)
    eps = vertex(x if start is None else mapped(operator.add, x, start))
    for share in shares(steps)[1:]:
        eps = mapped(partial(towards, share=share), eps, vertex(mapped(operator.add, x, eps)))
    return eps


def projected(
    gradient: Callable[[Array], Array],
    x: Array,
    p: float,
    sigma: Numbers,
    steps: int,
    start: Array | None = None,
    **options: Any,
) -> Array:
    """Return the last iterate of `steps` projected steepest steps.

    It takes the steps of `ascend` with `method="projected"`, of its default size, with one gradient per
    step and no value. From a random `start` this is the inner maximum of PGD training (Madry et al. 2018).
    Arguments, result and errors are those of `frank_wolfe`, without bounds.
    """
    check_steps(steps)
    eps, length = start, sigma if steps == 1 else 2.5 / steps * sigma
    for _ in range(steps):
        step = epsilon(gradient(x if eps is None else x + eps), p, length, **options)
        eps = project(step if eps is None else eps + step, p, sigma, **options)
    return eps


def check_steps(steps: int) -> None:
    """Raise ValueError for less than one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")


LAST_ITERATES: dict[str, Callable[..., Any]] = {"frank-wolfe": frank_wolfe, "projected": projected}
"""The ascents without values, by the name of their method."""
