"""Whitening of images as in the maxout paper: contrast normalisation, then ZCA (Krizhevsky 2009, appendix A).

Examples are processed in blocks, so that there is never a float64 copy of a whole data set.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

NORM = 55.0
REGULARISER = 0.1
BLOCK = 1000


def global_contrast_normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each image with mean 0 and Euclidean norm 55.

    A constant image has no contrast and becomes 0.

    Parameters
    ----------
    images
        Pixels of shape (n, d).
    """
    result = np.empty(images.shape, np.float32)
    for rows in blocks(len(images)):
        x = images[rows].astype(np.float64)
        # the mean of equal integers is exact, so the norm of a constant image is exactly 0
        x -= x.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        result[rows] = x * (NORM / np.where(norm == 0, 1, norm))
    return result


def zca(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit ZCA: return the mean m and the symmetric matrix P such that (x - m) P is whitened.

    With the covariance X'X / n = V diag(e) V' of the centred examples, P = V diag((e + 0.1)^-1/2) V'.
    The covariance of the whitened examples is then V diag(e / (e + 0.1)) V'. Directions of little variance,
    which are mostly noise, stay small. No direction is dropped.

    Parameters
    ----------
    x
        The examples to fit, of shape (n, d); n may be less than d.
    """
    n, d = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for rows in blocks(n):
        centred = x[rows] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / n)
    return mean, (vectors / np.sqrt(values + REGULARISER)) @ vectors.T


def whiten(x: NDArray[np.float32], mean: NDArray[np.float32], matrix: NDArray[np.float32]) -> None:
    """Replace x by (x - mean) matrix, in place."""
    for rows in blocks(len(x)):
        x[rows] = (x[rows] - mean) @ matrix


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Return slices that divide n examples into blocks of `size`."""
    return (slice(start, start + size) for start in range(0, n, size))
