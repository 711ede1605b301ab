"""NumPy's kernels for a budget and walls: one multiplier per row, by Newton's method, a block at a time."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lpfamily.box import step_in_box
from lpfamily.libraries import Primitive
from lpfamily.libraries import rows as of_rows
from lpfamily.libraries.powers import fastest_power
from lpfamily.libraries.rows import Floats, Rows, row_blocks, scratch, share_out, sizes, with_sign_of
from lpfamily.nearest import nearest

STEPS = 32
"""Newton's steps at most; what has not come to an end by then goes to the definition."""

ROUNDINGS = 4
"""By how many units in the last place what is spent may miss the budget."""

NEWTON_END = 0.25
"""Of the root of a unit in the last place: the step after so short a one ends in the last place."""

NEWTON_FROM = 1.05
"""Below this p, too few entries of a row take part in a step of Newton's method."""

dots = functools.partial(of_rows.dots, run=4096)
"""These sums may lose a little more, and take a third of the time."""

Fill = Callable[..., Rows]
"""fill(*operands, out) fills `out` and returns a mask of the rows whose result is exact."""


def step_in_box_rows(p: float, x: Floats, sigma: Floats, room: Floats) -> Floats:
    """Evaluate `step_in_box` on rows."""
    few = 1 < p < NEWTON_FROM
    fill = _undone if few else {1: _fill_in_order, math.inf: _signs}.get(p, functools.partial(_spend, p))
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
        fill = functools.partial(_share, p) if p >= NEWTON_FROM else _undone
    return fill_blocks(nearest, fill, p, v, sigma, *room)


def fill_blocks(primitive: Primitive, fill: Fill, p: float, *operands: Floats) -> Floats:
    """Fill blocks of rows, and give to the definition those that come out inexact."""
    out = np.empty(operands[0].shape, operands[0].dtype)

    def work(blocks: Sequence[slice]) -> None:
        space = scratch(10, out[blocks[0]])
        for block in blocks:
            rows = [operand[block] for operand in operands]
            valid = fill(*rows, out[block], space[:, : len(rows[0])])
            if not valid.all():
                wrong = ~valid
                out[block][wrong] = primitive.value(p, *(each[wrong] for each in rows))

    share_out(work, row_blocks(out, 1), 4 * out.nbytes)  # each costs several steps
    return out


def _undone(*operands: Floats) -> Rows:
    return np.zeros(len(operands[0]), bool)


def _share(p: float, v: Floats, sigma: Floats, *rest: Any) -> Rows:
    """Split r = |v| / max|v| into tau z + nu z^(p-1), where z = |y| / sigma has norm 1 or is at its wall."""
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
    total = dots(np.exp(t, out=t), ones)
    outside: Rows = total > 1
    # what is smaller than `least` of the largest must not matter
    valid: Rows = (tau > least / float(info.eps)) & (tau < math.inf) & ~np.isnan(total)
    rows = np.flatnonzero(outside & valid)
    valid[rows] = _split(p, r, w, tau, cap if room else None, rows, space[4:])
    np.multiply(w, dtype(p), out=t)
    np.exp(t, out=t)
    np.exp(w, out=w)
    spent = dots(t, ones)
    left = 1.0
    if room:
        free = space[4].view(bool)[:, : v.shape[1]]
        spent = dots(t, np.less(t, cap, out=free))
        np.minimum(t, cap, out=t)
        left = np.maximum(1 - (dots(t, ones) - spent), 0)
        # a wall as far as the radius is none, so that what stands at it leaves nothing to share by rounding
        valid &= ~outside | (left > 64 * float(info.eps)) | (spent == 0)
    # what nu's rounding, magnified by 1 / (p - 1), has done to all free entries alike
    w *= column(radius * (left / np.where(spent > 0, spent, 1)) ** (1 / p), dtype)
    w[~outside] = math.inf
    np.copyto(out, v)
    within(out, w, t)
    if room:
        within(out, room[0], t)
    return valid


