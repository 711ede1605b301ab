"""The steepest step inside a ball and a box, which a step that is clipped afterwards is not.

Maximise <grad, eps> subject to ||eps||_p <= sigma and low <= x + eps <= high. Every coordinate that
helps moves with the sign of grad, towards a wall at distance b >= 0, and the maximiser is

    |eps| = min(t * u, b),    u = |grad| ** (1 / (p - 1)),

with the t that spends the budget, or b everywhere if that costs no more than sigma. What the walls
save goes to the coordinates that are free: clipping eq. 3 afterwards throws it away.

Coordinate i meets its wall at t = b_i / u_i, and what all of them spend, sum min(t u, b)^p, grows
with t. So: sort these t, and search the last that the budget affords; the coordinates up to it stand
at their walls, and the others share what is left as in eq. 3. In floating point u does not exist for
p near 1 (it underflows for all but the largest entries, and these are just the ones that meet their
walls), so the t are kept as logarithms relative to the largest free entry, and the search is done
again with what it left free: what was too small to be told apart then stands next to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lpfamily._arrays import (
    Array,
    as_float,
    beside,
    carried,
    device_of,
    finfo,
    is_bfloat16,
    is_number,
    is_real,
    mask_beside,
    namespace_of,
    sign,
)
from lpfamily.kernels import Primitive
from lpfamily.steepest import ratio_scale, steepest


def walls(grad: Array, x: Any, bounds: Any, mask: Array | None, dtype: Any) -> Array:
    """Return how far each entry may move along the sign of `grad`; NaN where x is outside its bounds.

    What Python sees without waiting for a device is checked here.
    """
    if x is None or bounds is None:
        raise ValueError("x and bounds=(low, high) belong together: give both, or neither")
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high) of numbers or arrays; got {bounds!r}")
    xp = namespace_of(grad)
    named = {"x": x, "low": bounds[0], "high": bounds[1]}
    x, low, high = (entries(xp, grad, name, value, dtype) for name, value in named.items())
    _check_order(named, grad, mask)
    up, down = high - x, x - low
    wall = xp.where(xp.astype(grad, dtype, copy=False) < 0, down, up)
    wall = xp.where((up >= 0) & (down >= 0), wall, math.nan)
    return wall if mask is None else xp.where(mask_beside(grad, mask), wall, 0.0)


def entries(xp: Any, grad: Array, name: str, value: Any, dtype: Any) -> Array:
    """Return a number or an array as entries beside those of grad, rounded as grad is."""
    # what is beyond the largest number is no bound
    if is_number(value):
        number = as_float(value)
        if abs(number) > float(finfo(xp, grad.dtype).max):
            number = math.copysign(math.inf, number)
        return xp.astype(xp.full_like(grad, number), dtype, copy=False)
    if isinstance(value, np.ndarray):
        if not is_real(value.dtype):
            raise TypeError(f"{name} must be real; got {value.dtype}")
        with np.errstate(over="ignore"):
            value = xp.asarray(carried(value), dtype=grad.dtype, device=device_of(grad))
    else:
        value = xp.astype(beside(grad, value, name), grad.dtype, copy=False)
    try:
        return xp.astype(xp.broadcast_to(value, grad.shape), dtype, copy=False)
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"{name} must be a number or broadcast to the shape of grad, {tuple(grad.shape)}; "
            f"got {tuple(value.shape)}"
        ) from cause


def _check_order(named: dict[str, Any], grad: Array, mask: Any) -> None:
    """Raise unless low <= x <= high, as far as these are seen, in the precision of grad."""
    seen = {name: v for name, v in named.items() if is_number(v) or isinstance(v, np.ndarray)}
    for left, right in ("low", "x"), ("x", "high"), ("low", "high"):
        if left not in seen or right not in seen:
            continue
        first, second = seen[left], seen[right]
        if is_number(first) and is_number(second):
            if not first <= second:
                raise ValueError(_OUTSIDE.format(left, first, right, second, ""))
        elif mask is None or isinstance(mask, np.ndarray):
            name = str(grad.dtype).rpartition(".")[2]
            dtype = np.dtype(name if name in ("float16", "float64") else "float32")
            dtype = grad.dtype if is_bfloat16(grad.dtype) else dtype
            with np.errstate(over="ignore", invalid="ignore"):
                pair = [np.asarray(as_float(v) if is_number(v) else v).astype(dtype) for v in (first, second)]
                outside = ~(pair[0] <= pair[1]) & (True if mask is None else mask)
            if outside.any():
                at = tuple(int(index) for index in np.argwhere(outside)[0])
                one, other = (np.broadcast_to(v, outside.shape)[at] for v in pair)
                raise ValueError(_OUTSIDE.format(left, one, right, other, f" at {at}"))


_OUTSIDE = "x must lie within its bounds, low <= x <= high; got {} = {}, {} = {}{}: clip x first"


# The definitions. `x` and `wall` hold examples as rows, (..., d); `sigma` is (..., 1).


def _boxed(p: float, x: Array, sigma: Array, wall: Array) -> Array:
    xp = namespace_of(x)
    if x.shape[-1] == 0:
        return x
    size = xp.abs(x)
    bad = xp.any(wall != wall, axis=-1, keepdims=True)
    if p == math.inf:
        eps = xp.minimum(xp.abs(steepest.value(p, x, sigma)), wall)
        return xp.where(bad, math.nan, xp.copysign(eps, x))
    bad = bad | xp.any(x != x, axis=-1, keepdims=True) | (sigma != sigma)
    # A wall that the whole budget cannot pass is none. All below is in units of sigma.
    walled = wall < sigma
    share = xp.where(walled, wall, 0.0) / xp.where(sigma > 0, sigma, 1.0)
    power = xp.where(walled, share**p, math.inf)
    useful = (size > 0) & (wall > 0)
    infinite = useful & (size == math.inf)
    # Infinite entries come first: finite ones get what these cannot spend.
    left = _left(xp, infinite, power)
    useful = useful & (infinite | (left >= 0))
    free = useful & ~(infinite & (left >= 0))
    for _ in range(3 if _exponent(p) > 64 else 2):
        left = xp.maximum(_left(xp, useful & ~free, power), xp.zeros_like(sigma))
        free = _search(xp, p, size, share, power, free, left)
    left = xp.maximum(_left(xp, useful & ~free, power), xp.zeros_like(sigma))
    step = steepest.value(p, xp.where(free, x, 0.0), sigma * left ** (1 / p))
    eps = xp.where(free, xp.minimum(xp.abs(step), wall), xp.where(useful, wall, 0.0))
    return xp.where(bad, math.nan, xp.copysign(eps, x))


def _left(xp: Any, spending: Array, power: Array) -> Array:
    """Return 1 - (what `spending` entries cost at their walls), of the budget's p-th power."""
    return 1 - xp.sum(xp.where(spending, power, 0.0), axis=-1, keepdims=True)


