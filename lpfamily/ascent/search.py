"""What an ascent is about: the value to raise, and the ball and box around the examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lpfamily._arrays import Array, Numbers, is_number, namespace_of, of_library, reshape
from lpfamily.balls import project
from lpfamily.libraries import library_of
from lpfamily.step import epsilon


@dataclass(frozen=True)
class Region:
    """The ball and the box around some examples."""

    x: Array
    p: float
    sigma: Numbers
    bounds: tuple[Numbers, ...]
    """(low, high), or () without bounds."""
    mask: Array | None
    batch_ndim: int

    @property
    def _ball(self) -> dict[str, Any]:
        return {"batch_ndim": self.batch_ndim, "mask": self.mask}

    def step(self, grad: Array, length: Numbers, eps: Array | None = None) -> Array:
        """Return the steepest step from x, or with `eps` from x + eps.

        The caller passes the end of a step from x + eps to `nearest`: at p = inf the step ignores the box.
        """
        box: dict[str, Any] = {}
        if self.bounds and eps is None:
            box = {"x": self.x, "bounds": self.bounds}
        elif self.bounds and self.p != math.inf:  # at p = inf `nearest` alone handles the box
            # where a gradient or a sigma is NaN, so is eps; x itself then stands in for x + eps
            here = namespace_of(eps).where(eps == eps, self.x + eps, self.x)
            box = {"x": here, "bounds": self.bounds}
        return epsilon(grad, self.p, length, **self._ball, **box)

    def nearest(self, eps: Array) -> Array:
        """Return the nearest point of ball and box, in x's dtype."""
        box: dict[str, Any] = {"x": self.x, "bounds": self.bounds} if self.bounds else {}
        eps = namespace_of(eps).astype(eps, self.x.dtype, copy=False)
        return project(eps, self.p, self.sigma, **self._ball, **box)

    def column(self, values: Array) -> Array:
        """Return one value per example, shaped to broadcast over the entries of x."""
        return reshape(values, (*values.shape, *[1] * (self.x.ndim - self.batch_ndim)))

    def where(self, condition: Array, new: Array, old: Array) -> Array:
        """Return `new` for the examples where the condition holds and `old` for the others."""
        xp = namespace_of(new)
        return xp.where(condition if new.ndim == self.batch_ndim else self.column(condition), new, old)

    def of(self, indices: Array) -> Region:
        """Return the region of some of the examples."""
        of_these, ndim = partial(of_examples, indices, self.x), self.x.ndim
        return replace(
            self,
            x=self.x[indices],
            sigma=of_these(self.sigma, self.batch_ndim),
            bounds=tuple(of_these(bound, ndim) for bound in self.bounds),
            mask=of_these(self.mask, ndim),
        )


@dataclass(frozen=True)
class Search:
    """The value to raise in a region, and the examples that are still searched."""

    value_and_grad: Callable[..., tuple[Array, Array]]
    region: Region
    stop_above: float | None
    indices: Array | None = None
    """The indices of these examples among all that were given; None if they are all."""

    def evaluate(self, eps: Array) -> tuple[Array, Array]:
        """Return value and gradient of each example."""
        x, batch_ndim = self.region.x, self.region.batch_ndim
        indices = () if self.stop_above is None else (slice(None) if self.indices is None else self.indices,)
        value, grad = self.value_and_grad(x + eps, *indices)
        batch = tuple(x.shape[:batch_ndim])
        if tuple(value.shape) != batch or tuple(grad.shape) != tuple(x.shape):
            raise ValueError(
                f"value_and_grad must return one value per example, {batch}, and a gradient like x, "
                f"{tuple(x.shape)}; got shapes {tuple(value.shape)} and {tuple(grad.shape)}"
            )
        return value, grad

    def unfinished(self, value: Array) -> Array | None:
        """Return the indices of the examples not above `stop_above`; None where none can be left out."""
        batch_ndim = self.region.batch_ndim
        if self.stop_above is None or not batch_ndim:
            return None
        going, inner = ~(value > self.stop_above), tuple(range(1, batch_ndim))
        return library_of(value).places(namespace_of(value).any(going, axis=inner) if inner else going)

    def of(self, indices: Array | None) -> Search:
        """Return the search restricted to some of its examples."""
        if indices is None:
            return self
        among_all = indices if self.indices is None else self.indices[indices]
        return replace(self, region=self.region.of(indices), indices=among_all)


def is_better(new: Array, value: Array, stop_above: Numbers | None) -> Array:
    """Return a mask of the examples whose new value replaces the old one."""
    better = (new > value) | (value != value)
    return better if stop_above is None else better & ~(value > stop_above)


def of_examples(indices: Array, x: Array, operand: Any, ndim: int) -> Any:
    """Return the entries of an operand that belong to some examples of x.

    The operand is a number, or broadcasts to the first `ndim` axes of x.
    """
    if operand is None or is_number(operand):
        return operand
    operand = operand if hasattr(operand, "shape") else np.asarray(operand)
    if len(operand.shape) < ndim or operand.shape[0] == 1:
        return operand  # the same for all
    return of_library(x, operand, "what belongs to x")[indices]
