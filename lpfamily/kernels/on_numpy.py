"""NumPy's kernels: the definitions of the primitives, a block of rows at a time.

The definitions make some twenty passes over the whole array, each through main memory. Here a block
of rows stays in the cache from its first pass to its last, p decides once how the power is taken,
and what is rare (NaN, infinite, zero, subnormal rows) is found on one number a row: such rows are
done again, scaled, and what that cannot mend goes to the definition. So the common path has only
the passes that the mathematics needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpfamily.box import boxed
from lpfamily.kernels import Library, Primitive
from lpfamily.steepest import is_close, steepest

CACHE_BYTES = 1 << 20
"""For a block, its result and its scratch: half of a common second-level cache."""

NEWTON_FROM = 1.05
"""Below this p, too few entries of a row take part in a step of Newton's method."""
NEWTON_STEPS = 16

PIECE = 1024
"""How many products NumPy may add one after another: the sum loses a few units in the last place."""

Floats = NDArray[Any]
Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Kernel:
    """How blocks of rows are done, and what it takes."""

    fill: Callable[..., tuple[Any, ...]]
    """fill(x, sigma, out, t) fills out, t being scratch like x, and returns statistics of each row."""
    valid: Callable[..., Rows]
    """valid(sigma, *statistics) is a mask of the rows whose result is exact."""
    scratch: bool = True
    """Whether it uses t."""
    arrays: int = 3
    """How many arrays of a block's size it comes back to."""
    zeroed: bool = False
    """Whether it needs out to be 0."""


class NumpyLibrary(Library):
    """NumPy, which has no derivatives to be told of."""

    def __init__(self) -> None:
        self.implementations = {steepest: _steepest, boxed: functools.partial(_by_blocks, _boxed)}

    def apply(self, primitive: Primitive, p: float, *operands: Floats) -> Floats:
        """Evaluate `primitive` on rows, by default the definition block by block."""
        x = operands[0]
        if x.size == 0:
            return np.asarray(primitive.value(p, *operands))
        batch = x.shape[:-1]
        evaluate = self.implementations.get(primitive)
        if evaluate is None:
            evaluate = functools.partial(_by_blocks, primitive.value)
        with self.unwarned():
            # NumPy would first copy a column operand that is wider than this buffer.
            np.setbufsize(16)
            result = evaluate(p, *[_rows(operand, batch) for operand in operands])
            return result.reshape(batch + result.shape[1:])

    def visible(self, x: Floats) -> bool:
        """They are in memory."""
        return True

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: Any
    ) -> tuple[Floats, Floats, Floats]:
        """Draw from a `numpy.random.Generator`."""
        if not isinstance(rng, np.random.Generator):
            return super().variates(rng, shape, concentration, dtype)
        dtype = np.float64 if dtype is None or np.dtype(dtype).itemsize == 8 else np.float32
        return (
            2 * rng.random(shape, dtype) - dtype(1),
            rng.standard_gamma(concentration, shape, dtype),
            rng.standard_exponential((*shape[:-1], 1), dtype),
        )


