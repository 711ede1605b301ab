"""The scaling of inputs: what it computes from the training examples, and how it is applied to any.

An example of one axis is scaled number by number, one of several axes by its first axis: an image by its
channels. A number or channel that is constant in the training examples becomes 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data.preprocessing import blocks
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Floats

Scale = Literal["none", "unit", "standard"]


@dataclass(frozen=True)
class Scaling:
    """x becomes (x - subtract) / divide, with a pair of numbers per number of an example, or per channel."""

    subtract: tuple[float, ...]
    divide: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.subtract)) or not all(0 < each < math.inf for each in self.divide):
            raise ValueError("a scaling must subtract finite numbers, and divide by positive ones")
        if len(self.subtract) != len(self.divide):
            raise ValueError(f"a scaling has {len(self.subtract)} numbers and {len(self.divide)}")

    def __call__(self, x: Floats) -> Floats:
        """Return scaled examples, of the dtype of x, (n, inputs), channels first; computed in float64.

        Raises
        ------
        BadInput
            A result is beyond the range of the dtype.
        """
        result, subtract, divide = np.empty_like(x), np.array(self.subtract)[:, None], np.array(self.divide)
        for rows in blocks(len(x)):
            some = x[rows].reshape(len(x[rows]), len(divide), -1)
            scaled = (some.astype(np.float64) - subtract) / divide[:, None]
            if not np.abs(scaled).max(initial=0) <= np.finfo(x.dtype).max:
                raise BadInput(
                    "--scale: an example is so far from the others that its numbers are beyond the range of "
                    f"{x.dtype}; look at the data"
                )
            result[rows] = scaled.reshape(len(some), -1)
        return result


def fit(scale: Scale, x: Floats, groups: int) -> Scaling | None:
    """Return the scaling of training examples, (n, inputs), whose inputs are so many equal groups in a row.

    `unit` makes the least number of a group 0 and the largest 1; `standard` makes its mean 0 and its standard
    deviation, the root of the mean square, 1. `none` is None.
    """
    if scale == "none":
        return None
    low, high = (_by_group(of(x, axis=0), groups, of) for of in (np.min, np.max))
    if scale == "unit":
        subtract, divide = low, high - low
    else:
        subtract = _by_group(x.mean(axis=0, dtype=np.float64), groups, np.mean)
        squares = np.zeros(x.shape[1])
        for rows in blocks(len(x)):
            squares += np.square(x[rows] - np.repeat(subtract, x.shape[1] // groups)).sum(axis=0)
        divide = np.sqrt(_by_group(squares / len(x), groups, np.mean))
    # the mean of equal numbers is one of them to rounding only
    subtract, divide = np.where(low == high, [low, np.ones_like(low)], [subtract, divide])
    return Scaling(tuple(subtract.tolist()), tuple(divide.tolist()))


def _by_group(values: NDArray[np.floating], groups: int, of: Any) -> NDArray[np.float64]:
    return np.asarray(of(values.reshape(groups, -1), axis=1), np.float64)
