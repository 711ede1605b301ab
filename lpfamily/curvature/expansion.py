"""Eq. 13-20 and Remark 2: the terms of the loss to second order, and their gap to the loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from lpfamily._arrays import Array, Numbers, admit, compute_dtype, device_of, examples, namespace_of
from lpfamily.norms import penalty
from lpfamily.step import epsilon


class Loss(Protocol):
    """The loss of each example as a function of its input; the first axes of x index examples.

    It is the protocol of the argument `loss` of `second_order` and `measure`.
    """

    def losses(self, x: Array) -> Array:
        """Return L(x) of each example."""

    def gradients(self, x: Array) -> Array:
        """Return the gradient of each example's L with respect to its input, of x's shape."""

    def hessian_products(self, x: Array, v: Array) -> Array:
        """Return H v of each example, H the Hessian of its L with respect to its input, of x's shape."""


@dataclass(frozen=True)
class LossFunctions:
    """A `Loss` made of three functions."""

    losses: Callable[[Array], Array]
    gradients: Callable[[Array], Array]
    hessian_products: Callable[[Array, Array], Array]


def loss_of(trainer: Any, labels: Array) -> LossFunctions:
    """Return the cross-entropy of a backend's trainer at these labels as a `Loss`.

    A trainer's `input_gradients` are those of the error log-odds. The gradients of the cross-entropy are
    these times 1 - p_y = 1 - exp(-L).

    Parameters
    ----------
    trainer
        An object with the methods `losses(x, labels)`, `input_gradients(x, labels)` and
        `hessian_products(x, labels, v)` of `lpfamily.training.backends.Trainer`.
    labels
        Integers, one per example.

    Returns
    -------
    LossFunctions
        Functions of the inputs that the trainer's methods take: NumPy arrays (n, inputs), n the number of
        labels.
    """

    def gradients(x: Array) -> Array:
        losses = trainer.losses(x, labels)
        wrong = -namespace_of(losses, "losses").expm1(-losses)
        return wrong[..., None] * trainer.input_gradients(x, labels)

    return LossFunctions(
        lambda x: trainer.losses(x, labels), gradients, lambda x, v: trainer.hessian_products(x, labels, v)
    )


@dataclass(frozen=True)
class SecondOrder:
    """L(x + eps) to second order in eps, the steepest step of Lp norm sigma; one value per example.

    Attributes
    ----------
    loss
        L(x).
    first
        sigma ||g||_{p*} (eq. 4 and 13), g the gradient of L at x.
    second
        eps' H eps / 2 with the Hessian itself (eq. 13).
    rank_one
        sigma^2/2 ||g||_{p*}^2 = eps' g g' eps / 2, with g g' for H (eq. 15-18; Remark 2 for any p).
    trace
        sigma^2/2 Tr H (eq. 20), which noise of standard deviation sigma in each coordinate adds (Remark 1).
    trace_error
        The standard error of `trace`, from the probes.
    """

    loss: Array
    first: Array
    second: Array
    rank_one: Array
    trace: Array
    trace_error: Array


def second_order(
    loss: Loss, x: Array, p: float, sigma: Numbers, probes: Array, *, batch_ndim: int | None = None
) -> SecondOrder:
    """Return the terms of eq. 13-20 at x, for the steepest step eps of any p.

    With the Hessian H itself eq. 13 reads L + sigma ||g||_{p*} + eps' H eps / 2. Eq. 14 replaces H by
    J_y H_L(y) J_y' = g g', and so `second` by `rank_one`. The two are equal only in expectation over labels
    drawn from the model. Eq. 20 replaces `second` by a third number, `trace`, which is the effect of noise of
    norm sigma sqrt(d), whereas eps has norm sigma.

    Parameters
    ----------
    loss
        An object with the methods of `Loss`, such as `LossFunctions` or `loss_of(trainer, labels)`.
    x
        The inputs, a floating array; its first `batch_ndim` axes index examples.
    p, sigma, batch_ndim
        As in `lpfamily.epsilon`.
    probes
        Directions for the trace, of shape (count, *x.shape); each costs one product with H. `rademacher`
        draws them. The d unit vectors times sqrt(d) give the trace exactly.

    Returns
    -------
    SecondOrder
        Arrays of shape `x.shape[:batch_ndim]` and of x's dtype, in units of the loss.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`, for gradients, products or probes that do not have x's shape, and for
        losses that are not one per example.
    """
    _, x = admit(x, "x")
    _, probes = admit(probes, "probes")
    value, grad = _losses(loss, x, batch_ndim), _gradients(loss, x)
    if tuple(probes.shape[1:]) != tuple(x.shape):
        raise ValueError(
            f"probes must be of x's shape, {tuple(x.shape)}, along a first axis; got {tuple(probes.shape)}"
        )
    trace = hutchinson(lambda v: loss.hessian_products(x, v), probes, batch_ndim=batch_ndim)
    return _terms(loss, x, value, grad, trace, p, sigma, batch_ndim)


