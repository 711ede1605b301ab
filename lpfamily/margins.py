"""The distance to the decision boundary (V-A): exact for linear models, by a search for others.

A prediction is changed when the right logit is no longer the only largest one. A tie counts as changed, so
that the set of changed inputs is closed and contains its point nearest to x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lpfamily._arrays import (
    A,
    Array,
    Given,
    as_float,
    beside,
    check_p,
    compute_dtype,
    floating,
    is_number,
    known_shape,
    namespace_of,
)
from lpfamily.classification import check_logits
from lpfamily.libraries import constant, library_of
from lpfamily.steepest import dual_norm


def boundary_distance(weights: Array, bias: Array, x: A, labels: Array, p: float) -> A:
    """Return the Lp distance of each x to the decision boundary of a linear softmax.

    The inputs that are classified as y are an intersection of half-spaces, so the nearest point outside lies
    on the nearest of their hyperplanes. By Hölder's equality the distance of each hyperplane is the gap of
    the logits divided by the dual norm of the weights::

        min over j != y of (z_y - z_j) / ||w_j - w_y||_{p*},    z = x @ weights + bias

    This is the ||a|| of section V along the most dominant direction. The step
    `lpfamily.epsilon(w_j - w_y, p, distance)` attains it: it moves all coordinates for p = inf, goes along
    the normal for p = 2, and moves the coordinate in which the two weights differ most for p = 1. The line
    search of V-A follows the gradient of the loss; it finds a longer distance, as that gradient mixes the
    wrong classes.

    Parameters
    ----------
    weights
        The weights, of shape (inputs, classes), with at least two classes.
    bias
        The bias, of shape (classes,).
    x
        The inputs, of shape (..., inputs).
    labels
        The right classes: integers in 0..classes - 1, of shape `x.shape[:-1]`.
    p
        A number in [1, inf].

    Returns
    -------
    Array
        The distances, of shape `x.shape[:-1]` and of x's dtype, in units of x: 0 where x is already
        misclassified, inf where nothing changes the prediction. They are differentiable in weights, bias and
        x. NaN for an x that contains a NaN, and for a label that is out of range where labels cannot be
        checked without waiting for a device.

    Raises
    ------
    TypeError, ValueError
        For a p below 1, arrays of different libraries or that are not floating, shapes that do not
        fit, fewer than two classes, labels that are not integers, or out of range where they can be checked.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, V-A.
    """
    p = check_p(p)
    given = floating(x, "x")
    xp, (matrix, z, right) = given.xp, _linear(given, weights, bias, labels)
    classes = xp.permute_dims(matrix, (1, 0))
    # class by class: all differences at once would have classes^2 * inputs entries
    lengths = [
        dual_norm(p, classes - classes[c : c + 1, :], xp.ones_like(classes[:, :1]))
        for c in range(z.shape[-1])
    ]
    label = xp.reshape(xp.argmax(xp.astype(right, z.dtype), axis=-1), (-1,))
    length = xp.reshape(xp.take(xp.stack(lengths), label, axis=0), z.shape)
    return given.back(_first_closed(z, length, right))


def flip_distance(
    logits: Callable[[Array], Array] | tuple[Array, Array],
    x: A,
    direction: Array,
    labels: Array,
    *,
    most: float = math.inf,
    brackets: int = 16,
    steps: int = 24,
) -> A:
    """Return the smallest t >= 0 at which x + t * direction changes the prediction.

    This is the line search of V-A, for each example. For a linear softmax, given as (weights, bias), it is
    the closed form::

        min over j of (z_y - z_j) / (u_j - u_y) where u_j > u_y,    u = direction @ weights

    Any other model is evaluated on a grid of `brackets` points, t = most / brackets, ..., most, up to the
    first point with a changed prediction. The interval before that point is then halved `steps` times, for
    all examples at once. So the search finds the first change that the grid shows. It misses a change that is
    undone between two neighbouring points. The prediction is changed at the returned t (as x's dtype holds
    it), and unchanged at t - most / brackets / 2^steps.

    Parameters
    ----------
    logits
        A pair (weights, bias) as in `boundary_distance`, or a function that maps an array like x to
        logits of shape (*labels.shape, classes). The search calls it brackets + steps + 1 times.
    x
        The inputs, of shape (..., inputs) for a pair; for a function, of any shape whose leading axes are
        those of the labels.
    direction
        The direction of the search, of x's shape. If it is `lpfamily.epsilon(grad, p, 1.0)`, t is an Lp
        distance.
    labels
        The right classes, integers.
    most
        The largest t to look at, a number > 0; a function needs a finite one.
    brackets, steps
        Whole numbers >= 1 and >= 0; the closed form does not use them.

    Returns
    -------
    Array
        t, of the shape of the labels and of x's dtype: 0 where x is already misclassified, inf where
        the prediction does not change, or not up to `most`, NaN where the logits are NaN at x or where the
        search ends. The closed form is differentiable; the result of the search is a constant.

    Raises
    ------
    TypeError, ValueError
        As in `boundary_distance`; for logits that are neither a function nor a pair, or a direction,
        `most`, `brackets` or `steps` that do not fit.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, V-A.
    """
    given = floating(x, "x")
    xp, at = given.xp, given.array
    if not is_number(most) or not most > 0:
        raise ValueError(f"most must be a number > 0, the largest multiple of direction; got {most!r}")
    direction = beside(at, direction, "direction")
    compute_dtype(direction, "direction")
    if tuple(direction.shape) != tuple(at.shape):
        raise ValueError(f"direction must have x's shape, {tuple(at.shape)}; got {tuple(direction.shape)}")
    if callable(logits):
        for name, count, least in ("brackets", brackets, 1), ("steps", steps, 0):
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"{name} must be a whole number >= {least}; got {count!r}")
        if most == math.inf:
            raise ValueError(
                "most must be finite for a logits function; got inf: pass the largest multiple of direction "
                "to look at"
            )
        t = _search(logits, at, direction, labels, as_float(most), brackets, steps)
    elif isinstance(logits, tuple | list) and len(logits) == 2:
        matrix, z, right = _linear(given, *logits, labels)
        speed = -_gaps(xp.astype(direction, z.dtype, copy=False) @ matrix, right)
        t = _first_closed(z, speed, right)
        t = xp.where(t > most, math.inf, t)
    else:
        raise TypeError(
            f"logits must be a function of x, or a pair (weights, bias); got {type(logits).__name__}"
        )
    return given.back(t)


def _linear(given: Given[A], weights: Array, bias: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return the weights, the logits, and a mask of the right logits."""
    xp, x = given.xp, given.array
    weights, bias = beside(x, weights, "weights"), beside(x, bias, "bias")
    if weights.ndim != 2 or weights.shape[1] < 2:
        raise ValueError(
            f"weights must have shape (inputs, classes) with at least two classes; "
            f"got {tuple(weights.shape)}: for a binary w pass stack([0 * w, w], axis=1)"
        )
    inputs, classes = weights.shape
    if tuple(bias.shape) != (classes,):
        raise ValueError(f"bias must have shape ({classes},), one entry per class; got {tuple(bias.shape)}")
    if not known_shape(x, "x") or x.shape[-1] != inputs:
        raise ValueError(
            f"x must have shape (..., {inputs}) to fit weights of shape {tuple(weights.shape)}; "
            f"got {tuple(x.shape)}: flatten each example first"
        )
    dtypes = [compute_dtype(value, name) for value, name in ((x, "x"), (weights, "weights"), (bias, "bias"))]
    dtype = xp.result_type(*dtypes)
    rows, matrix, offset = (xp.astype(value, dtype, copy=False) for value in (x, weights, bias))
    z, right, _ = check_logits(floating(rows @ matrix + offset, "logits"), labels)
    return matrix, z, right


