"""Steps of a length that is known in advance: projected steepest steps, and those of Frank-Wolfe."""

from __future__ import annotations

from typing import Any, NamedTuple

from lpfamily._arrays import Array, Numbers, namespace_of
from lpfamily.ascent.search import Region, is_better


class Scheduled(NamedTuple):
    """The state of an ascent between two steps; everything is per example."""

    best: Array
    """The best perturbation so far."""
    value: Array
    """The value at `best`."""
    eps: Array
    """The current perturbation."""
    grad: Array
    """The gradient at `eps`."""
    length: Array
    """The norm of a projected step."""


def begin(eps: Array, value: Array, grad: Array, length: Array) -> Scheduled:
    """Return the state at a start."""
    return Scheduled(eps, value, eps, grad, length)


def propose_projected(first: bool, region: Region, state: Scheduled, _: Any) -> Array:
    """Return the nearest point of ball and box to the end of the steepest step."""
    return region.nearest(state.eps + region.step(state.grad, state.length, state.eps))


def propose_frank_wolfe(first: bool, region: Region, state: Scheduled, share: Any) -> Array:
    """Return the point at a share of the way to the maximiser of the linearised loss."""
    return towards(state.eps, region.step(state.grad, region.sigma), share)


def accept(
    region: Region,
    state: Scheduled,
    _: Any,
    stop_above: Numbers | None,
    eps: Array,
    value: Array,
    grad: Array,
) -> Scheduled:
    """Return the state after a step."""
    better = is_better(value, state.value, stop_above)
    best, most = region.where(better, eps, state.best), region.where(better, value, state.value)
    return state._replace(best=best, value=most, eps=eps, grad=grad)


def towards(eps: Array, vertex: Array, share: Any) -> Array:
    """Return the point at a share of the way from eps to a vertex, in the dtype of eps."""
    step = share * (vertex - eps)  # float32 where NumPy's eps is bfloat16
    return eps + namespace_of(eps).astype(step, eps.dtype, copy=False)


def shares(steps: int) -> list[float]:
    """Return the share of the way that each step of Frank-Wolfe goes: 2 / (k + 2) for k = 0, 1, ..."""
    return [2 / (k + 2) for k in range(steps)]
