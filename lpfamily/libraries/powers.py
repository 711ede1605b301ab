"""Powers of the entries of NumPy arrays, computed in the fastest way for each exponent."""

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
    """The array sign(x) |x|^e, up to a factor per row that depends on `unit`."""

    u: Floats
    unit: Any = None
    """One number per row; None is 1. u is unit * sign(x) |x / unit|^e if the power `carries` its unit, else
    sign(x) |x / unit|^e."""


@dataclass(frozen=True)
class Power:
    """One way to compute the power e of the entries of a block."""

    take: Callable[[Floats, Floats, Floats], Powers]
    """take(x, u, t) returns the powers and may fill u, with t as scratch of x's shape."""
    exact: Fraction | None = None
    """The exponent, if it is a fraction."""
    scratch: bool = True
    """Whether it uses t."""
    working_arrays: int = 3
    """Number of block-sized arrays in use at a time."""
    carries: bool = False
    """Whether u includes the unit as a factor."""
    least: float = 0.0
    """The least |x / unit| whose power has nearly full relative accuracy."""


def fastest_power(e: float, dtype: np.dtype[Any]) -> Power:
    """Return the fastest way to compute the power e."""
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
    if e > 2:  # `least` bounds the rounding of 1 - r, magnified by (e - 1) / r
        return Power(functools.partial(_steep, e), carries=True, least=(e - 1) / (e + 47))
    # `least` bounds the rounding of e log r
    return Power(functools.partial(_by_logarithm, e), least=max(math.exp(-8 / e), 1e-300))


@functools.cache
def _cube_roots_are_slow(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy computes cube roots one by one on this processor, but logarithms many at a time."""
    info = np.lib.introspect.opt_func_info(func_name="^(cbrt|log)$")
    one_by_one = {name: "baseline" in info[name][2 * dtype.char]["current"] for name in ("cbrt", "log")}
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
    1: Power(_itself, Fraction(1), scratch=False, working_arrays=1),
    2: Power(_square, Fraction(2)),
    3: Power(_cube, Fraction(3)),
}
_ROOTS = {
    2: Power(_square_root, Fraction(1, 2)),
    3: Power(_cube_root, Fraction(1, 3), scratch=False, working_arrays=2),
    9: Power(_ninth_root, Fraction(1, 9), scratch=False, working_arrays=2),
}


def _floor(e: float, dtype: np.dtype[Any]) -> float:
    return math.pow(np.finfo(dtype).tiny, 0.75 / e)


def _by_squaring(whole: int, e: float, x: Floats, u: Floats, t: Floats) -> Powers:
    # |x|^(e-1) by squaring; a floor under its base keeps products with x from being subnormal, which is slow
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
    # log1p gives log r to full relative accuracy near r = 1; the floor keeps its argument above -1
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
    # no scaling down for small e: an entry that becomes zero may have a large power
    unit = scale_down(x, u, 1.0 if e <= 0.25 else math.inf)
    np.log(u, out=u)
    u *= e
    np.exp(u, out=u)
    return Powers(with_sign_of(x, u, t), unit)
