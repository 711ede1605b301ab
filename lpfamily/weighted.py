"""Weighted balls, ||eps / scale||_p <= sigma: in units of scale they are plain.

With eps = scale * u, <grad, eps> is <scale * grad, u>, so that the problem of eq. 2 is that of scale * grad
and u. Where scale is zero the entry does not move. The product may leave the range of the dtype where neither
factor does; the product of their roots does not, and the powers of eq. 3 are powers of that too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic

import numpy as np

from lpfamily._arrays import (
    A,
    Array,
    Given,
    Numbers,
    as_float,
    beside,
    carried,
    device_of,
    is_number,
    is_real,
    namespace_of,
)
from lpfamily.box import boxed
from lpfamily.kernels import constant, library_of
from lpfamily.steepest import dual_exponent, dual_norm, steepest


def _unwarned(method: Callable[..., Array]) -> Callable[..., Array]:
    """Let a method go through numbers that are too large or too small for the dtype."""

    @functools.wraps(method)
    def quietly(self: Weighted[Any], *arguments: Any) -> Array:
        with library_of(self.rows).unwarned():
            return method(self, *arguments)

    return quietly


@dataclass(frozen=True)
class Weighted(Generic[A]):
    """Examples and their weighted balls, as rows."""

    xp: ModuleType
    rows: Array
    radius: Array
    scale: Array

    @classmethod
    def of(cls, given: Given[A], radius: Array, scale: Numbers) -> Weighted[A]:
        """Return what was given beside its balls; one whose scale is bad, where it is not seen, is NaN."""
        xp, scale = given.xp, scale_of(given, scale)
        good = (scale >= 0) & (scale < math.inf)
        radius = xp.where(xp.all(good, axis=-1, keepdims=True), radius, math.nan)
        return cls(xp, given.values, radius, xp.where(good, scale, 0.0))

    @property
    def moving(self) -> Array:
        """The rows, 0 where the scale is."""
        return self.xp.where(self.scale > 0, self.rows, 0.0)

    @_unwarned
    def in_units(self, rows: Array) -> Array:
        """Return rows over the scale: where that is 0, 0 of 0, and infinity of others."""
        some = self.scale > 0
        return self.xp.where(
            some,
            rows / self.xp.where(some, self.scale, 1.0),
            self.xp.where(rows == 0, rows, self.xp.copysign(self.xp.full_like(rows, math.inf), rows)),
        )

    @_unwarned
    def step(self, p: float) -> Array:
        """Return eq. 3."""
        xp, rows, scale = self.xp, self.moving, self.scale
        if p == math.inf:
            return scale * steepest(p, rows, self.radius)
        product = rows * scale
        eps = steepest(p, product, self.radius)
        if (rare := self._leaves_range(product, rows)) is not None:
            # |product|^(1/(p-1)) is root^(1/(q-1)) for q - 1 = (p - 1) / 2
            one = xp.ones_like(self.radius)
            step = steepest((p + 1) / 2, xp.where(rare, _root(rows, scale), 0.0), one)
            size = dual_norm(dual_exponent(p), step, one)[..., None]
            eps = xp.where(rare, self.radius * (step / xp.where(size > 0, size, 1.0)), eps)
        return scale * eps

    @_unwarned
    def boxed(self, p: float, wall: Array) -> Array:
        """Return eq. 3 in a box; `wall` is how far each entry may move."""
        xp, rows = self.xp, self.moving
        near = self.in_units(wall)
        u = boxed(p, rows if p == math.inf else self.along, self.radius, near)
        size = xp.abs(u)
        moved = xp.where(size >= near, wall, xp.minimum(self.scale * size, wall))
        eps = xp.copysign(xp.where(rows == 0, 0.0, moved), rows)
        return xp.where(u == u, eps, u)

    @property
    @_unwarned
    def along(self) -> Array:
        """The rows times scale, up to a positive factor per row."""
        product = self.moving * self.scale
        if (rare := self._leaves_range(product, self.moving)) is None:
            return product
        root = _root(self.moving, self.scale)
        top = self.xp.max(self.xp.abs(constant(root)), axis=-1, keepdims=True)
        root = root / self.xp.where((top > 0) & (top < math.inf), top, 1.0)
        return self.xp.where(rare, root * self.xp.abs(root), product)

    @_unwarned
    def dual_norm(self, p: float) -> Array:
        """Return radius * ||scale * rows||_{p*}."""
        return self._norm(p, self.moving * self.scale, self.moving, self.scale)

    @_unwarned
    def norm_in_units(self, p: float) -> Array:
        """Return radius * ||rows / scale||_{p*}."""
        some = self.scale > 0
        inverse = self.xp.where(some, 1 / self.xp.where(some, self.scale, 1.0), math.inf)
        return self._norm(p, self.in_units(self.rows), self.rows, inverse)

    def _norm(self, p: float, product: Array, rows: Array, scale: Array) -> Array:
        size = dual_norm(p, product, self.radius)
        if (rare := self._leaves_range(product, rows)) is None:
            return size
        # ||root^2|| at an exponent is ||root||^2 at twice that
        root = self.xp.where(rare, _root(rows, scale), 0.0)
        of_root = dual_norm(dual_exponent(2 * dual_exponent(p)), root, self.xp.ones_like(self.radius))
        return self.xp.where(rare[..., 0], self.radius[..., 0] * of_root * of_root, size)

    def _leaves_range(self, product: Array, rows: Array) -> Array | None:
        """Return in which rows a product is too large or small for the dtype, or None where it is in none."""
        xp, seen = self.xp, constant(product)
        size = xp.abs(seen)
        small = (size < float(xp.finfo(seen.dtype).smallest_normal)) & (rows != 0) & (self.scale > 0)
        rare = xp.any(small | ((size == math.inf) & (xp.abs(rows) < math.inf)), axis=-1, keepdims=True)
        return rare if not library_of(rare).visible(rare) or bool(xp.any(rare)) else None


def scale_of(given: Given[A], scale: Numbers) -> Array:
    """Return a scale beside the rows, in their dtype; raise for one that is seen to be bad."""
    xp, dtype, device = given.xp, given.values.dtype, device_of(given.values)
    if is_number(scale):
        _check(as_float(scale), scale)
        return xp.full_like(given.values, as_float(scale))
    if isinstance(scale, np.ndarray):
        if not is_real(scale.dtype):
            raise TypeError(f"scale must be real; got {scale.dtype}")
        _check(scale, "an array with " + str(scale.min(initial=0)))
        scale = xp.asarray(carried(scale), dtype=dtype, device=device)
    else:
        scale = xp.astype(beside(given.values, scale, "scale"), dtype)
    shape, whole = tuple(scale.shape), tuple(given.array.shape)
    try:
        return given.rows(xp.broadcast_to(scale, whole))
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"scale must be a number or broadcast to the shape of the input, {whole}; got {shape}"
        ) from cause


def _check(scale: Any, given: object) -> None:
    if not np.all((scale >= 0) & (scale < math.inf)):
        raise ValueError(f"scale must be at least 0, where 0 moves nothing, and finite; got {given}")


def _root(x: Array, scale: Array) -> Array:
    """Return the signed root of x * scale."""
    xp = namespace_of(x)
    size, some = xp.abs(x), (x != 0) & (scale > 0)
    root = xp.sqrt(xp.where(some, size, 1.0)) * xp.sqrt(xp.where(some, scale, 1.0))
    return xp.copysign(xp.where(some, root, 0.0), x)
