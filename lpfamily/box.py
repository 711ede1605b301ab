"""The steepest step inside a ball and a box. Clipping eq. 3 afterwards does not give it.

Maximise <grad, eps> subject to ||eps||_p <= sigma and low <= x + eps <= high. Every coordinate with a
nonzero gradient moves with the sign of grad, towards a bound at distance b >= 0, its room. The maximiser is

    |eps| = min(t * u, b),    u = |grad| ** (1 / (p - 1)),

with the t that spends the budget, or b everywhere if that costs no more than sigma. The budget that
coordinates at their bounds cannot spend goes to the free ones. Clipping eq. 3 would throw it away.

Coordinate i reaches its bound at t = b_i / u_i, and the total cost, sum min(t u, b)^p, grows with t. So
sort these t and search for the last one that the budget affords. The coordinates up to it are at their
bounds; the others share the rest of the budget as in eq. 3.

In floating point u is useless for p near 1: it underflows for all but the largest entries, which are just
those that reach their bounds. So the t are kept as logarithms relative to the largest free entry, and the
search is repeated on the entries that it left free. Entries too small to tell apart in one search are near
1 in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NoReturn

import numpy as np

from lpfamily._arrays import (
    Array,
    Bounds,
    FInfo,
    Given,
    Numbers,
    as_dtype,
    as_float,
    beside,
    device_of,
    finfo,
    is_bfloat16,
    is_dtype,
    is_number,
    is_real,
    mask_beside,
    namespace_of,
    portable,
    reshape,
    sign,
)
from lpfamily.libraries import Primitive, constant, library_of
from lpfamily.steepest import ratio_scale, steepest

ROUNDINGS = 4
"""How far x may be outside, in units in the last place of the larger bound: scaling rounds x and bounds."""


def box_of(x: Numbers | None, bounds: Bounds | None) -> tuple[()] | tuple[Numbers, Numbers, Numbers]:
    """Return (x, low, high), or () if neither x nor bounds are given; raise if only one is."""
    if x is None and bounds is None:
        return ()
    if x is None or bounds is None:
        raise ValueError("x and bounds=(low, high) belong together: give both, or neither")
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high) of numbers or arrays; got {bounds!r}")
    return x, *bounds


def room_to_move(given: Given[Array], x: Numbers, low: Numbers, high: Numbers) -> Array:
    """Return as rows how far each entry may move in the direction of grad's sign.

    It is 0 where x is outside by rounding. An x further outside is an error where its value can be looked
    at, and NaN elsewhere.
    """
    xp, grad, mask = given.xp, given.array, given.mask
    library, named = library_of(grad), {"low": low, "x": x, "high": high}
    x = entries(given, "x", x)
    low, high = (_bound(given, name, named[name]) for name in ("low", "high"))
    with library.unwarned():
        room, within = library.reach(grad, x, low, high, _Slack.of(grad, named))
    visible = library.visible(room)
    _check_seen(named, grad, mask, arrays=not visible)
    if mask is not None:
        room = xp.where(mask_beside(grad, mask), room, 0.0)
    if visible and not within and bool(xp.any(room != room)):
        _raise_outside(named, tuple(room.shape), xp.argmax(reshape(xp.astype(room != room, xp.int8), (-1,))))
    return given.rows(room)


def room_down_and_up(given: Given[Array], x: Numbers, low: Numbers, high: Numbers) -> tuple[Array, Array]:
    """Return how far entries may move down and up, as rows."""
    one = given.xp.ones_like(given.array)
    down, up = (room_to_move(replace(given, array=grad), x, low, high) for grad in (-one, one))
    return down, up


def entries(given: Given[Array], name: str, value: Numbers) -> Array:
    """Return a number or an array in grad's shape and the dtype to compute in, rounded to grad's dtype."""
    xp, grad, dtype = given.xp, given.array, given.values.dtype
    if is_number(value):
        number = _in_range(value, finfo(xp, grad.dtype))
        return xp.astype(xp.full_like(grad, number), dtype, copy=False)
    array: Array = _bound(given, name, value)
    return array if array.shape == grad.shape else xp.broadcast_to(array, grad.shape)


def _bound(given: Given[Array], name: str, value: Numbers) -> Numbers:
    """Return a number, or an array that broadcasts to grad's shape, rounded to grad's dtype."""
    xp, grad, dtype = given.xp, given.array, given.values.dtype
    if is_number(value):
        info = finfo(xp, grad.dtype)
        number = _in_range(value, info)
        return number if dtype == grad.dtype else _rounded(number, info)
    if isinstance(value, np.ndarray):
        if not is_real(value.dtype):
            raise TypeError(f"{name} must be real; got {value.dtype}")
        with np.errstate(over="ignore"):
            value = xp.asarray(portable(value), dtype=grad.dtype, device=device_of(grad))
    else:
        value = as_dtype(xp, beside(grad, value, name), grad.dtype)
    shape, whole = tuple(value.shape), tuple(grad.shape)
    fits = all(n in (1, m) for n, m in zip(shape[::-1], whole[::-1], strict=False))
    if len(shape) > len(whole) or not fits:
        raise ValueError(f"{name} must be a number or broadcast to the shape of grad, {whole}; got {shape}")
    return as_dtype(xp, value, dtype)


def _in_range(number: float, info: FInfo) -> float:
    """Return a number as a float; beyond the dtype's largest number it is infinite, which is no bound."""
    value = as_float(number)
    return math.copysign(math.inf, value) if abs(value) > float(info.max) else value


