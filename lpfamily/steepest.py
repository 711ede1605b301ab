"""The closed form of the steepest step in an Lp ball (eq. 3) and its limits p = 1, 2, inf.

Written as the paper has it, eq. 3 fails in floating point: the sum inside ||g||_{p*} underflows or
overflows for gradients that networks really have, r ** (1/(p-1)) needs log r to full relative
accuracy when p is near 1, and a small r underflows where its small power would not when p is large.
So: divide by the largest entry first, take one power u = r ** (1/(p-1)) of each entry, and use that
||g||_{p*}^{p*} is then the sum of u * r, and the step u * sum(u * r) ** (-1/p).
"""

from __future__ import annotations

import functools
import math
from numbers import Real
from typing import Any

from lpfamily._arrays import (
    Array,
    admit,
    as_float,
    broadcast_sigma,
    compute_dtype,
    example_shape,
    mask_beside,
    namespace_of,
    reshape,
)
from lpfamily.kernels import Primitive, library_of


def check_p(p: float) -> float:
    """Return p as a float; raise if it is not a number in [1, inf]."""
    if not isinstance(p, Real) or isinstance(p, bool):
        raise TypeError(f"p must be a Python number in [1, inf]; got {p!r}")
    value = as_float(p)
    if not value >= 1:
        raise ValueError(
            f"p must lie in [1, inf]; got {p}: below 1 the ball is not convex and eq. 3 is not its maximiser"
        )
    # a finite p that overflows in float32 must not act as inf; beyond 2^100 no digit changes
    return value if value == math.inf else min(value, 2.0**100)


def is_close(exponent: float, target: float, dtype: Any) -> bool:
    """Whether x**target is x**exponent to rounding in `dtype`, for 1/(p-1) with a rounded p."""
    rounding = 2.0**-52 if "64" in str(dtype) else 2.0**-30
    return abs(exponent - target) <= 1.5 * rounding * target


def epsilon(
    grad: Array,
    p: float,
    sigma: Any,
    *,
    batch_ndim: int | None = None,
    mask: Array | None = None,
    x: Any = None,
    bounds: tuple[Any, Any] | None = None,
) -> Array:
    """Return the step of Lp norm sigma that raises the linearised loss most.

    The maximiser of <grad, eps> subject to ||eps||_p <= sigma, for each example (eq. 2, solved in
    Appendix A)::

        eps = sigma * sign(grad) * (|grad| / ||grad||_{p*}) ** (1 / (p - 1))     (3)

    p = inf is sigma * sign(grad), the fast gradient sign method (eq. 8); p = 2 is sigma * grad /
    ||grad||_2 (eq. 12); p = 1 puts the budget on the largest |grad|, shared equally by ties (eq. 11,
    corrected), which is the limit of eq. 3.

    The step depends on the direction of grad alone, from subnormal to the largest finite entries.
    sign(0) = 0, so that a zero entry, and a zero example, stays zero. Infinite entries share the
    budget of their example for p < inf. A NaN makes its example NaN; at p = inf, where coordinates
    do not depend on each other, its entry. Derivatives are those of eq. 3 where it has them, and 0
    where it has none (p = 1 and inf; zero examples; zero entries for p > 2).

    With `x` and `bounds` it is the maximiser subject to low <= x + eps <= high as well, to one unit
    in the last place of these: for some t, every entry is the smaller of t * |grad| ** (1 / (p - 1))
    and the way to its wall (p = 1: the largest |grad| go to their walls until the budget is spent;
    p = inf: eq. 8 and clipping). Budget that the walls save goes to other entries, so this gains more
    than clipping eq. 3 afterwards; without finite bounds it is eq. 3.

    Parameters
    ----------
    grad
        The gradient of the loss with respect to the input, a floating array of any library; its
        first `batch_ndim` axes index examples, each of which has its own ball.
    p
        A number in [1, inf].
    sigma
        The radius, in units of the input: a number >= 0, or an array that broadcasts to
        `grad.shape[:batch_ndim]`.
    batch_ndim
        None means 1, or 0 for a 1-D array; 0 takes the whole array as one example, as under vmap; 2
        treats each token of a sequence as an example.
    mask
        Boolean, broadcastable to grad: where it is False, eps is zero and spends no budget, and x may
        be anything.
    x
        The input itself, in units of eps: a number, or an array that broadcasts to grad's shape.
    bounds
        (low, high), the box that x + eps stays in: each a number, infinity included, or an array that
        broadcasts to grad's shape. They round to grad's dtype, and so does x. Where x is outside by
        rounding, at most 4 eps (the largest `finfo(...).eps` of grad, x and bounds) times the larger
        finite |bound|, it stands at its wall: it moves inwards only, and nothing is spent to bring it back,
        so that x + eps is outside by no more than x was. Clip x + eps where that is too much.

    Returns
    -------
    Array
        eps, in grad's namespace, shape, dtype and device. Half precision is computed in float32, in NumPy
        also the bfloat16 of ml_dtypes. How a NumPy array lies in memory changes nothing: whatever the byte
        order and strides of the arguments, eps is that of native arrays, and native as NumPy's results are.

    Raises
    ------
    TypeError
        If grad is not a real floating array, p not a number, mask not boolean, x or a bound not real, or
        one of the arrays not dense: sparse, nested or quantised.
    ValueError
        If p < 1 or NaN, a shape does not fit, x comes without bounds or they without x, or if sigma
        is visibly outside [0, inf) or x visibly outside its bounds by more than rounding: numbers, NumPy
        arrays and, for x and bounds, eager torch tensors of the CPU are seen. What else there is (JAX,
        devices, traces) is not looked at, and a bad value makes its example NaN.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    eq. 2-12 and Appendix A.
    """
    p = check_p(p)
    xp, grad = admit(grad, "grad")
    if mask is None and x is None and bounds is None and isinstance(sigma, int | float):
        function = functools.partial(epsilon, p=p, sigma=sigma, batch_ndim=batch_ndim)
        if (eps := library_of(grad).detour(function, grad)) is not None:
            return eps
    dtype = compute_dtype(grad, "grad")
    batch, size = example_shape(grad, batch_ndim, "grad")
    kept = grad if mask is None else masked(grad, mask)
    rows = xp.astype(reshape(kept, (*batch, size)), dtype, copy=False)
    radius = broadcast_sigma(sigma, rows, xp)
    if x is None and bounds is None:
        eps = steepest(p, rows, radius)
    else:
        from lpfamily.boxed import boxed, walls  # which is built on the closed form

        wall = walls(kept, x, bounds, mask, dtype)
        eps = boxed(p, rows, radius, reshape(wall, rows.shape))
    return xp.astype(reshape(eps, grad.shape), grad.dtype, copy=False)


