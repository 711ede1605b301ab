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
from lpfamily.training.networks import Network, shapes

_ORDER, _NOISE, _START, _TEST, _DROPOUT = range(5)

Masks = list[NDArray[np.bool_] | None]
"""For each layer, which of its inputs dropout keeps, (examples, *shape of the input); None is all."""


def _generator(purpose: int, seed: int, epoch: int, step: int, place: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(seed, purpose), counter=(0, place, step, epoch)))


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

    def kept(
        self, step: int, layer: int, shape: tuple[int, ...], include: float, again: int = 0
    ) -> NDArray[np.bool_]:
        """Return which inputs of a layer dropout keeps in a step; `again` counts its independent passes."""
        rng = _generator(_DROPOUT, self.seed, self.epoch, step, layer + (again << 16))
        return rng.random(shape, np.float32) < np.float32(include)

    def part(self, examples: int, rows: slice) -> Draws:
        """Return the same draws for these rows of steps of so many examples."""
        return Part(self.seed, self.epoch, self, examples, rows)

    def masks(self, step: int, network: Network, examples: int, again: int = 0) -> Masks:
        """Return what dropout keeps in a step, layer by layer."""
        return [
            self.kept(step, index, (examples, *entering), layer.dropout.include, again)
            if layer.dropout
            else None
            for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False))
        ]

    def direction_masks(
        self, step: int, network: Network, examples: int, dropout: str, steps: int, same: Masks
    ) -> list[Masks]:
        """Return what dropout keeps in each of the gradient passes of `perturb`.

        `dropout` is `Objective.direction_dropout`, and `same` what it keeps where the weights are trained.
        """
        if dropout == "independent":
            return [self.masks(step, network, examples, again) for again in range(1, steps + 1)]
        return [same if dropout == "same" else [None] * len(network.layers)] * steps


@dataclass(frozen=True)
class Part(Draws):
    """The draws of a process that has some of a step's examples: its rows of what is drawn for all."""

    whole: Draws
    examples: int
    rows: slice

    def noise(self, step: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return the rows of the noise."""
        return self.whole.noise(step, (self.examples, *shape[1:]), dtype)[self.rows]

    def start(self, step: int, shape: tuple[int, ...], p: float, dtype: str) -> NDArray[Any]:
        """Return the rows of the starts."""
        return self.whole.start(step, (self.examples, *shape[1:]), p, dtype)[self.rows]

    def kept(
        self, step: int, layer: int, shape: tuple[int, ...], include: float, again: int = 0
    ) -> NDArray[np.bool_]:
        """Return the rows of what is kept."""
        return self.whole.kept(step, layer, (self.examples, *shape[1:]), include, again)[self.rows]


def evaluation_noise(seed: int, draw: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return standard normal noise for one draw of a noise test."""
    return _normal(_generator(_TEST, seed, draw, 0), shape, dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return rng.standard_normal(shape, np.float32 if dtype == "float32" else np.float64)
