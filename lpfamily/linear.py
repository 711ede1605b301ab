"""The worst perturbation of linear regression, exactly (II-E, eq. 21).

With the residual r = t - Theta x, eq. 21 is the maximum of ||r - Theta eps||_2 over ||eps||_p <= sigma:
a convex function, which is largest at an extreme point of the ball. The ball has 2n of them for p = 1 and
2^n for p = inf. For p = 2 they are a sphere; the problem is then a trust-region problem, which one singular
value decomposition and one equation in one unknown solve. For other p no exact method is known, and this
module has a bound.

Everything is computed with Theta and r divided by their largest entries, so that no square overflows or
underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Generic

import numpy as np

from lpfamily._arrays import A, Array, Given, Numbers, check_p, device_of, floating, known_shape, namespace_of
from lpfamily.libraries import constant, library_of
from lpfamily.steepest import dual_norm, ratio_scale, steepest

MOST_CORNERS = 20
"""The largest number of inputs for which p = inf is enumerated: a million corners per example."""

NEWTON_STEPS = 32
"""For the secular equation; a test checks that 22 suffice for spectra over all decades of the dtype."""

BLOCK = 1 << 22
"""The number of corners evaluated at a time, which bounds the memory."""


def worst_residual(theta: Array, residual: A, p: float, sigma: Numbers) -> A:
    """Return the eps that maximises ||residual - theta @ eps||_2 subject to ||eps||_p <= sigma (eq. 21).

    - p = 1: the best of the vertices +-sigma e_i.
    - p = inf: the best of the corners sigma {-1, 1}^n, by enumeration, up to n = 20 inputs.
    - p = 2: with theta = U S V' and c = U' residual, eps = -sum_i sign(c_i) w_i v_i where::

          w_i = s_i |c_i| / (mu - s_i^2),    mu >= max_i s_i^2    such that ||w|| = sigma

      If c is orthogonal to the leading singular space, there may be no such mu (the hard case). Then
      mu = max_i s_i^2, and the rest of the budget goes along a leading singular vector.

    If there are several maximisers, one of them is returned; a theta of zeros gives zeros. Differentiation
    takes eps / sigma as constant. By Danskin's theorem the derivative of the maximum is nevertheless right.

    Parameters
    ----------
    theta
        The weights, (outputs, inputs), finite.
    residual
        t - theta @ x, of shape (..., outputs), in theta's library.
    p
        1, 2 or inf.
    sigma
        The radius, in units of the input: a number >= 0, or an array that broadcasts to
        `residual.shape[:-1]`.

    Returns
    -------
    Array
        eps, of shape (..., inputs) and of the residual's dtype; half precision is computed in
        float32. eps is NaN for an example whose residual is not finite.

    Raises
    ------
    TypeError
        If theta or residual is not a real floating array, or they belong to two libraries.
    ValueError
        For another p, or p = inf with more than 20 inputs (use `residual_bound` for those), a shape that
        does not fit, or a theta or sigma that is not finite where its values can be checked.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    section II-E. The trust region: Moré and Sorensen, Computing a Trust Region Step, 1983.
    """
    problem = _scaled(theta, residual, sigma)
    return problem.given.back(problem.sigma * _worst(check_p(p), problem))


def first_order(theta: Array, residual: A, p: float, sigma: Numbers) -> A:
    """Return the eps of eq. 3 for eq. 21: `epsilon` in the direction of the gradient, -theta' residual.

    It is exact for one output. With more outputs it falls short of `worst_residual` by `shortfall`. Where
    the gradient is zero, so is eps, although a zero residual can be made larger.

    Parameters
    ----------
    theta, residual, sigma
        As in `worst_residual`.
    p
        A number in [1, inf].

    Returns
    -------
    Array
        eps, of shape (..., inputs) and of the residual's dtype.

    Raises
    ------
    TypeError, ValueError
        As in `worst_residual`, but for any p.
    """
    problem = _scaled(theta, residual, sigma)
    return problem.given.back(problem.sigma * _first(check_p(p), problem))


def shortfall(theta: Array, residual: A, p: float, sigma: Numbers) -> A:
    """Return by how much the first-order eps falls short of the maximum of ||residual - theta @ eps||_2.

    Parameters
    ----------
    theta, residual, p, sigma
        As in `worst_residual`.

    Returns
    -------
    Array
        The shortfall, of shape `residual.shape[:-1]`, in units of the residual; >= 0 to rounding, and
        differentiable.

    Raises
    ------
    TypeError, ValueError
        As in `worst_residual`.
    """
    p = check_p(p)
    problem = _scaled(theta, residual, sigma)
    worst, first = _worst(p, problem), _first(p, problem)
    a, b = problem.after(worst, problem.radius), problem.after(first, problem.radius)
    # (||a||^2 - ||b||^2) / (||a|| + ||b||): the difference of the norms would cancel
    change = problem.radius * ((first - worst) @ problem.theta.T)
    total = _dual_norm(2, a) + _dual_norm(2, b)
    xp = problem.given.xp
    total = xp.where(total == 0, 1.0, total)
    return problem.as_residual(xp.sum(change / total[..., None] * (a + b), axis=-1))


def residual_bound(theta: Array, residual: A, p: float, sigma: Numbers) -> A:
    """Return an upper bound of max ||residual - theta @ eps||_2 over ||eps||_p <= sigma, for every p.

    It is the smallest of three bounds. The first bounds each output separately, by Hölder's inequality::

        sqrt(sum_i (|residual_i| + sigma * ||theta_i||_{p*})^2)

    The others are the exact maxima over the smallest balls with q = 1 and q = 2 that contain this one. Their
    radius is sigma * n^max(0, 1/q - 1/p) for n inputs. So the bound is exact, to rounding, for p = 1, for
    p = 2, and for one output. Its derivative is that of the smallest of the three.

    Parameters
    ----------
    theta, residual, sigma
        As in `worst_residual`.
    p
        A number in [1, inf].

    Returns
    -------
    Array
        The bound, of shape `residual.shape[:-1]`, in units of the residual.

    Raises
    ------
    TypeError, ValueError
        As in `worst_residual`, but for any p.
    """
    p = check_p(p)
    problem = _scaled(theta, residual, sigma)
    xp = problem.given.xp
    bound = _dual_norm(2, xp.abs(problem.residual) + problem.radius * _dual_norm(p, problem.theta))
    for q, solve in (1, _vertex), (2, _sphere):
        radius = problem.radius * max(1, problem.theta.shape[1]) ** max(0.0, 1 / q - 1 / p)
        bound = xp.minimum(bound, _dual_norm(2, problem.after(problem.solved(solve, radius), radius)))
    return problem.as_residual(bound)


@dataclass(frozen=True)
class _Problem(Generic[A]):
    """Eq. 21 scaled to max ||residual - radius * theta @ u||_2 over ||u||_p <= 1, all entries at most 1.

    The true residual is unit / (scales[0] * scales[1]) times as large, and eps is sigma * u.
    """

    given: Given[A]
    """The true residual."""
    theta: Array
    residual: Array
    direction: Array
    """The residual in units of its largest entry, as `residual` may round to zero."""
    radius: Array
    unit: Array
    scales: tuple[Array, Array]
    sigma: Array

    def after(self, u: Array, radius: Array) -> Array:
        """Return the scaled residual at x + eps, where eps is radius * u in scaled units."""
        return self.residual - radius * (u @ self.theta.T)

    def solved(self, solve: Callable[..., Array], radius: Array) -> Array:
        """Return a solver's u as a constant: NaN where the residual is not finite, 0 for a zero theta."""
        xp, theta, rows = self.given.xp, constant(self.theta), constant(self.residual)
        if 0 in theta.shape:
            return xp.zeros((*rows.shape[:-1], theta.shape[1]), dtype=rows.dtype, device=device_of(rows))
        # the singular value decomposition may hang on a NaN
        finite = xp.all(xp.isfinite(theta))
        u = library_of(rows).per_example(
            solve, "(m,n),(m),(k)->(n)", rows.dtype, *(xp.where(finite, theta, 0.0), rows, constant(radius))
        )
        u = xp.where(xp.any(theta != 0), u, 0.0)
        return xp.where(finite & xp.isfinite(xp.sum(rows, axis=-1, keepdims=True)), u, math.nan)

    def as_residual(self, size: Array) -> A:
        """Return a size in units of the true residual; divide twice, as a product of scales may overflow."""
        unit, first, second = (each[..., 0] for each in (self.unit, *self.scales))
        return self.given.back(size * unit / first / second)


