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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """fill(x, sigma, out, t) fills out, t being scratch like x, and returns numbers of each row."""
    right: Callable[..., Rows]
    """right(sigma, *numbers) says for all rows which are right."""
    scratch: bool = True
    """Whether it uses t."""
    held: int = 3
    """How many arrays of a block's size it comes back to."""
    blank: bool = False
    """Whether it needs out to be 0."""


Power = Callable[[Floats, Floats, Floats], tuple[Floats, Any, int]]


class NumpyLibrary(Library):
    """NumPy, which has no derivatives to be told of."""

    def apply(self, primitive: Primitive, p: float, *operands: Floats) -> Floats:
        """Evaluate `primitive` block by block."""
        x = operands[0]
        if x.size == 0:
            return np.asarray(primitive.value(p, *operands))
        rows = x.reshape(-1, x.shape[-1])
        with np.errstate(all="ignore"):
            # NumPy would first copy a column operand that is wider than this buffer.
            np.setbufsize(16)
            sigma = operands[1]
            if sigma.shape != (*x.shape[:-1], 1):
                sigma = np.broadcast_to(sigma, (*x.shape[:-1], 1))
            sigma = sigma.reshape(-1, 1)
            if primitive.name == "dual_norm":
                norms = [primitive.value(p, rows[block], sigma[block]) for block in _blocks(rows)]
                return np.concatenate(norms).reshape(x.shape[:-1])
            if primitive.name == "nearest":
                parts = [rows, sigma, *(wall.reshape(rows.shape) for wall in operands[2:])]
                points = [primitive.value(p, *(part[b] for part in parts)) for b in _blocks(rows)]
                return np.concatenate(points).reshape(x.shape)
            if primitive.name == "boxed":
                wall = operands[2].reshape(rows.shape)
                steps = [_boxed(primitive, p, rows[b], sigma[b], wall[b]) for b in _blocks(rows)]
                return np.concatenate(steps).reshape(x.shape)
            return _steepest(primitive, p, rows, sigma).reshape(x.shape)

    def unwarned(self) -> AbstractContextManager[Any]:
        """Ignore what NumPy warns of."""
        return np.errstate(all="ignore")

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


def _blocks(rows: Floats, held: int = 4) -> list[slice]:
    step = max(1, CACHE_BYTES // (held * rows[0].nbytes))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _steepest(primitive: Primitive, p: float, x: Floats, sigma: Floats) -> Floats:
    kernel = _kernel(p, x.dtype)
    blocks = _blocks(x, kernel.held)
    out = np.zeros(x.shape, x.dtype) if kernel.blank else np.empty(x.shape, x.dtype)
    t = np.empty(x[blocks[0]].shape if kernel.scratch else (0, 0), x.dtype)
    numbers = []
    for block in blocks:
        rows = x[block]
        numbers.append(kernel.fill(rows, sigma[block], out[block], t[: len(rows)]))
    whole = numbers[0] if len(blocks) == 1 else map(np.concatenate, zip(*numbers, strict=True))
    right = kernel.right(sigma, *whole)
    if not right.all():
        for block in blocks:
            wrong = np.flatnonzero(~right[block]) + block.start
            if wrong.size:
                out[wrong] = _repaired(primitive, p, kernel, x[wrong], sigma[wrong])
    return out


def _repaired(primitive: Primitive, p: float, kernel: Kernel, x: Floats, sigma: Floats) -> Floats:
    out: Floats
    out, t, scaled = np.zeros((3, *x.shape), x.dtype)
    exact = _scale(x, scaled, p)
    wrong = ~(kernel.right(sigma, *kernel.fill(scaled, sigma, out, t)) & exact)
    if wrong.any():
        out[wrong] = primitive.value(p, x[wrong], sigma[wrong])
    return out


def _boxed(primitive: Primitive, p: float, x: Floats, sigma: Floats, wall: Floats) -> Floats:
    out = np.empty(x.shape, x.dtype)
    solve = _fill_in_order if p == 1 else _newton if NEWTON_FROM <= p < math.inf else None
    right: Rows = np.zeros(len(x), bool)
    if solve is not None:
        right |= solve(p, x, sigma, wall, out)
        right &= np.isfinite(x.max(axis=1) - x.min(axis=1)) & ~np.isnan(wall.min(axis=1))
        right &= ~np.isnan(sigma[:, 0])
    if not right.all():
        wrong = ~right
        out[wrong] = primitive.value(p, x[wrong], sigma[wrong], wall[wrong])
    return out


def _newton(p: float, x: Floats, sigma: Floats, wall: Floats, out: Floats) -> Rows:
    """Let all that pass their walls stand there, and the others take the step of what is left; repeat.

    Who passes a wall with a part of the budget does so with all of it, so none ever returns.
    """
    right = np.zeros(len(x), bool)
    rows, inside, step = np.arange(len(x)), x, _steepest(steepest, p, x, sigma)
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
        step = _steepest(steepest, p, inside, sigma[rows] * left ** x.dtype.type(1 / p))
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
            _fill_largest, lambda sigma, top: (top > 0) & ~np.isnan(sigma[:, 0]), held=2, blank=True
        )
    power, e, scratch, held = _power(1 / (p - 1), dtype)
    info = np.finfo(dtype)
    normal, largest = float(info.tiny), float(info.max)
    # without scaling down, log|x| and its rounding may be large
    most = 2.0**40 if p >= 5 else largest * 2.0**-26
    exact_root = -e / (e + 1) if e else -1 / Fraction(p)
    root = float(exact_root)
    # A total far from 1 magnifies what -1/p loses in rounding, so its power takes both parts.
    lost = float(exact_root - Fraction(root)) if dtype.itemsize == 8 else 0.0

    def fill(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats, ...]:
        u, unit, carried = power(x, out, t)
        total = _dots(u, x)
        own = total if unit is None else total / unit ** (1 + carried)
        factor = own**root
        if lost:
            factor *= 1 + lost * np.log(own)
        if carried:
            factor /= unit
        factor *= sigma[:, 0]
        np.multiply(u, factor.astype(x.dtype)[:, None], out=out)
        return total, factor

    def right(sigma: Floats, total: Floats, factor: Floats) -> Rows:
        found: Rows = (factor >= normal) & (factor <= largest) | (sigma[:, 0] == 0)
        return found & (total >= normal * 2.0**26) & (total <= most)

    return Kernel(fill, right, scratch, held)


