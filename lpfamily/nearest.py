"""The nearest point of the Lp ball: unweighted, in a box, and weighted.

The nearest point y to v in ||y||_p <= sigma is v if that is in the ball. Otherwise it satisfies, for some
mu >= 0 (stationarity of the Lagrangian),

    |y| + mu * |y| ** (p - 1) = |v|.

p = inf clips, p = 2 scales, p = 1 subtracts the same from every |v_i|. For other p, this is one equation
per entry, nested in one equation for mu. Measure v in units of its largest entry, with y = sigma z, tau =
sigma / max|v| and nu the multiplier in these units. Then the equation reads A + B = r for A = tau z and B =
nu z^(p-1): two shares of an r in [0, 1], whose logarithms are straight lines in log z. So the log z at which
the larger share alone equals r is right to within log 2, and from there Newton's method needs a few steps,
at any scale. The root of the outer equation, ||z||_p = 1, is kept between two bounds. Scaling v down, which
is often called projection, gives the nearest point only for p = 2.

In a box, entry i is the smaller of z_i and its room, with the same multiplier.

In the ball ||y / scale||_p <= sigma the equation is |y| + mu * |y| ** (p - 1) / scale ** p = |v|. Multiplied
by scale, and with y = scale * u, it reads scale^2 u + mu u^(p-1) = scale |v|: the same two shares, where the
first has a factor per entry. At p = 1 this fills a vessel of width 1 / scale^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from lpfamily._arrays import Array, namespace_of, sign
from lpfamily.box import last_affordable, step_in_box
from lpfamily.libraries import Primitive, library_of
from lpfamily.steepest import dual_exponent, dual_norm, ratio_scale, steepest

MULTIPLIER_STEPS, ENTRY_STEPS = 32, 24
"""Limits on the steps of Newton's method; a test over scales, p and distances needs at most 26 and 16."""


# The definition. `v`, `room` and `scale` hold examples as rows, (..., d); `sigma` is (..., 1).


def _nearest(p: float, v: Array, sigma: Array, room: Array | None = None) -> Array:
    return _definition(p, v, sigma, room, None)


def _weighted(p: float, v: Array, sigma: Array, scale: Array, room: Array | None = None) -> Array:
    if v.shape[-1] == 0:
        return v
    xp = namespace_of(v)
    most = xp.max(scale, axis=-1, keepdims=True)
    scale = scale / xp.where(most > 0, most, 1.0)
    # a scale whose square underflows adds nothing to a distance: its entry stays
    scale = xp.where(scale * scale >= float(xp.finfo(v.dtype).smallest_normal), scale, 0.0)
    return _definition(p, v, sigma * most, room, scale)


def _definition(p: float, v: Array, sigma: Array, room: Array | None, weights: Array | None) -> Array:
    xp = namespace_of(v)
    if v.shape[-1] == 0:
        return v
    size = xp.abs(v)
    if room is not None:
        size = xp.where((room == 0) & (size == size), 0.0, size)  # entries without room set no scale
    if weights is not None:
        size = xp.where((weights == 0) & (size == size), 0.0, size)
    within = size if room is None else xp.minimum(size, room)
    reach = sigma if weights is None else sigma * weights  # of an entry with the whole budget
    if p > 2.0**60:  # then the norm is the largest entry, to rounding
        bad = sigma != sigma
        if room is not None or p < math.inf:
            bad = bad | _any_nan(xp, within)
        return xp.where(bad, math.nan, xp.copysign(xp.minimum(within, sigma), v))
    used, pull = within, size
    if weights is not None:
        used = xp.where(weights > 0, within / xp.where(weights > 0, weights, 1.0), within)
        pull = size * weights
    norm = dual_norm(dual_exponent(p), used, xp.ones_like(sigma))[..., None]
    outside = norm > sigma
    if p == 2 and room is None and weights is None:
        y = xp.abs(steepest.value(p, v, sigma))
    elif p - 1 < float(xp.finfo(v.dtype).eps) / 2:
        y = _level(xp, size, sigma, room, weights)
    else:
        top = xp.max(pull, axis=-1, keepdims=True)
        finite, scale = top < math.inf, ratio_scale(xp, top)
        unit = xp.where((top > 0) & finite, top * scale, 1.0)
        r = xp.where(finite, pull * scale / unit, xp.astype(pull == top, v.dtype))
        tau = xp.where(outside & finite, sigma * scale / unit, 0.0)
        tau = tau if weights is None else tau * weights * weights
        share = None
        if room is not None:  # a bound beyond the reach of the whole budget does not count
            share = xp.where(room < reach, room / xp.where(reach > 0, reach, 1.0), math.inf)
        y = _shares(xp, p, r, tau, share)
        y = reach * y if share is None else xp.where(y < share, xp.minimum(reach * y, within), within)
    y = xp.where(outside, xp.copysign(y, v), xp.copysign(within, v))
    return xp.where((norm != norm) | (sigma != sigma), math.nan, y)