def _scaled(theta: Array, residual: A, sigma: Numbers) -> _Problem[A]:
    given, weights = floating(residual, "residual"), floating(theta, "theta")
    xp, rows, theta = given.xp, given.values, weights.array
    if weights.xp is not xp:
        raise TypeError(
            f"theta and residual must be arrays of one library; got {type(theta).__name__} and "
            f"{type(residual).__name__}: convert one of them"
        )
    sides, shape = known_shape(theta, "theta"), known_shape(rows, "residual")
    if len(sides) != 2 or not shape or shape[-1] != sides[0]:
        raise ValueError(
            f"theta must be (outputs, inputs) and residual (..., outputs); got shapes {sides} and {shape}"
        )
    if isinstance(theta, np.ndarray) and not np.isfinite(theta).all():
        raise ValueError("theta must be finite; got a NaN or an infinity: remove it first")
    theta, sigma = xp.astype(theta, rows.dtype, copy=False), given.radius(sigma)
    rows = xp.where(xp.isfinite(rows), rows, math.nan)
    top = constant(_largest(_largest(theta)[:, 0]))
    longest = constant(_largest(rows))
    direction = rows / xp.where(longest == 0, 1.0, longest)
    scales = library_of(rows).per_example(
        _scales, "(k),(k),(k)->(k),(k)", (rows.dtype, rows.dtype), constant(sigma), top, longest
    )
    reach, rows = scales[0] * sigma * (scales[1] * top), rows * scales[0] * scales[1]
    unit = constant(xp.maximum(reach, _largest(rows)))
    unit = xp.where(unit == 0, 1.0, unit)
    theta = theta / xp.where(top == 0, 1.0, top)
    return _Problem(given, theta, rows / unit, direction, reach / unit, unit, scales, sigma)


