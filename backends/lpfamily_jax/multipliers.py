"""JAX's kernels (fast implementations) for the step in a box and the nearest point, for all rows at once.

Each row has one multiplier, which Newton's method finds. A kernel returns sizes, without the signs of its
operand, and a mask of the rows where the sizes are exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lpfamily.box import step_in_box
from lpfamily.libraries import Primitive
from lpfamily.libraries.multipliers import NEWTON_END, NEWTON_FROM, ROUNDINGS, STEPS
from lpfamily.nearest import nearest
from lpfamily_jax.meshes import alike

EXPONENT = 32
"""Up to this exponent, the rounding of exp's argument costs no more than that of the row's sums."""

Kernel = Callable[..., tuple[jax.Array, jax.Array]]


def step_in_box_rows(p: float, x: jax.Array, sigma: jax.Array, room: jax.Array) -> jax.Array:
    """Evaluate `step_in_box` on rows."""
    kernel = _fill_in_order if p == 1 else functools.partial(_spend, p)
    return _if_exact(step_in_box, None if p == math.inf else kernel, p, x, sigma, room)


def nearest_rows(p: float, v: jax.Array, sigma: jax.Array, *room: jax.Array) -> jax.Array:
    """Evaluate `nearest` on rows."""
    kernel: Kernel | None = None
    if p == 1:
        kernel = _lower
    elif p == 2:
        kernel = _shrink if room else None
    elif NEWTON_FROM <= p <= 2.0**60:
        kernel = functools.partial(_share, p)
    return _if_exact(nearest, kernel, p, v, sigma, *room)


def _if_exact(primitive: Primitive, kernel: Kernel | None, p: float, *operands: jax.Array) -> jax.Array:
    """Return the kernel's result if it is exact for all rows, else that of the definition."""
    definition: Callable[..., jax.Array] = functools.partial(primitive.value, p)
    operands = alike(operands)
    if kernel is None or operands[0].size == 0:
        return definition(*operands)
    size, valid = kernel(*operands)
    fast = jnp.copysign(size, operands[0])
    result: jax.Array = jax.lax.cond(jnp.all(valid), lambda *_: fast, definition, *operands)
    return result