def _any_nan(xp: ModuleType, x: Array) -> Array:
    return xp.any(x != x, axis=-1, keepdims=True)


def _level(xp: ModuleType, size: Array, sigma: Array, room: Array | None, weights: Array | None) -> Array:
    """Return |y| at p = 1: the depths when the volume sigma fills a vessel with bottom -|v| to one level.

    The room of an entry caps its depth. Depths are differences from the largest entry, which are exact near
    it. Far from the ball, entries at their bounds are far above the level, so the search is repeated with
    the budget that they leave. In a weighted ball the bottom is -scale |v|, the width 1 / scale^2, and |y|
    is depth / scale.
    """
    pull, weight, width = size, 1.0, 1.0
    if weights is not None:
        weight = xp.where(weights > 0, weights, 1.0)
        pull, width = size * weights, 1 / (weight * weight)
    units = None if room is None else room / weight
    free, left = pull > 0, sigma
    for last in (True,) if room is None else (False, False, True):
        reach = xp.where(free, pull, 0.0)
        top = xp.max(reach, axis=-1, keepdims=True)
        finite, scale = top < math.inf, ratio_scale(xp, top)
        unit = xp.where((top > 0) & finite, top * scale, 1.0)
        low = xp.where(finite, (unit - reach * scale) / unit, xp.astype(reach < top, size.dtype))
        low = xp.where(free, low, math.inf)
        budget = xp.where(finite, left * scale / unit, 0.0)
        # differences are multiples of their rounding unit: a smaller depth than this would change none
        budget = xp.maximum(budget, xp.full_like(budget, float(xp.finfo(size.dtype).eps) ** 4))
        # with no budget left, no entry reaches its bound
        some, unit = left > 0, xp.where(left > 0, left, 1.0)
        cap = math.inf if room is None else xp.where(some, budget * (room * weight / unit), math.inf)
        full = low + cap

        def filled(level: Array, low: Array = low, cap: Any = cap, full: Array = full) -> Array:
            depth = xp.where(level > low, level - low, 0.0)
            return depth if room is None else xp.where(full <= level, cap, xp.minimum(depth, cap))

        def spent(level: Array, filled: Callable[[Array], Array] = filled) -> Array:
            return xp.sum(width * filled(level), axis=-1, keepdims=True)

        turns = low if room is None else xp.concat([low, full], axis=-1)
        turn = last_affordable(xp, xp.sort(turns, axis=-1), spent, budget)
        if not last:
            free = free & ~(full <= turn)
            left = xp.maximum(
                sigma - xp.sum(xp.where((pull > 0) & ~free, units, 0.0), axis=-1, keepdims=True),
                xp.zeros_like(sigma),
            )
    at_bound = free & (full <= turn)
    rising = free & (low <= turn) & ~at_bound
    wide = xp.sum(width * xp.astype(rising, size.dtype), axis=-1, keepdims=True)
    if room is not None:
        budget = budget - xp.sum(xp.where(at_bound, width * cap, 0.0), axis=-1, keepdims=True)
        left = left - xp.sum(xp.where(at_bound, units, 0.0), axis=-1, keepdims=True)
    rest = budget + xp.sum(xp.where(rising, width * low, 0.0), axis=-1, keepdims=True)
    depth = xp.where(rising, filled(rest / xp.where(wide > 0, wide, 1.0)), 0.0)
    total = xp.sum(width * depth, axis=-1, keepdims=True)
    y = depth / weight / xp.where(total > 0, total, 1.0) * xp.maximum(left, xp.zeros_like(left))
    if room is None:
        return y
    stands = (pull > 0) & (at_bound | ~free)
    return xp.minimum(xp.where(stands, room, xp.minimum(y, room)), sigma * weight)


