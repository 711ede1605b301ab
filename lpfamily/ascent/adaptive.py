"""Steps whose length adapts to each example, as in Auto-PGD."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from lpfamily._arrays import Array, Numbers, namespace_of
from lpfamily.ascent.search import Region, is_better
from lpfamily.libraries import library_of

MOMENTUM = 0.25
"""The share of the last move in the next one."""
MANY_STEPS = 50
"""With at least this many steps, the first ones may be as long as the ball is wide."""
RISING = 0.75
"""The fraction of a window's steps that must raise the value for the step length to stay."""


class Adaptive(NamedTuple):
    """The state of an ascent between two steps; everything is per example."""

    best: Array
    """The best perturbation so far."""
    value: Array
    """The value at `best`."""
    eps: Array
    """The current perturbation."""
    grad: Array
    """The gradient at `eps`."""
    share: Array
    """The length of a step, as a share of the longest step."""
    best_grad: Array
    """The gradient at `best`."""
    previous: Array
    """The perturbation before the last step."""
    value_at_eps: Array
    """The value at `eps`."""
    fresh: Array
    """Whether there is no last step to continue: at the start, and after a return to `best`."""
    n_rises: Array
    """The number of steps of this window that have raised the value."""
    best_rose: Array
    """Whether a step of this window has raised the best value."""


def begin(eps: Array, value: Array, grad: Array, share: Array) -> Adaptive:
    """Return the state at a start."""
    xp = namespace_of(share)
    yes = xp.ones_like(share, dtype=xp.bool)
    return Adaptive(eps, value, eps, grad, share, grad, eps, value, yes, xp.zeros_like(share), ~yes)


def propose(first: bool, region: Region, state: Adaptive, window: Any) -> Array:
    """Return where a step goes."""
    xp, eps = namespace_of(state.eps), state.eps
    drift = region.column(MOMENTUM * xp.astype(~state.fresh, state.share.dtype))
    if region.p in (1, math.inf) and not first:
        step = region.step(state.grad, 2 * region.sigma * state.share, eps)
    else:  # the maximum is the only fixed point of this step; projecting a long step can have others
        share = 1.0 if first else region.column(state.share)
        step = share * (region.step(state.grad, region.sigma) - eps)
    return region.nearest(eps + step + drift * (eps - state.previous - step))


def accept(
    region: Region,
    state: Adaptive,
    window: Any,
    stop_above: Numbers | None,
    eps: Array,
    value: Array,
    grad: Array,
) -> Adaptive:
    """Return the state after a step; `window` is the length of the window of steps that it ends, or 0."""
    xp, better = namespace_of(eps), is_better(value, state.value, stop_above)
    state = Adaptive(
        best=region.where(better, eps, state.best),
        value=region.where(better, value, state.value),
        eps=eps,
        grad=grad,
        share=state.share,
        best_grad=region.where(better, grad, state.best_grad),
        previous=state.eps,
        value_at_eps=value,
        fresh=xp.zeros_like(state.fresh),
        n_rises=state.n_rises + xp.astype(value > state.value_at_eps, state.n_rises.dtype),
        best_rose=state.best_rose | better,
    )
    after: Adaptive = library_of(eps).branch(window > 0, partial(_end_window, region, window), state)
    return after


def _end_window(region: Region, window: Any, state: Adaptive) -> Adaptive:
    """Halve the share of each example that made too little progress, and return it to its best point."""
    xp, stuck = namespace_of(state.n_rises), (state.n_rises < RISING * window) | ~state.best_rose
    return state._replace(
        eps=region.where(stuck, state.best, state.eps),
        grad=region.where(stuck, state.best_grad, state.grad),
        share=region.where(stuck, state.share / 2, state.share),
        value_at_eps=region.where(stuck, state.value, state.value_at_eps),
        fresh=stuck,
        n_rises=xp.zeros_like(state.n_rises),
        best_rose=xp.zeros_like(state.best_rose),
    )


def windows(steps: int) -> list[int]:
    """Return, for each step, the length of the window that it ends, or 0 if it ends none.

    The windows are those of Auto-PGD: 22 % of the steps, 19 %, 16 % and so on, 6 % at least.
    """
    lengths, begun, percent, share = [0] * steps, 0, 22, 22
    while percent < 100:
        end = -(-percent * steps // 100)
        if end > begun:
            lengths[end - 1], begun = end - begun, end
        share = max(share - 3, 6)
        percent += share
    return lengths
