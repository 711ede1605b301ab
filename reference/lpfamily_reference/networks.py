"""The forward passes of the networks, slow and obvious, for real and complex arrays.

Examples are along the first axis. If several numbers are the largest, the first is taken, so that a complex
step finds its derivative; complex numbers are compared by their real parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp(-z))."""
    result: Array = 1 / (1 + np.exp(-z))
    return result


def rectifier(z: Array) -> Array:
    """Return max(0, z); if z = 0 the first of the two is taken."""
    return _largest(np.stack([np.zeros_like(z), z]), 0)


def dense(x: Array, weight: Array, bias: Array) -> Array:
    """Return x W + b, with x of shape (n, inputs) and W of shape (inputs, units)."""
    result: Array = x @ weight + bias
    return result


def maxout(z: Array, pieces: int) -> Array:
    """Return the largest of every `pieces` consecutive entries along axis 1."""
    return _largest(z.reshape(len(z), -1, pieces, *z.shape[2:]), 2)


def convolution(x: Array, weight: Array, bias: Array, padding: int = 0) -> Array:
    """Return the cross-correlation of images (n, channels, height, width) with filters, and a bias.

    weight has shape (filters, channels, k, k); bias (filters,), or (filters, height, width) of the result.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[-1]
    height, width = (side - k + 1 for side in x.shape[2:])
    z = np.empty((len(x), len(weight), height, width), np.result_type(x, weight))
    for i in range(height):
        for j in range(width):
            patch = x[:, :, i : i + k, j : j + k].reshape(len(x), -1)
            z[:, :, i, j] = patch @ weight.reshape(len(weight), -1).T
    return z + (bias[:, None, None] if bias.ndim == 1 else bias)


def max_pooling(x: Array, pool: int, stride: int) -> Array:
    """Return the largest of pool x pool entries every `stride`; the last windows may pass the edge."""
    rows, columns = (range(0, max(side - pool, 0) + stride, stride) for side in x.shape[2:])
    windows = [[x[:, :, i : i + pool, j : j + pool] for j in columns] for i in rows]
    return np.stack(
        [
            np.stack([_largest(window.reshape(*x.shape[:2], -1), 2) for window in row], axis=-1)
            for row in windows
        ],
        axis=-2,
    )


def _largest(x: Array, axis: int) -> Array:
    first = np.expand_dims(x.real.argmax(axis=axis), axis)
    return np.take_along_axis(x, first, axis=axis).squeeze(axis)
