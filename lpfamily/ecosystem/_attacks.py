"""What the attacks for other packages share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lpfamily._arrays import Array, Numbers, namespace_of

RandomStart = bool | np.random.Generator | Any
"""Whether to start at random, or by which generator, of NumPy or torch, which may be absent."""


def start_of(random_start: RandomStart) -> np.random.Generator | Any | None:
    """Return what `lpfamily.ascend` starts from: None, a new generator, or the one that is given."""
    if random_start is False:
        return None
    return np.random.default_rng() if random_start is True else random_start


def checked(eps: Array, sigma: Numbers) -> Array:
    """Return eps with 0 where it is NaN, and warn of the examples that it leaves where they are."""
    xp = namespace_of(eps)
    eps = xp.where(eps == eps, eps, xp.zeros_like(eps))
    still = xp.all(eps == 0, axis=tuple(range(1, eps.ndim))) & (sigma > 0)
    if bool(xp.any(still)):
        count = int(xp.sum(xp.astype(still, xp.int32)))
        warnings.warn(
            f"{count} of {eps.shape[0]} examples stay where they are, which does not make them robust: their "
            f"gradient is zero or not finite, bounds or a mask hold them, or no step raised their loss",
            stacklevel=4,
        )
    return eps