def _rounded(number: float, info: FInfo) -> float:
    """Return a number rounded to the dtype."""
    if not math.isfinite(number):
        return number
    unit = float(info.eps) * max(2.0 ** (math.frexp(number)[1] - 1), float(info.smallest_normal))
    return round(number / unit) * unit


@dataclass(frozen=True)
class _Slack:
    """How far outside its bounds x may be by rounding: a function of low and high, hashable for compilers."""

    least: float
    """The least size of a bound."""
    rounding: float
    """In units of the larger bound."""

    @classmethod
    def of(cls, grad: Array, named: Mapping[str, Numbers]) -> _Slack:
        """Return the slack for x and bounds: any of their dtypes, and grad's, may have rounded x."""
        xp, values = namespace_of(grad), named.values()
        of_numpy = [v for v in values if isinstance(v, np.ndarray)]
        others = [v for v in values if not isinstance(v, np.ndarray) and not is_number(v)]
        infos = [finfo(np, v.dtype) for v in of_numpy if is_dtype(np, v.dtype, "real floating")]
        infos += [finfo(xp, v.dtype) for v in (grad, *others) if is_dtype(xp, v.dtype, "real floating")]
        coarsest = max(float(info.eps) for info in infos)
        return cls(float(finfo(xp, grad.dtype).smallest_normal), ROUNDINGS * coarsest)

    def __call__(self, low: Numbers, high: Numbers) -> Numbers:
        """Return `rounding` times the larger finite |bound|."""
        least, arrays = self.least, []
        for bound in low, high:
            if not isinstance(bound, float):
                xp = namespace_of(bound)
                arrays.append(xp.where(xp.isinf(bound), 0.0, xp.abs(bound)))
            elif math.isfinite(bound):
                least = max(least, abs(bound))
        largest: Numbers = least
        for size in arrays:
            largest = namespace_of(size).where(size > largest, size, largest)
        return self.rounding * largest


def _check_seen(named: dict[str, Numbers], grad: Array, mask: Array | None, *, arrays: bool) -> None:
    """Raise if Python numbers, and with `arrays` NumPy arrays too, show that x is outside its bounds."""
    seen: dict[str, Numbers] = {name: as_float(value) for name, value in named.items() if is_number(value)}
    given = {name: value for name, value in named.items() if arrays and isinstance(value, np.ndarray)}
    if given and (mask is None or isinstance(mask, np.ndarray)):
        kind = str(grad.dtype).rpartition(".")[2]
        dtype = np.dtype(kind if kind in ("float16", "float64") else "float32")
        dtype = grad.dtype if is_bfloat16(grad.dtype) else dtype
        with np.errstate(over="ignore"):
            seen |= {name: value.astype(dtype).astype(np.float64) for name, value in given.items()}
    low, high = seen.get("low", -math.inf), seen.get("high", math.inf)
    x = seen.get("x", low)
    if not given and low <= x <= high:
        return
    slack = _Slack.of(grad, given)(low, high)
    inside = (x >= low - slack) & (x <= high + slack)
    if isinstance(inside, bool):
        if not inside:
            _raise_outside(named, (), None)
    elif not (inside if mask is None else inside | ~mask).all():
        outside = ~inside if mask is None else ~inside & mask
        _raise_outside(named, outside.shape, np.argmax(outside))


