"""Weighted balls, ||eps / scale||_p <= sigma: in units of scale they are ordinary balls.

With eps = scale * u, <grad, eps> is <scale * grad, u>, so eq. 2 is solved for scale * grad and u. Where scale
is zero the entry does not move. The product may leave the range of the dtype although neither factor does.
The product of their square roots does not leave it, and the powers of eq. 3 are powers of these roots too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lpfamily import box
from lpfamily._arrays import (
    A,
    Array,
    DType,
    Given,
    Numbers,
    as_float,
    beside,
    device_of,
    finfo,
    is_number,
    is_real,
    namespace_of,
    portable,
    reshape,
)
from lpfamily.libraries import constant, library_of
from lpfamily.steepest import dual_exponent, dual_norm, steepest

ORDINARY = 2.0**-100, 2.0**100
"""The products of a radius and a scale that no dtype to compute in rounds to zero, or to infinity."""


def joined(sigma: Numbers, scale: Numbers | None) -> tuple[Numbers, Numbers | None]:
    """Return radius and scale of the same balls, without the scale where both are ordinary numbers."""
    if not (is_number(scale) and is_number(sigma) and 0 < scale < math.inf):
        return sigma, scale
    radius = as_float(sigma) * as_float(scale)
    return (radius, None) if sigma == 0 or ORDINARY[0] <= radius <= ORDINARY[1] else (sigma, scale)


# `rows` are examples, (..., d); `radius` is (..., 1); `scale` broadcasts to the rows.


def radius_and_scale(given: Given[A], radius: Array, scale: Numbers) -> tuple[Array, Array]:
    """Return the radius and the scale of examples; the radius is NaN where an unchecked scale is bad."""
    rows = _scale_of(given, scale)
    if is_number(scale) or isinstance(scale, np.ndarray):
        return radius, rows
    checked: tuple[Array, Array] = library_of(rows).fused(_checked, radius, rows)
    return checked


def _checked(radius: Array, scale: Array) -> tuple[Array, Array]:
    xp, good = namespace_of(scale), (scale >= 0) & (scale < math.inf)
    return xp.where(xp.all(good, axis=-1, keepdims=True), radius, math.nan), xp.where(good, scale, 0.0)


def _scale_of(given: Given[A], scale: Numbers) -> Array:
    """Return a scale in the dtype of the rows: one row if it is the same for all examples."""
    xp, values = given.xp, given.values
    dtype, device = values.dtype, device_of(values)
    largest = float(finfo(xp, dtype).max)
    if is_number(scale):
        number = as_float(scale)
        _check(0 <= number <= largest, scale, largest, dtype)
        return xp.full((*(1,) * (values.ndim - 1), values.shape[-1]), number, dtype=dtype, device=device)
    if isinstance(scale, np.ndarray):
        if not is_real(scale.dtype):
            raise TypeError(f"scale must be real; got {scale.dtype}")
        fits = np.all((scale >= 0) & (scale <= np.float64(largest)))
        _check(fits, f"an array from {scale.min(initial=0)} to {scale.max(initial=0)}", largest, dtype)
        scale = xp.asarray(portable(scale), dtype=dtype, device=device)
    else:
        scale = xp.astype(beside(values, scale, "scale"), dtype)
    shape, whole, batch = tuple(scale.shape), tuple(given.array.shape), given.batch
    alike = len(shape) <= len(whole) and set(shape[: max(0, len(shape) - len(whole) + len(batch))]) <= {1}
    batch = (1,) * len(batch) if alike else batch
    try:
        scale = xp.broadcast_to(scale, batch + whole[len(batch) :])
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"scale must be a number or broadcast to the shape of the input, {whole}; got {shape}"
        ) from cause
    return reshape(scale, (*batch, values.shape[-1]))


def _check(fits: bool | np.bool_, given: object, largest: float, dtype: DType) -> None:
    if not fits:
        raise ValueError(
            f"scale must lie in [0, {largest:.4g}] for {dtype}, where 0 moves nothing; got {given}"
        )


def per_row(function: Callable[..., Array], *rows: Array, reduces: bool = False) -> Array:
    """Evaluate a function of rows row by row; its intermediate results may leave the dtype's range."""
    return library_of(rows[0]).per_row(function, reduces, *rows)


def zero_where_fixed(rows: Array, scale: Array) -> Array:
    """Return rows with 0 where the scale is 0, so that the entry is fixed."""
    xp = namespace_of(rows)
    if library_of(scale).visible(scale) and bool(xp.all(constant(scale) > 0)):
        return rows
    return xp.where(scale > 0, rows, 0.0)


def divided(rows: Array, scale: Array) -> Array:
    """Return rows / scale, where 0 / 0 is 0 and other entries over 0 are infinite."""
    return library_of(rows).fused(_divided, rows, scale)


