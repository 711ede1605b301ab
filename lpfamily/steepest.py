"""The closed form of the steepest step in an Lp ball (eq. 3) and its limits p = 1, 2, inf.

Computed as the paper writes it, eq. 3 fails in floating point. The sum inside ||g||_{p*} underflows or
overflows for gradients that real networks have. For p near 1, r ** (1/(p-1)) needs log r to full
relative accuracy. For large p, a small r underflows although its small power would not.

So this module divides by the largest entry first and takes one power u = r ** (1/(p-1)) of each entry.
Then ||g||_{p*}^{p*} is the sum of u * r, and the step is u * sum(u * r) ** (-1/p).
"""

from __future__ import annotations

import math
from types import ModuleType

from lpfamily._arrays import Array, DType, check_p, namespace_of
from lpfamily.libraries import Primitive


def dual_exponent(p: float) -> float:
    """Return p* with 1/p + 1/p* = 1 (below eq. 3): inf for p = 1, 2 for p = 2, 1 for p = inf.

    Parameters
    ----------
    p
        A number in [1, inf].

    Raises
    ------
    TypeError, ValueError
        If p is not a number, or lies below 1 or is NaN.
    """
    p = check_p(p)
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def is_close(exponent: float, target: float, dtype: DType) -> bool:
    """Whether x**target equals x**exponent to rounding in `dtype`, for 1/(p-1) with a rounded p."""
    rounding = 2.0**-52 if "64" in str(dtype) else 2.0**-30
    return abs(exponent - target) <= 1.5 * rounding * target


# The definitions. `x` holds examples as rows, (..., d), in float32 or float64; `sigma` is (..., 1).


def _steepest(p: float, x: Array, sigma: Array) -> Array:
    xp = namespace_of(x)
    if x.shape[-1] == 0:
        return x
    if p == math.inf:
        return sigma * xp.where((x == 0) | (x != x), x, xp.copysign(xp.ones_like(x), x))
    if p == 1:
        top = xp.abs(x) == xp.max(xp.abs(x), axis=-1, keepdims=True)
        ties = xp.sum(xp.astype(top, x.dtype), axis=-1, keepdims=True)
        share = xp.where((x == 0) & (ties > 0), 0.0, sigma / xp.where(ties > 0, ties, math.nan))
        eps = xp.copysign(xp.where(top | (ties == 0), share, 0.0), x)
        return xp.where(sigma == sigma, eps, math.nan)
    u, total, _ = _powers(xp, p, x)
    return xp.copysign(u, x) * (sigma * xp.where(total == 0, 1.0, total) ** (-1 / p))


def _dual_norm(p: float, x: Array, sigma: Array) -> Array:
    xp = namespace_of(x)
    size = xp.abs(x)
    if p == 1 and x.shape[-1]:
        result = sigma * xp.max(size, axis=-1, keepdims=True)
    elif p == math.inf or x.shape[-1] == 0:
        norm = xp.sum(size, axis=-1, keepdims=True)
        # where the sum overflows, sigma may bring the product back into the range
        shrunk = xp.sum(size * 2.0**-40, axis=-1, keepdims=True)
        result = xp.where(norm == math.inf, sigma * shrunk * 2.0**40, sigma * norm)
    else:
        _, total, top = _powers(xp, p, x)
        root = total ** ((p - 1) / p)
        # this order of the products neither overflows on the way nor rounds a subnormal number twice
        first = (top * root == math.inf) | (sigma > 1)
        result = xp.where(first, sigma * top * root, sigma * (top * root))
    return result[..., 0]


def _powers(xp: ModuleType, p: float, x: Array) -> tuple[Array, Array, Array]:
    """Return u = r^(1/(p-1)), sum u*r = sum r^{p*} and max|x|, where r = |x| / max|x|."""
    size = xp.abs(x)
    top = xp.max(size, axis=-1, keepdims=True)
    scale = ratio_scale(xp, top)
    scaled, unit = size * scale, xp.where(top == 0, 1.0, top * scale)
    r = xp.where(top == math.inf, xp.astype(size == top, x.dtype), scaled * (1 / unit))
    # Below 2^-60 every power is 1; the bound keeps the exponent a normal number in float32.
    exponent = max(1 / (p - 1), 2.0**-60)
    if exponent == 1:  # p = 2
        u = r
    elif exponent == 0.5:  # p = 3
        u = xp.sqrt(r)
    elif exponent == 2:  # p = 3/2
        u = r * r
    elif is_close(exponent, 3, x.dtype):  # p = 4/3
        u = r * r * r
    elif exponent > 2:
        # The power magnifies the rounding of r where r is near 1. There x - max x and r - 1 are exact,
        # and their difference is the rounding error.
        lost = ((scaled - unit) - (r - 1) * unit) / unit
        u = xp.exp(exponent * xp.where(top == math.inf, xp.log(r), xp.log(r) + lost))
    elif exponent > 0.25:
        u = xp.exp(exponent * xp.log(r))
    else:
        # where r underflows or is subnormal, its power may still be large
        tiny = xp.minimum(r, scaled) < float(xp.finfo(x.dtype).smallest_normal)
        tiny = tiny & (top > 0) & (top < math.inf)
        u = xp.exp(exponent * (xp.log(xp.where(tiny, size, r)) - xp.where(tiny, xp.log(top), 0.0)))
    return u, xp.sum(u * r, axis=-1, keepdims=True), top