def _shares(xp: ModuleType, p: float, r: Array, tau: Array, share: Array | None) -> Array:
    """Return z <= share, with tau z + nu z^(p-1) = r where z < share, and ||z||_p = 1.

    `share` is the room of each entry in units of its reach, infinite without a bound.
    """
    repeat = library_of(r).repeat
    positive = r > 0
    log_r, log_tau = xp.log(xp.where(positive, r, 1.0)), xp.log(tau)
    least, rounding = float(xp.finfo(r.dtype).smallest_normal), 16 * float(xp.finfo(r.dtype).eps)

    def entries(nu: Array) -> Array:
        if p in (1.5, 2, 3):
            return xp.where(positive, _solution(xp, p, r, tau, nu), 0.0)
        log_nu = xp.log(nu)

        def step(w: Array) -> tuple[Array]:
            return (_nearer(xp, p, w, log_r, log_tau + w, log_nu + (p - 1) * w),)

        # an upper bound of the solution: neither share alone exceeds r
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
        # -d log ||z|| / d log nu; the term of a free entry is B / (A + (p - 1) B)
        a = tau * z / xp.where(positive, r, 1.0)
        slope = xp.where(free, power * ((1 - a) / (a + (p - 1) * (1 - a))), 0.0)
        slope = xp.sum(slope, axis=-1, keepdims=True) / xp.where(total > 0, total, 1.0)
        above = norm > 1 + rounding
        low, high = xp.where(above, nu, low), xp.where(above, high, nu)
        # 1 / ||z|| is nearly linear in nu for large p, ||z|| for small p; far from the ball log ||z|| is
        # nearly linear in log nu
        straight = nu * (1 + (norm - 1 if p > 1.4 else 1 - 1 / norm) / slope)
        new = xp.where((straight > low) & (straight < high), straight, nu * norm ** (1 / slope))
        floor = xp.maximum(low, xp.full_like(low, least))  # the geometric mean with 0 would stay 0
        new = xp.where((new >= floor) & (new <= high), new, xp.sqrt(floor * high))
        return xp.where(xp.abs(norm - 1) <= rounding, nu, new), low, high

    # an upper bound of nu: its value far from the ball, where tau is 0 and z is the steepest step
    one = xp.ones_like(r[..., :1])  # tau has a column for each entry in a weighted ball
    if share is None:
        high = dual_norm(p, r, one)[..., None]
    else:
        far = step_in_box(p, r, one, share)
        free = positive & (far < share) & (far > 0)
        log_high = xp.where(free, log_r - (p - 1) * xp.log(xp.where(free, far, 1.0)), -math.inf)
        high = xp.exp(xp.max(log_high, axis=-1, keepdims=True))
    _, _, nu = repeat(step, (high, xp.zeros_like(high), high), MULTIPLIER_STEPS)
    z = entries(nu)
    # 1 / (p - 1) magnifies the rounding error of nu, which multiplies all free entries by one factor: undo it
    free = positive if share is None else positive & (z < share)
    paid = 0.0 if share is None else xp.sum(xp.where(positive & ~free, share**p, 0.0), axis=-1, keepdims=True)
    spent = xp.sum(xp.where(free, z**p, 0.0), axis=-1, keepdims=True)
    left = xp.maximum(1 - paid * xp.ones_like(spent), xp.zeros_like(spent))
    z = z * (left / xp.where(spent > 0, spent, 1.0)) ** (1 / p)
    return z if share is None else xp.where(free, z, xp.where(positive, share, 0.0))


