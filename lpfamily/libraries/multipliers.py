"""NumPy's step in a box and nearest point, for one block of rows at a time.

Each row has one multiplier, which Newton's method finds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lpfamily.box import step_in_box
from lpfamily.libraries import Primitive
from lpfamily.libraries.largest_first import fill_largest_first
from lpfamily.libraries.powers import fastest_power
from lpfamily.libraries.rows import (
    Floats,
    Mask,
    column,
    ones_like,
    rough_dots,
    row_blocks,
    scratch,
    share_out,
    sizes,
    within,
)
from lpfamily.nearest import nearest

STEPS = 32
"""Maximum number of steps of Newton's method; rows that have not converged go to the definition."""

ROUNDINGS = 4
"""How far the cost may miss the budget, in units in the last place."""

NEWTON_END = 0.25
"""Newton's method stops after a step shorter than NEWTON_END * sqrt(eps): the error left is below eps."""

NEWTON_FROM = 1.05
"""For p between 1 and this, too few entries of a row take part in a step of Newton's method: rows go to the
definition."""

Fill = Callable[..., Mask]
"""fill(*operands, out, space) fills `out`, with `space` as scratch, and returns a mask of the exact rows."""


def step_in_box_rows(p: float, x: Floats, sigma: Floats, room: Floats) -> Floats:
    """Evaluate `step_in_box` on rows."""
    if 1 < p < NEWTON_FROM:
        fill: Fill = _none_exact
    else:
        fill = {1: fill_largest_first, math.inf: _signs}.get(p, functools.partial(_spend, p))
    return fill_blocks(step_in_box, fill, p, x, sigma, room)


def nearest_rows(p: float, v: Floats, sigma: Floats, *room: Floats) -> Floats:
    """Evaluate `nearest` on rows."""
    if p == math.inf and not room:
        result: Floats = np.clip(v, -sigma, sigma)
        return result
    if p > 2.0**60:
        fill: Fill = _clip
    elif p == 2:
        fill = functools.partial(_spend, 2, most=1.0) if room else _shrink
    elif p == 1:
        fill = _lower
    else:
        fill = functools.partial(_share, p) if p >= NEWTON_FROM else _none_exact
    return fill_blocks(nearest, fill, p, v, sigma, *room)


def fill_blocks(primitive: Primitive, fill: Fill, p: float, *operands: Floats) -> Floats:
    """Fill blocks of rows; pass the rows that are not exact to the definition."""
    out = np.empty(operands[0].shape, operands[0].dtype)

    def work(blocks: Sequence[slice]) -> None:
        space = scratch(10, out[blocks[0]])
        for block in blocks:
            rows = [operand[block] for operand in operands]
            valid = fill(*rows, out[block], space[:, : len(rows[0])])
            if not valid.all():
                wrong = ~valid
                out[block][wrong] = primitive.value(p, *(each[wrong] for each in rows))

    share_out(work, row_blocks(out, 1), 4 * out.nbytes)  # a row costs as much as several steepest steps
    return out


def _none_exact(*operands: Floats) -> Mask:
    return np.zeros(len(operands[0]), bool)


def _share(p: float, v: Floats, sigma: Floats, *rest: Any) -> Mask:
    """Fill `out` with the nearest point y: split r = |v| / max|v| into tau z + nu z^(p-1).

    z = |y| / sigma, capped by the room, has norm 1. `lpfamily.nearest` derives this equation.
    """
    *room, out, space = rest
    r, w, t, cap = space[:4]
    info, dtype = np.finfo(v.dtype), v.dtype.type
    radius, top = sigma[:, 0].astype(np.float64), sizes(v, r).astype(np.float64)
    tau = radius / top
    ones = ones_like(v)
    r *= column(1 / top, dtype)
    least = float(info.tiny) ** 0.8
    np.clip(r, dtype(least), dtype(1), out=r)
    np.log(r, out=w)
    np.subtract(w, column(np.log(tau), dtype), out=t)
    if room:
        np.multiply(room[0], column(1 / radius, dtype), out=cap)
        np.log(cap, out=cap)
        np.minimum(t, cap, out=t)
        cap *= dtype(p)
        np.exp(cap, out=cap)
    t *= dtype(p)
    total = rough_dots(np.exp(t, out=t), ones)
    outside: Mask = total > 1
    # entries smaller than `least` times the largest must not matter
    valid: Mask = (tau > least / float(info.eps)) & (tau < math.inf) & ~np.isnan(total)
    rows = np.flatnonzero(outside & valid)
    valid[rows] = _split(p, r, w, tau, cap if room else None, rows, space[4:])
    np.multiply(w, dtype(p), out=t)
    np.exp(t, out=t)
    np.exp(w, out=w)
    spent = rough_dots(t, ones)
    left = 1.0
    if room:
        free = space[4].view(bool)[:, : v.shape[1]]
        spent = rough_dots(t, np.less(t, cap, out=free))
        np.minimum(t, cap, out=t)
        left = np.maximum(1 - (rough_dots(t, ones) - spent), 0)
        # A bound at the distance of the radius does not count. An entry that lies at one all the same uses
        # the whole budget: `left` is only rounding, and the row is not exact.
        valid &= ~outside | (left > 64 * float(info.eps)) | (spent == 0)
    # 1 / (p - 1) magnifies the rounding error of nu, which multiplies all free entries by one factor: undo it
    w *= column(radius * (left / np.where(spent > 0, spent, 1)) ** (1 / p), dtype)
    w[~outside] = math.inf
    np.copyto(out, v)
    within(out, w, t)
    if room:
        within(out, room[0], t)
    return valid


