"""The probability that Gaussian noise changes a prediction (V, eq. 26-33), from distances to the boundary.

Noise eta ~ N(0, sigma^2 I) changes a prediction when it goes at least ||a_i|| in one of n directions
e_i = a_i / ||a_i|| (eq. 26). A projection of eta is N(0, sigma^2) in every dimension, so each direction
has the probability P(eta_0 >= ||a_i||) = Q(||a_i|| / sigma). Everything here is the normal tail Q, a sum
of such tails, or the mean of Q over a distribution of distances.

Arguments are numbers or arrays that broadcast; the result has the library of the arrays (NumPy for
numbers alone) and their dtype, and half precision is computed in float32. Every function is
differentiable in its floating arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from lpfamily._arrays import (
    Array,
    Numbers,
    admit,
    compute_dtype,
    device_of,
    is_dtype,
    is_number,
    is_real,
    library_name,
    namespace_of,
)
from lpfamily.libraries import library_of
from lpfamily.steepest import dual_norm


def union_bound(distances: Array, sigma: Numbers) -> Array:
    """Return an upper bound of the probability that noise changes a prediction.

    It is the union bound over the directions (the paper prints it as a lower bound; it is an upper one)::

        P(A) <= sum over i of P(eta_0 >= ||a_i||)     (27, 28)

    or 1 where the sum is larger. It is exact for n = 1, as in a linear model of two classes.

    Parameters
    ----------
    distances
        ||a_i||_2 >= 0, with the directions along the last axis, in units of the input.
    sigma
        The standard deviation of the noise in each input, >= 0, in the same units: a number, or an
        array that broadcasts to `distances.shape[:-1]`.

    Returns
    -------
    Array
        The bound, of the broadcast shape of `distances.shape[:-1]` and sigma.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not real, or are out of their range. Values on a device are not checked; out
        of range they give NaN.
    """
    xp, back, values = _arrays(distances=distances, sigma=sigma)
    if values["distances"].ndim == 0:
        raise ValueError("distances must have the directions along its last axis; got a number")
    each = _exceeds(xp, values["distances"], values["sigma"][..., None])
    return back(_at_most_one(xp, xp.sum(each, axis=-1)))


def dimension_bound(dimension: Numbers, directions: Numbers = 1) -> Array:
    """Return the union bound for noise that is as long as the distance to the boundary, in d dimensions.

    With sigma = ||a|| / sqrt(d), the noise and the adversarial step have the same length (the paper says
    variance where it means the standard deviation), and only the dimension remains::

        P(A) <= n P(eta_0 / sigma >= sqrt(d))     (29)

    or 1 where that is larger.

    Parameters
    ----------
    dimension
        The number d >= 1 of inputs: a number or an array.
    directions
        The number n >= 0 of directions.

    Returns
    -------
    Array
        The bound, of the broadcast shape of the arguments.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`.
    """
    xp, back, values = _arrays(dimension=dimension, directions=directions)
    tail = _tail(xp.sqrt(values["dimension"]))
    return back(_at_most_one(xp, values["directions"] * tail))


def error_under_noise(
    error: Numbers, mean: Numbers, std: Numbers, sigma: Numbers, directions: Numbers = 1
) -> Array:
    """Return the error under Gaussian noise that eq. 33 predicts.

    It assumes that the distances of the correctly classified examples are N(mean, std^2), so that
    delta = eta_0 - ||a|| is normal too, and that misclassified examples stay misclassified::

        P(miss) + (1 - P(miss)) * n P(delta >= 0)     (33)
        P(delta >= 0) = Q(mean / sqrt(sigma^2 + std^2))     (30-32)

    where n P(delta >= 0) counts as 1 if it is larger. Table VIII has it at sigma = 0.1 and 0.3. At
    sigma = 0 it is above the error, because the normal distribution has some mass below zero; the paper's
    column 0 is the measured error.

    Parameters
    ----------
    error
        The error without noise, P(miss), a fraction in [0, 1].
    mean, std
        Mean and standard deviation >= 0 of the L2 distances to the boundary along the most dominant
        direction, over the correctly classified examples, in units of the input.
    sigma
        The standard deviation of the noise in each input, >= 0, in the same units.
    directions
        The number n >= 0 of directions.

    Returns
    -------
    Array
        A fraction in [0, 1], of the broadcast shape of the arguments.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    eq. 30-33 and Tables VI and VIII.
    """
    xp, back, values = _arrays(error=error, mean=mean, std=std, sigma=sigma, directions=directions)
    return back(_one_sided(xp, **values))


def two_sided_error(
    error: Numbers,
    mean: Numbers,
    std: Numbers,
    wrong_mean: Numbers,
    wrong_std: Numbers,
    sigma: Numbers,
    directions: Numbers = 1,
) -> Array:
    """Return the error under Gaussian noise if noise also corrects examples.

    Eq. 33 assumes that misclassified examples stay misclassified. Small noise corrects nearly as many
    examples as it spoils. Assume that the distances at which misclassified examples become correct are
    N(wrong_mean, wrong_std^2)::

        P(miss) + (1 - P(miss)) * n P(delta >= 0) - P(miss) * P(delta_wrong >= 0)

    Parameters
    ----------
    error, mean, std, sigma, directions
        As in `error_under_noise`.
    wrong_mean, wrong_std
        Mean and standard deviation >= 0 of the L2 distances at which misclassified examples become correct.

    Returns
    -------
    Array
        A fraction in [0, 1], of the broadcast shape of the arguments.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`.
    """
    xp, back, values = _arrays(
        error=error,
        mean=mean,
        std=std,
        wrong_mean=wrong_mean,
        wrong_std=wrong_std,
        sigma=sigma,
        directions=directions,
    )
    corrected = _exceeds(xp, values.pop("wrong_mean"), values["sigma"], values.pop("wrong_std"))
    result = _one_sided(xp, **values) - values["error"] * corrected
    return back(result)


def error_from_distances(signed_distances: Array, sigma: Numbers) -> Array:
    """Return the error under Gaussian noise from the distance of every example, with n = 1.

    It is eq. 33 without its normal distribution, and two-sided: the mean over the examples of
    Q(distance / sigma). A misclassified example that becomes correct at distance d has the distance -d: it
    stays misclassified with probability Q(-d / sigma) = 1 - Q(d / sigma). The distance -inf means that noise
    never corrects the example, as eq. 33 assumes for all misclassified examples. The result is exact for a
    linear model of two classes.

    Parameters
    ----------
    signed_distances
        L2 distances, negative for misclassified examples, along the last axis, in units of the input.
    sigma
        The standard deviation of the noise in each input, >= 0: a number, or an array that broadcasts
        to `signed_distances.shape[:-1]`.

    Returns
    -------
    Array
        A fraction in [0, 1], of the broadcast shape of `signed_distances.shape[:-1]` and sigma. At
        sigma = 0, the fraction of distances <= 0.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`, and for no examples.
    """
    xp, back, values = _arrays(signed_distances=signed_distances, sigma=sigma)
    _check_examples(values["signed_distances"])
    each = _exceeds(xp, values["signed_distances"], values["sigma"][..., None])
    return back(xp.mean(each, axis=-1))


def linear_density(distances: Array, cut: Numbers, *, through_zero: bool = False) -> tuple[Array, Array]:
    """Return (intercept, slope) of the density of distances near zero, as in Fig. 7.

    The line p0 + k a has the same mass and the same mean on [0, cut] as the sample::

        p0 = (4 c F - 6 M) / c^2,    k = (12 M - 6 c F) / c^3,    F = mean [a <= c],    M = mean a [a <= c]

    It is also the least-squares fit of a line to the sample's density on [0, c]. The line through zero,
    which Table IX uses, has k = 2 F / c^2; but the density of the paper's models is not zero at zero.

    Parameters
    ----------
    distances
        The distances >= 0 of the correctly classified examples, along the last axis, in units of the input.
    cut
        The distance c > 0 up to which the density is a line; 0.1 in Fig. 7. A number, or an array that
        broadcasts to `distances.shape[:-1]`.
    through_zero
        Whether the line goes through zero.

    Returns
    -------
    tuple of Array
        p0 per unit and k per unit squared, of the broadcast shape of `distances.shape[:-1]` and cut.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`, and for no examples.
    """
    xp, back, values = _arrays(distances=distances, cut=cut)
    _check_examples(values["distances"])
    c = values["cut"]
    ratio = values["distances"] / c[..., None]
    # a NaN is neither inside nor outside, so it stays in the mean
    inside = xp.where(ratio <= 1, 1.0, xp.where(ratio > 1, 0.0, ratio))
    share = xp.mean(inside, axis=-1)
    if through_zero:
        intercept, slope = xp.zeros_like(share), 2 * share / c / c
    else:
        first = xp.mean(xp.where(ratio > 1, 0.0, ratio), axis=-1)
        intercept, slope = (4 * share - 6 * first) / c, (12 * first - 6 * share) / c / c
    return back(intercept), back(slope)


def additional_error(
    error: Numbers, slope: Numbers, sigma: Numbers, intercept: Numbers = 0.0, *, two_sided: bool = False
) -> Array:
    """Return the error that small Gaussian noise adds, by the rule of Table IX.

    Let sigma be so small that the density of the distances is a line p0 + k a as far as noise reaches.
    The mean of eq. 28 over this density is::

        (1 - P(miss)) * integral from 0 of (p0 + k a) Q(a / sigma) da
            = (1 - P(miss)) * (p0 sigma / sqrt(2 pi) + k sigma^2 / 4)

    Table IX takes p0 = 0. If the density is smooth across the boundary, the line continues below zero, where
    the misclassified examples lie. Noise then corrects (p0 - k a) Q(a / sigma) of them: p0 cancels, and the
    net change, `two_sided`, is (1 - P(miss)) * k sigma^2 / 2. Table IX agrees with the measured net change
    because it leaves p0 out.

    Parameters
    ----------
    error
        The error without noise, a fraction in [0, 1].
    slope
        k, per unit of the input squared, as from `linear_density`.
    sigma
        The standard deviation of the noise in each input, >= 0.
    intercept
        p0, per unit of the input: the density at distance zero, or that of a fitted line.
    two_sided
        Whether to subtract the error that noise corrects; p0 then has no effect.

    Returns
    -------
    Array
        A fraction, of the broadcast shape of the arguments.

    Raises
    ------
    TypeError, ValueError
        As in `union_bound`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, V-B
    and Table IX.
    """
    _, back, v = _arrays(error=error, slope=slope, sigma=sigma, intercept=intercept)
    half = v["slope"] * v["sigma"] / 2
    density = half if two_sided else v["intercept"] / math.sqrt(2 * math.pi) + half / 2
    return back((1 - v["error"]) * (density * v["sigma"]))


_STD = (0.0, math.inf, "a standard deviation >= 0, in units of the input")
_RANGES = {
    "error": (0.0, 1.0, "a fraction in [0, 1]: divide percentages by 100"),
    "std": _STD,
    "wrong_std": _STD,
    "sigma": _STD,
    "distances": (0.0, math.inf, "norms >= 0"),
    "dimension": (1.0, math.inf, "a number of inputs >= 1"),
    "directions": (0.0, math.inf, "a number of directions >= 0"),
    "cut": (math.ulp(0.0), math.inf, "a distance > 0, up to which the density is a line"),
}


def _arrays(**given: Numbers) -> tuple[ModuleType, Callable[[Array], Array], dict[str, Array]]:
    """Return the namespace, a function that casts a result to its dtype, and the values as arrays.

    Numbers and NumPy arrays are converted to the library of the other arrays, if there are any. They are
    checked against their range here; in other libraries a value out of range becomes NaN, as checking it
    could mean waiting for a device.
    """
    values: dict[str, Array] = {
        name: value if _is_scalar(value) else admit(value, name)[1] for name, value in given.items()
    }
    arrays = {name: value for name, value in values.items() if not _is_scalar(value)}
    foreign = {name: value for name, value in arrays.items() if not isinstance(value, np.ndarray)}
    first, lead = next(iter((foreign or arrays).items()), ("", np.zeros(())))
    xp = namespace_of(lead, first)
    dtype = compute = None
    for name, value in (foreign or arrays).items():
        if namespace_of(value, name) is not xp:
            raise TypeError(
                f"{name} must be an array of the library of {first}, {library_name(xp)}; got one of "
                f"{library_name(namespace_of(value))}"
            )
        if not is_dtype(xp, value.dtype, "integral"):
            wide = compute_dtype(value, name)
            compute = wide if compute is None else xp.result_type(compute, wide)
            dtype = value.dtype if dtype is None or dtype == value.dtype else compute
    if dtype is None:
        dtype = compute = xp.zeros(()).dtype  # the library's default
    for name, value in values.items():
        low, high, meaning = _RANGES.get(name, (-math.inf, math.inf, "real"))
        if name in foreign:
            array = xp.astype(value, compute, copy=False)
            if name in _RANGES:
                array = xp.where((array >= low) & (array <= high), array, math.nan)
        else:
            seen: Array = value if name in arrays else np.asarray(float(value))
            if isinstance(value, bool) or not is_real(seen.dtype):
                raise TypeError(f"{name} must be {meaning}; got {getattr(value, 'dtype', value)}")
            if name in _RANGES and not np.all((seen >= low) & (seen <= high)):
                raise ValueError(f"{name} must be {meaning}; got {value}")
            array = xp.asarray(seen.astype(np.float64), dtype=compute, device=device_of(lead))
        values[name] = array
    return xp, lambda result: xp.astype(result, dtype, copy=False), values


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool) or is_number(value)


def _check_examples(distances: Array) -> None:
    if distances.ndim == 0 or distances.shape[-1] == 0:
        raise ValueError(
            f"distances must have at least one example along the last axis; got shape "
            f"{tuple(distances.shape)}"
        )


def _tail(x: Array) -> Array:
    return library_of(x).normal_tail(x)


def _exceeds(xp: ModuleType, mean: Array, *stds: Array) -> Array:
    """Return P(N(0, sum of stds^2) >= mean), which is 0 or 1 where all stds are 0."""
    mean, *stds = xp.broadcast_arrays(mean, *stds)
    scale = stds[0]
    if len(stds) > 1:  # a norm that neither overflows nor underflows, whose derivative at zero is zero
        scale = dual_norm(2.0, xp.stack(stds, axis=-1), xp.ones_like(scale)[..., None])
    # beyond 64 deviations the tail is 0 in every dtype, while the ratio may overflow
    certain = (xp.abs(mean) / 64 > scale) | ((scale == 0) & (mean == mean))
    ratio = mean / xp.where(certain, 1.0, scale)
    return xp.where(certain, xp.astype(mean <= 0, mean.dtype), _tail(ratio))


def _at_most_one(xp: ModuleType, bound: Array) -> Array:
    return xp.where(bound > 1, 1.0, bound)


def _one_sided(
    xp: ModuleType, error: Array, mean: Array, std: Array, sigma: Array, directions: Array
) -> Array:
    return error + (1 - error) * _at_most_one(xp, directions * _exceeds(xp, mean, sigma, std))
