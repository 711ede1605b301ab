"""Padding of batches to a few lengths, because JAX compiles a function anew for every shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded(x: NDArray[Any]) -> NDArray[Any]:
    """Return an array padded at its end with copies of its first entry, to one of a few lengths."""
    unit = 1 << max(len(x).bit_length() - 2, 0)
    missing = -len(x) % unit
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x