def _divided(rows: Array, scale: Array) -> Array:
    xp, some = namespace_of(rows), scale > 0
    infinite = xp.copysign(xp.where(rows == 0, rows, math.inf), rows)
    return xp.where(some, rows / xp.where(some, scale, 1.0), infinite)


def step(p: float, rows: Array, radius: Array, scale: Array) -> Array:
    """Return eq. 3 in weighted balls."""
    xp, rows = namespace_of(rows), zero_where_fixed(rows, scale)
    if p == math.inf:
        return scale * steepest(p, rows, radius)
    product = rows * scale
    eps = steepest(p, product, radius)
    if (rare := _leaves_range(product, rows, scale)) is not None:
        # |product|^(1/(p-1)) is root^(1/(q-1)) for q - 1 = (p - 1) / 2
        one = xp.ones_like(radius)
        direction = steepest((p + 1) / 2, xp.where(rare, _root(rows, scale), 0.0), one)
        size = dual_norm(dual_exponent(p), direction, one)[..., None]
        eps = xp.where(rare, radius * (direction / xp.where(size > 0, size, 1.0)), eps)
    return scale * eps


def step_in_box(p: float, rows: Array, radius: Array, scale: Array, room: Array) -> Array:
    """Return the maximiser in weighted balls and a box; `room` is how far each entry may move."""
    xp, rows, room_of_u = namespace_of(rows), zero_where_fixed(rows, scale), divided(room, scale)
    u = box.step_in_box(p, rows if p == math.inf else scaled_direction(rows, scale), radius, room_of_u)
    size = xp.abs(u)
    eps = xp.where(size >= room_of_u, room, xp.minimum(scale * size, room))
    return xp.where(u == u, xp.copysign(xp.where(rows == 0, 0.0, eps), rows), u)


def scaled_direction(rows: Array, scale: Array) -> Array:
    """Return rows times scale, up to a positive factor per row."""
    xp, rows = namespace_of(rows), zero_where_fixed(rows, scale)
    product = rows * scale
    if (rare := _leaves_range(product, rows, scale)) is None:
        return product
    root = _root(rows, scale)
    top = xp.max(xp.abs(constant(root)), axis=-1, keepdims=True)
    root = root / xp.where((top > 0) & (top < math.inf), top, 1.0)
    return xp.where(rare, root * xp.abs(root), product)


def dual_norm_of_product(p: float, rows: Array, radius: Array, scale: Array) -> Array:
    """Return radius * ||scale * rows||_{p*}."""
    rows = zero_where_fixed(rows, scale)
    return _norm(p, rows * scale, rows, radius, scale)


def dual_norm_of_quotient(p: float, rows: Array, radius: Array, scale: Array) -> Array:
    """Return radius * ||rows / scale||_{p*}."""
    xp, some = namespace_of(rows), scale > 0
    inverse = xp.where(some, 1 / xp.where(some, scale, 1.0), math.inf)
    return _norm(p, divided(rows, scale), rows, radius, inverse)


def _norm(p: float, product: Array, rows: Array, radius: Array, scale: Array) -> Array:
    xp, size = namespace_of(rows), dual_norm(p, product, radius)
    if (rare := _leaves_range(product, rows, scale)) is None:
        return size
    # ||root^2||_q is ||root||_{2q}^2
    root = xp.where(rare, _root(rows, scale), 0.0)
    of_root = dual_norm(dual_exponent(2 * dual_exponent(p)), root, xp.ones_like(radius))
    return xp.where(rare[..., 0], radius[..., 0] * of_root * of_root, size)


def _leaves_range(product: Array, rows: Array, scale: Array) -> Array | None:
    """Return a mask of the rows whose product leaves the dtype's range, or None if no row does."""
    xp, size = namespace_of(rows), namespace_of(rows).abs(constant(product))
    least, seen = float(xp.finfo(size.dtype).smallest_normal), library_of(size).visible(size)
    if seen and (0 in size.shape or (float(xp.min(size)) >= least and float(xp.max(size)) < math.inf)):
        return None
    small = (size < least) & (rows != 0) & (scale > 0)
    rare = xp.any(small | ((size == math.inf) & (xp.abs(rows) < math.inf)), axis=-1, keepdims=True)
    return None if seen and not bool(xp.any(rare)) else rare


def _root(rows: Array, scale: Array) -> Array:
    """Return the square root of |rows| * scale, with the signs of rows."""
    xp, some = namespace_of(rows), (rows != 0) & (scale > 0)
    root = xp.sqrt(xp.where(some, xp.abs(rows), 1.0)) * xp.sqrt(xp.where(some, scale, 1.0))
    return xp.copysign(xp.where(some, root, 0.0), rows)