def _exponent(p: float) -> float:
    """Return 1 / (p - 1), and at p = 1 an exponent that tells any two numbers apart."""
    return 2.0**60 if p == 1 else 1 / (p - 1)


def _search(xp: Any, p: float, size: Array, share: Array, power: Array, free: Array, left: Array) -> Array:
    """Return which of the `free` entries stay free of their walls when they spend what is `left`."""
    e = _exponent(p)
    log_r = _log_ratio(xp, xp.where(free, size, 0.0))
    # log t where an entry meets its wall; free of walls, or never to move, are at infinity
    never = (log_r == -math.inf) | (power == math.inf)
    meets = xp.where(never, math.inf, xp.log(share) - e * xp.where(never, 0.0, log_r))

    def spent(log_t: Array) -> Array:
        cost = xp.where(meets <= log_t, power, xp.exp(p * (log_t + e * log_r)))
        return xp.sum(xp.where(free, cost, 0.0), axis=-1, keepdims=True)

    met = last_affordable(xp, xp.sort(meets, axis=-1), spent, left)
    return free & ~(meets <= met)


def last_affordable(xp: Any, values: Array, spent: Callable[[Array], Array], budget: Array) -> Array:
    """Return the last of the sorted `values` at which `spent`, increasing, is within the budget, or -inf."""
    count = xp.argmax(budget, axis=-1, keepdims=True)  # 0, of the library's type for indices
    found = xp.full_like(budget, -math.inf)
    d = values.shape[-1]
    for bit in reversed(range(d.bit_length())):
        more = count + 2**bit
        value = xp.take_along_axis(values, xp.clip(more - 1, 0, d - 1), axis=-1)
        affordable = (more <= d) & (spent(value) <= budget)
        count = xp.where(affordable, more, count)
        found = xp.where(affordable, value, found)
    return found


