"""Every public function of arrays, with arguments: transforms and layouts must work for all of them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpfamily import (
    ascend,
    certify,
    cross_entropy,
    curvature,
    epsilon,
    error_log_odds,
    linear,
    margins,
    noise,
    norm,
    penalty,
    project,
)
from lpfamily._arrays import namespace_of

INF = math.inf
EXAMPLES, SIZE, CLASSES = 3, 6, 4


@dataclass(frozen=True, eq=False)
class Call:
    """`function(*shared, *own)`: arrays for all examples, and arrays whose first axis indexes them.

    Floating arrays are float64 numbers; each result, an array or a tuple, has one entry per example.
    """

    name: str
    function: Callable[..., Any]
    own: tuple[np.ndarray, ...]
    shared: tuple[np.ndarray, ...] = ()
    constant: bool = False
    """Whether automatic differentiation treats the result as a constant, as its docstring says."""

    def __str__(self) -> str:
        return self.name

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.shared + self.own

    @property
    def is_primitive(self) -> bool:
        """Whether it is little more than a `lpfamily.libraries.Primitive`."""
        return self.name.startswith(("epsilon", "norm", "penalty", "project"))

    @property
    def floating(self) -> list[int]:
        """The indices of the floating arguments, which may have a derivative."""
        return [i for i, array in enumerate(self.arrays) if array.dtype.kind == "f"]

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        result = self.function(*arrays)
        return result if isinstance(result, tuple) else (result,)


def oscillating(x: Any) -> tuple[Any, Any]:
    """Return an oscillating value per example, and its gradient."""
    xp = namespace_of(x)
    return xp.sum(xp.sin(3 * x), axis=-1), 3 * xp.cos(3 * x)


def times(v: Any, matrix: Any) -> Any:
    """Return v @ matrix term by term, as the rounding of BLAS depends on the memory layout of a matrix."""
    return functools.reduce(operator.add, (v[..., k, None] * matrix[k, :] for k in range(SIZE)))


def curved(matrix: Any) -> curvature.LossFunctions:
    """Return the functions of L(x) = x'Ax/2 + sum sin(x), one value per example."""
    return curvature.LossFunctions(
        lambda x: namespace_of(x).sum(x * times(x, matrix) / 2 + namespace_of(x).sin(x), axis=-1),
        lambda x: times(x, matrix) + namespace_of(x).cos(x),
        lambda x, v: times(v, matrix) - namespace_of(x).sin(x) * v,
    )


def probes(x: Any) -> Any:
    """Return directions like x: the first two unit vectors, times the root of SIZE."""
    xp = namespace_of(x)
    unit = xp.eye(SIZE, dtype=x.dtype, device=getattr(x, "device", None))
    return xp.stack([math.sqrt(SIZE) * unit[k, :] + 0 * x for k in range(2)])


def second_order(p: float) -> Callable[..., Any]:
    def terms(matrix: Any, x: Any, sigma: Any) -> tuple[Any, ...]:
        found = curvature.second_order(curved(matrix), x, p, sigma, probes(x))
        return tuple(vars(found).values())

    return terms


def certified(p: float) -> Callable[..., Any]:
    def shares(grad: Any, eps: Any, sigma: Any, *box: Any) -> tuple[Any, ...]:
        found = certify(grad, eps, p, sigma, *(box[:1] and (box[0], (box[1], box[2]))))
        return found.norm_used, found.gain

    return shares


