"""Multi-step ascent of a loss in an Lp ball, for the inner maximum of eq. 1, built from eq. 3."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from lpfamily._arrays import (
    A,
    Array,
    Bounds,
    Numbers,
    admit,
    carried,
    device_of,
    examples,
    is_number,
    namespace_of,
    of_library,
    reshape,
)
from lpfamily.balls import project, sample
from lpfamily.box import box_of
from lpfamily.libraries import library_of, library_of_generator
from lpfamily.step import epsilon
from lpfamily.trees import Joint, is_tree, mapped
from lpfamily.units import Units

Method: TypeAlias = Literal["adaptive", "projected", "frank-wolfe"]

MOMENTUM = 0.25
"""The share of the last move in the next one."""
MANY = 50
"""From how many steps on the first ones may be as long as the ball is wide."""
ENOUGH = 0.75
"""The fraction of a window's steps that must raise the value for the step length to stay."""


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
    """Return the best perturbation in the Lp ball that `steps` gradients find, for each example.

    The inner maximum of eq. 1, max L(x + eps) subject to ||eps||_p <= sigma and to low <= x + eps <=
    high if there are bounds. Each step is eq. 3 at the gradient of where it stands:

    - "adaptive": eps <- project(eps + 3/4 step + 1/4 (eps - the eps before), p, sigma). For 1 < p < inf the
      step is share (epsilon(grad, p, sigma) - eps), towards the maximiser of the linearised loss. So is the
      first at p = 1 and inf, where the ball has corners; the others are steepest steps of norm 2 sigma
      share from where they stand. Each example has a share of its own, at first 1, or 1/2 at p = 1 and
      inf for less than 50 steps. Where a window of steps ends without a new best value, or less than three
      quarters of them have raised the value, the share halves and the example returns to its best point.
      The windows are those of Auto-PGD, from 22 % of the steps down to 6 %.
    - "projected": eps <- project(eps + epsilon(grad, p, step_size), p, sigma), the steepest step and
      the nearest point of ball and box (p = inf: the iterative fast gradient sign method, PGD).
    - "frank-wolfe": eps <- eps + 2/(k+2) (epsilon(grad, p, sigma) - eps), towards the maximiser of the
      linearised loss. An average of points of the ball and the box is in both: no projection.

    Of every example the iterate of the largest value is kept, its start included; so a step that
    overshoots, or a value that is NaN, loses nothing. One step from x, by any method, is eq. 3's, or
    none for an example whose value it does not raise.

    Parameters
    ----------
    value_and_grad
        Maps inputs like x to the value of each example, of shape `x.shape[:batch_ndim]`, and its
        gradient with respect to the input, like x, or any positive multiple of that. It is called
        steps + 1 times for every start; JAX traces it twice under jit. For the cross-entropy take
        `lpfamily.error_log_odds`, which has the same maximiser and a gradient that does not round away.
        With `stop_above` it takes a second argument, see there. Inputs and gradients are trees if x is one.
    x
        The inputs, a floating array, or a tree of them as in `lpfamily.epsilon`; the first `batch_ndim` axes
        index examples.
    p, sigma, bounds, batch_ndim, mask
        As in `lpfamily.epsilon`.
    scale
        As in `lpfamily.epsilon`. The ascent is one in u of x + scale * u: nearest points are those of
        eps / scale.
    steps
        How many steps to take from each start, at least 1.
    step_size
        The Lp norm of a projected step, a number or one per example; None means sigma for one step and
        2.5 sigma / steps for more.
    start
        Where to begin: None is x itself; an array like x is a perturbation, projected if it is
        outside; a generator, or a JAX key, as `lpfamily.sample` takes it, draws a point uniformly from
        the ball, projected into the box.
    method
        "adaptive", "projected" or "frank-wolfe", as above. None means "projected" if there is a
        `step_size`, else "adaptive".
    restarts
        How many more starts to take, at random points of the ball: drawn by `start` if it is a generator
        or a key, else by `numpy.random.default_rng(0)`. The best of all is kept for each example.
    stop_above
        A value that is enough, or None. An example that has reached more is left at that iterate.
        `value_and_grad(x, rows)` is then called for the others alone: `rows` indexes the first axis of
        what belongs to the examples, as in `labels[rows]`, and is `slice(None)` if they are all. NumPy and
        torch leave examples out; in traced code and other libraries, whose shapes stay, they are
        computed and not changed.

    Returns
    -------
    Array
        eps, of x's namespace, shape, dtype and device, or a tree like x: the best perturbation, not x + eps.
        NaN in an example whose sigma, or x in its bounds, is bad where it is not seen (JAX, devices, traces):
        it is not one that withstands.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`, for less than one step, restarts below 0, an unknown method, a step_size
        with a method other than "projected", a stop_above that is NaN, and for values or gradients that do
        not have their shape.

    References
    ----------
    Croce and Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020; Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to
    Adversarial Attacks, 2018; Frank and Wolfe: An Algorithm for Quadratic Programming, 1956.
    """
    chosen = check_ascent(steps, method, step_size, restarts, stop_above)
    if is_tree(x):
        joint = Joint.of("x", x, batch_ndim)
        batch_ndim = joint.batch_ndim
        box = () if bounds is None else box_of(x, bounds)
        within = Joint.of("x", x, batch_ndim, mask, scale, box).within
        if is_tree(start) or not (start is None or is_random(start)):
            start = joint.like("start", start, joint.parts[0].batch).rows

        def on_rows(rows: Array, *places: Any) -> tuple[Array, Array]:
            value, grad = value_and_grad(joint.tree_of(rows), *places)
            return value, joint.like("grad", grad, tuple(rows.shape[: joint.batch_ndim])).rows

        eps = ascend(
            on_rows,
            joint.rows,
            p,
            sigma,
            steps,
            step_size,
            start,
            within.get("bounds"),
            batch_ndim=batch_ndim,
            mask=within["mask"],
            scale=within["scale"],
            method=method,
            restarts=restarts,
            stop_above=stop_above,
        )
        tree: A = joint.tree_of(eps)
        return tree
    given = examples(x, "x", batch_ndim)
    if scale is not None:
        units = Units.of(x, sigma, bounds, batch_ndim, mask, scale)
        u = ascend(
            partial(units.value_and_grad, value_and_grad),
            units.centre,
            p,
            units.radius,
            steps,
            step_size,
            _in_units(units, start),
            units.bounds,
            batch_ndim=batch_ndim,
            mask=units.mask,
            method=method,
            restarts=restarts,
            stop_above=stop_above,
        )
        return given.back(units.eps(u))
    at, batch_ndim = given.array, len(given.batch)
    given = replace(given, values=given.rows(at))  # whose dtype holds the radius
    radius = given.radius(sigma)[..., 0]  # an error names it, not what is made of it
    if chosen == "adaptive":
        length = given.radius(1.0 if 1 < p < math.inf or steps >= MANY else 0.5)[..., 0]
    elif step_size is not None:
        length = given.radius(step_size, "step_size")[..., 0]
    else:
        length = radius if steps == 1 else 2.5 / steps * radius
    search = _Search(
        value_and_grad, at, p, sigma if is_number(sigma) else radius, bounds, mask, batch_ndim, stop_above
    )
    begin = partial(starting_point, at, p, sigma, bounds=bounds, mask=mask, batch_ndim=batch_ndim)
    best, value = _climb(search, begin(start), length, chosen, steps)
    for each in _restarts(start, restarts):
        rows = search.left(value)
        if rows is not None and not rows.shape[0]:
            break
        found, reached = _climb(search.of(rows), _of(begin(each), rows), _of(length, rows), chosen, steps)
        better = search.better(reached, _of(value, rows))
        best = _put(best, rows, search.where(better, found, _of(best, rows)))
        value = _put(value, rows, search.where(better, reached, _of(value, rows)))
    return given.back(best)