def _log_ratio(xp: Any, size: Array) -> Array:
    """Return log(size / max size), to full accuracy where it is near 0; -inf where all are 0."""
    top = xp.max(size, axis=-1, keepdims=True)
    infinite, scale = top == math.inf, ratio_scale(xp, top)
    scaled = xp.where(infinite, xp.astype(size == top, size.dtype), size * scale)
    unit = xp.where(infinite | (top == 0), 1.0, top * scale)
    r = scaled / unit
    tiny = (r < float(xp.finfo(size.dtype).smallest_normal)) & ~infinite & (top > 0)
    near = r > 0.5  # where the difference is exact
    log = xp.log(xp.where(tiny, size, r)) - xp.where(tiny, xp.log(top), 0.0)
    return xp.where(near, xp.log1p(xp.where(near, (scaled - unit) / unit, 0.0)), log)


# The derivatives. Entries at their walls follow these, and the others are the steepest step of radius
# tau = (sigma^p - sum of wall^p)^(1/p): d tau = (sigma/tau)^(p-1) dsigma - sum (wall/tau)^(p-1) dwall.


def _parts(p: float, operands: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array, Array], Array, Array]:
    """Return which entries stand at their walls, which are free, these' steepest step, and d tau."""
    x, sigma, wall = operands
    xp = namespace_of(x)
    size = xp.abs(boxed(p, x, sigma, wall))
    useful = (x != 0) & (wall > 0) & (size > 0)
    free = useful & (size < wall)
    at_wall = useful & ~free
    inside = xp.where(free, x, 0.0)
    if p == math.inf:
        zero = xp.zeros_like(wall)
        return at_wall, free, (inside, sigma), xp.ones_like(sigma), zero
    unit = xp.where(sigma > 0, sigma, 1.0)
    share = xp.where(at_wall, wall, 0.0) / unit
    left = 1 - xp.sum(share**p, axis=-1, keepdims=True)
    some = left > 0
    root = xp.where(some, left, 1.0) ** (1 / p)
    most = float(xp.finfo(x.dtype).max) ** 0.48
    by_sigma = xp.clip(root ** (1 - p), 0.0, most)
    by_wall = xp.clip(xp.where(at_wall, xp.where(at_wall, share, 1.0) / root, 0.0) ** (p - 1), 0.0, most)
    by_wall = xp.where(some & at_wall, by_wall, 0.0)
    return (
        at_wall,
        free,
        (inside, xp.where(some, sigma * root, 0.0)),
        xp.where(some, by_sigma, 0.0),
        by_wall,
    )


def _boxed_jvp(p: float, operands: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    dx, dsigma, dwall = tangents
    xp = namespace_of(dx)
    at_wall, free, step, by_sigma, by_wall = _parts(p, operands)
    dtau = by_sigma * dsigma - xp.sum(by_wall * dwall, axis=-1, keepdims=True)
    moved = steepest.jvp(p, step, (xp.where(free, dx, 0.0), dtau))
    return xp.where(free, moved, xp.where(at_wall, sign(operands[0]) * dwall, 0.0))


def _boxed_vjp(p: float, operands: tuple[Array, ...], v: Array) -> tuple[Array, ...]:
    xp = namespace_of(v)
    at_wall, free, step, by_sigma, by_wall = _parts(p, operands)
    dx, dtau = steepest.vjp(p, step, xp.where(free, v, 0.0))
    dwall = xp.where(at_wall, sign(operands[0]) * v, 0.0) - dtau * by_wall
    return xp.where(free, dx, 0.0), dtau * by_sigma, dwall


boxed = Primitive("boxed", _boxed, _boxed_jvp, _boxed_vjp)
"""boxed(p, x, sigma, wall): the maximiser on examples as rows, `wall` how far each entry may move."""