def _power(e: float, dtype: np.dtype[Any]) -> tuple[Power, Fraction | None, bool, int]:
    """Return power(x, u, t), its exponent if that is a fraction, whether it uses t, and what it holds.

    power returns an array, x or u, a unit of each row, and whether the array carries it: it is
    unit * sign(x) |x / unit|^e, or without the first factor. None is a unit of 1.
    """
    tiny = float(np.finfo(dtype).tiny)
    bits = np.dtype(f"u{dtype.itemsize}")
    sign = bits.type(1 << (8 * dtype.itemsize - 1))
    # A small power of an entry that scaling down takes to zero may be large.
    most_unit = 1.0 if e <= 0.25 else math.inf
    whole = round(e) if e < 13 and is_close(e, round(e), dtype) else 0

    def sizes(x: Floats, t: Floats) -> Floats:
        """Fill t with |x| and return the largest of each row: numbers are in the order of their bits."""
        np.abs(x, out=t)
        top: Floats = t.view(f"i{dtype.itemsize}").max(axis=1).view(dtype)
        return top

    def scale(x: Floats, t: Floats, most: float = math.inf) -> Floats:
        """Fill t with |x| / unit, below 1 where `most` allows it, and return the units, powers of two."""
        unit = np.minimum(np.ldexp(1.0, np.frexp(sizes(x, t))[1]), most)
        np.multiply(t, (1 / unit).astype(dtype)[:, None], out=t)
        return unit

    def copy_sign(x: Floats, u: Floats, t: Floats) -> None:
        np.bitwise_and(x.view(bits), sign, out=t.view(bits))
        np.bitwise_or(u.view(bits), t.view(bits), out=u.view(bits))

    def identity(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        return x, None, 0

    def square(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        np.abs(x, out=t)
        np.multiply(x, t, out=u)
        return u, None, 0

    def cube(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        np.multiply(x, x, out=t)
        np.multiply(x, t, out=u)
        return u, None, 0

    def cube_root(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        np.cbrt(x, out=u)
        return u, None, 0

    def ninth_root(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        np.cbrt(x, out=u)
        np.cbrt(u, out=u)
        return u, None, 0

    def square_root(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        np.abs(x, out=u)
        np.sqrt(u, out=u)
        copy_sign(x, u, t)
        return u, None, 0

    def whole_power(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        # |x|^(e-1) by squaring, from below where x times it would be subnormal, which is slow
        unit = scale(x, t)
        np.maximum(t, tiny ** (0.75 / e), out=t)
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
        np.multiply(t, x, out=u)
        return u, unit, 1

    def steep(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        # log r to full accuracy where r is near 1; the floor is where log1p has no more to give
        top = sizes(x, t)
        t -= top[:, None]
        t *= (1 / top)[:, None]
        np.maximum(t, float(np.finfo(dtype).epsneg) - 1, out=t)
        np.log1p(t, out=t)
        t *= e - 1
        np.maximum(t, 0.9 * math.log(tiny), out=t)
        np.exp(t, out=t)
        np.multiply(t, x, out=u)
        return u, top.astype(np.float64), 1

    def general(x: Floats, u: Floats, t: Floats) -> tuple[Floats, Any, int]:
        unit = scale(x, u, most_unit)
        np.log(u, out=u)
        u *= e
        np.exp(u, out=u)
        copy_sign(x, u, t)
        return u, unit, 0

    for n, power, scratch, held in (1, identity, False, 1), (2, square, True, 3), (3, cube, True, 3):
        if whole == n:
            return power, Fraction(n), scratch, held
    for n, power, scratch, held in (
        (2, square_root, True, 3),
        (3, cube_root, False, 2),
        (9, ninth_root, False, 2),
    ):
        if is_close(e, 1 / n, dtype):
            return power, Fraction(1, n), scratch, held
    if whole:
        return whole_power, Fraction(whole), True, 3
    return steep if e > 2 else general, None, True, 3


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

    return Kernel(fill, lambda sigma, factor: np.isfinite(factor), scratch=False, held=1)