def ratio_scale(xp: ModuleType, top: Array) -> Array:
    """Return a power of two c per row, 1 for ordinary rows, such that 1 / (c * top) is a normal number."""
    info = xp.finfo(top.dtype)
    bits = math.frexp(float(info.max))[1]
    up, down = 2.0 ** (bits * 3 // 4), 2.0 ** (-bits * 3 // 4)
    one = xp.ones_like(top)
    return xp.where(top < 2.0 ** (-bits // 4), up * one, xp.where(top > 2.0 ** (bits // 4), down * one, one))


# The derivatives. eps = sigma * d with d the unit step, d is the gradient of n = ||x||_{p*}, and
# with e = 1/(p-1) the Hessian of n is e/n * (diag(n d / x) - d d'): symmetric, so jvp and vjp agree.


def _unit(p: float, x: Array) -> Array:
    return steepest(p, x, namespace_of(x).ones_like(x[..., :1]))


def _norm(p: float, x: Array) -> Array:
    return dual_norm(p, x, namespace_of(x).ones_like(x[..., :1]))


def _hessian_product(p: float, x: Array, sigma: Array, v: Array) -> Array:
    """Return the derivative of sigma * d along v."""
    xp = namespace_of(x)
    if p in (1, math.inf) or x.shape[-1] == 0:
        return xp.zeros_like(x)
    top = xp.max(xp.abs(x), axis=-1, keepdims=True)
    smooth = (top > 0) & (top < math.inf) & (sigma > 0)
    scale = ratio_scale(xp, top)
    unit = xp.where(smooth, top * scale, 1.0)
    b = xp.where(smooth, x * scale / unit, 1.0)
    d, n = _unit(p, b), _norm(p, b)[..., None]
    nonzero = b != 0
    largest = float(xp.finfo(x.dtype).max)
    ratio = xp.clip(xp.where(nonzero, d / xp.where(nonzero, b, 1.0), 0.0), 0.0, largest)
    if p == 2:
        ratio = xp.where(nonzero, ratio, 1 / n)
    # The factor is sigma / (p - 1) / max|x|. Its root is applied before the product and again after,
    # and bounded: the transpose of this in reverse mode must not subtract inf from inf.
    root = xp.sqrt(xp.where(sigma > 0, sigma, 1.0))
    side = xp.sqrt(scale) / xp.sqrt(unit) * (root * (p - 1) ** -0.5)
    side = xp.where(smooth, xp.minimum(side, xp.full_like(side, largest**0.48)), 0.0)
    v = side * v
    along = xp.sum(d * v, axis=-1, keepdims=True)
    return side * (ratio * v - d * (along / n))


def _steepest_jvp(p: float, operands: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    (x, sigma), (dx, dsigma) = operands, tangents
    return _hessian_product(p, x, sigma, dx) + dsigma * _unit(p, x)


def _steepest_vjp(p: float, operands: tuple[Array, ...], v: Array) -> tuple[Array, ...]:
    x, sigma = operands
    along = namespace_of(x).sum(_unit(p, x) * v, axis=-1, keepdims=True)
    return _hessian_product(p, x, sigma, v), along


def _dual_norm_jvp(p: float, operands: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    (x, sigma), (dx, dsigma) = operands, tangents
    along = namespace_of(x).sum(_unit(p, x) * dx, axis=-1)
    return sigma[..., 0] * along + dsigma[..., 0] * _norm(p, x)


def _dual_norm_vjp(p: float, operands: tuple[Array, ...], v: Array) -> tuple[Array, ...]:
    x, sigma = operands
    return steepest(p, x, sigma) * v[..., None], (v * _norm(p, x))[..., None]


steepest = Primitive("steepest", _steepest, _steepest_jvp, _steepest_vjp, "(n),(1)->(n)", splits=True)
"""steepest(p, x, sigma): eq. 3 on examples as rows."""

dual_norm = Primitive("dual_norm", _dual_norm, _dual_norm_jvp, _dual_norm_vjp, "(n),(1)->()", splits=True)
"""dual_norm(p, x, sigma): sigma * ||x||_{p*} of each row, whose derivative is steepest(p, x, sigma)."""
