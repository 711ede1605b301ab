"""What every function asks of its arrays: their namespace, their examples as rows, their dtype."""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

Array: TypeAlias = Any
"""An array of any library that follows the array API standard, directly or through array-api-compat."""


_namespaces: dict[type, Any] = {}


def namespace_of(x: Array, name: str = "x") -> Any:
    """Return the array API namespace of `x`; `name` is what an error calls it."""
    _look_up(type(x))
    if (xp := _namespaces.get(type(x))) is not None:
        return xp
    if not is_array_api_obj(x):
        raise TypeError(
            f"{name} must be an array (NumPy, torch, JAX, CuPy, dask, ...); got {type(x).__name__}: "
            f"convert it first, for example with numpy.asarray"
        )
    xp = _namespaces[type(x)] = array_namespace(x)
    return xp


def _look_up(kind: type) -> bool:
    """Find the namespace that array-api-compat has for a type, from the library the type is from."""
    if kind not in _namespaces and hasattr(kind, "dtype") and hasattr(kind, "shape"):
        for base in kind.__mro__:
            with contextlib.suppress(ImportError):
                xp = importlib.import_module("array_api_compat." + base.__module__.partition(".")[0])
                if hasattr(xp, "__array_api_version__"):
                    _namespaces[kind] = xp
                    break
    return True


# What torch.compiler.assume_constant_result sets: array_namespace itself makes torch.compile warn.
_look_up._dynamo_marked_constant = True  # type: ignore[attr-defined]


def device_of(x: Array) -> Any:
    """Return the device of `x`, or None where the library has none to name, as under a JAX trace."""
    return getattr(x, "device", None)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Return `x` in this shape."""
    if tuple(x.shape) == shape:
        return x
    if 0 in shape and hasattr(x, "rechunk"):
        x = x.rechunk(-1)  # dask reshapes what has no entries only where it is one chunk
    return namespace_of(x).reshape(x, shape)


def sign(x: Array) -> Array:
    """Return the sign of `x`; array-api-compat's own writes through a mask on torch, which vmap refuses."""
    xp = namespace_of(x)
    return xp.where(x != x, x, xp.astype(x > 0, x.dtype) - xp.astype(x < 0, x.dtype))


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


def known_shape(x: Array, name: str) -> tuple[int, ...]:
    """Return the shape of `x`; raise where a lazy library does not know it."""
    shape = tuple(x.shape)
    if any(n is None or n != n for n in shape):
        raise ValueError(
            f"{name} must have a known shape; got {shape}: for dask, call its compute_chunk_sizes() first"
        )
    return shape


def example_shape(x: Array, batch_ndim: int | None, name: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of the batch axes of `x` and the number of coordinates of one example."""
    if batch_ndim is None:
        batch_ndim = 0 if x.ndim < 2 else 1
    if not isinstance(batch_ndim, int):
        raise TypeError(f"batch_ndim must be a whole number; got {batch_ndim!r}")
    if not 0 <= batch_ndim <= x.ndim:
        raise ValueError(
            f"batch_ndim must lie in 0..{x.ndim}, the number of axes of {name}; got {batch_ndim}: "
            f"it counts the leading axes that index examples"
        )
    shape = known_shape(x, name)
    return shape[:batch_ndim], math.prod(shape[batch_ndim:])


def broadcast_sigma(sigma: Any, rows: Array, xp: Any) -> Array:
    """Return sigma as a column beside `rows`: one entry an example, in their dtype.

    What Python sees without waiting for a device, numbers and NumPy arrays, is checked here;
    elsewhere a sigma outside [0, inf) becomes NaN, and so does its row.
    """
    largest = float(xp.finfo(rows.dtype).max)
    if isinstance(sigma, int | float | np.number) and not isinstance(sigma, bool):
        _check_radius(sigma, 0 <= sigma <= largest, largest, rows)
        return xp.full((*rows.shape[:-1], 1), float(sigma), dtype=rows.dtype, device=device_of(rows))
    if isinstance(sigma, np.ndarray):
        if sigma.dtype.kind not in "iuf":
            raise TypeError(f"sigma must be real; got {sigma.dtype}")
        sigma = sigma.astype(np.float64)
        _check_radius(sigma, np.all((sigma >= 0) & (sigma <= largest)), largest, rows)
        sigma = xp.asarray(sigma, dtype=rows.dtype, device=device_of(rows))
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