def _raise_outside(named: dict[str, Numbers], shape: tuple[int, ...], index: Array | None) -> NoReturn:
    """Raise an error with the values that can be looked at; an array shows the one at this flat index."""
    at = () if index is None else tuple(map(int, np.unravel_index(int(index), shape)))
    given = []
    for name, value in named.items():
        if is_number(value):
            given.append(f"{name} = {value}")
        elif index is not None and library_of(value).visible(fixed := constant(value)):
            given.append(f"{name} = {namespace_of(value).broadcast_to(fixed, shape)[at]}")
    where = f" at {at}" if at else ""
    raise ValueError(
        f"x must lie within its bounds, low <= x <= high, and be finite; got "
        f"{', '.join(given)}{where}: clip x first"
    )


# The definition. `x` and `room` hold examples as rows, (..., d); `sigma` is (..., 1).


def _definition(p: float, x: Array, sigma: Array, room: Array) -> Array:
    xp = namespace_of(x)
    if x.shape[-1] == 0:
        return x
    size = xp.abs(x)
    bad = xp.any(room != room, axis=-1, keepdims=True)
    if p == math.inf:
        eps = xp.minimum(xp.abs(steepest.value(p, x, sigma)), room)
        return xp.where(bad, math.nan, xp.copysign(eps, x))
    bad = bad | xp.any(x != x, axis=-1, keepdims=True) | (sigma != sigma)
    # A bound beyond the reach of the whole budget does not count. All below is in units of sigma.
    limited = room < sigma
    share = xp.where(limited, room, 0.0) / xp.where(sigma > 0, sigma, 1.0)
    power = xp.where(limited, share**p, math.inf)
    useful = (size > 0) & (room > 0)
    infinite = useful & (size == math.inf)
    # Infinite entries come first; finite ones get the budget that these cannot spend.
    left = _left(xp, infinite, power)
    useful = useful & (infinite | (left >= 0))
    free = useful & ~(infinite & (left >= 0))
    for _ in range(3 if _exponent(p) > 64 else 2):
        left = xp.maximum(_left(xp, useful & ~free, power), xp.zeros_like(sigma))
        free = _search(xp, p, size, share, power, free, left)
    left = xp.maximum(_left(xp, useful & ~free, power), xp.zeros_like(sigma))
    step = steepest.value(p, xp.where(free, x, 0.0), sigma * left ** (1 / p))
    eps = xp.where(free, xp.minimum(xp.abs(step), room), xp.where(useful, room, 0.0))
    return xp.where(bad, math.nan, xp.copysign(eps, x))


def _left(xp: ModuleType, spending: Array, power: Array) -> Array:
    """Return 1 minus the cost of the `spending` entries at their bounds, in units of sigma^p."""
    return 1 - xp.sum(xp.where(spending, power, 0.0), axis=-1, keepdims=True)


def _exponent(p: float) -> float:
    """Return 1 / (p - 1); at p = 1 an exponent so large that it separates any two numbers."""
    return 2.0**60 if p == 1 else 1 / (p - 1)


def _search(
    xp: ModuleType, p: float, size: Array, share: Array, power: Array, free: Array, left: Array
) -> Array:
    """Return which of the `free` entries do not reach their bounds when they spend the budget `left`."""
    e = _exponent(p)
    log_r = _log_ratio(xp, xp.where(free, size, 0.0))
    # log t at which an entry reaches its bound: infinite without a bound, and for an entry that never moves
    never = (log_r == -math.inf) | (power == math.inf)
    reaches = xp.where(never, math.inf, xp.log(share) - e * xp.where(never, 0.0, log_r))

    def spent(log_t: Array) -> Array:
        cost = xp.where(reaches <= log_t, power, xp.exp(p * (log_t + e * log_r)))
        return xp.sum(xp.where(free, cost, 0.0), axis=-1, keepdims=True)

    last = last_affordable(xp, xp.sort(reaches, axis=-1), spent, left)
    return free & ~(reaches <= last)


def last_affordable(xp: ModuleType, values: Array, spent: Callable[[Array], Array], budget: Array) -> Array:
    """Return the last of the sorted `values` where the increasing `spent` is within the budget, or -inf."""
    zero = xp.argmax(budget, axis=-1, keepdims=True)  # in the library's index dtype
    d = values.shape[-1]

    def step(state: tuple[Array, Array], bit: float) -> tuple[Array, Array]:
        count, last = state
        more = count + bit
        value = xp.take_along_axis(values, xp.clip(more - 1, 0, d - 1), axis=-1)
        affordable = (more <= d) & (spent(value) <= budget)
        return xp.where(affordable, more, count), xp.where(affordable, value, last)

    bits = [2**k for k in reversed(range(int(d).bit_length()))]
    return library_of(values).iterate(step, (zero, xp.full_like(budget, -math.inf)), bits)[1]


