"""The inputs of a weighted ball in units of its scale, in which it is an ordinary ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lpfamily._arrays import (
    Array,
    Bounds,
    Numbers,
    admit,
    as_dtype,
    broadcast_mask,
    device_of,
    examples,
    namespace_of,
    portable,
    reshape,
)
from lpfamily.box import box_of, room_down_and_up
from lpfamily.libraries import library_of
from lpfamily.weighted import divided, per_row, radius_and_scale, scaled_direction


@dataclass(frozen=True)
class Units:
    """Inputs x + scale * u, where x + eps lies in weighted balls and u in ordinary ones."""

    x: Array
    radius: Array
    """One value per example, in the dtype to compute in."""
    scale: Array
    """One value per entry, broadcastable to x."""
    mask: Array
    room: tuple[Array, ...]
    """How far entries may move down and up; empty without bounds."""

    @classmethod
    def of(
        cls,
        x: Array,
        sigma: Numbers,
        bounds: Bounds | None,
        batch_ndim: int | None,
        mask: Array | None,
        scale: Numbers,
    ) -> Units:
        """Return inputs in these units. Entries of scale zero stay, as masked entries do."""
        given, inside = (examples(x, "x", batch_ndim, each) for each in (None, mask))
        xp, shape = given.xp, tuple(given.array.shape)
        radius, scale = radius_and_scale(given, given.radius(sigma), scale)
        scale = reshape(scale, (*scale.shape[:-1], *shape[len(given.batch) :]))
        moves = xp.broadcast_to(scale > 0, shape)
        if mask is not None:
            moves = moves & broadcast_mask(given.array, mask, "x")
        room = () if bounds is None else room_down_and_up(inside, *box_of(x, bounds))
        return cls(given.array, radius[..., 0], scale, moves, tuple(reshape(each, shape) for each in room))

    @property
    def centre(self) -> Array:
        """The u of x itself."""
        xp = namespace_of(self.x)
        return xp.zeros_like(as_dtype(xp, self.x, self.scale.dtype))

    @property
    def bounds(self) -> Bounds | None:
        """The bounds of u."""
        if not self.room:
            return None
        down, up = (divided(each, self.scale) for each in self.room)
        return -down, up

    def inverse(self, eps: Array) -> Array:
        """Return the u of a perturbation; the caller refuses one whose shape is not x's."""
        _, eps = admit(eps, "start")
        if tuple(eps.shape) != tuple(self.x.shape):
            return eps
        xp, like = namespace_of(self.x), self.scale
        return divided(xp.asarray(portable(eps), dtype=like.dtype, device=device_of(like)), like)

    def eps(self, u: Array) -> Array:
        """Return the perturbation of u, inside the box even where rounding puts u outside."""
        return library_of(u).fused(_eps, u, self.scale, *self.room)

    def value_and_grad(
        self, of_x: Callable[..., tuple[Array, Array]], u: Array, *rows: Any
    ) -> tuple[Array, Array]:
        """Return the value at u, and its gradient there, up to a positive factor per example."""
        inputs = self._at(*rows) if rows else self
        xp, x, scale = namespace_of(u), inputs.x, inputs.scale
        value, grad = of_x(x + as_dtype(xp, inputs.eps(u), x.dtype), *rows)
        if tuple(grad.shape) == tuple(x.shape):  # the caller refuses other shapes
            batch = tuple(x.shape[: self.radius.ndim])
            flat = reshape(as_dtype(xp, grad, scale.dtype), (*batch, math.prod(x.shape[len(batch) :])))
            scales = reshape(scale, (*scale.shape[: len(batch)], flat.shape[-1]))
            grad = reshape(per_row(scaled_direction, flat, scales), tuple(x.shape))
        return value, grad

    def _at(self, rows: Any) -> Units:
        """Return the inputs of some examples."""
        if isinstance(rows, slice):
            return self
        one_for_all = self.scale.shape[0] == 1 < self.x.shape[0]
        scale = self.scale if one_for_all else self.scale[rows, ...]
        return replace(
            self, x=self.x[rows, ...], scale=scale, room=tuple(each[rows, ...] for each in self.room)
        )


def _eps(u: Array, scale: Array, *room: Array) -> Array:
    xp, eps = namespace_of(u), scale * u
    if room:
        down, up = room
        eps = xp.minimum(xp.maximum(eps, -down), up)
    return eps