def _split(p: float, r: Floats, w: Floats, tau: Floats, cap: Floats | None, rows: Any, space: Floats) -> Mask:
    """Replace w = log r in these rows by log z, with tau z + nu z^(p-1) = r and sum min(z^p, cap) = 1.

    Newton's method for log nu and all entries at once takes three to six steps of two exponentials each.
    Return a mask of the rows where it has converged.
    """
    dtype, result, place = w.dtype.type, w, rows
    converged = np.zeros(len(w), bool)
    r, w, tau, cap = r[rows], w[rows], tau[rows], None if cap is None else cap[rows]
    ones = ones_like(w)
    square = rough_dots(r, r)
    scale = np.minimum(w.shape[1] ** (0.5 - 1 / p) / np.sqrt(square), 0.99 / tau)
    log_nu = np.log(scale * square * (1 - tau * scale))
    alone = (w - column(log_nu, dtype)) * dtype(1 / (p - 1))
    np.minimum(w - column(np.log(tau), dtype), alone, out=w)
    tolerance = NEWTON_END * float(np.finfo(dtype).eps) ** 0.5
    for _ in range(STEPS):
        a, b, power, t, rest = (each[: len(w)] for each in space[:5])
        free = space[5][: len(w)].view(bool)[:, : w.shape[1]]
        np.exp(w, out=a)
        np.multiply(w, dtype(p - 1), out=b)
        b += column(log_nu, dtype)
        np.exp(b, out=b)
        np.multiply(a, b, out=power)
        power *= column(np.exp(-log_nu), dtype)
        a *= column(tau, dtype)
        np.multiply(b, dtype(p - 1), out=t)
        t += a
        a += b
        b /= t  # minus the slope of log z in log nu
        # half the residual of log(a + b) = log r, roughly, but bounded; then the change of log z for it
        np.add(a, r, out=rest)
        np.divide(a, t, out=t)
        np.subtract(a, r, out=a)
        a /= rest
        largest = 2 * np.maximum(a.max(axis=1), -a.min(axis=1))
        a *= t
        if cap is None:
            total, weight = rough_dots(power, ones[: len(w)]), ones[: len(w)]
        else:
            weight = np.less(power, cap, out=free)
            total = rough_dots(np.minimum(power, cap, out=t), ones[: len(w)])
        asked = 2 * rough_dots(np.multiply(power, a, out=t), weight)
        slope = rough_dots(np.multiply(power, b, out=t), weight)
        change = np.clip((total * np.log(total) / p - asked) / slope, -3, 3)
        a *= dtype(2)
        w -= a
        b *= column(change, dtype)
        w -= b
        log_nu = log_nu + change
        done = np.maximum(largest, np.abs(change)) < tolerance
        going = ~done & np.isfinite(change)
        if not going.all():
            result[place[done]], converged[place[done]] = w[done], True
            if not going.any():
                break
            place, r, w, tau, log_nu = (each[going] for each in (place, r, w, tau, log_nu))
            cap = None if cap is None else cap[going]
    of_rows: Mask = converged[rows]
    return of_rows


def _clip(v: Floats, sigma: Floats, *rest: Any) -> Mask:
    """Fill `out` with v clipped to sigma and to the room, the nearest point for a very large p."""
    *room, out, space = rest
    np.minimum(v, sigma, out=out)
    np.maximum(out, -sigma, out=out)
    if room:
        within(out, room[0], space[0])
    valid: Mask = ~np.isnan(out.max(axis=1))
    return valid


