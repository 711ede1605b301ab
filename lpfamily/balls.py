"""The Lp ball itself: its nearest point to any other, and points drawn uniformly from it.

The nearest point y to v in ||y||_p <= sigma has, for some mu >= 0 (stationarity of the Lagrangian),

    |y| + mu * |y| ** (p - 1) = |v|,

or y = v if that is in the ball. p = inf clips, p = 2 scales, p = 1 takes the same from every entry. For
other p this is one equation an entry inside one for mu. With v in units of its largest entry, y = sigma z,
tau = sigma / max|v| and nu the multiplier in these units, it reads A + B = r for A = tau z and B = nu
z^(p-1): of r in [0, 1] two shares, which are straight lines in log z. So log z is where the larger share
alone would be r, to within log 2, and Newton's method needs a few steps from there, at any scale; the
outer equation, ||z||_p = 1, is kept between bounds. Scaling y down, which is often called projection, is
not the nearest point unless p = 2.

Inside a box too, entry i stands at the smaller of z_i and its wall, with the same multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lpfamily._arrays import (
    A,
    Array,
    Bounds,
    DType,
    Numbers,
    check_p,
    examples,
    floating,
    namespace_of,
    reshape,
    sign,
)
from lpfamily.box import box_of, boxed, last_affordable, walls
from lpfamily.kernels import Primitive, detoured, library_of, library_of_generator
from lpfamily.norms import dual_exponent
from lpfamily.steepest import dual_norm, ratio_scale, steepest
from lpfamily.trees import is_tree, over_leaves

MULTIPLIER_STEPS, ENTRY_STEPS = 32, 24
"""Newton's steps at most; 26 and 16 are the most that a test over scales, p and distances needs."""


def project(
    v: A,
    p: float,
    sigma: Numbers,
    *,
    batch_ndim: int | None = None,
    mask: Array | None = None,
    x: Numbers | None = None,
    bounds: Bounds | None = None,
) -> A:
    """Return the point of the Lp ball that is nearest to `v`, in the Euclidean sense, for each example.

    The minimiser of ||y - v||_2 subject to ||y||_p <= sigma: v itself where that is in the ball. p = 1
    lowers every |v_i| by the same, to 0 at most; p = 2 scales; p = inf clips; for any other p a
    safeguarded Newton's method on the multiplier (this module says how). With `x` and `bounds` the
    minimiser subject to low <= x + y <= high as well.

    Up to scale it depends on the direction of v and on sigma / ||v|| alone. Far from the ball it tends
    to `lpfamily.epsilon(v, p, sigma)`, which is the result where v has infinite entries. Its derivative
    is that of the active constraints, and 0 where it has none.

    Parameters
    ----------
    v
        A floating array of any library, or a tree of them as in `lpfamily.epsilon`; the first `batch_ndim`
        axes index examples.
    p, sigma, batch_ndim, mask, x, bounds
        As in `lpfamily.epsilon`: where the mask is False the result is zero, and x may be anything.

    Returns
    -------
    Array
        Of v's namespace, shape, dtype and device, or a tree like v. A NaN makes its example NaN; at p = inf
        without a box, where coordinates do not depend on each other, its entry.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`.

    References
    ----------
    Duchi, Shalev-Shwartz, Singer, Chandra: Efficient Projections onto the l1-Ball, 2008, for p = 1.
    """
    p = check_p(p)
    if is_tree(v):
        within = "v", v, sigma, batch_ndim, mask, box_of(x, bounds)
        made: A = over_leaves(lambda rows, sigma, **ball: project(rows, p, sigma, **ball), *within)
        return made

    def point(v: A, sigma: Numbers, mask: Array | None, *box: Numbers) -> A:
        given = examples(v, "v", batch_ndim, mask)
        operands = [given.values, given.radius(sigma)]
        if box:
            operands.append(walls(given, *box))
        return given.shaped(nearest(p, *operands))

    return detoured(point, "v", v, sigma, mask, *box_of(x, bounds))