def _blocks(rows: Floats, arrays: int = 4) -> list[slice]:
    step = max(1, CACHE_BYTES // (arrays * rows[0].nbytes))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _rows(operand: Floats, batch: tuple[int, ...]) -> Floats:
    if operand.shape[:-1] != batch:
        operand = np.broadcast_to(operand, (*batch, operand.shape[-1]))
    return operand if len(batch) == 1 else operand.reshape(-1, operand.shape[-1])


def _by_blocks(function: Callable[..., Floats], p: float, *rows: Floats) -> Floats:
    return np.concatenate([function(p, *(each[block] for each in rows)) for block in _blocks(rows[0])])


def _steepest(p: float, x: Floats, sigma: Floats) -> Floats:
    kernel = _kernel(p, x.dtype)
    blocks = _blocks(x, kernel.arrays)
    out = np.zeros(x.shape, x.dtype) if kernel.zeroed else np.empty(x.shape, x.dtype)
    t = np.empty(x[blocks[0]].shape if kernel.scratch else (0, 0), x.dtype)
    numbers = []
    for block in blocks:
        rows = x[block]
        numbers.append(kernel.fill(rows, sigma[block], out[block], t[: len(rows)]))
    whole = numbers[0] if len(blocks) == 1 else map(np.concatenate, zip(*numbers, strict=True))
    right = kernel.valid(sigma, *whole)
    if not right.all():
        for block in blocks:
            wrong = np.flatnonzero(~right[block]) + block.start
            if wrong.size:
                out[wrong] = _repaired(p, kernel, x[wrong], sigma[wrong])
    return out


def _repaired(p: float, kernel: Kernel, x: Floats, sigma: Floats) -> Floats:
    out: Floats
    out, t, scaled = np.zeros((3, *x.shape), x.dtype)
    exact = _scale(x, scaled, p)
    wrong = ~(kernel.valid(sigma, *kernel.fill(scaled, sigma, out, t)) & exact)
    if wrong.any():
        out[wrong] = steepest.value(p, x[wrong], sigma[wrong])
    return out


def _boxed(p: float, x: Floats, sigma: Floats, wall: Floats) -> Floats:
    out = np.empty(x.shape, x.dtype)
    solve = _fill_in_order if p == 1 else _newton if NEWTON_FROM <= p < math.inf else None
    right: Rows = np.zeros(len(x), bool)
    if solve is not None:
        right |= solve(p, x, sigma, wall, out)
        right &= np.isfinite(x.max(axis=1) - x.min(axis=1)) & ~np.isnan(wall.min(axis=1))
        right &= ~np.isnan(sigma[:, 0])
    if not right.all():
        wrong = ~right
        out[wrong] = boxed.value(p, x[wrong], sigma[wrong], wall[wrong])
    return out


def _newton(p: float, x: Floats, sigma: Floats, wall: Floats, out: Floats) -> Rows:
    """Let all that pass their walls stand there, and the others take the step of what is left; repeat.

    Who passes a wall with a part of the budget does so with all of it, so none ever returns.
    """
    right = np.zeros(len(x), bool)
    rows, inside, step = np.arange(len(x)), x, _steepest(p, x, sigma)
    power = np.exp(p * np.log(np.minimum(wall, sigma) / sigma))
    free: Rows = np.ones(x.shape, bool)
    for _ in range(NEWTON_STEPS):
        passed = np.abs(step) > wall[rows]
        more = passed.any(axis=1)
        done = rows[~more]
        out[done] = np.where(free[~more], step[~more], np.copysign(wall[done], x[done]))
        right[done] = True
        rows, power, free = rows[more], power[more], free[more] & ~passed[more]
        if not rows.size:
            break
        inside = inside[more] * free
        left = np.maximum(1 - _dots(power, (~free).astype(x.dtype)), 0).astype(x.dtype)[:, None]
        step = _steepest(p, inside, sigma[rows] * left ** x.dtype.type(1 / p))
    return right


def _fill_in_order(p: float, x: Floats, sigma: Floats, wall: Floats, out: Floats) -> Rows:
    """Send entries to their walls from the largest |x| down, the last as far as the budget goes."""
    size = np.abs(x)
    order = np.argsort(-size, axis=1)
    size = np.take_along_axis(size, order, axis=1)
    step = np.take_along_axis(wall, order, axis=1)
    step[size == 0] = 0
    spent = np.cumsum(step, axis=1, dtype=np.float64)
    # the entry that the budget does not cover, if there is one, and its neighbours
    at = np.count_nonzero(spent <= sigma, axis=1)[:, None]
    last = x.shape[1] - 1
    here, before, after = (np.clip(at + k, 0, last) for k in (0, -1, 1))
    value, near = (np.take_along_axis(size, i, axis=1) for i in (here, after))
    alone = (at > last) | ((value != near) | (at == last))
    paid = np.where(at > 0, np.take_along_axis(spent, before, axis=1), 0)
    alone &= (at > last) | (at == 0) | (value != np.take_along_axis(size, before, axis=1))
    step[np.arange(last + 1) > at] = 0
    partial = np.where(at > last, np.take_along_axis(step, here, axis=1), sigma - paid)
    np.put_along_axis(step, here, partial.astype(x.dtype), axis=1)
    np.put_along_axis(out, order, step, axis=1)
    np.copysign(out, x, out=out)
    right: Rows = alone[:, 0]
    return right


def _dots(a: Floats, b: Floats) -> Floats:
    """Return the sum of products of each row, in float64."""
    pieces = a.shape[1] // PIECE
    if pieces < 2:
        return np.asarray(np.vecdot(a, b).astype(np.float64))
    first, second = (each[:, : pieces * PIECE].reshape(len(a), pieces, PIECE) for each in (a, b))
    rest = np.vecdot(a[:, pieces * PIECE :], b[:, pieces * PIECE :])
    total: Floats = np.vecdot(first, second).sum(axis=1, dtype=np.float64) + rest
    return total


def _scale(x: Floats, out: Floats, p: float) -> Rows:
    """Fill `out` with x times a power of two, max|x| in [1/2, 1); say for which rows no entry is lost."""
    info = np.finfo(x.dtype)
    top = np.maximum(x.max(axis=1), -x.min(axis=1))
    exponents = np.frexp(top)[1]
    exact: Rows = (top > 0) & (top < math.inf) & (np.abs(exponents) <= info.maxexp - 2)
    if p >= 5 and (down := exact & (exponents > 0)).any():
        # going down may take a small entry to zero, which matters to a small power of it
        size = np.abs(x[down])
        size[size == 0] = math.inf
        exact[down] = np.ldexp(size.min(axis=1), -exponents[down]) >= info.tiny
    np.multiply(x, np.ldexp(x.dtype.type(1), -exponents)[:, None], out=out)
    return exact


@functools.lru_cache(64)
def _kernel(p: float, dtype: np.dtype[Any]) -> Kernel:
    if p == math.inf:
        return _signs(dtype)
    if p == 1:
        return Kernel(
            _fill_largest, lambda sigma, top: (top > 0) & ~np.isnan(sigma[:, 0]), arrays=2, zeroed=True
        )
    power = _power(1 / (p - 1), dtype)
    info = np.finfo(dtype)
    normal, largest = float(info.tiny), float(info.max)
    # without scaling down, log|x| and its rounding may be large
    most = 2.0**40 if p >= 5 else largest * 2.0**-26
    e = power.exact
    exact_root = -e / (e + 1) if e else -1 / Fraction(p)
    root = float(exact_root)
    # A total far from 1 magnifies what -1/p loses in rounding, so its power takes both parts.
    lost = float(exact_root - Fraction(root)) if dtype.itemsize == 8 else 0.0

    def fill(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats, ...]:
        u, unit = power.take(x, out, t)
        total = _dots(u, x)
        own = total if unit is None else total / unit ** (1 + power.carries)
        factor = own**root
        if lost:
            factor *= 1 + lost * np.log(own)
        if power.carries:
            factor /= unit
        factor *= sigma[:, 0]
        np.multiply(u, factor.astype(x.dtype)[:, None], out=out)
        return total, factor

    def right(sigma: Floats, total: Floats, factor: Floats) -> Rows:
        found: Rows = (factor >= normal) & (factor <= largest) | (sigma[:, 0] == 0)
        return found & (total >= normal * 2.0**26) & (total <= most)

    return Kernel(fill, right, power.scratch, power.arrays)


class Powers(NamedTuple):
    """An array, sign(x) |x|^e times a number per row, and what that number is."""

    u: Floats
    unit: Any = None
    """u is unit * sign(x) |x / unit|^e where the power carries its unit, else without the first factor;
    None is a unit of 1."""


@dataclass(frozen=True)
class Power:
    """One way to take the power e of the entries of a block."""

    take: Callable[[Floats, Floats, Floats], Powers]
    """take(x, u, t) may fill u, t being scratch like x."""
    exact: Fraction | None = None
    """The exponent, if it is a fraction."""
    scratch: bool = True
    """Whether it uses t."""
    arrays: int = 3
    """How many arrays of a block's size it comes back to."""
    carries: bool = False
    """Whether the result carries its unit."""


def _power(e: float, dtype: np.dtype[Any]) -> Power:
    whole = round(e) if e < 13 and is_close(e, round(e), dtype) else 0
    root = round(1 / e)
    if whole in _POWERS:
        return _POWERS[whole]
    if root in _ROOTS and is_close(e, 1 / root, dtype):
        return _ROOTS[root]
    if whole:
        return Power(functools.partial(_by_squaring, whole, e), Fraction(whole), carries=True)
    if e > 2:
        return Power(functools.partial(_steep, e), carries=True)
    return Power(functools.partial(_by_logarithm, e))


def _itself(x: Floats, u: Floats, t: Floats) -> Powers:
    return Powers(x)


def _square(x: Floats, u: Floats, t: Floats) -> Powers:
    np.abs(x, out=t)
    return Powers(np.multiply(x, t, out=u))


def _cube(x: Floats, u: Floats, t: Floats) -> Powers:
    np.multiply(x, x, out=t)
    return Powers(np.multiply(x, t, out=u))


def _square_root(x: Floats, u: Floats, t: Floats) -> Powers:
    np.abs(x, out=u)
    np.sqrt(u, out=u)
    return Powers(_with_sign_of(x, u, t))


def _cube_root(x: Floats, u: Floats, t: Floats) -> Powers:
    return Powers(np.cbrt(x, out=u))


def _ninth_root(x: Floats, u: Floats, t: Floats) -> Powers:
    np.cbrt(x, out=u)
    return Powers(np.cbrt(u, out=u))


_POWERS = {
    1: Power(_itself, Fraction(1), scratch=False, arrays=1),
    2: Power(_square, Fraction(2)),
    3: Power(_cube, Fraction(3)),
}
_ROOTS = {
    2: Power(_square_root, Fraction(1, 2)),
    3: Power(_cube_root, Fraction(1, 3), scratch=False, arrays=2),
    9: Power(_ninth_root, Fraction(1, 9), scratch=False, arrays=2),
}


def _by_squaring(whole: int, e: float, x: Floats, u: Floats, t: Floats) -> Powers:
    # |x|^(e-1) by squaring, from below where x times it would be subnormal, which is slow
    unit = _scale_down(x, t)
    np.maximum(t, float(np.finfo(x.dtype).tiny) ** (0.75 / e), out=t)
    n = whole - 1
    while n % 2 == 0:
        t *= t
        n //= 2
    if n > 1:
        np.multiply(t, t, out=u)
    while n := n // 2:
        if n % 2:
            t *= u
        if n > 1:
            u *= u
    return Powers(np.multiply(t, x, out=u), unit)


def _steep(e: float, x: Floats, u: Floats, t: Floats) -> Powers:
    # log r to full accuracy where r is near 1; the floor is where log1p has no more to give
    info = np.finfo(x.dtype)
    top = _sizes(x, t)
    t -= top[:, None]
    t *= (1 / top)[:, None]
    np.maximum(t, float(info.epsneg) - 1, out=t)
    np.log1p(t, out=t)
    t *= e - 1
    np.maximum(t, 0.9 * math.log(float(info.tiny)), out=t)
    np.exp(t, out=t)
    return Powers(np.multiply(t, x, out=u), top.astype(np.float64))


def _by_logarithm(e: float, x: Floats, u: Floats, t: Floats) -> Powers:
    # a small power of an entry that scaling down takes to zero may be large
    unit = _scale_down(x, u, 1.0 if e <= 0.25 else math.inf)
    np.log(u, out=u)
    u *= e
    np.exp(u, out=u)
    return Powers(_with_sign_of(x, u, t), unit)


def _sizes(x: Floats, t: Floats) -> Floats:
    """Fill t with |x| and return the largest of each row: numbers are in the order of their bits."""
    np.abs(x, out=t)
    top: Floats = t.view(f"i{x.itemsize}").max(axis=1).view(x.dtype)
    return top


def _scale_down(x: Floats, t: Floats, most: float = math.inf) -> Floats:
    """Fill t with |x| / unit, below 1 where `most` allows it, and return the units, powers of two."""
    unit = np.minimum(np.ldexp(1.0, np.frexp(_sizes(x, t))[1]), most)
    np.multiply(t, (1 / unit).astype(x.dtype)[:, None], out=t)
    return unit


_SIGN_BITS: dict[int, Any] = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}


