"""Random numbers by counter: they depend on seed, purpose, epoch and step, and on nothing else.

So a resumed run draws the same numbers as an uninterrupted one, all backends draw the same, and there is no
random state to save.
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
"""The number of threads that draw while a device waits. More would wait for Python's lock."""

_ORDER, _NOISE, _START, _TEST, _DROPOUT, _LAYER_NOISE = range(6)

Mask = NDArray[np.bool_]
Masks = list[Mask | None]
"""For each layer, the mask of the inputs that dropout keeps, (examples, *input shape); None keeps all."""

Noises = list[Floats | None]
"""For each layer, the noise added to the input of its activation; None adds nothing."""


class Random(NamedTuple):
    """The random arrays of a layer in one forward pass."""

    kept: Any = None
    """The mask of the inputs that dropout keeps; None keeps all."""
    noise: Any = None
    """The noise added to the activation's input, (examples, *`networks.activated_shape`); None adds none."""


Map = Callable[..., Iterable[Any]]
"""A function that maps like `map`."""


class Drawn(NamedTuple):
    """The random arrays of a step, or those of several steps, stacked along a first axis."""

    layers: list[Random]
    """Those of the loss that trains the weights, layer by layer."""
    passes: list[list[Random]]
    """Those of each gradient in the computation of eps, layer by layer."""
    shift: Any
    """The noise, or the point of the ball where the first gradient is taken, for sigma = 1; None without."""

    def map(self, function: Callable[[Any], Any]) -> Drawn:
        """Return these with function(array) for each array; it is called once per distinct array."""
        results = {id(array): function(array) for array in self.arrays()}
        if not results:
            return self
        replaced: Drawn = _replaced(self, results)
        return replaced

    def arrays(self) -> list[Any]:
        """Return all arrays, each once."""
        everything = (*itertools.chain(*self.layers, *itertools.chain(*self.passes)), self.shift)
        return list({id(array): array for array in everything if array is not None}.values())


def _replaced(tree: Any, results: dict[int, Any]) -> Any:
    if isinstance(tree, list):
        return [_replaced(each, results) for each in tree]
    if isinstance(tree, tuple):
        return type(tree)(*(_replaced(each, results) for each in tree))
    return results.get(id(tree))