def _in_units(units: Units, start: Any) -> Any:
    """Return a start of u."""
    return start if start is None or is_random(start) else units.inverse(start)


def _restarts(start: Any, count: int) -> Sequence[Any]:
    if not count:
        return ()
    random = start if is_random(start) else np.random.default_rng(0)
    return library_of_generator(random).generators(random, count)


def check_ascent(
    steps: int,
    method: str | None,
    step_size: Numbers | None = None,
    restarts: int = 0,
    stop_above: float | None = None,
) -> str:
    """Return the name of an ascent's method; raise ValueError for what cannot be."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    method = method or ("adaptive" if step_size is None else "projected")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}; got {method!r}")
    if step_size is not None and method != "projected":
        raise ValueError(f"step_size belongs to method='projected': {method!r} has steps of its own")
    if restarts < 0:
        raise ValueError(f"restarts must be at least 0; got {restarts}")
    if stop_above is not None and math.isnan(stop_above):
        raise ValueError("stop_above must be a number or None; got nan, which no value is above")
    return method


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
    """Return where an ascent begins, in ball and box: `start` as `ascend` takes it."""
    xp = namespace_of(x)
    if scale is not None:
        units = Units.of(x, sigma, bounds, batch_ndim, mask, scale)
        inside: dict[str, Any] = {"bounds": units.bounds, "mask": units.mask, "batch_ndim": batch_ndim}
        u = starting_point(units.centre, p, units.radius, _in_units(units, start), **inside)
        return xp.astype(units.eps(u), x.dtype, copy=False)
    within: dict[str, Any] = {"batch_ndim": batch_ndim, "mask": mask}
    if bounds is not None:
        within |= {"x": x, "bounds": bounds}
    if start is None:  # in every ball: that of p = inf costs least to find what makes an example NaN
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
        given = examples(x, "x", batch_ndim)  # whose library may not be the generator's
        start = xp.asarray(carried(start), dtype=given.values.dtype, device=device_of(x))
        start = given.shaped(given.radius(sigma) * given.rows(start))
    start = xp.astype(xp.asarray(carried(start), device=device_of(x)), x.dtype, copy=False)
    return project(start, p, sigma, **within)


def is_random(start: Any) -> bool:
    """Whether a start may be a generator or a key: it is no floating array, and not None."""
    dtype = getattr(start, "dtype", None)
    floating = "float" in getattr(dtype, "name", str(dtype)) or getattr(start, "is_quantized", False)
    return start is not None and not floating


@dataclass(frozen=True)
class _Search:
    """What is searched, of the examples that go on."""

    value_and_grad: Callable[..., tuple[Array, Array]]
    x: Array
    p: float
    sigma: Numbers
    bounds: Bounds | None
    mask: Array | None
    batch_ndim: int
    stop_above: float | None
    rows: Array | None = None
    """Where they are among all examples; None if they are all."""

    @property
    def _ball(self) -> dict[str, Any]:
        return {"batch_ndim": self.batch_ndim, "mask": self.mask}

    def evaluate(self, eps: Array) -> tuple[Array, Array]:
        """Return value and gradient of each example."""
        rows = () if self.stop_above is None else (slice(None) if self.rows is None else self.rows,)
        value, grad = self.value_and_grad(self.x + eps, *rows)
        batch = tuple(self.x.shape[: self.batch_ndim])
        if tuple(value.shape) != batch or tuple(grad.shape) != tuple(self.x.shape):
            raise ValueError(
                f"value_and_grad must return one value per example, {batch}, and a gradient like x, "
                f"{tuple(self.x.shape)}; got shapes {tuple(value.shape)} and {tuple(grad.shape)}"
            )
        return value, grad

    def step(self, grad: Array, length: Numbers, eps: Array | None = None) -> Array:
        """Return the steepest step from x, or one from x + eps whose end goes to `nearest`."""
        box: dict[str, Any] = {}
        if self.bounds is not None and eps is None:
            box = {"x": self.x, "bounds": self.bounds}
        elif self.bounds is not None and self.p != math.inf:  # in a cube, `nearest` does all that a box does
            # a gradient or a sigma that is NaN makes eps so, which puts nothing outside the bounds
            here = namespace_of(eps).where(eps == eps, self.x + eps, self.x)
            box = {"x": here, "bounds": self.bounds}
        return epsilon(grad, self.p, length, **self._ball, **box)

    def nearest(self, eps: Array) -> Array:
        """Return the nearest point of ball and box, in x's dtype."""
        box: dict[str, Any] = {} if self.bounds is None else {"x": self.x, "bounds": self.bounds}
        eps = namespace_of(eps).astype(eps, self.x.dtype, copy=False)
        return project(eps, self.p, self.sigma, **self._ball, **box)

    def better(self, new: Array, value: Array) -> Array:
        """Whether an example takes a new value for an older one."""
        better = (new > value) | (value != value)
        return better if self.stop_above is None else better & ~(value > self.stop_above)

    def column(self, values: Array) -> Array:
        """Return one value per example beside the entries of x."""
        return reshape(values, (*values.shape, *[1] * (self.x.ndim - self.batch_ndim)))

    def where(self, condition: Array, new: Array, old: Array) -> Array:
        """Return `new` for the examples of a condition and `old` for the others."""
        xp = namespace_of(new)
        return xp.where(condition if new.ndim == self.batch_ndim else self.column(condition), new, old)

    def left(self, value: Array) -> Array | None:
        """Return the places of the examples that have not reached enough; None where none can be left out."""
        if self.stop_above is None or not self.batch_ndim:
            return None
        going, inner = ~(value > self.stop_above), tuple(range(1, self.batch_ndim))
        return library_of(value).places(namespace_of(value).any(going, axis=inner) if inner else going)

    def of(self, places: Array | None) -> _Search:
        """Return the search of some of these examples."""
        if places is None:
            return self
        some, ndim = partial(of_examples, places, self.x), self.x.ndim
        return replace(
            self,
            x=self.x[places],
            sigma=some(self.sigma, self.batch_ndim),
            bounds=self.bounds and (some(self.bounds[0], ndim), some(self.bounds[1], ndim)),
            mask=None if self.mask is None else some(self.mask, ndim),
            rows=places if self.rows is None else self.rows[places],
        )


