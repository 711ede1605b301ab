"""The inputs of a weighted ball in its own units, in which it is plain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lpfamily._arrays import (
    Array,
    Bounds,
    Numbers,
    admit,
    broadcast_mask,
    carried,
    device_of,
    examples,
    reshape,
)
from lpfamily.box import box_of, ways
from lpfamily.weighted import Weighted


@dataclass(frozen=True)
class Units:
    """Inputs x + scale * u of weighted balls, in which u has plain ones."""

    x: Array
    ball: Weighted[Array]
    mask: Array
    ways: tuple[Array, ...]
    """How far entries may move down and up, if there are bounds; rows, as in `ball`."""

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
        """Return inputs; an entry whose scale is zero stays, as one that is masked."""
        given, inside = (examples(x, "x", batch_ndim, each) for each in (None, mask))
        ball = Weighted.of(given, given.radius(sigma), scale)
        moves = reshape(ball.scale > 0, tuple(given.array.shape))
        if mask is not None:
            moves = moves & broadcast_mask(given.array, mask, "x")
        box = box_of(x, bounds) if bounds is not None else None
        return cls(given.array, ball, moves, ways(inside, *box) if box else ())

    def like_x(self, rows: Array) -> Array:
        """Return rows in the shape of x."""
        return reshape(rows, tuple(self.x.shape))

    @property
    def scale(self) -> Array:
        """That of each entry of x, in the dtype that is computed in."""
        return self.like_x(self.ball.scale)

    @property
    def bounds(self) -> Bounds | None:
        """Those of u."""
        if not self.ways:
            return None
        down, up = (self.like_x(self.ball.in_units(way)) for way in self.ways)
        return -down, up

    def inverse(self, eps: Array) -> Array:
        """Return the u of a perturbation; one that has another shape than x is refused where it is used."""
        _, eps = admit(eps, "start")
        if tuple(eps.shape) != tuple(self.x.shape):
            return eps
        xp, scale = self.ball.xp, self.ball.scale
        eps = xp.asarray(carried(eps), dtype=scale.dtype, device=device_of(scale))
        return self.like_x(self.ball.in_units(reshape(eps, tuple(scale.shape))))

    def at(self, rows: Array | None) -> Units:
        """Return some of the inputs."""
        if rows is None or isinstance(rows, slice):
            return self
        ball = replace(self.ball, rows=self.ball.rows[rows, ...], scale=self.ball.scale[rows, ...])
        return replace(self, x=self.x[rows, ...], ball=ball, ways=tuple(way[rows, ...] for way in self.ways))

    def eps(self, u: Array) -> Array:
        """Return the perturbation that u is, in the box also where u is not by rounding."""
        xp, eps = self.ball.xp, self.scale * u
        if self.ways:
            down, up = map(self.like_x, self.ways)
            eps = xp.minimum(xp.maximum(eps, -down), up)
        return eps

    def value_and_grad(
        self, of_x: Callable[..., tuple[Array, Array]], u: Array, *rows: Any
    ) -> tuple[Array, Array]:
        """Return the value at u, and its gradient there, up to a positive factor per example."""
        some = self.at(*rows) if rows else self
        xp, ball = some.ball.xp, some.ball
        value, grad = of_x(some.x + xp.astype(some.eps(u), some.x.dtype, copy=False), *rows)
        if tuple(grad.shape) == tuple(some.x.shape):  # others are refused where they are used
            grad = reshape(xp.astype(grad, ball.scale.dtype, copy=False), tuple(ball.scale.shape))
            grad = some.like_x(replace(ball, rows=grad).along)
        return value, grad
