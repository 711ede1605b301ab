"""What every function asks of its arrays: their namespace, their examples as rows, their dtype."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

Array: TypeAlias = Any
"""An array of any library that follows the array API standard, directly or through array-api-compat."""


_namespaces: dict[type, Any] = {}


def namespace_of(x: Array, name: str = "x") -> Any:
    """Return the array API namespace of `x`; `name` is what an error calls it."""
    # Kept by type: array-api-compat's own caches make torch.compile warn.
    if (xp := _namespaces.get(type(x))) is not None:
        return xp
    if not is_array_api_obj(x):
        raise TypeError(
            f"{name} must be an array (NumPy, torch, JAX, CuPy, dask, ...); got {type(x).__name__}: "
            f"convert it first, for example with numpy.asarray"
        )
    xp = _namespaces[type(x)] = array_namespace(x)
    return xp


def compute_dtype(x: Array, name: str) -> Any:
    """Return the dtype to compute in: x's own, or float32 for the half precisions.

    float16 ends at 65504 and bfloat16 keeps 8 bits: no sum over an example survives in them.
    """
    xp = namespace_of(x, name)
    if xp.isdtype(x.dtype, "real floating"):
        bits = xp.finfo(x.dtype).bits
        if bits == 16:
            return xp.float32
        if bits in (32, 64):
            return x.dtype
    raise TypeError(
        f"{name} must be float16, bfloat16, float32 or float64; got {x.dtype}: convert it to one of these"
    )


def example_shape(x: Array, batch_ndim: int | None, name: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of the batch axes of `x` and the number of coordinates of one example."""
    if batch_ndim is None:
        batch_ndim = 0 if x.ndim < 2 else 1
    elif not 0 <= batch_ndim <= x.ndim:
        raise ValueError(
            f"batch_ndim must lie in 0..{x.ndim}, the number of axes of {name}; got {batch_ndim}: "
            f"it counts the leading axes that index examples"
        )
    shape = tuple(x.shape)
    return shape[:batch_ndim], math.prod(shape[batch_ndim:])


def broadcast_sigma(sigma: Any, rows: Array, xp: Any) -> Array:
    """Return sigma as a column beside `rows`: one entry an example, in their dtype.

    What Python sees without waiting for a device, numbers and NumPy arrays, is checked here;
    elsewhere a sigma outside [0, inf) becomes NaN, and so does its row.
    """
    largest = float(xp.finfo(rows.dtype).max)
    if isinstance(sigma, int | float | np.number):
        _check_radius(sigma, 0 <= sigma <= largest, largest, rows)
        return xp.full_like(rows[..., :1], float(sigma))
    if isinstance(sigma, np.ndarray):
        if sigma.dtype.kind not in "iuf":
            raise TypeError(f"sigma must be real; got {sigma.dtype}")
        _check_radius(sigma, np.all((sigma >= 0) & (sigma <= largest)), largest, rows)
        sigma = xp.asarray(sigma.astype(np.float64), dtype=rows.dtype, device=device(rows))
    else:
        namespace_of(sigma, "sigma")
        sigma = xp.astype(sigma, rows.dtype)
        sigma = xp.where((sigma >= 0) & (sigma <= largest), sigma, math.nan)
    batch = tuple(rows.shape)[:-1]
    try:
        return xp.broadcast_to(sigma, batch)[..., None]
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"sigma must be a number or broadcast to the batch axes {batch}; got shape {tuple(sigma.shape)}"
        ) from cause


def _check_radius(sigma: Any, fits: Any, largest: float, rows: Array) -> None:
    if not fits:
        raise ValueError(
            f"sigma is the ball's radius: it must lie in [0, {largest:.4g}] for {rows.dtype}; got {sigma}"
        )
