"""A classifier and a batch of examples, as the attacks of the ensemble see them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily._arrays import Array, Bounds, Numbers, device_of, finfo, namespace_of, reshape
from lpfamily.ascent.search import of_examples
from lpfamily.balls import project
from lpfamily.norms import norm
from lpfamily.units import Units

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Classifier:
    """A classifier of arrays of one library.

    `evaluate(x, y, targets)` returns logits, values and gradients of examples, like x. The value is the
    error log-odds of y or, where `targets` names a class, its logit minus that of y. `logits(x)` returns the
    logits.
    """

    evaluate: Callable[[Array, Array, Array | None], tuple[Array, Array, Array]]
    logits: Callable[[Array], Array]
    host: Callable[[Array], NDArray[Any]] = np.asarray
    """Returns an array as a NumPy array."""
    admit: Callable[[Any], Array] = np.asarray
    """Returns given inputs or labels as the classifier takes them."""
    rank: int = 0
    """Which of `size` processes this is: it takes one of every `size` batches."""
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda local: [local]
    """Returns the results of all processes, in each of them."""


class Examples:
    """A batch of examples, with their logits, gradients, bounds and scale.

    The methods take the indices of some of these examples, and perturbations with one entry for each index.
    """

    def __init__(
        self,
        classifier: Classifier,
        x: Array,
        y: Array,
        bounds: Bounds | None,
        scale: Numbers | None = None,
    ):
        self.classifier, self.x, self.y, self.bounds, self.scale = classifier, x, y, bounds, scale
        self.labels: Ints = classifier.host(y)
        logits, _, grad = classifier.evaluate(x, y, None)
        self.z, self.largest = classifier.host(logits), float(finfo(namespace_of(logits), logits.dtype).max)
        self.predicted = self.z.argmax(axis=1)
        right = np.arange(self.z.shape[1]) == self.labels[:, None]
        self.order = np.argsort(-np.where(right, -math.inf, self.z), axis=1, kind="stable")
        """The classes of each example by falling logits, its label last."""
        self.grad, no_gradient = finite_gradients(grad)
        self.no_gradient = classifier.host(no_gradient)
        self.gradients = 0
        """The number of gradients of one example that attacks have taken."""

    def fools(self, indices: Ints, eps: Array) -> NDArray[np.bool_]:
        """Return a mask of the examples that are misclassified at x + eps."""
        z = self.classifier.host(self.classifier.logits(self.x[indices] + eps))
        return np.asarray(z.argmax(axis=1) != self.labels[indices])

    def bounds_of(self, indices: Ints) -> Bounds | None:
        """Return the bounds of these examples."""
        if self.bounds is None:
            return None
        low, high = (of_examples(indices, self.x, bound, self.x.ndim) for bound in self.bounds)
        return low, high

    def ball_of(self, indices: Ints) -> dict[str, Any]:
        """Return the keyword arguments that give `epsilon` and `project` the ball of these examples."""
        return {"batch_ndim": 1, "scale": of_examples(indices, self.x, self.scale, self.x.ndim)}

    def box_of(self, indices: Ints, x: Array) -> dict[str, Any]:
        """Return the same keyword arguments, and those that keep x + eps in the box."""
        box = {} if self.bounds is None else {"x": x, "bounds": self.bounds_of(indices)}
        return self.ball_of(indices) | box

    def from_host(self, values: NDArray[Any], like: Array) -> Array:
        """Return a NumPy array as an array of the classifier's library."""
        xp = namespace_of(like)
        return xp.asarray(values, dtype=like.dtype, device=device_of(like))

    def column(self, values: Floats) -> Array:
        """Return one value per example, shaped to broadcast over the entries of x."""
        return self.from_host(values.reshape(-1, *[1] * (self.x.ndim - 1)), self.x)

    def norms(self, indices: Ints, eps: Array, p: float) -> Floats:
        """Return the norms of perturbations, as a float64 NumPy array."""
        return self.classifier.host(norm(eps, p, **self.ball_of(indices))).astype(np.float64)

    def nearest(self, indices: Ints, eps: Array, p: float, radius: Numbers) -> Array:
        """Return the nearest points of ball and box, in units of the scale if there is one."""
        x, bounds = self.x[indices], self.bounds_of(indices)
        if self.scale is None:
            return project(eps, p, radius, **self.box_of(indices, x))
        units = Units.of(x, radius, bounds, 1, None, self.ball_of(indices)["scale"])
        box: dict[str, Any] = {} if bounds is None else {"x": 0.0, "bounds": units.bounds}
        return units.eps(project(units.inverse(eps), p, radius, batch_ndim=1, mask=units.mask, **box))


def finite_gradients(grad: Array) -> tuple[Array, Array]:
    """Return gradients, 0 where they are not finite, and a mask of the examples whose gradient is 0 now."""
    xp = namespace_of(grad)
    size = xp.max(xp.abs(reshape(grad, (grad.shape[0], -1))), axis=1)
    finite = xp.isfinite(size)
    if not bool(xp.all(finite)):
        grad = xp.where(reshape(finite, (-1, *[1] * (grad.ndim - 1))), grad, xp.zeros_like(grad))
    return grad, ~finite | (size == 0)