def _solution(xp: ModuleType, p: float, r: Array, tau: Array, nu: Array) -> Array:
    """Return the z with tau z + nu z^(p-1) = r, for p = 1.5, 2 or 3: the equation is linear or quadratic."""
    if p == 2:
        return r / (tau + nu)
    linear, square = (tau, nu) if p == 3 else (nu, tau)  # for p = 1.5 the unknown is the square root of z
    half = 2 * xp.sqrt(square) * xp.sqrt(r)
    larger = xp.maximum(linear, half)
    ratio = xp.minimum(linear, half) / xp.where(larger > 0, larger, 1.0)
    root = 2 * r / (linear + larger * xp.sqrt(1 + ratio * ratio))
    return root if p == 3 else root * root


def _nearer(xp: ModuleType, p: float, w: Array, log_r: Array, log_a: Array, log_b: Array) -> Array:
    """Return a closer upper bound of log z than w, at which the shares are a and b.

    log(a + b) is convex in w, so Newton's method for log(a + b) = log r descends to the solution. It is slow
    where the flatter share b nearly equals r. There the form log a = log(r - b) is convex too, and faster.
    """
    larger = xp.maximum(log_a, log_b)
    log_sum = larger + xp.log1p(xp.exp(xp.minimum(log_a, log_b) - larger))
    fraction = xp.exp(log_a - log_sum)
    new = w - (log_sum - log_r) / (fraction + (p - 1) * (1 - fraction))
    (steep, n), (flat, m) = sorted([(log_a, 1.0), (log_b, p - 1)], key=lambda share: -share[1])
    fills = xp.exp(flat - log_r)
    apart = fills < 0.999
    fills = xp.where(apart, fills, 0.5)
    excess = steep - log_r - xp.log1p(-fills)
    other = w - excess / (n + m * fills / (1 - fills))
    return xp.minimum(w, xp.where(apart, xp.minimum(new, other), new))


# The derivatives. Let c = (y / scale)^(p-1) / scale, the gradient of the constraint up to a factor, and
# D = A / (A + (p-1) B) on the free entries. Let v change by dv, the radius by dsigma, the scale by ds, and
# the room of entries at their bounds by droom. Then free entries of y change by
# D (dv + p B ds / scale - c k), where k makes c'dy, over the free entries, equal to dsigma +
# c'(y ds / scale), over all entries, minus c'droom, over the entries at their bounds.


Ball = tuple[Array, Array, Array | None, Array | None]
"""v, sigma, scale and room, or their tangents."""


def _unweighted_ball(operands: tuple[Array, ...]) -> Ball:
    v, sigma, *room = operands
    return v, sigma, None, room[0] if room else None


def _weighted_ball(operands: tuple[Array, ...]) -> Ball:
    v, sigma, scale, *room = operands
    return v, sigma, scale, room[0] if room else None


def _terms(p: float, y: Array, ball: Ball) -> tuple[Array, Array, Array, Array, Array]:
    """Return the rows outside the ball, D, c, the entries at their bounds, and B."""
    v, sigma, scale, room = ball
    xp = namespace_of(v)
    size, kept = xp.abs(v), xp.abs(y)
    at_bound = xp.zeros_like(v) != 0 if room is None else (kept == room) & (size >= kept)
    lost = xp.where(at_bound, 0.0, size - kept)
    outside = xp.any(lost > 0, axis=-1, keepdims=True)
    if p > 2.0**60:
        follows = xp.astype((lost == 0) & ~at_bound, v.dtype)
        return outside, follows, xp.astype(lost > 0, v.dtype), at_bound, lost
    total = kept + (p - 1) * lost
    d = xp.where(total > 0, kept / xp.where(total > 0, total, 1.0), 1.0 if p > 2 else 0.0)
    if p == 2 and scale is None:  # D is the same for all free entries, also where v is 0
        d = xp.where(size > 0, d, xp.max(xp.where(at_bound, 0.0, d), axis=-1, keepdims=True))
    d = xp.where(at_bound, 0.0, xp.where(outside, d, 1.0))
    weight = 1.0 if scale is None else xp.where(scale > 0, scale, 1.0)
    c = (kept / (weight * xp.where(sigma > 0, sigma, 1.0))) ** (p - 1) / weight
    return outside, d, xp.where(kept > 0, c, 0.0), at_bound, lost