def _with_sign_of(x: Floats, u: Floats, t: Floats) -> Floats:
    """Give the entries of u, which are not negative, the signs of x."""
    sign = _SIGN_BITS[x.itemsize]
    bits = sign.dtype
    np.bitwise_and(x.view(bits), sign, out=t.view(bits))
    np.bitwise_or(u.view(bits), t.view(bits), out=u.view(bits))
    return u


def _fill_largest(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats]:
    np.abs(x, out=t)
    top = t.max(axis=1)
    where = np.flatnonzero(t == top[:, None])
    row = where // x.shape[1]
    ties = np.bincount(row, minlength=len(x))
    share = (sigma[:, 0] / ties).astype(x.dtype)
    np.put(out, where, np.copysign(share[row], x.take(where)))
    return (top,)


def _signs(dtype: np.dtype[Any]) -> Kernel:
    # The least subnormal times `huge` is `least`, so the clip makes every entry +-least, 0 or NaN.
    info = np.finfo(dtype)
    huge = dtype.type(2.0 ** (info.maxexp - 1))
    least = huge * info.smallest_subnormal

    def fill(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats]:
        np.multiply(x, huge, out=out)
        np.clip(out, -least, least, out=out)
        factor = sigma * (1 / least)
        out *= factor
        return (factor[:, 0],)

    return Kernel(fill, lambda sigma, factor: np.isfinite(factor), scratch=False, arrays=1)


library = NumpyLibrary()
