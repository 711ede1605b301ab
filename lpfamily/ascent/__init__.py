"""Multi-step ascent of a loss in an Lp ball, for the inner maximum of eq. 1, built from eq. 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from lpfamily._arrays import (
    A,
    Array,
    Bounds,
    Numbers,
    admit,
    as_float,
    examples,
    is_number,
    mask_beside,
    namespace_of,
)
from lpfamily.ascent import adaptive, scheduled
from lpfamily.ascent.last_iterates import LAST_ITERATES, check_steps, frank_wolfe, projected
from lpfamily.ascent.search import Region, Search, is_better
from lpfamily.ascent.starts import in_units, is_random, random_starts, starting_point
from lpfamily.box import box_of
from lpfamily.libraries import library_of
from lpfamily.trees import Joint, is_tree
from lpfamily.units import Units
from lpfamily.weighted import joined

__all__ = ["LAST_ITERATES", "Method", "ascend", "check_ascent", "frank_wolfe", "projected"]

Method: TypeAlias = Literal["adaptive", "projected", "frank-wolfe"]


class _Method(NamedTuple):
    begin: Callable[..., Any]
    """Returns the state at a start."""
    propose: Callable[..., Array]
    """Returns where a step goes from a state."""
    accept: Callable[..., Any]
    """Returns the state after that step."""
    schedule: Callable[[int], list[Any]]
    """Returns a number for each of so many steps, which `propose` and `accept` are given."""


_METHODS = {
    "adaptive": _Method(adaptive.begin, adaptive.propose, adaptive.accept, adaptive.windows),
    "projected": _Method(
        scheduled.begin, scheduled.propose_projected, scheduled.accept, lambda steps: [0] * steps
    ),
    "frank-wolfe": _Method(
        scheduled.begin, scheduled.propose_frank_wolfe, scheduled.accept, scheduled.shares
    ),
}


def ascend(
    value_and_grad: Callable[..., tuple[Array, Array]],
    x: A,
    p: float,
    sigma: Numbers,
    steps: int = 10,
    step_size: Numbers | None = None,
    start: Any = None,
    bounds: Bounds | None = None,
    *,
    batch_ndim: int | None = None,
    mask: Array | None = None,
    scale: Numbers | None = None,
    method: Method | None = None,
    restarts: int = 0,
    stop_above: float | None = None,
) -> A:
    """Return, for each example, the best perturbation in the Lp ball that is found in `steps` steps.

    It approximates the inner maximum of eq. 1: max L(x + eps) subject to ||eps||_p <= sigma, and to
    low <= x + eps <= high if there are bounds. Each step uses eq. 3 at the gradient of the current point:

    - "adaptive": eps <- project(eps + 3/4 step + 1/4 (eps - previous eps), p, sigma). The first step, and the
      first after a return to the best point, has no previous eps and is whole, eps + step. For 1 < p < inf
      the step is share * (epsilon(grad, p, sigma) - eps), towards the maximiser of the linearised loss. At
      p = 1 and inf, where the ball has corners, this is the first step only; each later one is the steepest
      step of norm 2 * sigma * share from the current point. Each example has its own share. It starts at 1,
      or at 1/2 if p is 1 or inf and there are fewer than 50 steps. The steps are divided into windows, those
      of Auto-PGD, from 22 % of the steps down to 6 %. If a window ends without a new best value, or if fewer
      than three quarters of its steps have raised the value, the share halves and the example returns to its
      best point.
    - "projected": eps <- project(eps + epsilon(grad, p, step_size), p, sigma), the steepest step and then
      the nearest point of ball and box. At p = inf it is PGD, the iterative fast gradient sign method.
    - "frank-wolfe": eps <- eps + 2/(k+2) (epsilon(grad, p, sigma) - eps), towards the maximiser of the
      linearised loss. It needs no projection: an average of points of the ball and the box is in both.

    For each example the iterate with the largest value is kept, the start included, so a step that overshoots
    loses nothing. NaN never replaces a value; if the value at the start is NaN, the next iterate replaces it.
    With one step from x every method returns eq. 3, or eps = 0 for an example whose value the step does not
    raise.

    Parameters
    ----------
    value_and_grad
        Maps inputs like x to the value of each example, of shape `x.shape[:batch_ndim]`, and its
        gradient with respect to the input, like x, or any positive multiple of that. It is called
        steps + 1 times for every start; JAX traces it twice under jit. For the cross-entropy take
        `lpfamily.error_log_odds`, which has the same maximiser and a gradient that does not round to zero.
        `stop_above` adds a second argument, see there. Inputs and gradients are trees if x is one.
    x
        The inputs, a floating array, or a tree of them as in `lpfamily.epsilon`; the first `batch_ndim` axes
        index examples.
    p, sigma, bounds, batch_ndim, mask
        As in `lpfamily.epsilon`.
    scale
        As in `lpfamily.epsilon`. The ascent then moves u in x + scale * u, and its projections take the point
        that is nearest in eps / scale.
    steps
        The number of steps from each start, at least 1.
    step_size
        The Lp norm of a projected step, a number or one per example; None means sigma for one step and
        2.5 sigma / steps for more.
    start
        Where to begin. None is x itself. An array like x is a perturbation to begin at; it is projected if it
        is outside. A generator, or a JAX key, as `lpfamily.sample` takes it, draws a point uniformly from the
        ball, which is projected into the box.
    method
        "adaptive", "projected" or "frank-wolfe", as above. None means "projected" if there is a
        `step_size`, else "adaptive".
    restarts
        The number of further starts, at random points of the ball. `start` draws them if it is a generator
        or a key, else `numpy.random.default_rng(0)`. The best of all is kept for each example.
    stop_above
        A value that is enough, or None. An example whose value exceeds it keeps that iterate.
        `value_and_grad(x, rows)` is then called for the other examples alone: `rows` indexes the first axis
        of arrays that have one entry per example, as in `labels[rows]`, and is `slice(None)` for all
        examples. NumPy and torch leave finished examples out; in traced code and in other libraries,
        where shapes stay, they are computed and not changed.

    Returns
    -------
    Array
        eps, of x's namespace, shape, dtype and device, or a tree like x: the best perturbation, not x + eps.
        It is NaN for an example whose sigma is bad, or whose x is outside its bounds, where no error can
        report it (JAX, devices, traces). Such an example does not count as robust.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`, for less than one step, restarts below 0, an unknown method, a step_size
        with a method other than "projected", a stop_above that is NaN, and for values or gradients of
        another shape.

    References
    ----------
    Croce and Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020; Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to
    Adversarial Attacks, 2018; Frank and Wolfe: An Algorithm for Quadratic Programming, 1956.
    """
    how: dict[str, Any] = {
        "steps": steps,
        "step_size": step_size,
        "method": check_ascent(steps, method, step_size, restarts, stop_above),
        "restarts": restarts,
        "stop_above": stop_above,
    }
    if step_size is None:  # it would have to be multiplied too
        sigma, scale = joined(sigma, scale)
    if is_tree(x):
        return _ascend_tree(value_and_grad, x, p, sigma, start, bounds, batch_ndim, mask, scale, how)
    if scale is not None:
        return _ascend_scaled(value_and_grad, x, p, sigma, start, bounds, batch_ndim, mask, scale, how)
    return _ascend_array(value_and_grad, x, p, sigma, start, bounds, batch_ndim, mask, **how)


def _ascend_tree(
    value_and_grad: Callable[..., tuple[Array, Array]],
    x: A,
    p: float,
    sigma: Numbers,
    start: Any,
    bounds: Bounds | None,
    batch_ndim: int | None,
    mask: Any,
    scale: Any,
    how: dict[str, Any],
) -> A:
    """Return `ascend` of a tree, computed by `ascend` of its rows."""
    joint = Joint.of("x", x, batch_ndim)
    box = () if bounds is None else box_of(x, bounds)
    keywords = Joint.of("x", x, joint.batch_ndim, mask, scale, box).keywords
    if is_tree(start) or not (start is None or is_random(start)):
        start = joint.like("start", start, joint.leaves[0].batch).rows

    def on_rows(rows: Array, *indices: Any) -> tuple[Array, Array]:
        value, grad = value_and_grad(joint.tree_of(rows), *indices)
        return value, joint.like("grad", grad, tuple(rows.shape[: joint.batch_ndim])).rows

    ball = {"batch_ndim": joint.batch_ndim, "mask": keywords["mask"], "scale": keywords["scale"]}
    eps = ascend(on_rows, joint.rows, p, sigma, start=start, bounds=keywords.get("bounds"), **ball, **how)
    tree: A = joint.tree_of(eps)
    return tree


def _ascend_scaled(
    value_and_grad: Callable[..., tuple[Array, Array]],
    x: A,
    p: float,
    sigma: Numbers,
    start: Any,
    bounds: Bounds | None,
    batch_ndim: int | None,
    mask: Array | None,
    scale: Numbers,
    how: dict[str, Any],
) -> A:
    """Return `ascend` in a weighted ball, computed by `ascend` of u, where x + eps is x + scale * u."""
    given = examples(x, "x", batch_ndim)
    units = Units.of(x, sigma, bounds, batch_ndim, mask, scale)
    of_u = partial(units.value_and_grad, value_and_grad)
    start, ball = in_units(units, start), {"batch_ndim": batch_ndim, "mask": units.mask}
    u = ascend(of_u, units.centre, p, units.radius, start=start, bounds=units.bounds, **ball, **how)
    return given.back(units.eps(u))


def _ascend_array(
    value_and_grad: Callable[..., tuple[Array, Array]],
    x: A,
    p: float,
    sigma: Numbers,
    start: Any,
    bounds: Bounds | None,
    batch_ndim: int | None,
    mask: Array | None,
    *,
    steps: int,
    step_size: Numbers | None,
    method: str,
    restarts: int,
    stop_above: float | None,
) -> A:
    """Return `ascend` of an array in a plain ball."""
    given = examples(x, "x", batch_ndim)
    at, batch_ndim = given.array, len(given.batch)
    given = replace(given, values=given.rows(at))  # radii take the dtype of x here
    radius = given.radius(sigma)[..., 0]  # checked first, so that an error shows sigma as it was given
    if method == "adaptive":
        full = 1 < p < math.inf or steps >= adaptive.MANY_STEPS
        length = given.radius(1.0 if full else 0.5)[..., 0]
    elif step_size is not None:
        length = given.radius(step_size, "step_size")[..., 0]
    else:
        length = radius if steps == 1 else 2.5 / steps * radius
    sides = () if bounds is None else zip(("low", "high"), box_of(at, bounds)[1:], strict=True)
    region = Region(
        x=at,
        p=p,
        sigma=sigma if is_number(sigma) else radius,
        bounds=tuple(as_float(side) if is_number(side) else admit(side, name)[1] for name, side in sides),
        mask=None if mask is None else mask_beside(at, mask),
        batch_ndim=batch_ndim,
    )
    search = Search(value_and_grad, region, stop_above)
    begin = partial(starting_point, at, p, sigma, bounds=bounds, mask=mask, batch_ndim=batch_ndim)
    best, value = _climb(search, begin(start), length, method, steps)
    for random in random_starts(start, restarts):
        indices = search.unfinished(value)
        if indices is not None and not indices.shape[0]:
            break
        eps, new = _climb(
            search.of(indices), _of(begin(random), indices), _of(length, indices), method, steps
        )
        better = is_better(new, _of(value, indices), stop_above)
        best = _put(best, indices, region.where(better, eps, _of(best, indices)))
        value = _put(value, indices, region.where(better, new, _of(value, indices)))
    return given.back(best)


def check_ascent(
    steps: int,
    method: str | None,
    step_size: Numbers | None = None,
    restarts: int = 0,
    stop_above: float | None = None,
) -> str:
    """Return the method, the default one if it is None; raise ValueError if the options are invalid."""
    check_steps(steps)
    method = method or ("adaptive" if step_size is None else "projected")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}; got {method!r}")
    if step_size is not None and method != "projected":
        raise ValueError(
            f"step_size needs method='projected'; got method={method!r}, which chooses its steps itself"
        )
    if restarts < 0:
        raise ValueError(f"restarts must be at least 0; got {restarts}")
    if stop_above is not None and math.isnan(stop_above):
        raise ValueError("stop_above must be a number or None; got nan, which no value exceeds")
    return method


def _climb(search: Search, eps: Array, length: Array, method: str, steps: int) -> tuple[Array, Array]:
    """Return the best perturbation that a method finds from eps, and its value."""
    how = _METHODS[method]
    state = how.begin(eps, *search.evaluate(eps), length)
    first, *others = how.schedule(steps)
    if search.unfinished(state.value) is None:
        state = _stepped(how, True, search, state, first)
        state = library_of(eps).iterate(partial(_stepped, how, False, search), state, others)
        return state.best, state.value
    xp, indices = namespace_of(eps), None
    best, value = (xp.asarray(each, copy=True) for each in (eps, state.value))
    for k, number in enumerate((first, *others)):
        going: Array = search.unfinished(state.value)
        if going.shape[0] < state.value.shape[0]:
            best, value = _put(best, indices, state.best), _put(value, indices, state.value)
            search, indices = search.of(going), going if indices is None else indices[going]
            state = type(state)(*(each[going] for each in state))
        if not going.shape[0]:
            break
        state = _stepped(how, k == 0, search, state, number)
    return _put(best, indices, state.best), _put(value, indices, state.value)


def _stepped(how: _Method, first: bool, search: Search, state: Any, number: Any) -> Any:
    """Return the state after one step."""
    fused = library_of(state.eps).fused
    eps = fused(partial(how.propose, first), search.region, state, number)
    found = search.evaluate(eps)
    return fused(how.accept, search.region, state, number, search.stop_above, eps, *found)


def _of(values: Array, indices: Array | None) -> Array:
    return values if indices is None else values[indices]


def _put(values: Array, indices: Array | None, new: Array) -> Array:
    """Return the values with new ones at the indices, changed in place; None replaces all."""
    if indices is None:
        return new
    values[indices] = new
    return values