def _split(p: float, r: Floats, w: Floats, tau: Floats, cap: Floats | None, rows: Any, space: Floats) -> Rows:
    """Make w = log r of these rows the log z with tau z + nu z^(p-1) = r, sum min(z^p, cap) = 1.

    Newton's method for log nu and all entries at once, three to six steps of two exponentials each. Return
    where it has come to its end.
    """
    dtype, every, place = w.dtype.type, w, rows
    found = np.zeros(len(w), bool)
    r, w, tau, cap = r[rows], w[rows], tau[rows], None if cap is None else cap[rows]
    ones = ones_like(w)
    square = dots(r, r)
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
        # half the residual of log(a + b) = log r, nearly, and bounded; and what it asks of log z
        np.add(a, r, out=rest)
        np.divide(a, t, out=t)
        np.subtract(a, r, out=a)
        a /= rest
        largest = 2 * np.maximum(a.max(axis=1), -a.min(axis=1))
        a *= t
        if cap is None:
            total, weight = dots(power, ones[: len(w)]), ones[: len(w)]
        else:
            weight = np.less(power, cap, out=free)
            total = dots(np.minimum(power, cap, out=t), ones[: len(w)])
        asked = 2 * dots(np.multiply(power, a, out=t), weight)
        slope = dots(np.multiply(power, b, out=t), weight)
        change = np.clip((total * np.log(total) / p - asked) / slope, -3, 3)
        a *= dtype(2)
        w -= a
        b *= column(change, dtype)
        w -= b
        log_nu = log_nu + change
        done = np.maximum(largest, np.abs(change)) < tolerance
        going = ~done & np.isfinite(change)
        if not going.all():
            every[place[done]], found[place[done]] = w[done], True
            if not going.any():
                break
            place, r, w, tau, log_nu = (each[going] for each in (place, r, w, tau, log_nu))
            cap = None if cap is None else cap[going]
    result: Rows = found[rows]
    return result


def column(numbers: Any, dtype: Any) -> Floats:
    """Return one number per row beside entries of this dtype."""
    result: Floats = np.asarray(numbers, dtype)[:, None]
    return result


def _clip(v: Floats, sigma: Floats, *rest: Any) -> Rows:
    *room, out, space = rest
    np.minimum(v, sigma, out=out)
    np.maximum(out, -sigma, out=out)
    if room:
        within(out, room[0], space[0])
    valid: Rows = ~np.isnan(out.max(axis=1))
    return valid


def _shrink(v: Floats, sigma: Floats, out: Floats, space: Floats) -> Rows:
    total, info = dots(v, v), np.finfo(v.dtype)
    np.multiply(v, np.minimum(sigma / np.sqrt(total)[:, None], 1).astype(v.dtype), out=out)
    valid: Rows = (total >= float(info.tiny) * 2.0**26) & (total <= float(info.max))
    return valid


def _lower(v: Floats, sigma: Floats, *rest: Any) -> Rows:
    *room, out, space = rest
    size, t, count, mask = space[:4]
    top = sizes(v, size)
    radius = sigma[:, 0].astype(np.float64)
    first, second = _level(size, top, room[0] if room else None, radius, t, count, mask)
    np.subtract(v, np.clip(v, -first, first, out=t), out=out)
    out -= np.clip(out, -second, second, out=t)
    if room:
        within(out, room[0], t)
    valid: Rows = ~np.isnan(second[:, 0])
    return valid