def _terms(
    loss: Loss,
    x: Array,
    value: Array,
    grad: Array,
    trace: tuple[Array, Array],
    p: float,
    sigma: Numbers,
    batch_ndim: int | None,
) -> SecondOrder:
    xp = namespace_of(x, "x")
    eps = epsilon(grad, p, sigma, batch_ndim=batch_ndim)
    first = penalty(grad, p, sigma, batch_ndim=batch_ndim)
    square = examples(x, "x", batch_ndim).radius(sigma)[..., 0] ** 2 / 2
    second = _dot(eps, loss.hessian_products(x, eps), batch_ndim) / 2
    terms = value, first, second, first * first / 2, *(square * each for each in trace)
    return SecondOrder(*(xp.astype(term, x.dtype, copy=False) for term in terms))


def rademacher(x: Array, count: int, seed: int = 0) -> Array:
    """Return `count` random arrays like x with entries -1 or 1, along a new first axis.

    They are probes for `second_order` and `hutchinson`. The same seed gives the same arrays.
    """
    xp, x = admit(x, "x")
    signs = 2.0 * np.random.default_rng(seed).integers(2, size=(count, *x.shape)) - 1.0
    return xp.asarray(signs, dtype=x.dtype, device=device_of(x))


def hutchinson(
    product: Callable[[Array], Array], probes: Array, *, batch_ndim: int | None = None
) -> tuple[Array, Array]:
    """Return Tr H of each example, and its standard error, from products with probes.

    The estimate is the mean of v' H v over probes v with E v v' = I (Hutchinson 1989). Random entries -1 and
    1 give the least variance, 2 sum_{i != j} H_ij^2, which is 0 for a diagonal H.

    Parameters
    ----------
    product
        Maps v, of the shape of one probe, to H v.
    probes
        The probes, of shape (count, *shape of x), at least one.
    batch_ndim
        The number of axes of x that index examples; None means 1, or 0 for a 1-D x.

    Returns
    -------
    tuple[Array, Array]
        Two arrays of shape `x.shape[:batch_ndim]` and of the probes' dtype, or float32 for half precision.
        The error is NaN for a single probe.

    Raises
    ------
    TypeError, ValueError
        If probes is not a real floating array, or has no probe.
    """
    xp, probes = admit(probes, "probes")
    compute_dtype(probes, "probes")
    if probes.ndim == 0 or probes.shape[0] == 0:
        raise ValueError(
            f"probes must hold at least one direction along its first axis; got shape {tuple(probes.shape)}"
        )
    directions = [probes[k, ...] for k in range(probes.shape[0])]
    return _mean_and_error(xp, [_dot(v, product(v), batch_ndim) for v in directions])


@dataclass(frozen=True)
class Measurement:
    """The terms of eq. 13-20 beside the losses that they predict; one value per example.

    Attributes
    ----------
    p, sigma
        The exponent and the radius.
    terms
        The terms of the predictions.
    perturbed
        L(x + eps), eps the steepest step of Lp norm sigma.
    noisy
        E L(x + eta), eta Gaussian of standard deviation sigma in each coordinate, from antithetic pairs.
    noisy_error
        The standard error of `noisy`.
    """

    p: float
    sigma: float
    terms: SecondOrder
    perturbed: Array
    noisy: Array
    noisy_error: Array

    def gaps(self) -> dict[str, Array]:
        """Return prediction minus measurement, by the place of the prediction in the paper.

        "eq4", "eq13", "eq17" and "eq20" predict L(x + eps); if p is not 2, "eq17" is Remark 2. "remark1",
        L + sigma^2/2 Tr H, predicts E L(x + eta).
        """
        terms = self.terms
        linear = terms.loss + terms.first - self.perturbed
        return {
            "eq4": linear,
            "eq13": linear + terms.second,
            "eq17": linear + terms.rank_one,
            "eq20": linear + terms.trace,
            "remark1": terms.loss + terms.trace - self.noisy,
        }