def of_examples(places: Array, x: Array, operand: Any, ndim: int) -> Any:
    """Return what belongs to the examples of x at these places, of a number or an array of so many axes."""
    if operand is None or is_number(operand):
        return operand
    operand = operand if hasattr(operand, "shape") else np.asarray(operand)
    if len(operand.shape) < ndim or operand.shape[0] == 1:
        return operand  # the same for all
    return of_library(x, operand, "what belongs to x")[places]


def _climb(search: _Search, eps: Array, length: Array, method: str, steps: int) -> tuple[Array, Array]:
    """Return the best point that a method meets from here on, and its value."""
    begin, step, schedule = _METHODS[method]
    state = begin(eps, *search.evaluate(eps), length)
    first, *others = schedule(steps)
    if search.left(state.value) is None:
        state = library_of(eps).iterate(partial(step, search), step(search, state, first, True), others)
        return state.best, state.value
    xp, rows = namespace_of(eps), None
    best, value = (xp.asarray(each, copy=True) for each in (eps, state.value))
    for k, number in enumerate((first, *others)):
        places: Array = search.left(state.value)
        if places.shape[0] < state.value.shape[0]:
            best, value = _put(best, rows, state.best), _put(value, rows, state.value)
            search, rows = search.of(places), places if rows is None else rows[places]
            state = type(state)(*(each[places] for each in state))
        if not places.shape[0]:
            break
        state = step(search, state, number, k == 0)
    return _put(best, rows, state.best), _put(value, rows, state.value)