def _gaps(z: Array, right: Array) -> Array:
    """Return z_y - z_j; NaN where no class is right."""
    xp = namespace_of(z)
    z_y = xp.sum(xp.where(right, z, 0.0), axis=-1, keepdims=True)
    return xp.where(xp.any(right, axis=-1, keepdims=True), z_y, math.nan) - z


def _first_closed(z: Array, speed: Array, right: Array) -> Array:
    """Return the time at which the first wrong class closes its gap: 0 if one has, inf if none does."""
    return library_of(z).per_example(_first_time, "(c),(c),(c)->()", z.dtype, z, speed, right)


def _first_time(z: Array, speed: Array, right: Array) -> Array:
    xp, gap = namespace_of(z), _gaps(z, right)
    never = (speed <= 0) & (gap > 0)
    time = xp.where(never, math.inf, gap / xp.where(speed <= 0, 1.0, speed))
    return xp.min(xp.where(right, math.inf, xp.where(gap <= 0, 0.0, time)), axis=-1)


def _margin(z: Array, right: Array) -> Array:
    xp = namespace_of(z)
    return xp.min(xp.where(right, math.inf, _gaps(z, right)), axis=-1)


def _search(
    logits: Callable[[Array], Array],
    x: Array,
    direction: Array,
    labels: Array,
    most: float,
    brackets: int,
    steps: int,
) -> Array:
    """Return for each example the first t at which the prediction of x + t * direction is changed.

    Of `brackets` equal intervals from 0 to `most`, the first at whose end it is changed is bisected `steps`
    times. t is inf if there is none, and NaN where the margin is NaN.
    """
    xp = namespace_of(x)
    start, ray = constant(x), constant(xp.astype(direction, x.dtype, copy=False))

    def margin(at: Array) -> Array:
        z, right, _ = check_logits(floating(constant(logits(at)), "logits"), labels)
        return library_of(z).per_example(_margin, "(c),(c)->()", z.dtype, z, right)

    def step(t: Array) -> Array:
        return start + xp.reshape(t, (*t.shape, *(1,) * (x.ndim - t.ndim))) * ray

    # The prediction holds at low and is changed at high; `margin_at_high` is the margin there. low and high
    # have x's dtype, so that the t that is returned is one that was evaluated.
    margin_at_high = margin(start)
    low = xp.zeros_like(margin_at_high, dtype=x.dtype)
    high = xp.where(margin_at_high > 0, xp.full_like(low, math.inf), low)
    for k in range(1, brackets + 1):
        t = xp.astype(xp.full_like(margin_at_high, most * k / brackets), x.dtype)
        margin_at_t = margin(step(t))
        ahead, holds = high == math.inf, margin_at_t > 0
        low = xp.where(ahead & holds, t, low)
        margin_at_high = xp.where(ahead, margin_at_t, margin_at_high)
        high = xp.where(ahead & ~holds, t, high)
    for _ in range(steps):
        t = xp.where(high == math.inf, low, low + (high - low) / 2)
        margin_at_t = margin(step(t))
        holds = (margin_at_t > 0) | (high == math.inf)
        low, high = xp.where(holds, t, low), xp.where(holds, high, t)
        margin_at_high = xp.where(holds, margin_at_high, margin_at_t)
    return xp.where(margin_at_high == margin_at_high, high, math.nan)