def _shrink(v: Floats, sigma: Floats, out: Floats, space: Floats) -> Mask:
    """Fill `out` with v scaled down to norm sigma, the nearest point at p = 2 without a box."""
    total, info = rough_dots(v, v), np.finfo(v.dtype)
    np.multiply(v, np.minimum(sigma / np.sqrt(total)[:, None], 1).astype(v.dtype), out=out)
    valid: Mask = (total >= float(info.tiny) * 2.0**26) & (total <= float(info.max))
    return valid


def _lower(v: Floats, sigma: Floats, *rest: Any) -> Mask:
    """Lower every |v| by the same amount, down to 0: the nearest point at p = 1."""
    *room, out, space = rest
    size, t, count, mask = space[:4]
    top = sizes(v, size)
    radius = sigma[:, 0].astype(np.float64)
    first, second = _level(size, top, room[0] if room else None, radius, t, count, mask)
    np.subtract(v, np.clip(v, -first, first, out=t), out=out)
    out -= np.clip(out, -second, second, out=t)
    if room:
        within(out, room[0], t)
    valid: Mask = ~np.isnan(second[:, 0])
    return valid


def _level(
    size: Floats, high: Floats, room: Floats | None, sigma: Floats, t: Floats, zero: Floats, mask: Floats
) -> tuple[Floats, Floats]:
    """Return c with sum min(max(size - c, 0), room) = sigma; 0 where the sum is less, NaN if not found.

    c comes in two columns, first + second: differences from first are exact, and second corrects rounding.
    """
    n, d = size.shape
    first, second = np.zeros((n, 1), t.dtype), np.full((n, 1), math.nan, t.dtype)
    rows = np.arange(n)
    free, below = (mask.view(bool)[:, k * d : (k + 1) * d] for k in range(2))
    ones = ones_like(t)
    zero[...] = 0
    tolerance = ROUNDINGS * float(np.finfo(t.dtype).eps)
    at, low, high = np.zeros(n, t.dtype), np.zeros(n), high.astype(np.float64)
    for _ in range(STEPS):
        k = len(rows)
        np.subtract(size, at[:, None], out=t[:k])
        np.greater(t[:k], zero[:k], out=free[:k])
        np.maximum(t[:k], zero[:k], out=t[:k])
        if room is not None:
            np.less(t[:k], room, out=below[:k])
            free[:k] &= below[:k]
            np.minimum(t[:k], room, out=t[:k])
        count = rough_dots(ones[:k], free[:k])
        over = rough_dots(t[:k], ones[:k]) - sigma
        low, high = np.where(over > 0, at, low), np.where(over > 0, high, at)
        change = np.where(count > 0, over / count, 0.0)
        new = np.nextafter((at + change).astype(t.dtype), t.dtype.type(0))
        inside = (at == 0) & (over <= 0)
        last = (new <= at) | (high <= np.nextafter(at, t.dtype.type(math.inf)))
        done = inside | (np.abs(over) <= tolerance * sigma) | ((count > 0) & (over > 0) & last)
        # y is of the size of sigma: subtracting a larger change would leave only rounding
        change = np.where(inside, 0.0, np.where(change > 4 * sigma, math.nan, np.maximum(change, 0)))
        first[rows[done], 0], second[rows[done], 0] = at[done], change[done]
        going = ~done & ~np.isnan(over)
        if not going.any():
            break
        middle = ((low + high) / 2).astype(t.dtype)
        middle = np.where(middle < high, middle, low).astype(t.dtype)
        at = np.where((count > 0) & (new > low) & (new < high), new, middle)
        if not going.all():
            size, rows, at, low, high, sigma = (each[going] for each in (size, rows, at, low, high, sigma))
            room = None if room is None else room[going]
    return first, second


def _signs(x: Floats, sigma: Floats, room: Floats, out: Floats, space: Floats) -> Mask:
    """Fill `out` with sigma * sign(x), clipped to the room: the step in a box at p = inf."""
    info = np.finfo(x.dtype)
    huge = x.dtype.type(2.0 ** (info.maxexp - 1))
    np.multiply(x, huge, out=out)
    least = huge * info.smallest_subnormal
    np.clip(out, -least, least, out=out)
    factor = sigma * (1 / least)
    np.multiply(out, factor, out=out)
    within(out, room, space[0])
    valid: Mask = np.isfinite(factor[:, 0]) & ~np.isnan(room.min(axis=1))
    return valid