def _of(values: Array, rows: Array | None) -> Array:
    return values if rows is None else values[rows]


def _put(values: Array, rows: Array | None, new: Array) -> Array:
    if rows is None:
        return new
    values[rows] = new
    return values


class _Steps(NamedTuple):
    """The best point and its value; where the example is, the gradient there, the norm of a step."""

    best: Array
    value: Array
    eps: Array
    grad: Array
    length: Array

    @classmethod
    def begin(cls, eps: Array, value: Array, grad: Array, length: Array) -> _Steps:
        """Return the state at a start."""
        return cls(eps, value, eps, grad, length)


def _projected(search: _Search, state: _Steps, _: Any, first: bool = False) -> _Steps:
    return _moved(search, state, search.nearest(state.eps + search.step(state.grad, state.length, state.eps)))


def _frank_wolfe(search: _Search, state: _Steps, share: Any, first: bool = False) -> _Steps:
    return _moved(search, state, _towards(state.eps, search.step(state.grad, search.sigma), share))


def _moved(search: _Search, state: _Steps, eps: Array) -> _Steps:
    new, grad = search.evaluate(eps)
    better = search.better(new, state.value)
    best, value = search.where(better, eps, state.best), search.where(better, new, state.value)
    return state._replace(best=best, value=value, eps=eps, grad=grad)