def _spend(p: float, x: jax.Array, sigma: jax.Array, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spend sigma^p: with r = |x| / max|x|, eps = min((s r^{p*})^(1/p) sigma, room)."""
    e, (r, top), reach = 1 / (p - 1), _scaled(x), jnp.minimum(room, sigma)
    u, most = _power(r, e), math.inf
    if not _is_half_whole(e):
        lost = abs(x) - top - (r - 1) * top if e > 2 else 0  # rounding error of r; the power magnifies it
        u, most = jnp.exp(e * (jnp.log(r) + lost / _unit(top))), math.exp(EXPONENT)
    limits = _limits(p, sigma, room)
    s, exhausted, valid = _multiplier(u * r, limits, math.inf)
    factor = _root(s, p)
    eps = jnp.minimum(jnp.where(exhausted, jnp.where(x == 0, 0, reach), u * (factor * sigma)), reach)
    in_range = _ordinary(factor * sigma) & (factor <= most)
    valid = valid & _ordinary(top) & _ordinary(sigma) & (exhausted | in_range)
    (total,) = _sums(jnp.where(x == 0, 0, limits))  # includes entries whose weight underflows to 0
    return eps, valid & (~exhausted | (total <= 1))


def _fill_in_order(x: jax.Array, sigma: jax.Array, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move entries to their bounds from the largest |x| down, the last one as far as the budget goes."""
    size = abs(x)
    cost = jnp.where(size > 0, jnp.minimum(room, sigma), 0)
    least, left, valid = _last(size, cost, sigma)
    tied = size == least
    limits = jnp.where(tied & (left > 0), cost / _unit(left), 0)
    s, _, shared = _multiplier(tied.astype(x.dtype), limits, jnp.max(limits, axis=-1, keepdims=True))
    eps = jnp.where(tied, jnp.minimum(s * left, cost), jnp.where(size > least, cost, 0))
    return eps, valid & shared & _ordinary(sigma)


def _last(size: jax.Array, cost: jax.Array, budget: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the least size that the budget reaches, the budget left for entries of that size, and a mask.

    The mask holds the valid rows. Sizes have the same order as their bits as integers, so the search bisects
    these integers.
    """
    bits = jnp.dtype(f"int{8 * size.dtype.itemsize}")
    top = jnp.max(size, axis=-1, keepdims=True)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, left = state
        middle = low + (high - low) // 2
        at = jax.lax.bitcast_convert_type(middle, size.dtype)
        (spent,) = _sums(jnp.where(size >= at, cost, 0))
        rest = budget - spent
        enough = rest >= 0
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high), jnp.where(enough, rest, left)

    high = jax.lax.bitcast_convert_type(top, bits) + 1
    low, _, left = jax.lax.while_loop(
        lambda state: jnp.any(state[1] - state[0] > 1), step, (jnp.zeros_like(high), high, budget)
    )
    finite = jnp.isfinite(top) & ~jnp.any(jnp.isnan(cost), axis=-1, keepdims=True)
    return jax.lax.bitcast_convert_type(low, size.dtype), left, finite


def _shrink(v: jax.Array, sigma: jax.Array, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the nearest |y| = min(c |v|, room) at p = 2, with c at most 1."""
    (r, top), reach = _scaled(v), jnp.minimum(room, sigma)
    most = (top / _unit(sigma)) ** 2
    s, exhausted, valid = _multiplier(r * r, _limits(2, sigma, room), most)
    step = jnp.where(exhausted | (s >= most), abs(v), r * (jnp.sqrt(s) * sigma))
    return jnp.minimum(step, reach), valid & _ordinary(top) & _ordinary(sigma) & _ordinary(most)


def _share(p: float, v: jax.Array, sigma: jax.Array, *room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return |y| of the nearest point: split r = |v| / max|v| into tau z + nu z^(p-1).

    z = |y| / sigma, capped by the room, has norm 1. `lpfamily.nearest` derives this equation.
    """
    info = np.finfo(v.dtype)
    least = float(info.tiny) ** 0.8
    size, (r, top) = abs(v), _scaled(v)
    radius = jnp.where(sigma > 0, sigma, _unit(top))
    tau = radius / _unit(top)
    r = jnp.clip(r, least, 1)
    log_r = jnp.log(r)
    log_z, cap, within = log_r - jnp.log(tau), jnp.full_like(tau, math.inf), size
    if room:
        log_room = jnp.log(room[0] / radius)
        log_z, cap, within = jnp.minimum(log_z, log_room), jnp.exp(p * log_room), jnp.minimum(size, room[0])
    (total,) = _sums(jnp.exp(p * log_z))
    outside = (total > 1) & (sigma > 0)
    log_z, converged = _split(p, r, log_r, tau, cap, outside)
    power = jnp.exp(p * log_z)
    free = power < cap
    spent, paid = _sums(jnp.where(free, power, 0), jnp.where(free, 0, cap))
    left = jnp.maximum(1 - paid, 0)
    # 1 / (p - 1) magnifies the rounding error of nu, which multiplies all free entries by one factor: undo it
    y = jnp.exp(log_z) * (radius * (left / _unit(spent)) ** (1 / p))
    # entries smaller than `least` times the largest must not matter
    valid = (tau > least / float(info.eps)) & (tau < math.inf) & ~jnp.isnan(total) & (converged | ~outside)
    # A bound at the distance of the radius does not count. An entry that lies at one all the same uses the
    # whole budget: `left` is only rounding, and the row is not exact.
    valid = valid & (~outside | (left > 64 * float(info.eps)) | (spent == 0))
    return jnp.minimum(jnp.where(outside, jnp.minimum(y, within), within), sigma), valid


def _split(
    p: float, r: jax.Array, log_r: jax.Array, tau: jax.Array, cap: jax.Array, outside: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return log z with tau z + nu z^(p-1) = r, sum min(z^p, cap) = 1, and a mask of the converged rows.

    Newton's method for log nu and all entries at once.
    """
    tolerance = NEWTON_END * float(np.finfo(r.dtype).eps) ** 0.5

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, w, log_nu, done, converged = state
        z, b = jnp.exp(w), jnp.exp((p - 1) * w + log_nu)
        power, a = z * b * jnp.exp(-log_nu), tau * z
        flat = 1 / (a + (p - 1) * b)
        # half the residual of log(a + b) = log r, roughly, but bounded; then the change of log z for it
        residual = (a + b - r) / (a + b + r)
        asked, slope = residual * (a + b) * flat, b * flat  # slope is minus d log z / d log nu
        free = power < cap
        total, sum_asked, sum_slope = _sums(
            jnp.minimum(power, cap), jnp.where(free, power * asked, 0), jnp.where(free, power * slope, 0)
        )
        change = jnp.clip((total * jnp.log(total) / p - 2 * sum_asked) / sum_slope, -3, 3)
        largest = 2 * jnp.max(abs(residual), axis=-1, keepdims=True)
        ends = jnp.maximum(largest, abs(change)) < tolerance
        w = jnp.where(done, w, w - 2 * asked - slope * change)
        log_nu = jnp.where(done, log_nu, log_nu + change)
        return count + 1, w, log_nu, done | ends | ~jnp.isfinite(change), jnp.where(done, converged, ends)

    (square,) = _sums(r * r)
    scale = jnp.minimum(r.shape[-1] ** (0.5 - 1 / p) / jnp.sqrt(square), 0.99 / tau)
    log_nu = jnp.log(scale * square * (1 - tau * scale))
    begin = jnp.minimum(log_r - jnp.log(tau), (log_r - log_nu) / (p - 1))
    _, w, _, _, converged = jax.lax.while_loop(
        lambda state: (state[0] < STEPS) & ~jnp.all(state[3]), step, (0, begin, log_nu, ~outside, outside)
    )
    return w, converged


def _lower(v: jax.Array, sigma: jax.Array, *room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower every |v| by the same amount, down to 0."""
    size, cap = abs(v), room[0] if room else math.inf
    first, second = _level(size, sigma, cap)
    low = jnp.maximum(size - first, 0)
    top = jnp.max(size, axis=-1, keepdims=True)
    valid = ~jnp.isnan(second) & _ordinary(top) & _ordinary(sigma)
    return jnp.minimum(low - jnp.minimum(low, second), jnp.minimum(cap, sigma)), valid


def _level(size: jax.Array, sigma: jax.Array, room: Any) -> tuple[jax.Array, jax.Array]:
    """Return c with sum min(max(size - c, 0), room) = sigma; 0 where the sum is less, NaN if not found.

    c comes in two terms, first + second: differences from first are exact, and second corrects rounding.
    """
    tolerance = ROUNDINGS * float(np.finfo(size.dtype).eps)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        steps, at, low, high, *_ = state
        over = jnp.maximum(size - at, 0)
        free = (over > 0) & (over < room)
        count, total = _sums(free.astype(size.dtype), jnp.minimum(over, room))
        rest = total - sigma
        low, high = jnp.where(rest > 0, at, low), jnp.where(rest > 0, high, at)
        change = jnp.where(count > 0, rest / _unit(count), 0)
        new = jnp.nextafter(at + change, jnp.zeros_like(at))
        inside = (sigma == 0) | (at == 0) & (rest <= 0)
        last = (new <= at) | (high <= jnp.nextafter(at, jnp.full_like(at, math.inf)))
        converged = inside | (abs(rest) <= tolerance * sigma) | ((count > 0) & (rest > 0) & last)
        # y is of the size of sigma: subtracting a larger change would leave only rounding
        second = jnp.where(inside, 0, jnp.where(change > 4 * sigma, math.nan, jnp.maximum(change, 0)))
        middle = (low + high) / 2
        middle = jnp.where(middle < high, middle, low)
        new = jnp.where((count > 0) & (new > low) & (new < high), new, middle)
        done = converged | jnp.isnan(rest)
        return steps + 1, jnp.where(done, at, new), low, high, jnp.where(converged, second, math.nan), done

    zero = jnp.zeros_like(sigma)
    top = jnp.max(size, axis=-1, keepdims=True)
    _, first, _, _, second, _ = jax.lax.while_loop(
        lambda state: (state[0] < STEPS) & ~jnp.all(state[5]), step, (0, zero, zero, top, zero, zero != 0)
    )
    return first, second


def _is_half_whole(e: float) -> bool:
    return e <= 4 and 2 * e == round(2 * e)


def _power(x: jax.Array, e: float) -> jax.Array:
    """Return x^e for x >= 0; XLA's power and cube root functions compute one entry at a time."""
    if not _is_half_whole(e):
        return jnp.exp(e * jnp.log(x))
    whole = jax.lax.integer_pow(x, int(e))
    return whole if e == int(e) else whole * jnp.sqrt(x)


def _root(s: jax.Array, p: float) -> jax.Array:
    """Return s^(1/p), corrected for the rounding error of 1/p, which log s magnifies."""
    root = s.dtype.type(1 / p)
    lost = float(1 / Fraction(p) - Fraction(float(root)))
    corrected: jax.Array = s**root * (1 + lost * jnp.log(_unit(s)))
    return corrected


def _limits(p: float, sigma: jax.Array, room: jax.Array) -> jax.Array:
    """Return (room / sigma)^p, infinite where the room is beyond the reach of the whole budget."""
    return jnp.where(room >= sigma, math.inf, _power(jnp.minimum(room, sigma) / _unit(sigma), p))


def _unit(size: jax.Array) -> jax.Array:
    """Return sizes to divide by: 1 where a size is 0."""
    return jnp.where(size > 0, size, 1)


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return |x| / max|x| and max|x| of each row."""
    size = abs(x)
    top = jnp.max(size, axis=-1, keepdims=True)
    return size / _unit(top), top


def _ordinary(size: jax.Array) -> jax.Array:
    """Whether numbers are 0, or far enough from the dtype's limits that powers and sums stay in its range."""
    info = np.finfo(size.dtype)
    return (size == 0) | (size > float(info.tiny) * 2.0**26) & (size < float(info.max) * 2.0**-26)


def _sums(*terms: jax.Array) -> list[jax.Array]:
    """Return the row sums of several arrays, fused into one loop over the arrays they are computed from.

    On a CPU XLA adds the entries of a row one after another, and loses d / 8 units in the last place if they
    are similar. So this adds entries that are `width` apart first.
    """
    *shape, d = terms[0].shape
    width = 2 ** (d.bit_length() // 2)
    whole = d - d % width
    columns = jax.lax.reduce(
        [term[..., :whole].reshape(*shape, -1, width) for term in terms],
        [jnp.zeros((), term.dtype) for term in terms],
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        [len(shape)],
    )
    rest = [term[..., whole:] for term in terms]
    joined = (jnp.concat(pair, axis=-1) for pair in zip(columns, rest, strict=True))
    return [jnp.sum(each, axis=-1, keepdims=True) for each in joined]


def _multiplier(weights: jax.Array, limits: jax.Array, most: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return s, at most `most`, with sum min(s weights, limits) = 1, for each row.

    The other two results are masks of the rows where all entries reach their limits, and where s is exact.
    The sum is concave and piecewise linear in s, so Newton's steps from below never pass the solution, and
    end in its linear segment.
    """
    info = np.finfo(weights.dtype)
    # weights that underflow must not matter beside those of the free entries
    tolerance, least = ROUNDINGS * float(info.eps), float(info.tiny) * 2.0**40

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, s, *_ = state
        spent = s * weights
        slope, total = _sums(jnp.where(spent < limits, weights, 0), jnp.minimum(spent, limits))
        rest = 1 - total
        full = (s >= most) & (rest >= 0)
        exhausted = ~full & (slope == 0) & (rest > tolerance)
        new = jnp.minimum(s + rest / _unit(slope), most)
        # s no longer grows once a step is smaller than the rounding of the sums
        done = full | exhausted | (abs(rest) <= tolerance) | (new <= s)
        return count + 1, jnp.where(done, s, new), done, exhausted, exhausted | full | (slope >= least)

    (total,) = _sums(jnp.where(limits > 0, weights, 0))
    begin = jnp.minimum(1 / _unit(total), most)
    no = jnp.zeros_like(total, bool)
    _, s, done, exhausted, steep = jax.lax.while_loop(
        lambda state: (state[0] < STEPS) & ~jnp.all(state[2]), step, (0, begin, no, no, no)
    )
    return s, exhausted, done & steep
