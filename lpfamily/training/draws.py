"""Random numbers by counter: what is drawn depends on seed, purpose, epoch and step, and nothing else.

So a resumed run draws what the uninterrupted one would, every backend draws the same, and no random
state needs to be kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lpfamily.balls import sample
from lpfamily.training.networks import Floats, Network, Shape, activated_shape, shapes
from lpfamily.training.tasks import Task

T = TypeVar("T")

THREADS = 4
"""Which draw at a time while a device waits: more of them wait for Python's lock."""

_ORDER, _NOISE, _START, _TEST, _DROPOUT, _LAYER_NOISE = range(6)

Mask = NDArray[np.bool_]
Masks = list[Mask | None]
"""For each layer, which of its inputs dropout keeps, (examples, *shape of the input); None is all."""

Noises = list[Floats | None]
"""For each layer, what is added to what enters its activation; None is nothing."""


class Random(NamedTuple):
    """What is random in a layer, in one pass."""

    kept: Any = None
    """Which of its inputs dropout keeps; None is all."""
    noise: Any = None
    """What is added to what enters its activation, (examples, *`networks.activated_shape`); None is none."""


Map = Callable[..., Iterable[Any]]
"""What maps as `map` does."""


class Drawn(NamedTuple):
    """What is random in a step, or stacked along a first axis, in several."""

    layers: list[Random]
    """Where the weights are trained, layer by layer."""
    passes: list[list[Random]]
    """In each of the gradient passes of perturb."""
    shift: Any
    """For sigma = 1, the noise, or where in the ball the first gradient is taken; None without either."""

    def map(self, function: Callable[[Any], Any]) -> Drawn:
        """Return the function of every array, called once for one that is there twice."""
        results = {id(array): function(array) for array in self.arrays()}
        replaced: Drawn = _replaced(self, results)
        return replaced

    def arrays(self) -> list[Any]:
        """Return all arrays, once those that are there twice."""
        everything = (*itertools.chain(*self.layers, *itertools.chain(*self.passes)), self.shift)
        return list({id(array): array for array in everything if array is not None}.values())


def _replaced(part: Any, results: dict[int, Any]) -> Any:
    if isinstance(part, list):
        return [_replaced(each, results) for each in part]
    if isinstance(part, tuple):
        return type(part)(*(_replaced(each, results) for each in part))
    return results.get(id(part))


