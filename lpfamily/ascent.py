"""Multi-step ascent of a loss in an Lp ball, for the inner maximum of eq. 1, built from eq. 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from lpfamily._arrays import A, Array, Bounds, Numbers, admit, carried, device_of, examples, namespace_of
from lpfamily.balls import project, sample
from lpfamily.step import epsilon


def ascend(
    value_and_grad: Callable[[Array], tuple[Array, Array]],
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
    method: Literal["projected", "frank-wolfe"] = "projected",
) -> A:
    """Return the best perturbation in the Lp ball that `steps` gradients find, for each example.

    The inner maximum of eq. 1, max L(x + eps) subject to ||eps||_p <= sigma and to low <= x + eps <=
    high if there are bounds. Each step is eq. 3 at the gradient of where it stands:

    - "projected": eps <- project(eps + epsilon(grad, p, step_size), p, sigma), the steepest step and
      the nearest point of ball and box (p = inf: the iterative fast gradient sign method, PGD).
    - "frank-wolfe": eps <- eps + 2/(k+2) (epsilon(grad, p, sigma) - eps), towards the maximiser of the
      linearised loss. An average of points of the ball and the box is in both: no projection.

    Of every example the iterate of the largest value is kept, its start included; so a step that
    overshoots, or a value that is NaN, loses nothing. One step from x, by either method, is eq. 3's, or
    none for an example whose value it does not raise.

    Parameters
    ----------
    value_and_grad
        Maps inputs like x to the value of each example, of shape `x.shape[:batch_ndim]`, and its
        gradient with respect to the input, like x, or any positive multiple of that. It is called
        steps + 1 times. For the cross-entropy take `lpfamily.error_log_odds`, which has the same
        maximiser and a gradient that does not round away.
    x
        The inputs, a floating array; its first `batch_ndim` axes index examples.
    p, sigma, bounds, batch_ndim, mask
        As in `lpfamily.epsilon`.
    steps
        How many steps to take, at least 1.
    step_size
        The Lp norm of a projected step, a number or one an example; None means sigma for one step and
        2.5 sigma / steps for more.
    start
        Where to begin: None is x itself; an array like x is a perturbation, projected if it is
        outside; a generator, or a JAX key, as `lpfamily.sample` takes it, draws a point uniformly from
        the ball, projected into the box.
    method
        "projected" or "frank-wolfe", as above.

    Returns
    -------
    Array
        eps, of x's namespace, shape, dtype and device: the best perturbation, not x + eps. NaN in an example
        whose sigma, or x in its bounds, is bad where it is not seen (JAX, devices, traces): it is not one
        that withstands.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`, for less than one step, an unknown method, a step_size with
        "frank-wolfe", and for values or gradients that do not have their shape.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial
    Attacks, 2018; Frank and Wolfe: An Algorithm for Quadratic Programming, 1956.
    """
    check_steps(steps, method)
    given = examples(x, "x", batch_ndim)
    xp, at, batch = given.xp, given.array, given.batch
    given = replace(given, values=given.rows(at))  # whose dtype holds the radius
    given.radius(sigma)  # an error names it, not what is made of it
    if step_size is None:
        step_size = sigma if steps == 1 else 2.5 / steps * sigma
    elif method == "frank-wolfe":
        raise ValueError("step_size belongs to method='projected': Frank-Wolfe's steps are 2 / (k + 2)")
    else:
        given.radius(step_size, "step_size")
    ball: dict[str, Any] = {"batch_ndim": len(batch), "mask": mask}
    box: dict[str, Any] = {} if bounds is None else {"x": at, "bounds": bounds}

    def evaluate(eps: Array) -> tuple[Array, Array]:
        value, grad = value_and_grad(at + eps)
        if tuple(value.shape) != batch or tuple(grad.shape) != tuple(at.shape):
            raise ValueError(
                f"value_and_grad must return a value an example, {batch}, and a gradient like x, "
                f"{tuple(at.shape)}; got shapes {tuple(value.shape)} and {tuple(grad.shape)}"
            )
        return value, grad

    eps = starting_point(at, p, sigma, start, bounds=bounds, **ball)
    best, (value, grad) = eps, evaluate(eps)
    for k in range(steps):
        if method == "frank-wolfe":
            eps = _towards(eps, epsilon(grad, p, sigma, **ball, **box), k)
        else:
            # a gradient or a sigma that is NaN makes eps so, which puts nothing outside the bounds
            here = {} if bounds is None else {"x": xp.where(eps == eps, at + eps, at), "bounds": bounds}
            eps = project(eps + epsilon(grad, p, step_size, **ball, **here), p, sigma, **ball, **box)
        new, grad = evaluate(eps)
        better = (new > value) | (value != value)
        best = xp.where(xp.reshape(better, (*batch, *[1] * (at.ndim - len(batch)))), eps, best)
        value = xp.where(better, new, value)
    return given.back(best)


def check_steps(steps: int, method: str) -> None:
    """Raise ValueError unless an ascent can take so many steps by this method."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if method not in ("projected", "frank-wolfe"):
        raise ValueError(f"method must be 'projected' or 'frank-wolfe'; got {method!r}")


def starting_point(
    x: Array,
    p: float,
    sigma: Numbers,
    start: Any,
    *,
    bounds: Bounds | None = None,
    mask: Array | None = None,
    batch_ndim: int | None = None,
) -> Array:
    """Return where an ascent begins, in ball and box: `start` as `ascend` takes it."""
    xp = namespace_of(x)
    within: dict[str, Any] = {"batch_ndim": batch_ndim, "mask": mask}
    if bounds is not None:
        within |= {"x": x, "bounds": bounds}
    if start is None:  # in every ball: that of p = inf costs least to find what makes an example NaN
        return project(xp.zeros_like(x), math.inf, sigma, **within)
    dtype = getattr(start, "dtype", None)
    if "float" in getattr(dtype, "name", str(dtype)) or getattr(start, "is_quantized", False):  # no generator
        _, start = admit(start, "start")
        if tuple(start.shape) != tuple(x.shape):
            raise ValueError(f"start must have the shape of x, {tuple(x.shape)}; got {tuple(start.shape)}")
    else:
        try:
            start = sample(x.shape, p, sigma, start, batch_ndim=batch_ndim)
        except TypeError as cause:
            raise TypeError(
                f"start must be None, a floating array like x, or a generator or key; got {start!r}"
            ) from cause
    start = xp.astype(xp.asarray(carried(start), device=device_of(x)), x.dtype, copy=False)
    return project(start, p, sigma, **within)


def _towards(eps: Array, vertex: Array, k: int) -> Array:
    step = 2 / (k + 2) * (vertex - eps)  # of float32 where NumPy's eps is bfloat16
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
        `batch_ndim` and `mask`, as in `lpfamily.epsilon`.

    Returns
    -------
    Array
        eps, like x.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; for less than one step.
    """
    check_steps(steps, "frank-wolfe")
    if bounds is not None:
        options |= {"x": x, "bounds": bounds}
    eps = epsilon(gradient(x if start is None else x + start), p, sigma, **options)
    for k in range(1, steps):
        eps = _towards(eps, epsilon(gradient(x + eps), p, sigma, **options), k)
    return eps
