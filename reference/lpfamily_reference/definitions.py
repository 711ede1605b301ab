"""Slow answers that use no closed form: optimisers, enumeration and central differences."""

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize

Array = NDArray[np.float64]


def maximise_on_ball(grad: Array, p: float, sigma: float) -> Array:
    """Maximise <grad, epsilon> subject to ||epsilon||_p <= sigma, numerically.

    At p = 1 and p = inf the problem is a linear program. Between them it has one smooth convex constraint,
    and SLSQP solves it together with the box that contains the ball. Without the box, a large p sends the
    steps of SLSQP to where the norm is nearly a maximum and its gradient jumps. The problem is convex, so one
    start suffices: the optimum over the box. It is solved on the unit ball for a gradient whose largest entry
    is 1; the accuracy (a relative gain of 1e-6 or better for up to 8 entries) is thus independent of both
    scales. A zero gradient gives zero. If there are several maximisers, as with ties at p = 1, any one is
    returned.
    """
    if not p >= 1:
        raise ValueError(f"p must lie in [1, inf]; got {p}: below 1 the ball is not convex")
    largest = np.max(np.abs(grad))
    if largest == 0:
        return np.zeros_like(grad)
    unit = grad / largest
    if p == 1:
        # epsilon = u - v with u, v >= 0 turns the norm into the sum of all entries.
        both = np.concatenate([unit, -unit])
        split = linprog(-both, A_ub=np.ones((1, both.size)), b_ub=[1.0], bounds=(0, None)).x
        return np.asarray(sigma * (split[: unit.size] - split[unit.size :]))
    corner = np.asarray(linprog(-unit, bounds=(-1, 1)).x)
    if p == np.inf:
        return sigma * corner
    best = corner / _norm(corner, p)
    start = best / 2
    for _ in range(2):  # the second round starts afresh where a line search may have stalled
        point = minimize(
            lambda epsilon: -unit @ epsilon,
            start,
            jac=lambda _: -unit,
            method="SLSQP",
            bounds=[(-1, 1)] * unit.size,
            constraints={
                "type": "ineq",
                "fun": lambda epsilon: 1 - _norm(epsilon, p),
                "jac": lambda epsilon: -_norm_gradient(epsilon, p),
            },
            options={"ftol": 1e-12, "maxiter": 200},
        ).x
        start = point / _norm(point, p)
        best = max(best, start, key=lambda epsilon: float(unit @ epsilon))
    return np.asarray(sigma * best)


def maximise_residual(theta: Array, residual: Array, p: float, sigma: float, starts: int = 16) -> Array:
    """Maximise ||residual - theta @ epsilon||_2 subject to ||epsilon||_p <= sigma (eq. 21), numerically.

    A convex function is largest at an extreme point of the ball. At p = 1 and p = inf there are finitely
    many, and all are tried. Otherwise BFGS climbs from many points of the sphere, written as sigma v /
    ||v||_p for any v. The best local maximum is the answer; it may not be the global one.
    """
    n = theta.shape[1]
    if p in (1, np.inf):
        corners = product((-1.0, 1.0), repeat=n)
        unit = np.concatenate([np.eye(n), -np.eye(n)]) if p == 1 else np.array(list(corners))
        sizes = np.linalg.norm(residual - sigma * unit @ theta.T, axis=1)
        return np.asarray(sigma * unit[np.argmax(sizes)])

    def place(v: Array) -> Array:
        return sigma * v / _norm(v, p)

    def size(v: Array) -> float:
        return float(np.linalg.norm(residual - theta @ place(v)))

    rng = np.random.default_rng(0)
    summits = [minimize(lambda v: -size(v), rng.standard_normal(n), method="BFGS").x for _ in range(starts)]
    return place(max(summits, key=size))


def central_difference(function: Callable[[Array], float | Array], x: Array, step: float) -> Array:
    """Differentiate by central differences: entry i is the derivative with respect to x_i.

    A scalar function gives its gradient. A vector function gives its Jacobian as the paper writes it,
    one row per entry of x, so that the chain rule reads grad_x L = J_y(x) grad_y L; a gradient gives
    the Hessian. The error is of order step**2 + rounding / step.
    """
    return np.array([(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(x.size)])


def _norm(x: Array, p: float) -> float:
    # Divided by the largest entry, as every term would underflow for a large p.
    largest = np.max(np.abs(x))
    return float(largest * np.sum((np.abs(x) / largest) ** p) ** (1 / p))


def _norm_gradient(x: Array, p: float) -> Array:
    return np.asarray(np.sign(x) * (np.abs(x) / _norm(x, p)) ** (p - 1))