def _scales(sigma: Array, top: Array, longest: Array) -> tuple[Array, Array]:
    """Return powers of two for sigma and theta: 1, except where their product overflows or underflows."""
    xp, reach = namespace_of(sigma), sigma * top
    scales = ratio_scale(xp, sigma), ratio_scale(xp, top)
    least = float(xp.finfo(sigma.dtype).smallest_normal)
    lost = (sigma > 0) & (top > 0) & ((reach < least) | (reach == math.inf))
    lost = lost & (longest * scales[0] * scales[1] < math.inf)  # else it is negligible beside the residual
    return xp.where(lost, scales[0], 1.0), xp.where(lost, scales[1], 1.0)


def _worst(p: float, problem: _Problem[Array]) -> Array:
    """Return the exact maximiser u for p = 1, 2 or inf; raise ValueError for any other p."""
    solvers: dict[float, Callable[..., Array]] = {1: _vertex, 2: _sphere, math.inf: _corner}
    if p not in solvers:
        raise ValueError(
            f"p must be 1, 2 or inf for the exact maximiser; got {p}: residual_bound takes every p"
        )
    inputs = problem.theta.shape[1]
    if p == math.inf and inputs > MOST_CORNERS:
        raise ValueError(
            f"p = inf enumerates all 2^inputs corners, for at most {MOST_CORNERS} inputs; got {inputs}: "
            f"residual_bound takes any number"
        )
    return problem.solved(solvers[p], problem.radius)


def _first(p: float, problem: _Problem[Array]) -> Array:
    """Return the maximiser u of the linearised problem, eq. 3 at u = 0."""
    return steepest(
        p, -(problem.direction @ problem.theta), namespace_of(problem.radius).ones_like(problem.radius)
    )


# The solvers map theta (m, n), rows (..., m) and radius (..., 1) to u (..., n), the maximiser of
# ||rows - radius * theta @ u||_2.


def _vertex(theta: Array, rows: Array, radius: Array) -> Array:
    """Return the best of the vertices +-e_i, for p = 1."""
    xp = namespace_of(rows)
    along = rows @ theta
    gain = 2 * xp.abs(along) + radius * xp.sum(theta * theta, axis=0)
    best = xp.arange(theta.shape[1], device=device_of(rows)) == xp.argmax(gain, axis=-1)[..., None]
    return xp.where(best, _against(xp, along), 0.0)


def _sphere(theta: Array, rows: Array, radius: Array) -> Array:
    """Return the best point of the unit sphere, for p = 2: a trust-region problem."""
    xp = namespace_of(rows)
    left, s, right = xp.linalg.svd(theta, full_matrices=False)
    c = rows @ left
    ratio = s / xp.where(s[:1] == 0, 1.0, s[:1])
    b = ratio * xp.abs(c)
    # where b * b underflows, its effect is below the rounding of the maximum
    b = xp.where(b < math.sqrt(float(xp.finfo(b.dtype).smallest_normal)), 0.0, b)
    w = _secular(xp, b, radius * s[:1] * ((1 - ratio) * (1 + ratio)))
    return (_against(xp, c) * w) @ right


