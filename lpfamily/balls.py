"""The Lp ball itself: projection onto it, and points drawn uniformly from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpfamily._arrays import (
    A,
    Array,
    Bounds,
    DType,
    Given,
    Numbers,
    check_p,
    examples,
    floating,
    namespace_of,
    reshape,
)
from lpfamily.box import box_of, room_to_move
from lpfamily.libraries import detoured, library_of_generator
from lpfamily.nearest import nearest, weighted_nearest
from lpfamily.trees import is_tree, over_leaves
from lpfamily.weighted import joined, radius_and_scale, zero_where_fixed


def project(
    v: A,
    p: float,
    sigma: Numbers,
    *,
    batch_ndim: int | None = None,
    mask: Array | None = None,
    scale: Numbers | None = None,
    x: Numbers | None = None,
    bounds: Bounds | None = None,
) -> A:
    """Project `v` onto the Lp ball: return the nearest point, in the Euclidean sense, for each example.

    The result y minimises ||y - v||_2 subject to ||y||_p <= sigma, so a v in the ball stays where it is.
    p = 1 lowers every |v_i| by the same amount, down to 0; p = 2 scales v; p = inf clips it. For any other p
    a safeguarded Newton's method finds the multiplier (see `lpfamily.nearest`). With `x` and `bounds` the
    minimiser also satisfies low <= x + y <= high. With `scale` the constraint is ||y / scale||_p <= sigma;
    the distance is still Euclidean in v, not in v / scale.

    Up to a factor, the result depends only on the direction of v and on sigma / ||v||. Far from the ball it
    tends to `lpfamily.epsilon(v, p, sigma)`, which is the result where v has infinite entries. Inside ball
    and box the derivative is the identity. Outside it is that of the active constraints: for example, it is 0
    for entries at a bound, and for those that p = 1 sets to 0.

    Parameters
    ----------
    v
        A floating array of any library, or a tree of them as in `lpfamily.epsilon`; the first `batch_ndim`
        axes index examples.
    p, sigma, batch_ndim, mask, scale, x, bounds
        As in `lpfamily.epsilon`. Where the mask is False the result is zero, and x may have any value.

    Returns
    -------
    Array
        Of v's namespace, shape, dtype and device, or a tree like v. A NaN makes its whole example NaN; at
        p = inf without a box, where coordinates are independent, only its entry.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`.

    References
    ----------
    Duchi, Shalev-Shwartz, Singer, Chandra: Efficient Projections onto the l1-Ball, 2008, for p = 1.
    """
    p, (sigma, scale) = check_p(p), joined(sigma, scale)
    if is_tree(v):
        arguments = "v", v, sigma, batch_ndim, mask, scale, box_of(x, bounds)
        result: A = over_leaves(lambda rows, sigma, **ball: project(rows, p, sigma, **ball), *arguments)
        return result

    def point(v: A, sigma: Numbers, mask: Array | None, scale: Numbers | None, *box: Numbers) -> A:
        given = examples(v, "v", batch_ndim, mask)
        radius = given.radius(sigma)
        room = [room_to_move(given, *box)] if box else []
        if scale is None:
            return given.shaped(nearest(p, given.values, radius, *room))
        ball = radius_and_scale(given, radius, scale)
        return given.shaped(_nearest_weighted(p, given.values, *ball, *room))

    return detoured(point, "v", v, sigma, mask, scale, *box_of(x, bounds))


def _nearest_weighted(p: float, v: Array, radius: Array, scale: Array, *room: Array) -> Array:
    xp, v = namespace_of(v), zero_where_fixed(v, scale)
    if p <= 2.0**60:
        return weighted_nearest(p, v, radius, xp.broadcast_to(scale, v.shape), *room)
    # at p = inf each entry has its interval, independent of the others
    reach = radius * scale
    for each in room:
        reach = xp.where((each < reach) | (each != each), each, reach)
    return nearest(p, v, xp.full_like(radius, float(xp.finfo(v.dtype).max)), reach)


def sample(
    shape: int | Sequence[int],
    p: float,
    sigma: Numbers,
    rng: Any,
    *,
    batch_ndim: int | None = None,
    dtype: DType | None = None,
    scale: Numbers | None = None,
) -> Array:
    """Return points drawn uniformly from the Lp ball, one for each example.

    Let G_i be Gamma distributed with shape 1 + 1/p, U_i uniform in (-1, 1), and E exponential. Then
    g_i = G_i^(1/p) U_i has the density exp(-|g|^p) up to a constant, and::

        sigma * g / (sum_i |g_i|^p + E) ** (1/p)

    is uniform in the ball; at p = inf it is sigma * U. With `scale` the result is scale times this and
    uniform in ||eps / scale||_p <= sigma; entries of scale zero are zero and left out of the sum.

    Parameters
    ----------
    shape
        The shape of the result; its first `batch_ndim` axes index examples.
    p, sigma, batch_ndim
        As in `lpfamily.epsilon`.
    rng
        A `numpy.random.Generator`, a `torch.Generator` or a JAX key. It decides the library of the result,
        and for torch the device. A generator advances with each call; a key gives the same points again, and
        may be traced. The graphs of torch.compile cannot contain generators, so they break here.
    dtype
        A floating dtype of that library; None means the library's default.
    scale
        As in `lpfamily.epsilon`, broadcastable to `shape`.

    Returns
    -------
    Array
        Of rng's library and of `shape`. Half precision is drawn in float32.

    Raises
    ------
    TypeError, ValueError
        If rng is neither a generator nor a key, and as in `lpfamily.epsilon`.

    References
    ----------
    Barthe, Guédon, Mendelson, Naor: A Probabilistic Approach to the Geometry of the l_p^n-Ball, 2005.
    """
    p = check_p(p)
    library = library_of_generator(rng)
    shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(shape)
    if batch_ndim is None:
        batch_ndim = min(1, max(0, len(shape) - 1))
    if batch_ndim not in range(len(shape) + 1):
        raise ValueError(f"batch_ndim must lie in 0..{len(shape)}, the axes of shape; got {batch_ndim}")
    batch = shape[:batch_ndim]
    rows = (*batch, math.prod(shape[batch_ndim:]))
    uniform, gamma, exponential = library.variates(rng, rows, 1 + 1 / p, dtype)
    xp = namespace_of(uniform)
    u = xp.abs(uniform)
    radius, cost = floating(uniform, "rng").radius(sigma), gamma * u**p
    if scale is not None:
        given: Given[Array] = Given(xp, reshape(uniform, shape), uniform, None)
        radius, scale = radius_and_scale(given, radius, scale)
        radius, cost = radius * scale, xp.where(scale > 0, cost, 0.0)
    total = xp.sum(cost, axis=-1, keepdims=True) + exponential
    points = radius * (xp.copysign(gamma ** (1 / p) * u, uniform) / total ** (1 / p))
    points = reshape(points, shape)
    points = points if dtype is None else xp.astype(points, dtype, copy=False)
    if not xp.isdtype(points.dtype, "real floating"):
        raise TypeError(f"dtype must be a real floating one; got {points.dtype}")
    return points