def calls() -> Iterator[Call]:
    rng = np.random.default_rng(20)

    def normal(*shape: int) -> np.ndarray:
        """Return numbers away from the kink of |x|."""
        x = rng.standard_normal(shape)
        return x + np.copysign(0.3, x)

    def positive(*shape: int) -> np.ndarray:
        return rng.uniform(0.3, 1.2, shape)

    grad, sigma = normal(EXAMPLES, SIZE), positive(EXAMPLES)
    x = rng.uniform(0.2, 0.8, grad.shape)
    low, high = x - rng.uniform(0.05, 0.5, x.shape), x + rng.uniform(0.05, 0.5, x.shape)
    mask = np.arange(SIZE) % 3 > 0

    for p in 1, 1.5, 2, 3, INF:
        yield Call(f"epsilon, {p}", lambda g, s, p=p: epsilon(g, p, s), (grad, sigma))
    yield Call("epsilon, mask", lambda g, s: epsilon(g, 1.5, s, mask=mask), (grad, sigma))
    for p in 1, 1.2, 2, 9, INF:
        yield Call(
            f"epsilon, bounds, {p}",
            lambda g, s, x, low, high, p=p: epsilon(g, p, s, x=x, bounds=(low, high)),
            (grad, sigma, x, low, high),
        )
    for p in 1, 3, INF:
        yield Call(f"norm, {p}", lambda x, p=p: norm(x, p), (grad,))
        yield Call(f"penalty, {p}", lambda g, s, p=p: penalty(g, p, s), (grad, sigma))
    for p in 1, 1.1, 2, 3, INF:
        yield Call(f"project, {p}", lambda v, s, p=p: project(v, p, s), (2 * grad, sigma))
    for p in 1, 1.5, 2, 3, INF:
        yield Call(
            f"project, bounds, {p}",
            lambda v, s, x, low, high, p=p: project(v, p, s, x=x, bounds=(low, high)),
            (2 * grad, sigma, x, low, high),
        )
    step = 0.9 * epsilon(grad, 1.5, sigma) + 0.1 * normal(*grad.shape)
    for p in 1, 1.5, INF:
        yield Call(f"certify, {p}", certified(p), (grad, step, sigma), constant=True)
    for p in 1.5, INF:
        yield Call(f"certify, bounds, {p}", certified(p), (grad, step, sigma, x, low, high), constant=True)
    for method in "adaptive", "projected", "frank-wolfe":
        yield Call(
            f"ascend, {method}",
            lambda x, s, method=method: ascend(oscillating, x, 2, s, 2, method=method),
            (grad, sigma),
        )
    yield Call(
        "ascend, bounds",
        lambda x, s: ascend(oscillating, x, INF, 0.2 * s, 2, bounds=(0.0, 1.0)),
        (x, sigma),
    )

    logits, other = normal(EXAMPLES, CLASSES), normal(EXAMPLES, CLASSES)
    labels = np.asarray([0, 3, 1])
    y, soft = (np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in (logits / 2, other / 2))
    yield Call("error_log_odds", error_log_odds, (logits, labels))
    yield Call("cross_entropy", cross_entropy, (logits, labels))
    yield Call("cross_entropy, soft", cross_entropy, (logits, soft))
    for name in "probability_gradient", "probability_hessian":
        yield Call(name, getattr(curvature, name), (y, labels))
        yield Call(f"{name}, soft", getattr(curvature, name), (y, soft))
    yield Call("logit_gradient", curvature.logit_gradient, (logits, labels))
    yield Call("logit_gradient, soft", curvature.logit_gradient, (logits, soft))
    yield Call("logit_hessian", curvature.logit_hessian, (logits,))
    jacobian, hessian = normal(EXAMPLES, CLASSES, 2), normal(EXAMPLES, CLASSES, CLASSES)
    yield Call("gauss_newton", curvature.gauss_newton, (jacobian, hessian))
    yield Call("lemma_b1", curvature.lemma_b1, (jacobian, y, labels))
    root = normal(SIZE, SIZE)
    yield Call(
        "hutchinson",
        lambda a, x: curvature.hutchinson(lambda v: times(v, a), probes(x) + x),
        (grad,),
        (root,),
    )
    for p in 1.5, INF:
        yield Call(f"second_order, {p}", second_order(p), (grad, 0.1 * sigma), (root + root.T,))

    weights, bias = normal(SIZE, CLASSES), normal(CLASSES)
    right = np.argmax(grad @ weights + bias, axis=-1)
    # towards a wrong class, so that every ray meets the boundary
    ray = (weights[:, (right + 1) % CLASSES] - weights[:, right]).T
    for p in 1, 1.5, INF:
        yield Call(
            f"boundary_distance, {p}",
            lambda w, b, x, y, p=p: margins.boundary_distance(w, b, x, y, p),
            (grad, right),
            (weights, bias),
        )
    yield Call(
        "flip_distance",
        lambda w, b, x, d, y: margins.flip_distance((w, b), x, d, y),
        (grad, ray, right),
        (weights, bias),
    )
    yield Call(
        "flip_distance, search",
        lambda w, b, x, d, y: margins.flip_distance(
            lambda x: x @ w + b, x, d, y, most=8.0, brackets=4, steps=3
        ),
        (grad, ray, right),
        (weights, bias),
        constant=True,
    )

    theta, residual = normal(3, 5), normal(EXAMPLES, 3)
    for p in 1, 2, INF:
        yield Call(
            f"worst_residual, {p}",
            lambda a, r, s, p=p: linear.worst_residual(a, r, p, s) / s[..., None],
            (residual, sigma),
            (theta,),
            constant=True,
        )
        yield Call(
            f"shortfall, {p}", lambda a, r, s, p=p: linear.shortfall(a, r, p, s), (residual, sigma), (theta,)
        )
    yield Call("first_order", lambda a, r, s: linear.first_order(a, r, 1.5, s), (residual, sigma), (theta,))
    for p in 1, 1.5, INF:
        yield Call(
            f"residual_bound, {p}",
            lambda a, r, s, p=p: linear.residual_bound(a, r, p, s),
            (residual, sigma),
            (theta,),
        )

    error, mean, std = rng.uniform(0.1, 0.4, (3, EXAMPLES)) * [[1.0], [3.0], [1.0]]
    distances, directions = positive(EXAMPLES, 5), np.array([1.0, 1.5, 2.0])
    small = 0.3 * sigma
    yield Call("union_bound", noise.union_bound, (distances, small))
    yield Call("dimension_bound", noise.dimension_bound, (4 * directions, directions))
    yield Call("error_under_noise", noise.error_under_noise, (error, mean, std, small, directions / 2))
    yield Call(
        "two_sided_error",
        noise.two_sided_error,
        (error, mean, std, mean / 3, std / 3, small, directions / 2),
    )
    yield Call("error_from_distances", noise.error_from_distances, (distances - 0.5, small))
    yield Call("additional_error", noise.additional_error, (error, mean, small, std))
    yield Call("linear_density", noise.linear_density, (distances, np.full(EXAMPLES, 0.9)))


EVERY = list(calls())