class _Adaptive(NamedTuple):
    """The same, with the share of a whole step in the place of its norm, and what decides about it."""

    best: Array
    value: Array
    eps: Array
    grad: Array
    share: Array
    best_grad: Array
    before: Array
    """Where the example was before its last step."""
    last: Array
    """The value at eps."""
    fresh: Array
    """Whether the last step is none to go on with: at the start, and after a return."""
    rises: Array
    """How many steps of this window have raised the value."""
    rose: Array
    """Whether one has raised the best value."""


def _begin(eps: Array, value: Array, grad: Array, share: Array) -> _Adaptive:
    xp = namespace_of(share)
    yes = xp.ones_like(share, dtype=xp.bool)
    return _Adaptive(eps, value, eps, grad, share, grad, eps, value, yes, xp.zeros_like(share), ~yes)


def _adaptive(search: _Search, state: _Adaptive, window: Any, first: bool = False) -> _Adaptive:
    """Take a step; `window` is the length of the window of steps that it ends, or 0."""
    xp, eps = namespace_of(state.eps), state.eps
    drift = search.column(MOMENTUM * xp.astype(~state.fresh, state.share.dtype))
    if search.p in (1, math.inf) and not first:
        step = search.step(state.grad, 2 * search.sigma * state.share, eps)
    else:  # unlike the nearest point to a long step, this one has the maximum for its only place to rest
        share = 1.0 if first else search.column(state.share)
        step = share * (search.step(state.grad, search.sigma) - eps)
    moved = search.nearest(eps + step + drift * (eps - state.before - step))
    new, grad = search.evaluate(moved)
    better = search.better(new, state.value)
    state = _Adaptive(
        best=search.where(better, moved, state.best),
        value=search.where(better, new, state.value),
        eps=moved,
        grad=grad,
        share=state.share,
        best_grad=search.where(better, grad, state.best_grad),
        before=eps,
        last=new,
        fresh=xp.zeros_like(state.fresh),
        rises=state.rises + xp.astype(new > state.last, state.rises.dtype),
        rose=state.rose | better,
    )
    after: _Adaptive = library_of(eps).branch(window > 0, partial(_look_back, search, window), state)
    return after


def _look_back(search: _Search, window: Any, state: _Adaptive) -> _Adaptive:
    """Where the window has not been worth its steps, halve the share and return to the best point."""
    xp, stuck = namespace_of(state.rises), (state.rises < ENOUGH * window) | ~state.rose
    return state._replace(
        eps=search.where(stuck, state.best, state.eps),
        grad=search.where(stuck, state.best_grad, state.grad),
        share=search.where(stuck, state.share / 2, state.share),
        last=search.where(stuck, state.value, state.last),
        fresh=stuck,
        rises=xp.zeros_like(state.rises),
        rose=xp.zeros_like(state.rose),
    )


