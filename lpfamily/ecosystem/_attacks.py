"""Functions that the attacks for other packages share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lpfamily._arrays import Array, Numbers, namespace_of

RandomStart = bool | np.random.Generator | Any
"""Whether to start at random, or the generator to draw with, of NumPy or torch; torch may be absent."""


def start_of(random_start: RandomStart) -> np.random.Generator | Any | None:
    """Return the `start` of `lpfamily.ascend`: None, a new generator, or the given one."""
    if random_start is False:
        return None
    return np.random.default_rng() if random_start is True else random_start


def checked(eps: Array, sigma: Numbers) -> Array:
    """Return eps with 0 where it is NaN, and warn about the examples that it does not move."""
    xp = namespace_of(eps)
    eps = xp.where(eps == eps, eps, xp.zeros_like(eps))
    unmoved = xp.all(eps == 0, axis=tuple(range(1, eps.ndim))) & (sigma > 0)
    if bool(xp.any(unmoved)):
        count = int(xp.sum(xp.astype(unmoved, xp.int32)))
        warnings.warn(
            f"{count} of {eps.shape[0]} examples were not moved, which does not make them robust: their "
            f"gradient is zero or not finite, bounds or a mask hold them, or no step raised their loss",
            stacklevel=4,
        )
    return eps
