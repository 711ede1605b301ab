"""The scaling of inputs: it is computed from the training examples and applied to any examples.

An example with one axis has a scale per input. An example with several axes has one per index of the first
axis: an image has one per channel. An input or channel that is constant in the training examples becomes 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data.preprocessing import blocks
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Floats

BLOCK_NUMBERS = 1 << 22
"""About how many numbers are converted to float64 at a time."""

Scale = Literal["none", "unit", "standard"]


@dataclass(frozen=True)
class Scaling:
    """The scaling (x - subtract) / divide, with a pair of numbers per input or per channel."""

    subtract: tuple[float, ...]
    divide: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.subtract)) or not all(0 < each < math.inf for each in self.divide):
            raise ValueError("a scaling must subtract finite numbers, and divide by positive ones")
        if len(self.subtract) != len(self.divide):
            raise ValueError(f"a scaling has {len(self.subtract)} numbers and {len(self.divide)}")

    def __call__(self, x: Floats) -> Floats:
        """Return scaled examples, (n, inputs), in the dtype of x; images are channels first.

        The computation is in float64.

        Raises
        ------
        BadInput
            A result is beyond the range of float32.
        """
        result, subtract, divide = np.empty_like(x), np.array(self.subtract)[:, None], np.array(self.divide)
        for rows in _blocks(x):
            block = x[rows].reshape(len(x[rows]), len(divide), -1)
            with np.errstate(over="ignore"):
                scaled = (block.astype(np.float64) - subtract) / divide[:, None]
            if not np.abs(scaled).max() <= np.finfo(np.float32).max:
                raise BadInput(
                    "--scale: an example is so far from the others that its scaled inputs are beyond the "
                    "range of float32; look at the data"
                )
            result[rows] = scaled.reshape(len(block), -1)
        return result


def fit(scale: Scale, x: Floats, groups: int) -> Scaling | None:
    """Return the scaling of training examples, (n, inputs), whose inputs form `groups` consecutive groups.

    `unit` maps the least value of a group to 0 and the largest to 1. `standard` makes its mean 0 and its
    standard deviation, the root of the mean square, 1. `none` returns None.
    """
    if scale == "none":
        return None
    low, high = (_by_group(reduce(x, axis=0), groups, reduce) for reduce in (np.min, np.max))
    span = np.where(low == high, 1.0, high - low)
    if scale == "unit":
        subtract, divide = low, span
    else:
        # the mean of equal numbers may differ from them by rounding
        subtract = np.where(low == high, low, _by_group(x.mean(axis=0, dtype=np.float64), groups, np.mean))
        centre, unit = (np.repeat(each, x.shape[1] // groups) for each in (subtract, span))
        squares = np.zeros(x.shape[1])
        for rows in _blocks(x):
            squares += np.square((x[rows] - centre) / unit).sum(axis=0)
        divide = span * np.where(low == high, 1.0, np.sqrt(_by_group(squares / len(x), groups, np.mean)))
    return Scaling(tuple(subtract.tolist()), tuple(divide.tolist()))


def _blocks(x: Floats) -> Iterator[slice]:
    return blocks(len(x), max(1, BLOCK_NUMBERS // x.shape[1]))


def _by_group(values: NDArray[np.floating], groups: int, reduce: Any) -> NDArray[np.float64]:
    return np.asarray(reduce(values.reshape(groups, -1), axis=1), np.float64)
