"""Steps of a length that is known in advance: projected steepest steps, and those of Frank-Wolfe."""

from __future__ import annotations

from typing import Any, NamedTuple

from lpfamily._arrays import Array, namespace_of
from lpfamily.ascent.search import Search


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


def projected_step(search: Search, state: Scheduled, _: Any, first: bool = False) -> Scheduled:
    """Take the steepest step, then go to the nearest point of ball and box."""
    step = search.step(state.grad, state.length, state.eps)
    return _moved(search, state, search.nearest(state.eps + step))


def frank_wolfe_step(search: Search, state: Scheduled, share: Any, first: bool = False) -> Scheduled:
    """Go a share of the way to the maximiser of the linearised loss."""
    return _moved(search, state, towards(state.eps, search.step(state.grad, search.sigma), share))


def towards(eps: Array, vertex: Array, share: Any) -> Array:
    """Return the point at a share of the way from eps to a vertex, in the dtype of eps."""
    step = share * (vertex - eps)  # float32 where NumPy's eps is bfloat16
    return eps + namespace_of(eps).astype(step, eps.dtype, copy=False)


def shares(steps: int) -> list[float]:
    """Return the share of the way that each step of Frank-Wolfe goes: 2 / (k + 2) for k = 0, 1, ..."""
    return [2 / (k + 2) for k in range(steps)]


def _moved(search: Search, state: Scheduled, eps: Array) -> Scheduled:
    new, grad = search.evaluate(eps)
    better = search.better(new, state.value)
    best, value = search.where(better, eps, state.best), search.where(better, new, state.value)
    return state._replace(best=best, value=value, eps=eps, grad=grad)