def sample(
    shape: int | Sequence[int],
    p: float,
    sigma: Numbers,
    rng: Any,
    *,
    batch_ndim: int | None = None,
    dtype: DType | None = None,
) -> Array:
    """Return points drawn uniformly from the Lp ball, one for each example.

    With G_i of the Gamma distribution of shape 1 + 1/p, U_i uniform in (-1, 1), and E exponential,
    g_i = G_i^(1/p) U_i has the density exp(-|g|^p) up to a constant, and::

        sigma * g / (sum_i |g_i|^p + E) ** (1/p)

    is uniform in the ball; at p = inf it is sigma * U.

    Parameters
    ----------
    shape
        Of the result; its first `batch_ndim` axes index examples.
    p, sigma, batch_ndim
        As in `lpfamily.epsilon`.
    rng
        A `numpy.random.Generator`, a `torch.Generator` or a JAX key: it decides the library of the
        result, and with torch its device. A generator moves on; a key gives the same points again,
        and may be traced. torch.compile has no generators in its graphs, so it breaks there.
    dtype
        A floating dtype of that library; None means its default.

    Returns
    -------
    Array
        Of that library and of `shape`. Half precision is drawn in float32.

    Raises
    ------
    TypeError, ValueError
        If rng is none of the three, and as in `lpfamily.epsilon`.

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
    total = xp.sum(gamma * u**p, axis=-1, keepdims=True) + exponential
    points = floating(uniform, "rng").radius(sigma) * (
        xp.copysign(gamma ** (1 / p) * u, uniform) / total ** (1 / p)
    )
    points = reshape(points, shape)
    points = points if dtype is None else xp.astype(points, dtype, copy=False)
    if not xp.isdtype(points.dtype, "real floating"):
        raise TypeError(f"dtype must be a real floating one; got {points.dtype}")
    return points


# The definition. `v` and `wall` hold examples as rows, (..., d); `sigma` is (..., 1).


def _nearest(p: float, v: Array, sigma: Array, wall: Array | None = None) -> Array:
    xp = namespace_of(v)
    if v.shape[-1] == 0:
        return v
    size = xp.abs(v)
    if wall is not None:
        size = xp.where((wall == 0) & (size == size), 0.0, size)  # what cannot move sets no scale
    within = size if wall is None else xp.minimum(size, wall)
    if p > 2.0**60:  # where the norm is the largest entry, to rounding
        bad = sigma != sigma
        if wall is not None or p < math.inf:
            bad = bad | _any_nan(xp, within)
        return xp.where(bad, math.nan, xp.copysign(xp.minimum(within, sigma), v))
    norm = dual_norm(dual_exponent(p), within, xp.ones_like(sigma))[..., None]
    outside = norm > sigma
    top = xp.max(size, axis=-1, keepdims=True)
    if p == 2 and wall is None:
        y = xp.abs(steepest.value(p, v, sigma))
    elif p - 1 < float(xp.finfo(v.dtype).eps) / 2:
        y = _level(xp, size, sigma, wall)
    else:
        finite, scale = top < math.inf, ratio_scale(xp, top)
        unit = xp.where((top > 0) & finite, top * scale, 1.0)
        r = xp.where(finite, size * scale / unit, xp.astype(size == top, v.dtype))
        tau = xp.where(outside & finite, sigma * scale / unit, 0.0)
        share = None
        if wall is not None:  # a wall that the whole budget cannot pass is none
            share = xp.where(wall < sigma, wall / xp.where(sigma > 0, sigma, 1.0), math.inf)
        y = _shares(xp, p, r, tau, share)
        y = sigma * y if share is None else xp.where(y < share, xp.minimum(sigma * y, within), within)
    y = xp.where(outside, xp.copysign(y, v), xp.copysign(within, v))
    return xp.where((norm != norm) | (sigma != sigma), math.nan, y)


def _any_nan(xp: ModuleType, x: Array) -> Array:
    return xp.any(x != x, axis=-1, keepdims=True)


def _level(xp: ModuleType, size: Array, sigma: Array, wall: Array | None) -> Array:
    """Return |y| at p = 1: what fills a vessel of bottom -|v| up to one level, with sigma, walls on top.

    Depths are differences from the largest entry, which are exact next to it. Far from the ball entries
    at their walls are far above the level, so that the search is done again with what they leave.
    """
    free, left = size > 0, sigma
    for last in (True,) if wall is None else (False, False, True):
        reach = xp.where(free, size, 0.0)
        top = xp.max(reach, axis=-1, keepdims=True)
        finite, scale = top < math.inf, ratio_scale(xp, top)
        unit = xp.where((top > 0) & finite, top * scale, 1.0)
        low = xp.where(finite, (unit - reach * scale) / unit, xp.astype(reach < top, size.dtype))
        low = xp.where(free, low, math.inf)
        budget = xp.where(finite, left * scale / unit, 0.0)
        # differences are multiples of their rounding: less depth than this makes none
        budget = xp.maximum(budget, xp.full_like(budget, float(xp.finfo(size.dtype).eps) ** 4))
        # with nothing left no entry rises to its wall
        some, unit = left > 0, xp.where(left > 0, left, 1.0)
        cap = math.inf if wall is None else xp.where(some, budget * (wall / unit), math.inf)
        full = low + cap

        def filled(level: Array, low: Array = low, cap: Any = cap, full: Array = full) -> Array:
            depth = xp.where(level > low, level - low, 0.0)
            return depth if wall is None else xp.where(full <= level, cap, xp.minimum(depth, cap))

        def spent(level: Array, filled: Callable[[Array], Array] = filled) -> Array:
            return xp.sum(filled(level), axis=-1, keepdims=True)

        turns = low if wall is None else xp.concat([low, full], axis=-1)
        turn = last_affordable(xp, xp.sort(turns, axis=-1), spent, budget)
        if not last:
            free = free & ~(full <= turn)
            left = xp.maximum(
                sigma - xp.sum(xp.where((size > 0) & ~free, wall, 0.0), axis=-1, keepdims=True),
                xp.zeros_like(sigma),
            )
    at_wall = free & (full <= turn)
    rising = free & (low <= turn) & ~at_wall
    count = xp.sum(xp.astype(rising, size.dtype), axis=-1, keepdims=True)
    if wall is not None:
        budget = budget - xp.sum(xp.where(at_wall, cap, 0.0), axis=-1, keepdims=True)
        left = left - xp.sum(xp.where(at_wall, wall, 0.0), axis=-1, keepdims=True)
    rest = budget + xp.sum(xp.where(rising, low, 0.0), axis=-1, keepdims=True)
    depth = xp.where(rising, filled(rest / xp.where(count > 0, count, 1.0)), 0.0)
    total = xp.sum(depth, axis=-1, keepdims=True)
    y = depth / xp.where(total > 0, total, 1.0) * xp.maximum(left, xp.zeros_like(left))
    if wall is None:
        return y
    stands = (size > 0) & (at_wall | ~free)
    return xp.minimum(xp.where(stands, wall, xp.minimum(y, wall)), sigma)


def _shares(xp: ModuleType, p: float, r: Array, tau: Array, share: Array | None) -> Array:
    """Return z, at most its wall's `share`, with tau z + nu z^(p-1) = r where it is less, and ||z||_p = 1."""
    repeat = library_of(r).repeat
    positive = r > 0
    log_r, log_tau = xp.log(xp.where(positive, r, 1.0)), xp.log(tau)
    least, rounding = float(xp.finfo(r.dtype).smallest_normal), 16 * float(xp.finfo(r.dtype).eps)

    def entries(nu: Array) -> Array:
        log_nu = xp.log(nu)

        def step(w: Array) -> tuple[Array]:
            return (_nearer(xp, p, w, log_r, log_tau + w, log_nu + (p - 1) * w),)

        # not less than the solution, and neither share alone is more than r
        start = xp.minimum(log_r - log_tau, (log_r - log_nu) / (p - 1))
        (w,) = repeat(step, (start,), ENTRY_STEPS)
        return xp.where(positive, xp.exp(w), 0.0)

    def step(nu: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
        z = entries(nu)
        free = positive if share is None else positive & (z < share)
        z = z if share is None else xp.minimum(z, share)
        power = z**p
        total = xp.sum(power, axis=-1, keepdims=True)
        norm = total ** (1 / p)
        # -d log ||z|| / d log nu: a free entry's is B / (A + (p - 1) B)
        a = tau * z / xp.where(positive, r, 1.0)
        slope = xp.where(free, power * ((1 - a) / (a + (p - 1) * (1 - a))), 0.0)
        slope = xp.sum(slope, axis=-1, keepdims=True) / xp.where(total > 0, total, 1.0)
        above = norm > 1 + rounding
        low, high = xp.where(above, nu, low), xp.where(above, high, nu)
        # 1 / ||z|| is nearly straight in nu for a large p, ||z|| for a small one, and log ||z|| in log nu far
        # from the ball
        straight = nu * (1 + (norm - 1 if p > 1.4 else 1 - 1 / norm) / slope)
        new = xp.where((straight > low) & (straight < high), straight, nu * norm ** (1 / slope))
        floor = xp.maximum(low, xp.full_like(low, least))  # 0 would stay 0
        new = xp.where((new >= floor) & (new <= high), new, xp.sqrt(floor * high))
        return xp.where(xp.abs(norm - 1) <= rounding, nu, new), low, high

    # what nu is far from the ball, where tau is 0, and z the steepest step
    if share is None:
        high = dual_norm(p, r, xp.ones_like(tau))[..., None]
    else:
        far = boxed(p, r, xp.ones_like(tau), share)
        free = positive & (far < share) & (far > 0)
        log_high = xp.where(free, log_r - (p - 1) * xp.log(xp.where(free, far, 1.0)), -math.inf)
        high = xp.exp(xp.max(log_high, axis=-1, keepdims=True))
    _, _, nu = repeat(step, (high, xp.zeros_like(high), high), MULTIPLIER_STEPS)
    z = entries(nu)
    # the rounding of nu, which 1 / (p - 1) magnifies, is common to the free entries
    free = positive if share is None else positive & (z < share)
    held = 0.0 if share is None else xp.sum(xp.where(positive & ~free, share**p, 0.0), axis=-1, keepdims=True)
    spent = xp.sum(xp.where(free, z**p, 0.0), axis=-1, keepdims=True)
    left = xp.maximum(1 - held * xp.ones_like(spent), xp.zeros_like(spent))
    z = z * (left / xp.where(spent > 0, spent, 1.0)) ** (1 / p)
    return z if share is None else xp.where(free, z, xp.where(positive, share, 0.0))


def _nearer(xp: ModuleType, p: float, w: Array, log_r: Array, log_a: Array, log_b: Array) -> Array:
    """Return an upper bound of log z that is nearer to it, from one, w, at which the shares are a and b.

    log(a + b) is convex in w: Newton's method for log(a + b) = log r descends to the solution, but slowly
    where the flatter share fills r nearly. There log a = log(r - b), for a the steeper one, is convex too.
    """
    larger = xp.maximum(log_a, log_b)
    log_sum = larger + xp.log1p(xp.exp(xp.minimum(log_a, log_b) - larger))
    part = xp.exp(log_a - log_sum)
    new = w - (log_sum - log_r) / (part + (p - 1) * (1 - part))
    (steep, n), (flat, m) = sorted([(log_a, 1.0), (log_b, p - 1)], key=lambda share: -share[1])
    fills = xp.exp(flat - log_r)
    apart = fills < 0.999
    fills = xp.where(apart, fills, 0.5)
    excess = steep - log_r - xp.log1p(-fills)
    other = w - excess / (n + m * fills / (1 - fills))
    return xp.minimum(w, xp.where(apart, xp.minimum(new, other), new))


# The derivatives. With c = z^(p-1), the gradient of the constraint up to a factor, and D = A / (A + (p-1) B)
# on the free entries, moving v by dv, the radius by dsigma and the walls that hold by dwall moves y by
# D (dv - c k), k such that c'dy over the free entries is dsigma - c'dwall over the others.


def _parts(p: float, operands: tuple[Array, ...]) -> tuple[Array, Array, Array, Array, Array]:
    """Return the signs of v, which rows are outside the ball, D, c and which entries stand at walls."""
    v, sigma, *wall = operands
    xp = namespace_of(v)
    y = nearest(p, *operands)
    size, kept = xp.abs(v), xp.abs(y)
    at_wall = (kept == wall[0]) & (size >= kept) if wall else xp.zeros_like(v) != 0
    lost = xp.where(at_wall, 0.0, size - kept)
    outside = xp.any(lost > 0, axis=-1, keepdims=True)
    unit = xp.where(sigma > 0, sigma, 1.0)
    if p > 2.0**60:
        follows = xp.astype((lost == 0) & ~at_wall, v.dtype)
        return sign(v), outside, follows, xp.astype(lost > 0, v.dtype), at_wall
    total = kept + (p - 1) * lost
    d = xp.where(total > 0, kept / xp.where(total > 0, total, 1.0), 1.0 if p > 2 else 0.0)
    if p == 2:  # alike, also where v is 0
        d = xp.where(size > 0, d, xp.max(xp.where(at_wall, 0.0, d), axis=-1, keepdims=True))
    d = xp.where(at_wall, 0.0, xp.where(outside, d, 1.0))
    c = xp.where(kept > 0, (kept / unit) ** (p - 1), 0.0)
    return sign(v), outside, d, c, at_wall


def _apply(p: float, operands: tuple[Array, ...], v: Array) -> tuple[Array, ...]:
    """Return M v for the symmetric M = dy/dv, and what depends on the radius and the walls."""
    xp = namespace_of(v)
    signs, outside, d, c, at_wall = _parts(p, operands)
    if p > 2.0**60:
        return d * v, signs * c, xp.zeros_like(v), at_wall
    normal = signs * c * d
    length = xp.sum(signs * c * normal, axis=-1, keepdims=True)
    some = outside & (length > 0)
    length = xp.where(some, length, 1.0)
    along = xp.where(some, xp.sum(normal * v, axis=-1, keepdims=True) / length, 0.0)
    return d * v - normal * along, xp.where(some, normal / length, 0.0), c, at_wall


def _nearest_jvp(p: float, operands: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    xp = namespace_of(operands[0])
    dv, dsigma, *dwall = tangents
    moved, by_radius, c, at_wall = _apply(p, operands, dv)
    if not dwall:
        return moved + by_radius * dsigma
    moved = xp.where(at_wall, sign(operands[0]) * dwall[0], moved)
    spent = xp.sum(xp.where(at_wall, c * dwall[0], 0.0), axis=-1, keepdims=True)
    return moved + by_radius * (dsigma - spent)


def _nearest_vjp(p: float, operands: tuple[Array, ...], u: Array) -> tuple[Array, ...]:
    xp = namespace_of(u)
    moved, by_radius, c, at_wall = _apply(p, operands, u)
    dsigma = xp.sum(by_radius * u, axis=-1, keepdims=True)
    if len(operands) == 2:
        return moved, dsigma
    return moved, dsigma, xp.where(at_wall, sign(operands[0]) * u - c * dsigma, 0.0)


nearest = Primitive("nearest", _nearest, _nearest_jvp, _nearest_vjp, "(n),(1),(n)->(n)", whole=True)
"""nearest(p, v, sigma[, wall]): the projection on examples as rows, `wall` how far each entry may move."""