def _level(
    size: Floats, high: Floats, room: Floats | None, sigma: Floats, t: Floats, zero: Floats, mask: Floats
) -> tuple[Floats, Floats]:
    """Return c with sum min(max(size - c, 0), wall) = sigma, 0 where that is less, NaN where it is not found.

    In two columns, c = first + second: differences from the first are exact, and second is their rounding.
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
        count = dots(ones[:k], free[:k])
        over = dots(t[:k], ones[:k]) - sigma
        low, high = np.where(over > 0, at, low), np.where(over > 0, high, at)
        change = np.where(count > 0, over / count, 0.0)
        new = np.nextafter((at + change).astype(t.dtype), t.dtype.type(0))
        inside = (at == 0) & (over <= 0)
        last = (new <= at) | (high <= np.nextafter(at, t.dtype.type(math.inf)))
        done = inside | (np.abs(over) <= tolerance * sigma) | ((count > 0) & (over > 0) & last)
        # beyond this, what is left of sigma would be their rounding
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


def _signs(x: Floats, sigma: Floats, room: Floats, out: Floats, space: Floats) -> Rows:
    info = np.finfo(x.dtype)
    huge = x.dtype.type(2.0 ** (info.maxexp - 1))
    np.multiply(x, huge, out=out)
    least = huge * info.smallest_subnormal
    np.clip(out, -least, least, out=out)
    factor = sigma * (1 / least)
    np.multiply(out, factor, out=out)
    within(out, room, space[0])
    valid: Rows = np.isfinite(factor[:, 0]) & ~np.isnan(room.min(axis=1))
    return valid


SAMPLE = 16
"""One entry in so many tells roughly how far the budget goes at p = 1."""

SAMPLED_FROM = 512
"""Entries of a row from which a sample saves more than it costs."""


def _fill_in_order(x: Floats, sigma: Floats, room: Floats, out: Floats, space: Floats) -> Rows:
    """Send entries to their walls from the largest |x| down, the last as far as the budget goes.

    Only entries near the last are sorted: those between two bounds, of which a sample tells.
    """
    size, cost, t, mask = space[:4]
    n, d = x.shape
    above, near = (mask.view(bool)[:, k * d : (k + 1) * d] for k in range(2))
    top, budget = sizes(x, size), sigma[:, 0].astype(np.float64)
    np.minimum(room, sigma, out=cost)
    least, share = np.empty(n, x.dtype), np.empty(n)
    astray: Rows = np.ones(n, bool)
    if d >= SAMPLED_FROM:
        high, low = _bracket(size[:, ::SAMPLE], cost[:, ::SAMPLE], sigma / SAMPLE)
        np.greater(size, high, out=above)
        np.greater(size, low, out=near)
        left, beyond = budget - dots(cost, above), budget - dots(cost, near)
        near ^= above
        astray = ~((left >= 0) & ((beyond <= 0) | (low[:, 0] == 0)))
        near[astray] = False
        where = np.flatnonzero(near)
        begins = np.searchsorted(where, d * np.arange(n + 1))
        count = np.diff(begins)
        width = max(count.max(), 1)
        places = np.arange(len(where)) + np.repeat(np.arange(n) * width - begins[:-1], count)
        few = np.zeros((2, n * width), x.dtype)
        few[0, places], few[1, places] = size.take(where), cost.take(where)
        values, prices = few.reshape(2, n, width)
        least[...], share[...] = _last(values, prices, left)
    if astray.any():
        some = size[astray]
        least[astray], share[astray] = _last(some, np.where(some > 0, cost[astray], 0), budget[astray])
    np.subtract(size, least[:, None], out=t)
    bits = f"i{x.itemsize}"
    np.right_shift(t.view(bits), 8 * x.itemsize - 1, out=t.view(bits))
    np.invert(t.view(bits), out=t.view(bits))
    np.bitwise_and(cost.view(bits), t.view(bits), out=out.view(bits))
    where = np.flatnonzero(np.equal(size, least[:, None], out=near))
    np.put(out, where, np.minimum(share[where // d], cost.take(where)))
    with_sign_of(x, out, t)
    valid: Rows = np.isfinite(top) & ~np.isnan(share)
    return valid


def _last(size: Floats, cost: Floats, budget: Floats) -> tuple[Floats, Floats]:
    """Return the least size that the budget reaches, and what its entries may cost: inf where all can."""
    size, cost = _in_order(size, cost)
    spent = np.zeros((len(size), size.shape[1] + 1))
    spent[:, 1:] = cost
    np.cumsum(spent, axis=1, out=spent)
    rows, reached = np.arange(len(size)), _first(spent[:, 1:] > budget[:, None])
    ample = reached == size.shape[1]
    least = size[rows, np.where(ample, 0, reached)]
    least[ample] = np.finfo(size.dtype).smallest_subnormal
    first = _first(size <= least[:, None])
    ties = np.where(ample, 1, _first(size < least[:, None]) - first)
    share = budget - spent[rows, first]
    if (most := ties.max()) > 1:
        place = np.arange(most)
        prices = cost[rows[:, None], np.minimum(first[:, None] + place, size.shape[1] - 1)]
        share = _even(np.where(place < ties[:, None], prices, math.inf), ties, share)
    share[ample & ~np.isnan(spent[:, -1])] = math.inf
    return least, share


def _first(mask: Rows) -> Any:
    """Return where each row has its first True, or how long it is."""
    at = mask.argmax(axis=1)
    return np.where(mask[np.arange(len(mask)), at], at, mask.shape[1])


def _in_order(size: Floats, cost: Floats) -> tuple[Floats, Floats]:
    """Sort sizes, the largest of each row first, and costs with them; neither is negative."""
    if size.itemsize == 4:  # one number of 64 bits for both, which takes a third of the time
        both = np.empty((*size.shape, 2), size.dtype)
        major = int(sys.byteorder == "little")
        both[..., major], both[..., 1 - major] = size, cost
        both.view(np.int64)[..., 0].sort(axis=1)
        return both[:, ::-1, major], both[:, ::-1, 1 - major]
    order = np.argsort(-size, axis=1)
    return np.take_along_axis(size, order, axis=1), np.take_along_axis(cost, order, axis=1)


def _even(prices: Floats, count: Any, budget: Floats) -> Floats:
    """Return c with sum min(c, price) = budget, of the `count` finite prices of each row."""
    prices.sort(axis=1)
    place = np.arange(prices.shape[1])
    real = place < count[:, None]
    paid = np.cumsum(np.where(real, prices, 0), axis=1, dtype=np.float64)
    share = (budget[:, None] - np.where(real, paid - prices, 0)) / np.maximum(count[:, None] - place, 1)
    enough = (share <= prices) | (place == count[:, None] - 1)
    return np.take_along_axis(share, np.argmax(enough, axis=1)[:, None], axis=1)[:, 0]


def _bracket(size: Floats, cost: Floats, sigma: Floats) -> tuple[Floats, Floats]:
    """Return two columns that the least |x| which the budget affords is likely to lie between."""
    size, cost = _in_order(size, cost)
    at = _first(np.cumsum(cost, axis=1) > sigma)
    margin = (3 + 3 * np.sqrt(at)).astype(int)
    last, rows = size.shape[1] - 1, np.arange(len(size))
    high = np.where(at < margin, math.inf, size[rows, np.clip(at - margin, 0, last)])
    low = np.where(at + margin > last, 0, size[rows, np.clip(at + margin, 0, last)])
    return column(high, size.dtype), column(low, size.dtype)


def ones_like(x: Floats) -> Floats:
    """Return ones in the shape of x, all of them one row in memory."""
    return np.ndarray(x.shape, x.dtype, np.ones(x.shape[1], x.dtype), 0, (0, x.itemsize))


def within(x: Floats, room: Floats, t: Floats) -> None:
    """Bring the entries of x to -wall or wall where they are beyond."""
    np.minimum(x, room, out=x)
    np.negative(room, out=t)
    np.maximum(x, t, out=x)


def _spend(
    p: float,
    x: Floats,
    sigma: Floats,
    room: Floats,
    out: Floats,
    space: Floats,
    most: float = math.inf,
) -> Rows:
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
    root = Fraction(1) / Fraction(p)
    own = s if unit is None else s * unit ** (1 + power.carries)
    factor = own ** float(root)
    if x.itemsize == 8:
        factor *= 1 + float(root - Fraction(float(root))) * np.log(np.where(own > 0, own, 1))
    if power.carries:
        factor /= unit
    factor *= scale
    np.multiply(u, factor.astype(x.dtype)[:, None], out=out)
    within(out, room, t)
    valid: Rows = (factor >= info.tiny) & (factor <= info.max)
    if unit is not None:
        # own * sum r^{p*} of what walls leave free is at most 1
        valid &= own <= power.least ** (p / (1 - p))
    if exhausted.any():
        gone = x[exhausted]
        out[exhausted] = np.copysign(np.where(gone == 0, 0, room[exhausted]), gone)
        lost = (weights[exhausted] == 0) & (gone != 0)
        valid[exhausted] = ~lost.any(axis=1)
    return valid


def _room_powers(p: float, room: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Any, Floats]:
    """Fill `out` with wall^p in a unit, and return the unit and the budget in it."""
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
    free: Rows,
    ends: tuple[float, float],
    most: float = math.inf,
) -> Floats:
    """Return s with sum min(s * weights, limits) = budget, at most `most`, or inf if all reach their limits.

    The sum is concave and piecewise linear in s: Newton's steps from below never pass the solution, and
    end in its piece.
    """
    result, rows = np.full(len(weights), math.nan), np.arange(len(weights))
    ones = ones_like(t)
    # what is pressed against its wall is so in every box of pixels
    total = dots(weights, np.greater(limits, 0, out=free))
    s = np.where(total > 0, np.minimum(budget / np.where(total > 0, total, 1), most), 1.0)
    s[total > ends[1]], s[budget == 0] = math.nan, 0.0
    tolerance = ROUNDINGS * float(np.finfo(t.dtype).eps)
    for _ in range(STEPS):
        k = len(rows)
        np.multiply(weights, s.astype(t.dtype)[:, None], out=t[:k])
        np.less(t[:k], limits, out=free[:k])
        slope = dots(weights, free[:k])
        np.minimum(t[:k], limits, out=t[:k])
        rest = budget - dots(t[:k], ones[:k])
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