def _spend(
    p: float,
    x: Floats,
    sigma: Floats,
    room: Floats,
    out: Floats,
    space: Floats,
    most: float = math.inf,
) -> Mask:
    """Fill `out` with min((s |x|^{p*})^(1/p), room) and the signs of x; s spends sigma^p, or is `most`.

    This is the step in a box for 1 < p < inf. With x = v and s at most 1 it is the nearest point at p = 2.
    """
    t, limits, weights, mask = space[:4]
    free = mask.view(bool)[:, : x.shape[1]]
    power = fastest_power(1 / (p - 1), x.dtype)
    u, unit = power.take(x, out, t)
    np.multiply(u, x, out=weights)
    info = np.finfo(x.dtype)
    ends = float(info.tiny) * 2.0**26, 2.0**40 if p >= 5 else float(info.max) * 2.0**-26
    scale, budget = _room_powers(p, room, sigma[:, 0].astype(np.float64), limits, t)
    s = _multiplier(weights, limits, budget, t, free, ends, most)
    exhausted = s == math.inf
    root = power.exact / (power.exact + 1) if power.exact else 1 / Fraction(p)
    scaled_s = s if unit is None else s * unit ** (1 + power.carries)
    factor = scaled_s ** float(root)
    if x.itemsize == 8:
        factor *= 1 + float(root - Fraction(float(root))) * np.log(np.where(scaled_s > 0, scaled_s, 1))
    if power.carries:
        factor /= unit
    factor *= scale
    np.multiply(u, factor.astype(x.dtype)[:, None], out=out)
    within(out, room, t)
    valid: Mask = (factor >= info.tiny) & (factor <= info.max)
    if unit is not None:
        # scaled_s * sum r^{p*}, over the free entries, is at most 1
        valid &= scaled_s <= power.least ** (p / (1 - p))
    if exhausted.any():
        gone = x[exhausted]
        out[exhausted] = np.copysign(np.where(gone == 0, 0, room[exhausted]), gone)
        lost = (weights[exhausted] == 0) & (gone != 0)
        valid[exhausted] = ~lost.any(axis=1)
    return valid


def _room_powers(p: float, room: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Any, Floats]:
    """Fill `out` with (room / unit)^p, and return the unit and the budget (sigma / unit)^p."""
    if p == 2:
        np.multiply(room, room, out=out)
        budget = sigma * sigma
        info = np.finfo(out.dtype)
        ordinary = (budget == 0) | (budget > float(info.tiny) * 2.0**40) & (
            budget < float(info.max) * 2.0**-40
        )
        return 1.0, np.where(ordinary, budget, math.nan)
    unit = np.where(sigma > 0, sigma, 1.0)
    np.multiply(room, (1 / unit).astype(room.dtype)[:, None], out=out)
    if p == 1.5:
        np.sqrt(out, out=t)
        out *= t
    elif p == 3:
        np.multiply(out, out, out=t)
        out *= t
    elif p == 4:
        np.multiply(out, out, out=out)
        np.multiply(out, out, out=out)
    else:
        np.log(out, out=out)
        out *= p
        np.exp(out, out=out)
    return unit, np.where(sigma > 0, 1.0, sigma)


def _multiplier(
    weights: Floats,
    limits: Floats,
    budget: Floats,
    t: Floats,
    free: Mask,
    ends: tuple[float, float],
    most: float = math.inf,
) -> Floats:
    """Return s with sum min(s * weights, limits) = budget, at most `most`; inf if all reach their limits.

    The sum is concave and piecewise linear in s, so Newton's steps from below never pass the solution, and
    end in its linear segment.
    """
    result, rows = np.full(len(weights), math.nan), np.arange(len(weights))
    ones = ones_like(t)
    # in a box of pixels many entries have no room: leave them out of the start
    total = rough_dots(weights, np.greater(limits, 0, out=free))
    s = np.where(total > 0, np.minimum(budget / np.where(total > 0, total, 1), most), 1.0)
    s[total > ends[1]], s[budget == 0] = math.nan, 0.0
    tolerance = ROUNDINGS * float(np.finfo(t.dtype).eps)
    for _ in range(STEPS):
        k = len(rows)
        np.multiply(weights, s.astype(t.dtype)[:, None], out=t[:k])
        np.less(t[:k], limits, out=free[:k])
        slope = rough_dots(weights, free[:k])
        np.minimum(t[:k], limits, out=t[:k])
        rest = budget - rough_dots(t[:k], ones[:k])
        done = (np.abs(rest) <= tolerance * budget) | ((s >= most) & (rest >= 0))
        exhausted = ~done & (slope == 0) & (rest > 0)
        result[rows] = np.where(
            done & ((slope >= ends[0]) | (s == 0) | (s >= most)), s, np.where(exhausted, math.inf, math.nan)
        )
        going = ~(done | exhausted) & (slope >= ends[0])
        s = np.minimum(s + rest / slope, most)
        if not going.any():
            break
        if not going.all():
            weights, limits = weights[going], limits[going]
            rows, s, budget = rows[going], s[going], budget[going]
    return result