@contextmanager
def by_threads() -> Iterator[Map]:
    """Give what maps as `map` does, by threads: what draws while a device waits for it."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool.map


def _bits(purpose: int, seed: int, epoch: int, step: int, place: int = 0) -> np.random.Philox:
    return np.random.Philox(key=(seed, purpose), counter=(0, place, step, epoch))


def _generator(purpose: int, seed: int, epoch: int, step: int, place: int = 0) -> np.random.Generator:
    return np.random.Generator(_bits(purpose, seed, epoch, step, place))


def _place(layer: int, again: int) -> int:
    return layer + (again << 16)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch of one run."""

    seed: int
    epoch: int

    def order(self, visits: int, weights: Floats | None = None) -> NDArray[np.int64]:
        """Return which example each of an epoch's visits is to.

        Without weights it is one visit to each example. With weights w, float64 and 0 or more, example i has
        visits * w_i / sum(w) visits: exactly so many where that is a whole number, and else one of the two
        whole numbers beside it, drawn such that this is the mean.
        """
        generator = _generator(_ORDER, self.seed, self.epoch, 0)
        order = generator.permutation(visits)
        if weights is None:
            return order
        upto = np.cumsum(weights)
        upto *= visits / upto[-1]
        upto[-1] = visits
        whole = np.floor(upto)
        # by the fraction alone: whole + fraction + drawn may round up to the next whole number
        ends = (whole + (upto - whole + generator.random() >= 1)).astype(np.int64)
        return np.repeat(np.arange(len(weights)), np.diff(ends, prepend=0))[order]

    def noise(self, step: int, shape: Shape, dtype: str) -> Floats:
        """Return standard normal noise for the inputs of a step."""
        return _normal(_generator(_NOISE, self.seed, self.epoch, step), shape, dtype)

    def start(self, step: int, shape: Shape, p: float, dtype: str) -> Floats:
        """Return points drawn uniformly from the unit Lp ball, one an example, for a random start."""
        rng = _generator(_START, self.seed, self.epoch, step)
        return np.asarray(sample(shape, p, 1.0, rng, dtype=np.dtype(dtype)))

    def kept(self, step: int, layer: int, shape: Shape, include: float, again: int = 0) -> Mask:
        """Return which inputs of a layer dropout keeps in a step; `again` counts its independent passes."""
        bits = _bits(_DROPOUT, self.seed, self.epoch, step, _place(layer, again))
        size = math.prod(shape)
        drawn = bits.random_raw(-(-size // 2)).astype("<u8", copy=False).view("<u4")[:size]
        # a Generator's float32 in [0, 1) are the upper 24 bits of these, by two thirds of the speed
        return (drawn < math.ceil(float(np.float32(include)) * 2**24) << 8).reshape(shape)

    def added(
        self, step: int, layer: int, shape: Shape, deviation: float, dtype: str, again: int = 0
    ) -> Floats:
        """Return the Gaussian noise inside of a layer in a step, as `kept` does what dropout keeps."""
        rng = _generator(_LAYER_NOISE, self.seed, self.epoch, step, _place(layer, again))
        noise = _normal(rng, shape, dtype)
        noise *= deviation
        return noise

    def step(self, step: int, task: Task, examples: int) -> Drawn:
        """Return all that is random in a step of so many examples of a task."""
        objective, network, shape = task.objective, task.network, (examples, task.network.inputs)
        layers, passes, shift = self._layers(step, task, examples), [], None
        if objective.name == "noise":
            shift = self.noise(step, shape, task.dtype)
        if objective.name in ("perturb", "trades"):
            passes = _of_passes(
                objective.direction_dropout,
                objective.steps,
                lambda again: self._layers(step, task, examples, again),
                same=layers,
                none=[Random()] * len(network.layers),
            )
            if objective.random_start or objective.name == "trades":
                shift = self.start(step, shape, objective.p, task.dtype)
        return Drawn(layers, passes, shift)

    def _layers(self, step: int, task: Task, examples: int, again: int = 0) -> list[Random]:
        masks = self.masks(step, task.network, examples, again)
        return list(map(Random, masks, self.layer_noise(step, task.network, examples, task.dtype, again)))

    def steps(
        self,
        steps: Sequence[int],
        task: Task,
        examples: int,
        mapped: Map = map,
        empty: Callable[..., Any] = np.empty,
    ) -> Drawn:
        """Return what is random in these steps, drawn by `mapped`, into arrays that `empty` makes."""
        first = self.step(steps[0], task, examples)
        whole = first.map(lambda array: empty((len(steps), *array.shape), array.dtype))
        rows = [np.asarray(array) for array in whole.arrays()]

        def fill(places: range) -> None:
            for place in places:
                drawn = self.step(steps[place], task, examples) if place else first
                for row, array in zip(rows, drawn.arrays(), strict=True):
                    row[place] = array

        for _ in mapped(fill, [range(begin, len(steps), THREADS) for begin in range(THREADS)]):
            pass
        return whole

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

    def layer_noise(self, step: int, network: Network, examples: int, dtype: str, again: int = 0) -> Noises:
        """Return the noise inside of the layers in a step, layer by layer."""
        return [
            self.added(step, index, (examples, *activated_shape(layer, entering)), layer.noise, dtype, again)
            if layer.noise
            else None
            for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False))
        ]

    def direction_masks(
        self, step: int, network: Network, examples: int, dropout: str, steps: int, same: Masks
    ) -> list[Masks]:
        """Return what dropout keeps in each of the gradient passes of `perturb`.

        `dropout` is `Objective.direction_dropout`, and `same` what it keeps where the weights are trained.
        """
        none: Masks = [None] * len(network.layers)
        return _of_passes(
            dropout, steps, lambda again: self.masks(step, network, examples, again), same, none
        )

    def direction_noise(
        self, step: int, network: Network, examples: int, dtype: str, dropout: str, steps: int, same: Noises
    ) -> list[Noises]:
        """Return the noise inside of the layers in each of these passes, by the same rule."""
        none: Noises = [None] * len(network.layers)
        return _of_passes(
            dropout, steps, lambda again: self.layer_noise(step, network, examples, dtype, again), same, none
        )


def _of_passes(dropout: str, steps: int, draw: Callable[[int], T], same: T, none: T) -> list[T]:
    """Return what is random in the layers in each of the gradient passes of `perturb`."""
    if dropout == "independent":
        return [draw(again) for again in range(1, steps + 1)]
    return [same if dropout == "same" else none] * steps


@dataclass(frozen=True)
class Part(Draws):
    """The draws of a process that has some of a step's examples: its rows of what is drawn for all."""

    whole: Draws
    examples: int
    rows: slice

    def noise(self, step: int, shape: Shape, dtype: str) -> Floats:
        """Return the rows of the noise."""
        return self.whole.noise(step, (self.examples, *shape[1:]), dtype)[self.rows]

    def start(self, step: int, shape: Shape, p: float, dtype: str) -> Floats:
        """Return the rows of the starts."""
        return self.whole.start(step, (self.examples, *shape[1:]), p, dtype)[self.rows]

    def kept(self, step: int, layer: int, shape: Shape, include: float, again: int = 0) -> Mask:
        """Return the rows of what is kept."""
        return self.whole.kept(step, layer, (self.examples, *shape[1:]), include, again)[self.rows]

    def added(
        self, step: int, layer: int, shape: Shape, deviation: float, dtype: str, again: int = 0
    ) -> Floats:
        """Return the rows of the noise."""
        whole = self.whole.added(step, layer, (self.examples, *shape[1:]), deviation, dtype, again)
        return whole[self.rows]


def evaluation_noise(seed: int, draw: int, shape: Shape, dtype: str) -> Floats:
    """Return standard normal noise for one draw of a noise test."""
    return _normal(_generator(_TEST, seed, draw, 0), shape, dtype)


def _normal(rng: np.random.Generator, shape: Shape, dtype: str) -> Floats:
    return rng.standard_normal(shape, np.float32 if dtype == "float32" else np.float64)
