"""Random numbers by counter: what is drawn depends on seed, purpose, epoch and step, and nothing else.

So a resumed run draws what the uninterrupted one would, every backend draws the same, and no random
state needs to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.balls import sample

_ORDER, _NOISE, _START, _TEST = range(4)


def _generator(purpose: int, seed: int, epoch: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(seed, purpose), counter=(0, 0, step, epoch)))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch of one run."""

    seed: int
    epoch: int

    def order(self, examples: int) -> NDArray[np.int64]:
        """Return the order in which the epoch visits its examples."""
        return _generator(_ORDER, self.seed, self.epoch, 0).permutation(examples)

    def noise(self, step: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return standard normal noise for the inputs of a step."""
        return _normal(_generator(_NOISE, self.seed, self.epoch, step), shape, dtype)

    def start(self, step: int, shape: tuple[int, ...], p: float, dtype: str) -> NDArray[Any]:
        """Return points drawn uniformly from the unit Lp ball, one an example, for a random start."""
        rng = _generator(_START, self.seed, self.epoch, step)
        return np.asarray(sample(shape, p, 1.0, rng, dtype=np.dtype(dtype)))


def evaluation_noise(seed: int, draw: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return standard normal noise for one draw of a noise test."""
    return _normal(_generator(_TEST, seed, draw, 0), shape, dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return rng.standard_normal(shape, np.float32 if dtype == "float32" else np.float64)
