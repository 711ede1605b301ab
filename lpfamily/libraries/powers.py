"""Powers of the entries of NumPy's rows, in the way that is fastest for each exponent."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from lpfamily.libraries.rows import Floats, scale_down, sizes, with_sign_of
from lpfamily.steepest import is_close


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
    least: float = 0.0
    """The least |x / unit| whose power is taken to nearly full relative accuracy."""


def fastest_power(e: float, dtype: np.dtype[Any]) -> Power:
    """Return how the power e is taken."""
    whole = round(e) if e < 13 and is_close(e, round(e), dtype) else 0
    root = round(1 / e)
    if whole in _POWERS:
        return _POWERS[whole]
    if (
        root in _ROOTS
        and is_close(e, 1 / root, dtype)
        and not (root % 3 == 0 and _cube_roots_are_slow(dtype))
    ):
        return _ROOTS[root]
    if whole:
        least = _floor(e, dtype) ** 0.5
        return Power(functools.partial(_by_squaring, whole, e), Fraction(whole), carries=True, least=least)
    if e > 2:  # the rounding of 1 - r, magnified by (e - 1) / r
        return Power(functools.partial(_steep, e), carries=True, least=(e - 1) / (e + 47))
    return Power(functools.partial(_by_logarithm, e), least=max(math.exp(-8 / e), 1e-300))  # that of e log r


@functools.cache
def _cube_roots_are_slow(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy takes cube roots one by one on this processor, and logarithms many at a time."""
    found = np.lib.introspect.opt_func_info(func_name="^(cbrt|log)$")
    one_by_one = {name: "baseline" in found[name][2 * dtype.char]["current"] for name in ("cbrt", "log")}
    return one_by_one["cbrt"] and not one_by_one["log"]


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
    return Powers(with_sign_of(x, u, t))


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


def _floor(e: float, dtype: np.dtype[Any]) -> float:
    return math.pow(np.finfo(dtype).tiny, 0.75 / e)


def _by_squaring(whole: int, e: float, x: Floats, u: Floats, t: Floats) -> Powers:
    # |x|^(e-1) by squaring, from below where x times it would be subnormal, which is slow
    unit = scale_down(x, t)
    np.maximum(t, _floor(e, x.dtype), out=t)
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
    top = sizes(x, t)
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
    unit = scale_down(x, u, 1.0 if e <= 0.25 else math.inf)
    np.log(u, out=u)
    u *= e
    np.exp(u, out=u)
    return Powers(with_sign_of(x, u, t), unit)
