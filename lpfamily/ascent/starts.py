"""Where an ascent starts: x itself, a given perturbation, or a random point of the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpfamily._arrays import Array, Bounds, Numbers, admit, device_of, examples, namespace_of, portable
from lpfamily.balls import project, sample
from lpfamily.libraries import library_of_generator
from lpfamily.units import Units


def starting_point(
    x: Array,
    p: float,
    sigma: Numbers,
    start: Any,
    *,
    bounds: Bounds | None = None,
    mask: Array | None = None,
    batch_ndim: int | None = None,
    scale: Numbers | None = None,
) -> Array:
    """Return the first perturbation of an ascent, in ball and box, from `start` as `ascend` takes it."""
    xp = namespace_of(x)
    if scale is not None:
        units = Units.of(x, sigma, bounds, batch_ndim, mask, scale)
        inside: dict[str, Any] = {"bounds": units.bounds, "mask": units.mask, "batch_ndim": batch_ndim}
        u = starting_point(units.centre, p, units.radius, in_units(units, start), **inside)
        return xp.astype(units.eps(u), x.dtype, copy=False)
    within: dict[str, Any] = {"batch_ndim": batch_ndim, "mask": mask}
    if bounds is not None:
        within |= {"x": x, "bounds": bounds}
    if start is None:  # 0 is in every ball; the projection makes bad examples NaN, and p = inf costs least
        return project(xp.zeros_like(x), math.inf, sigma, **within)
    if not is_random(start):
        _, start = admit(start, "start")
        if tuple(start.shape) != tuple(x.shape):
            raise ValueError(f"start must have the shape of x, {tuple(x.shape)}; got {tuple(start.shape)}")
    else:
        try:
            start = sample(x.shape, p, 1.0, start, batch_ndim=batch_ndim)
        except TypeError as cause:
            raise TypeError(
                f"start must be None, a floating array like x, or a generator or key; got {start!r}"
            ) from cause
        given = examples(x, "x", batch_ndim)  # x may be of another library than the generator
        start = xp.asarray(portable(start), dtype=given.values.dtype, device=device_of(x))
        start = given.shaped(given.radius(sigma) * given.rows(start))
    start = xp.astype(xp.asarray(portable(start), device=device_of(x)), x.dtype, copy=False)
    return project(start, p, sigma, **within)


def is_random(start: Any) -> bool:
    """Whether a start may be a generator or a key: it is neither None nor a floating array."""
    dtype = getattr(start, "dtype", None)
    floating = "float" in getattr(dtype, "name", str(dtype)) or getattr(start, "is_quantized", False)
    return start is not None and not floating


def in_units(units: Units, start: Any) -> Any:
    """Return a start in units of the scale: a perturbation is divided by it, anything else stays."""
    return start if start is None or is_random(start) else units.inverse(start)


def random_starts(start: Any, count: int) -> Sequence[Any]:
    """Return a generator or key for each restart, from `start` if it is one, else from seed 0."""
    if not count:
        return ()
    random = start if is_random(start) else np.random.default_rng(0)
    return library_of_generator(random).generators(random, count)