def _log_ratio(xp: ModuleType, size: Array) -> Array:
    """Return log(size / max size), to full relative accuracy near 0; -inf where all sizes are 0."""
    top = xp.max(size, axis=-1, keepdims=True)
    infinite, scale = top == math.inf, ratio_scale(xp, top)
    scaled = xp.where(infinite, xp.astype(size == top, size.dtype), size * scale)
    unit = xp.where(infinite | (top == 0), 1.0, top * scale)
    r = scaled / unit
    tiny = xp.minimum(r, scaled) < float(xp.finfo(size.dtype).smallest_normal)
    tiny = tiny & ~infinite & (top > 0)
    near = r > 0.5  # there scaled - unit is exact
    log = xp.log(xp.where(tiny, size, r)) - xp.where(tiny, xp.log(top), 0.0)
    return xp.where(near, xp.log1p(xp.where(near, (scaled - unit) / unit, 0.0)), log)


# The derivatives. An entry at its bound moves with its room. The free entries are the steepest step of radius
# tau = (sigma^p - sum of room^p)^(1/p): d tau = (sigma/tau)^(p-1) dsigma - sum (room/tau)^(p-1) droom.


def _terms(p: float, operands: tuple[Array, ...]) -> tuple[Array, Array, tuple[Array, Array], Array, Array]:
    """Return which entries are at their bounds, which are free, and what their derivatives need.

    That is the operands of the free entries' step, and the factors of dsigma and droom in dtau.
    """
    x, sigma, room = operands
    xp = namespace_of(x)
    size = xp.abs(step_in_box(p, x, sigma, room))
    useful = (x != 0) & (room > 0) & (size > 0)
    free = useful & (size < room)
    at_bound = useful & ~free
    inside = xp.where(free, x, 0.0)
    if p == math.inf:
        zero = xp.zeros_like(room)
        return at_bound, free, (inside, sigma), xp.ones_like(sigma), zero
    unit = xp.where(sigma > 0, sigma, 1.0)
    share = xp.where(at_bound, room, 0.0) / unit
    left = 1 - xp.sum(share**p, axis=-1, keepdims=True)
    some = left > 0
    root = xp.where(some, left, 1.0) ** (1 / p)
    most = float(xp.finfo(x.dtype).max) ** 0.48
    tau_by_sigma = xp.clip(root ** (1 - p), 0.0, most)
    ratio = xp.where(at_bound, xp.where(at_bound, share, 1.0) / root, 0.0)
    tau_by_room = xp.where(some & at_bound, xp.clip(ratio ** (p - 1), 0.0, most), 0.0)
    return (
        at_bound,
        free,
        (inside, xp.where(some, sigma * root, 0.0)),
        xp.where(some, tau_by_sigma, 0.0),
        tau_by_room,
    )


def _jvp(p: float, operands: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    dx, dsigma, droom = tangents
    xp = namespace_of(dx)
    at_bound, free, step, tau_by_sigma, tau_by_room = _terms(p, operands)
    dtau = tau_by_sigma * dsigma - xp.sum(tau_by_room * droom, axis=-1, keepdims=True)
    moved = steepest.jvp(p, step, (xp.where(free, dx, 0.0), dtau))
    return xp.where(free, moved, xp.where(at_bound, sign(operands[0]) * droom, 0.0))


def _vjp(p: float, operands: tuple[Array, ...], v: Array) -> tuple[Array, ...]:
    xp = namespace_of(v)
    at_bound, free, step, tau_by_sigma, tau_by_room = _terms(p, operands)
    dx, dtau = steepest.vjp(p, step, xp.where(free, v, 0.0))
    droom = xp.where(at_bound, sign(operands[0]) * v, 0.0) - dtau * tau_by_room
    return xp.where(free, dx, 0.0), dtau * tau_by_sigma, droom


step_in_box = Primitive("step_in_box", _definition, _jvp, _vjp, "(n),(1),(n)->(n)", whole=True)
"""step_in_box(p, x, sigma, room): the maximiser on examples as rows; `room` is how far entries may move."""