def masked(grad: Array, mask: Array, name: str = "grad") -> Array:
    """Return grad with 0 where the mask is False."""
    xp = namespace_of(grad)
    mask = mask_beside(grad, mask)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"mask must be boolean, True where eps may move; got {mask.dtype}")
    try:
        mask = xp.broadcast_to(mask, grad.shape)
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"mask must broadcast to the shape of {name}, {tuple(grad.shape)}; got {tuple(mask.shape)}"
        ) from cause
    return xp.where(mask, grad, xp.zeros_like(grad))


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
        # sigma may bring back what the sum takes beyond the largest number
        shrunk = xp.sum(size * 2.0**-40, axis=-1, keepdims=True)
        result = xp.where(norm == math.inf, sigma * shrunk * 2.0**40, sigma * norm)
    else:
        _, total, top = _powers(xp, p, x)
        root = total ** ((p - 1) / p)
        # in the order that neither overflows on the way nor rounds a subnormal number twice
        first = (top * root == math.inf) | (sigma > 1)
        result = xp.where(first, sigma * top * root, sigma * (top * root))
    return result[..., 0]


def _powers(xp: Any, p: float, x: Array) -> tuple[Array, Array, Array]:
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
        # r is rounded, and the power magnifies that where r is near 1: x - max x and r - 1 are
        # exact there, and their difference is what the rounding took.
        lost = ((scaled - unit) - (r - 1) * unit) / unit
        u = xp.exp(exponent * xp.where(top == math.inf, xp.log(r), xp.log(r) + lost))
    elif exponent > 0.25:
        u = xp.exp(exponent * xp.log(r))
    else:
        # the power of an r that underflows may still be large
        tiny = r < float(xp.finfo(x.dtype).smallest_normal)
        tiny = tiny & (top > 0) & (top < math.inf)
        u = xp.exp(exponent * (xp.log(xp.where(tiny, size, r)) - xp.where(tiny, xp.log(top), 0.0)))
    return u, xp.sum(u * r, axis=-1, keepdims=True), top


def ratio_scale(xp: Any, top: Array) -> Array:
    """Return powers of two c, 1 for ordinary rows, so that 1 / (c * top) is a normal number."""
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
    # The factor sigma / (p - 1) / max|x|, its root before the product and its root after: the
    # transpose that reverse mode makes of this must not subtract inf from inf, so it is bounded too.
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


steepest = Primitive("steepest", _steepest, _steepest_jvp, _steepest_vjp)
"""steepest(p, x, sigma): eq. 3 on examples as rows."""

dual_norm = Primitive("dual_norm", _dual_norm, _dual_norm_jvp, _dual_norm_vjp)
"""dual_norm(p, x, sigma): sigma * ||x||_{p*} of each row, whose derivative is steepest(p, x, sigma)."""