@contextmanager
def by_threads() -> Iterator[Map]:
    """Yield a `map` that runs in threads, for draws that a device waits for."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool.map


def _bits(purpose: int, seed: int, epoch: int, step: int, place: int = 0) -> np.random.Philox:
    return np.random.Philox(key=(seed, purpose), counter=(0, place, step, epoch))


def _generator(purpose: int, seed: int, epoch: int, step: int, place: int = 0) -> np.random.Generator:
    return np.random.Generator(_bits(purpose, seed, epoch, step, place))


def _place(layer: int, again: int) -> int:
    return layer + (again << 16)


def rescaled(weights: Floats) -> Floats:
    """Return weights with the same ratios, the largest in [1, 2), so that their sum does not overflow."""
    return np.asarray(np.ldexp(weights, 1 - np.frexp(weights.max())[1]))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch of one run."""

    seed: int
    epoch: int

    def order(self, visits: int, weights: Floats | None = None) -> NDArray[np.int64]:
        """Return the index of the example for each visit of an epoch.

        Without weights each example is visited once. With weights w, float64 and 0 or more, example i is
        visited visits * w_i / sum(w) times if that is a whole number. Otherwise the number is rounded up or
        down at random, with this mean.
        """
        generator = _generator(_ORDER, self.seed, self.epoch, 0)
        order = generator.permutation(visits)
        if weights is None:
            return order
        upto = np.cumsum(rescaled(weights))
        upto *= visits / upto[-1]
        upto[-1] = visits
        whole = np.floor(upto)
        # compare the fraction alone: whole + fraction + random may round up to the next whole number
        ends = (whole + (upto - whole + generator.random() >= 1)).astype(np.int64)
        return np.repeat(np.arange(len(weights)), np.diff(ends, prepend=0))[order]

    def noise(self, step: int, shape: Shape, dtype: str) -> Floats:
        """Return standard normal noise for the inputs of a step."""
        return _normal(_generator(_NOISE, self.seed, self.epoch, step), shape, dtype)

    def start(self, step: int, shape: Shape, p: float, dtype: str) -> Floats:
        """Return points drawn uniformly from the unit Lp ball, one per example, for a random start."""
        rng = _generator(_START, self.seed, self.epoch, step)
        return np.asarray(sample(shape, p, 1.0, rng, dtype=np.dtype(dtype)))

    def kept(self, step: int, layer: int, shape: Shape, include: float, again: int = 0) -> Mask:
        """Return the mask of a layer's inputs that dropout keeps in a step.

        `again` numbers independent draws.
        """
        bits = _bits(_DROPOUT, self.seed, self.epoch, step, _place(layer, again))
        size = math.prod(shape)
        drawn = bits.random_raw(-(-size // 2)).astype("<u8", copy=False).view("<u4")[:size]
        # a Generator's float32 in [0, 1) is the upper 24 bits of these, at two thirds of the speed
        return (drawn < math.ceil(float(np.float32(include)) * 2**24) << 8).reshape(shape)

    def added(
        self, step: int, layer: int, shape: Shape, deviation: float, dtype: str, again: int = 0
    ) -> Floats:
        """Return the Gaussian noise added in a layer in a step; the arguments are those of `kept`."""
        rng = _generator(_LAYER_NOISE, self.seed, self.epoch, step, _place(layer, again))
        noise = _normal(rng, shape, dtype)
        noise *= deviation
        return noise

    def step(self, step: int, task: Task, examples: int) -> Drawn:
        """Return all random arrays of a task's step on `examples` examples."""
        objective, network, shape = task.objective, task.network, (examples, task.network.inputs)
        layers, passes, shift = self._layers(step, task, examples), [], None
        if objective.name == "noise":
            shift = self.noise(step, shape, task.dtype)
        if objective.name in ("perturb", "trades"):
            passes = _for_each_gradient(
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
        """Return the random arrays of several steps, drawn by `mapped` into arrays that `empty` makes."""
        first = self.step(steps[0], task, examples)
        stacked = first.map(lambda array: empty((len(steps), *array.shape), array.dtype))
        outputs = [np.asarray(array) for array in stacked.arrays()]

        def fill(indices: range) -> None:
            for index in indices:
                drawn = self.step(steps[index], task, examples) if index else first
                for output, array in zip(outputs, drawn.arrays(), strict=True):
                    output[index] = array

        for _ in mapped(fill, [range(begin, len(steps), THREADS) for begin in range(THREADS)]):
            pass
        return stacked

    def part(self, examples: int, rows: slice) -> Draws:
        """Return the draws of a process that has only these rows of each step on `examples` examples."""
        return LocalDraws(self.seed, self.epoch, self, examples, rows)

    def masks(self, step: int, network: Network, examples: int, again: int = 0) -> Masks:
        """Return the dropout masks of a step, layer by layer."""
        return [
            self.kept(step, index, (examples, *entering), layer.dropout.include, again)
            if layer.dropout
            else None
            for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False))
        ]

    def layer_noise(self, step: int, network: Network, examples: int, dtype: str, again: int = 0) -> Noises:
        """Return the noise added in the layers in a step, layer by layer."""
        return [
            self.added(step, index, (examples, *activated_shape(layer, entering)), layer.noise, dtype, again)
            if layer.noise
            else None
            for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False))
        ]

    def direction_masks(
        self, step: int, network: Network, examples: int, dropout: str, steps: int, same: Masks
    ) -> list[Masks]:
        """Return the dropout masks of each gradient in the computation of eps.

        `dropout` is `Objective.direction_dropout`; `same` are the masks of the loss that trains the weights.
        """
        none: Masks = [None] * len(network.layers)
        return _for_each_gradient(
            dropout, steps, lambda again: self.masks(step, network, examples, again), same, none
        )

    def direction_noise(
        self, step: int, network: Network, examples: int, dtype: str, dropout: str, steps: int, same: Noises
    ) -> list[Noises]:
        """Return the layer noise of each gradient in the computation of eps, as in `direction_masks`."""
        none: Noises = [None] * len(network.layers)
        return _for_each_gradient(
            dropout, steps, lambda again: self.layer_noise(step, network, examples, dtype, again), same, none
        )


def _for_each_gradient(dropout: str, steps: int, draw: Callable[[int], T], same: T, none: T) -> list[T]:
    """Return the random arrays of the layers for each gradient in the computation of eps."""
    if dropout == "independent":
        return [draw(again) for again in range(1, steps + 1)]
    return [same if dropout == "same" else none] * steps


@dataclass(frozen=True)
class LocalDraws(Draws):
    """The draws of a process that has some rows of each step: its rows of the draws for all examples."""

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
        """Return the rows of the mask."""
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