def _apply(p: float, v: Array, signs: Array, outside: Array, d: Array, c: Array) -> tuple[Array, Array]:
    """Return M v for the symmetric M = dy/dv, and dy/dsigma."""
    xp = namespace_of(v)
    if p > 2.0**60:
        return d * v, signs * c
    normal = signs * c * d
    length = xp.sum(signs * c * normal, axis=-1, keepdims=True)
    some = outside & (length > 0)
    length = xp.where(some, length, 1.0)
    along = xp.where(some, xp.sum(normal * v, axis=-1, keepdims=True) / length, 0.0)
    return d * v - normal * along, xp.where(some, normal / length, 0.0)


def _jvp(
    ball_of: Callable[[tuple[Array, ...]], Ball],
    p: float,
    operands: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> Array:
    ball = v, _, scale, _ = ball_of(operands)
    dv, dsigma, dscale, droom = ball_of(tangents)
    xp, signs = namespace_of(v), sign(v)
    y = (nearest if scale is None else weighted_nearest)(p, *operands)
    outside, d, c, at_bound, lost = _terms(p, y, ball)
    if scale is not None:
        change = xp.where(scale > 0, dscale / xp.where(scale > 0, scale, 1.0), 0.0)
        dv = dv + signs * p * lost * change
        dsigma = dsigma + xp.sum(c * xp.abs(y) * change, axis=-1, keepdims=True)
    if droom is not None:
        dsigma = dsigma - xp.sum(xp.where(at_bound, c * droom, 0.0), axis=-1, keepdims=True)
    moved, by_radius = _apply(p, dv, signs, outside, d, c)
    moved = moved + by_radius * dsigma
    return moved if droom is None else xp.where(at_bound, signs * droom, moved)


def _vjp(
    ball_of: Callable[[tuple[Array, ...]], Ball], p: float, operands: tuple[Array, ...], u: Array
) -> tuple[Array, ...]:
    ball = v, _, scale, room = ball_of(operands)
    xp, signs = namespace_of(v), sign(v)
    y = (nearest if scale is None else weighted_nearest)(p, *operands)
    outside, d, c, at_bound, lost = _terms(p, y, ball)
    moved, by_radius = _apply(p, u, signs, outside, d, c)
    dsigma = xp.sum(by_radius * u, axis=-1, keepdims=True)
    cotangents = [moved, dsigma]
    if scale is not None:
        change = signs * p * lost * moved + c * xp.abs(y) * dsigma
        cotangents.append(xp.where(scale > 0, change / xp.where(scale > 0, scale, 1.0), 0.0))
    if room is not None:
        cotangents.append(xp.where(at_bound, signs * u - c * dsigma, 0.0))
    return tuple(cotangents)


nearest = Primitive(
    "nearest",
    _nearest,
    partial(_jvp, _unweighted_ball),
    partial(_vjp, _unweighted_ball),
    "(n),(1),(n)->(n)",
    whole=True,
)
"""nearest(p, v, sigma[, room]): the projection on examples as rows; `room` is how far entries may move."""

weighted_nearest = Primitive(
    "weighted_nearest",
    _weighted,
    partial(_jvp, _weighted_ball),
    partial(_vjp, _weighted_ball),
    "(n),(1),(n),(n)->(n)",
    whole=True,
)
"""weighted_nearest(p, v, sigma, scale[, room]): projection onto ||y / scale||_p <= sigma, p up to 2^60."""
