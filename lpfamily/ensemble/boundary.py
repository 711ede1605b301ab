"""The search for the smallest perturbation of each example, along the decision boundary.

After Pintor, Roli, Brendel, Biggio: Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints,
2021.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lpfamily._arrays import Array, namespace_of
from lpfamily.ensemble.examples import Examples, Floats, Ints, finite_gradients
from lpfamily.norms import penalty
from lpfamily.step import epsilon


class Way(NamedTuple):
    """One search: where it begins, what it climbs, and how far it goes."""

    aimed: bool
    """Whether it raises the margin of the likeliest wrong class instead of the log-odds."""
    begin: int
    """0 for the example itself, 1 for its smallest perturbation so far."""
    share: float
    """The share of the steps that it takes."""
    length: tuple[float, float]
    """The lengths of the first and the last step, in units of the smallest norm so far. Until a perturbation
    fools the example, the unit is the radius of the ball."""


WAYS = (
    # the log-odds lead to the nearest class, whichever it is; but where no wrong class is likely, they turn
    # from the nearest to others
    Way(aimed=False, begin=0, share=0.35, length=(1, 0.01)),
    Way(aimed=True, begin=0, share=0.35, length=(1, 0.01)),
    Way(aimed=True, begin=1, share=0.3, length=(0.2, 0.01)),
)
GAMMA = 0.1, 0.001
"""The share by which the ball of a way grows or shrinks, in the first and the last step."""
FLOOR = 0.01
"""The least radius until a perturbation of the way fools the example, in units of the smallest norm that is
known to fool it."""
NEARER = 6
"""The number of halvings in `nearer`."""


def walk(
    examples: Examples, indices: Ints, p: float, most: Floats, way: Way, steps: int, eps: Array
) -> tuple[Array, Floats]:
    """Return the smallest perturbations that fool, on a way along the boundary, and their norms.

    Each example has a ball. It shrinks where x + eps fools and grows where it does not; until one fools, its
    radius is the distance at which the linearised value changes its sign. The returned norms are at most
    `most`, the norms of perturbations that are known to fool.
    """
    classifier, x, y = examples.classifier, examples.x[indices], examples.y[indices]
    xp = namespace_of(x)
    right = np.arange(examples.z.shape[1]) == examples.labels[indices, None]
    aims, best = examples.order[indices, 0], eps
    least, radius, has_fooled = most, most, np.zeros(len(indices), bool)
    shares = 0.5 + 0.5 * np.cos(math.pi * np.arange(steps) / steps)
    for length, gamma in zip(_between(way.length, shares), _between(GAMMA, shares), strict=True):
        targets = examples.from_host(aims, examples.y) if way.aimed else None
        logits, value, grad = classifier.evaluate(x + eps, y, targets)
        examples.gradients += len(indices)
        z, size = classifier.host(logits), examples.norms(indices, eps, p)
        fooled = z.argmax(axis=1) != examples.labels[indices]
        aims = np.where(right, -math.inf, z).argmax(axis=1)
        less = fooled & (size < least)
        best = xp.where(examples.column(less) > 0, eps, best)
        least, has_fooled = np.where(less, size, least), has_fooled | fooled
        grad, no_gradient = finite_gradients(grad)
        slope = classifier.host(penalty(grad, p, 1.0, **examples.ball_of(indices))).astype(np.float64)
        slope = np.where(classifier.host(no_gradient) | (slope == 0), math.inf, slope)
        ahead = np.nan_to_num(-classifier.host(value) / slope)
        linear = np.maximum(size + ahead, np.maximum(size, FLOOR * least) * (1 + gamma))
        grown = np.minimum(np.where(has_fooled, radius * (1 + gamma), linear), least)
        radius = np.where(fooled, np.minimum(radius, least) * (1 - gamma), grown)
        reach = examples.from_host(length * np.where(has_fooled, least, radius), x)
        eps = eps + epsilon(grad, p, reach, **examples.box_of(indices, x + eps))
        eps = examples.nearest(indices, eps, p, examples.from_host(radius, x))
    return best, least


def nearer(examples: Examples, indices: Ints, eps: Array) -> Array:
    """Return perturbations that fool, scaled by the smallest factor in [0.9, 1] that still fools.

    Bisection finds the factor and takes no gradient.
    """
    least, most = np.full(len(indices), 0.9), np.ones(len(indices))
    for _ in range(NEARER):
        middle = (least + most) / 2
        fooled = examples.fools(indices, eps * examples.column(middle))
        least, most = np.where(fooled, least, middle), np.where(fooled, middle, most)
    return eps * examples.column(most)


def _between(ends: tuple[float, float], shares: Floats) -> Floats:
    """Return numbers from the first end, where a share is 1, to the last, where it is 0."""
    return ends[1] + (ends[0] - ends[1]) * shares