def _secular(xp: ModuleType, b: Array, d: Array) -> Array:
    """Return w = b / (k + d) with k >= 0 such that ||w|| = 1; if ||w|| < 1 at k = 0, the rest goes to w_0.

    d is the distance of each eigenvalue from the leading one, in ascending order from 0. k is thus counted
    from the pole, and keeps its relative accuracy however near the hard case is. 1 / ||w|| is a power mean
    of (k + d) / b, increasing and concave in k, so Newton's method from below climbs to the root without
    overshooting. It starts where the largest w_i is 1, or at the pole.
    """
    start = xp.max(b - d, axis=-1, keepdims=True)
    start = xp.maximum(start, xp.zeros_like(start))

    def climb(k: Array) -> tuple[Array]:
        w, gap = _shares(xp, b, k + d)
        square = xp.sum(w * w, axis=-1, keepdims=True)
        slope = xp.sum(w * w / gap, axis=-1, keepdims=True)
        step = (xp.sqrt(square) - 1) * square / xp.where(slope == 0, 1.0, slope)
        return (xp.maximum(start, k + step),)

    (k,) = library_of(b).repeat(climb, (start,), NEWTON_STEPS)
    w, _ = _shares(xp, b, k + d)
    square = xp.sum(w * w, axis=-1, keepdims=True)
    rest = xp.maximum(1 - square, xp.zeros_like(square))
    first = xp.sqrt(w[..., :1] * w[..., :1] + rest)
    return xp.concat([first, w[..., 1:]], axis=-1) / xp.sqrt(square + rest)


def _shares(xp: ModuleType, b: Array, gap: Array) -> tuple[Array, Array]:
    gap = xp.where(gap == 0, 1.0, gap)  # only where b is 0 too
    return b / gap, gap


def _corner(theta: Array, rows: Array, radius: Array) -> Array:
    """Return the best corner of {-1, 1}^n, for p = inf.

    Corners are enumerated as pairs: a corner of the first half of the inputs, and one of the second.
    """
    xp = namespace_of(rows)
    m, n = theta.shape
    batch = tuple(rows.shape[:-1])
    heads, tails = _signs(xp, n // 2, theta), _signs(xp, n - n // 2, theta)
    # ||a - radius * b||^2 for all a = rows - radius * theta_head @ head and b = theta_tail @ tail
    a = rows[..., None, :] - radius[..., None] * (heads @ theta[:, : n // 2].T)
    b = tails @ theta[:, n // 2 :].T
    long = xp.sum(b * b, axis=-1)
    best = []
    step = max(1, BLOCK // b.shape[0])
    a = xp.reshape(a, (-1, m))
    radii = xp.reshape(xp.broadcast_to(radius, (*batch, heads.shape[0])), (-1, 1))
    for i in range(0, max(1, a.shape[0]), step):
        block = slice(i, min(i + step, a.shape[0]))
        gain = radii[block, :] * long - 2 * (a[block, :] @ b.T)
        best.append((xp.max(gain, axis=-1), xp.argmax(gain, axis=-1)))
    gain, tail = (xp.concat(blocks) for blocks in zip(*best, strict=True))
    total = xp.reshape(xp.sum(a * a, axis=-1) + radii[:, 0] * gain, (-1, heads.shape[0]))
    head = xp.argmax(total, axis=-1)[:, None]
    tail = xp.take_along_axis(xp.reshape(tail, (-1, heads.shape[0])), head, axis=1)
    u = xp.concat([xp.take(heads, head[:, 0], axis=0), xp.take(tails, tail[:, 0], axis=0)], axis=-1)
    return xp.reshape(u, (*batch, n))


def _signs(xp: ModuleType, n: int, like: Array) -> Array:
    """Return the corners of {-1, 1}^n, one per row."""
    bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return xp.asarray(1.0 - 2.0 * bits, dtype=like.dtype, device=device_of(like))


def _against(xp: ModuleType, x: Array) -> Array:
    """Return the opposite sign of x, and 1 where x is 0."""
    return xp.where(x > 0, -xp.ones_like(x), 1.0)


def _largest(rows: Array) -> Array:
    return _dual_norm(1, rows)[..., None]


def _dual_norm(p: float, rows: Array) -> Array:
    xp = namespace_of(rows)
    return dual_norm(p, rows, xp.ones_like(xp.sum(rows, axis=-1, keepdims=True)))