def _windows(steps: int) -> list[int]:
    """Return, for each step, the length of the window that it ends, or 0.

    The windows are Auto-PGD's: 22 % of the steps, 19 %, 16 % and so on, 6 % at least.
    """
    windows, begun, percent, share = [0] * steps, 0, 22, 22
    while percent < 100:
        end = -(-percent * steps // 100)
        if end > begun:
            windows[end - 1], begun = end - begun, end
        share = max(share - 3, 6)
        percent += share
    return windows


_METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[int], list[Any]]]] = {
    "adaptive": (_begin, _adaptive, _windows),
    "projected": (_Steps.begin, _projected, lambda steps: [0] * steps),
    "frank-wolfe": (_Steps.begin, _frank_wolfe, lambda steps: [2 / (k + 2) for k in range(steps)]),
}


def _towards(eps: Array, vertex: Array, share: Any) -> Array:
    step = share * (vertex - eps)  # of float32 where NumPy's eps is bfloat16
    return eps + namespace_of(eps).astype(step, eps.dtype, copy=False)


def frank_wolfe(
    gradient: Callable[[Array], Array],
    x: Array,
    p: float,
    sigma: Numbers,
    steps: int,
    start: Array | None = None,
    *,
    bounds: Bounds | None = None,
    **options: Any,
) -> Array:
    """Return the last iterate of Frank-Wolfe's method after `steps` gradients, without any value.

    What `ascend` does by `method="frank-wolfe"`, at one gradient a step: the perturbation that training
    takes. One step is eq. 3 at the gradient of the start.

    Parameters
    ----------
    gradient
        Maps inputs of x's shape to the gradient of the loss with respect to them.
    x
        The inputs; its first `batch_ndim` axes index examples.
    p, sigma, bounds
        As in `lpfamily.epsilon`.
    steps
        The number of gradients, at least 1.
    start
        Where in the ball, and in the box, the first gradient is taken, a perturbation; None means its
        centre, x itself.
    options
        `batch_ndim`, `mask` and `scale`, as in `lpfamily.epsilon`.

    Returns
    -------
    Array
        eps, like x.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; for less than one step.
    """
    if bounds is not None:
        options |= {"x": x, "bounds": bounds}
    return towards_vertices(lambda at: epsilon(gradient(at), p, sigma, **options), x, steps, start)


def towards_vertices(vertex: Callable[[A], A], x: A, steps: int, start: A | None = None) -> A:
    """Return the last iterate of `frank_wolfe`, of an array or a tree, from the maximiser as a function."""
    check_ascent(steps, "frank-wolfe")
    eps = vertex(x if start is None else mapped(operator.add, x, start))
    for k in range(1, steps):
        share = 2 / (k + 2)
        eps = mapped(partial(_towards, share=share), eps, vertex(mapped(operator.add, x, eps)))
    return eps


def projected(
    gradient: Callable[[Array], Array],
    x: Array,
    p: float,
    sigma: Numbers,
    steps: int,
    start: Array | None = None,
    **options: Any,
) -> Array:
    """Return the last iterate of `steps` projected steepest steps, without any value.

    What `ascend` does by `method="projected"`, with its step size and one gradient per step: from a random
    `start` the inner maximum of PGD training (Madry et al. 2018). Arguments, result and errors are those of
    `frank_wolfe`, without bounds.
    """
    check_ascent(steps, "projected")
    eps, length = start, sigma if steps == 1 else 2.5 / steps * sigma
    for _ in range(steps):
        step = epsilon(gradient(x if eps is None else x + eps), p, length, **options)
        eps = project(step if eps is None else eps + step, p, sigma, **options)
    return eps


LAST_ITERATES: dict[str, Callable[..., Any]] = {"frank-wolfe": frank_wolfe, "projected": projected}
"""By method, the ascents without values, by which training perturbs."""