def measure(
    loss: Loss,
    x: Array,
    p: Iterable[float],
    sigma: Iterable[float],
    *,
    probes: int = 32,
    draws: int = 32,
    seed: int = 0,
) -> list[Measurement]:
    """Return, for every p and sigma, the predictions of eq. 4-20 and the losses that they predict.

    It evaluates a loss, a gradient and `probes` Hessian products at x, 2 * `draws` losses for each sigma, and
    a Hessian product and a loss for each pair of p and sigma. Noise is drawn in pairs eta and -eta, so that
    terms of odd order cancel. For every sigma it is the same noise, multiplied by sigma.

    Parameters
    ----------
    loss
        As in `second_order`; for a trained network `loss_of(trainer, labels)`.
    x
        The inputs, with examples along the first axis.
    p, sigma
        Sequences of numbers, each number as in `lpfamily.epsilon`; every p is combined with every sigma.
    probes
        The number of Rademacher probes for the trace.
    draws
        The number of antithetic pairs of noise.
    seed
        The seed of probes and noise.

    Returns
    -------
    list[Measurement]
        One for each pair of p and sigma; sigma varies fastest.

    Raises
    ------
    TypeError, ValueError
        As in `second_order`; if probes or draws is below 1.
    """
    xp, x = admit(x, "x")
    compute_dtype(x, "x")
    if min(probes, draws) < 1:
        raise ValueError(f"probes and draws must be at least 1; got {probes} and {draws}")
    exponents, sigmas = list(p), list(sigma)
    value, grad = _losses(loss, x, None), _gradients(loss, x)
    trace = hutchinson(lambda v: loss.hessian_products(x, v), rademacher(x, probes, seed))
    noisy = [_noisy(xp, loss, x, s, draws, seed) for s in sigmas]
    measurements = []
    for q in exponents:
        for s, (mean, error) in zip(sigmas, noisy, strict=True):
            terms = _terms(loss, x, value, grad, trace, q, s, None)
            perturbed = loss.losses(x + epsilon(grad, q, s))
            measurements.append(Measurement(q, s, terms, perturbed, mean, error))
    return measurements


def _noisy(xp: ModuleType, loss: Loss, x: Array, sigma: float, draws: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(draws):
        eta = xp.asarray(sigma * rng.standard_normal(tuple(x.shape)), dtype=x.dtype, device=device_of(x))
        pairs.append((loss.losses(x + eta) + loss.losses(x - eta)) / 2)
    return _mean_and_error(xp, pairs)


def _mean_and_error(xp: ModuleType, values: Sequence[Array]) -> tuple[Array, Array]:
    stack = xp.stack(list(values))
    mean = xp.mean(stack, axis=0)
    if len(values) == 1:
        return mean, xp.full_like(mean, math.nan)
    return mean, xp.std(stack, axis=0, correction=1) / math.sqrt(len(values))


def _losses(loss: Loss, x: Array, batch_ndim: int | None) -> Array:
    value, batch = loss.losses(x), examples(x, "x", batch_ndim).batch
    if tuple(value.shape) != batch:
        raise ValueError(f"losses(x) must have shape {batch}, one per example; got {tuple(value.shape)}")
    return value


def _gradients(loss: Loss, x: Array) -> Array:
    grad = loss.gradients(x)
    if tuple(grad.shape) != tuple(x.shape):
        raise ValueError(f"gradients(x) must have the shape of x, {tuple(x.shape)}; got {tuple(grad.shape)}")
    return grad


def _dot(v: Array, product: Array, batch_ndim: int | None) -> Array:
    if tuple(product.shape) != tuple(v.shape):
        raise ValueError(
            f"hessian_products(x, v) and v must have the shape of x; got {tuple(product.shape)} and "
            f"{tuple(v.shape)}"
        )
    v, product = (examples(each, "x", batch_ndim).values for each in (v, product))
    return namespace_of(v).sum(v * product, axis=-1)
