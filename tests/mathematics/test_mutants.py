"""Mutants of the step: each known mistake breaks the law that is named with it."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest

import lpfamily
from helpers.laws import (
    LAWS,
    attains_the_gain,
    gives_infinite_entries_the_limit,
    ignores_batch_mates,
    is_continuous_at_infinity,
    is_continuous_at_one,
    is_scale_free,
    is_the_closed_form,
    keeps_nan_in_its_row,
    keeps_zeros,
    leaves_its_inputs_alone,
    shares_equally_among_ties,
    spends_nothing_outside_the_mask,
    uses_the_budget,
)
from helpers.mutants import check
from lpfamily.experiments.errors import report
from lpfamily.experiments.softmax import measure
from lpfamily.training import evaluation


def textbook(
    grad,
    p,
    sigma,
    *,
    mask=None,
    floor=0.0,
    first_tie=False,
    over_batch=False,
    digits=None,
    dtype=np.longdouble,
):
    """Eq. 3 as written, in long floats, with a mistake for each option."""
    kept = grad if mask is None else np.where(mask, grad, 0)
    x = kept.reshape(len(grad), -1).astype(dtype)
    with np.errstate(all="ignore"):
        axis = None if over_batch else 1
        r = np.abs(x)
        top = r.max(axis=axis, keepdims=True)
        if p == math.inf:
            unit = np.sign(x)
        elif p == 1:
            ties = r == top
            if first_tie:
                ties &= np.cumsum(ties, axis=1) == 1
            unit = np.sign(x) * ties / np.maximum(ties.sum(axis=1, keepdims=True), 1)
            unit = np.where(np.isnan(top), np.nan, unit)
        else:
            p = dtype(p)
            dual = p / (p - 1) if digits is None else dtype(round(float(p / (p - 1)), digits))
            infinite = np.isinf(top)
            r = np.where(infinite, np.isinf(r), r / np.where((top == 0) | infinite, 1, top))
            # |x| / (|x| of the largest), with its logarithm taken exactly where it is near 1
            log = np.where((r > 0.5) & ~infinite, np.log1p((np.abs(x) - top) / top), np.log(r))
            total = np.sum(np.exp(dual * log), axis=axis, keepdims=True)
            size = np.log(np.where(total == 0, 1, total)) / dual
            if floor:
                size = np.log(np.exp(size) + floor / np.where(top == 0, 1, top))
            unit = np.sign(x) * np.exp(log / (p - 1) - size / (p - 1))
        eps = np.broadcast_to(sigma, len(grad))[:, None] * unit
        return eps.reshape(grad.shape).astype(grad.dtype)


def in_place(grad, p, sigma, **options):
    step = lpfamily.epsilon(grad, p, sigma, **options)
    grad *= 1
    return step


def sign_of_zero_is_one(grad, p, sigma, **options):
    step = lpfamily.epsilon(grad, p, sigma, **options)
    return np.where((grad == 0) & (p == math.inf), np.asarray(np.max(sigma)).astype(grad.dtype), step)


def a_nan_spoils_the_batch(grad, p, sigma, **options):
    step = lpfamily.epsilon(grad, p, sigma, **options)
    return np.where(np.isnan(grad).any(), np.asarray(math.nan, grad.dtype), step)


def nan_is_zero(grad, p, sigma, **options):
    return np.nan_to_num(lpfamily.epsilon(grad, p, sigma, **options))


def infinite_is_large(grad, p, sigma, **options):
    return lpfamily.epsilon(np.nan_to_num(grad, nan=math.nan), p, sigma, **options)


def mask_after(grad, p, sigma, *, mask=None):
    step = lpfamily.epsilon(grad, p, sigma)
    return step if mask is None else np.where(mask, step, np.zeros_like(step))


def large_p_is_infinity(grad, p, sigma, **options):
    return lpfamily.epsilon(grad, math.inf if p >= 100 else p, sigma, **options)


def half_is_computed_in_half(grad, p, sigma, **options):
    if grad.dtype != np.float16:
        return lpfamily.epsilon(grad, p, sigma, **options)
    return textbook(grad, p, sigma, dtype=np.float16, **options)


def p_is_rounded_to_float32(grad, p, sigma, **options):
    return lpfamily.epsilon(grad, float(np.float32(min(p, 1e38))) if p < math.inf else p, sigma, **options)


def p_starts_at_1_1(grad, p, sigma, **options):
    return lpfamily.epsilon(grad, 1.1 if 1 < p < 1.1 else p, sigma, **options)


def p_stops_at_100(grad, p, sigma, **options):
    return lpfamily.epsilon(grad, 100 if 100 < p < math.inf else p, sigma, **options)


def by_halves(grad, share):
    """Return what `share` makes of the two halves of each example, as the leaves of a tree."""
    rows = grad.reshape(len(grad), -1)
    half = (rows.shape[1] + 1) // 2
    return np.concatenate(share(rows[:, :half], rows[:, half:]), axis=1).reshape(grad.shape)


def a_ball_per_leaf(grad, p, sigma):
    return by_halves(grad, lambda *leaves: [lpfamily.epsilon(leaf, p, sigma) for leaf in leaves])


def a_share_per_leaf(grad, p, sigma):
    """All leaves spend alike, so that the budget is used but not where it gains most."""
    return by_halves(
        grad, lambda *leaves: [lpfamily.epsilon(leaf, p, sigma * 0.5 ** (1 / p)) for leaf in leaves]
    )


def leaves_are_joined_in_half(grad, p, sigma):
    with np.errstate(over="ignore"):
        halves = grad.astype(np.float16)
    return by_halves(halves, lambda *leaves: lpfamily.epsilon(leaves, p, sigma)).astype(grad.dtype)


MUTANTS = {
    "a floor of 1e-12": (functools.partial(textbook, floor=1e-12), uses_the_budget),
    "a floor of 1e-12, seen by scale": (functools.partial(textbook, floor=1e-12), is_scale_free),
    "the first of tied entries": (functools.partial(textbook, first_tie=True), shares_equally_among_ties),
    "the first of tied entries, seen as a jump": (
        functools.partial(textbook, first_tie=True),
        is_continuous_at_one,
    ),
    "a norm over the batch": (functools.partial(textbook, over_batch=True), uses_the_budget),
    "a norm over the batch, seen by its mates": (
        functools.partial(textbook, over_batch=True),
        ignores_batch_mates,
    ),
    "p* to 2 digits": (functools.partial(textbook, digits=2), attains_the_gain),
    "p* to 2 digits, seen by its norm": (functools.partial(textbook, digits=2), uses_the_budget),
    "in place": (in_place, leaves_its_inputs_alone),
    "sign(0) = 1": (sign_of_zero_is_one, keeps_zeros),
    "a NaN spoils the batch": (a_nan_spoils_the_batch, keeps_nan_in_its_row),
    "NaN is zero": (nan_is_zero, keeps_nan_in_its_row),
    "inf is the largest number": (infinite_is_large, gives_infinite_entries_the_limit),
    "the mask comes last": (mask_after, spends_nothing_outside_the_mask),
    "a large p is inf": (large_p_is_infinity, is_the_closed_form),
    "half is computed in half": (half_is_computed_in_half, uses_the_budget),
    "p in float32": (p_is_rounded_to_float32, is_the_closed_form),
    "p stops at 1.1": (p_starts_at_1_1, is_continuous_at_one),
    "a ball per leaf": (a_ball_per_leaf, uses_the_budget),
    "a share per leaf": (a_share_per_leaf, attains_the_gain),
    "leaves are joined in half": (leaves_are_joined_in_half, is_scale_free),
    "p stops at 100": (p_stops_at_100, is_continuous_at_infinity),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_textbook_obeys_every_law(law):
    """So what breaks a law below is the mistake, not the way that it is written."""
    check(law, textbook, examples=150)  # the mistakes are found among the first 100


@pytest.mark.parametrize(("mutant", "law"), MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_breaks_its_law(mutant, law):
    error = ValueError if mutant is in_place else AssertionError  # NumPy's read-only inputs object
    with pytest.raises(error):
        check(law, mutant)


def of_noisy_errors(seed):
    """The standard error of an error under noise: noise decides on each of 20 examples as a coin would."""
    trainer = SimpleNamespace(logits=lambda x: np.concatenate([x, -x], axis=1))
    return evaluation.noisy_error(trainer, np.zeros((20, 1)), np.zeros(20, int), 1.0, seed)["standard_error"]


def of_flips(seed):
    """The standard error of right to wrong minus wrong to right, both of variance 1."""
    return measure._flip_stats(0.0, np.random.default_rng(seed).standard_normal((10, 2)))["standard_error"]


def of_seeds(seed):
    """The standard error over seeds of training, whose errors under noise have variance 1."""
    means = np.random.default_rng(seed).standard_normal(3)
    runs = [{"noise": {"0.1": {"mean": mean, "standard_error": 0.0}}} for mean in means]
    return report.noisy_error(runs, "0.1", 1)[1]


STANDARD_ERRORS = {
    "draws of noise": (of_noisy_errors, 10, 1 / 80),
    "flips": (of_flips, 10, 2),
    "seeds": (of_seeds, 3, 1),
}
"""By name: a function of a seed that returns a standard error, the count of numbers, the variance of one."""


def is_the_deviation_of_a_mean(found, count, variance):
    """Over many seeds its mean square is the variance of the mean."""
    spread = math.sqrt(2 / (count - 1) / len(found))
    assert abs(np.mean(np.square(found)) / (variance / count) - 1) <= 5 * spread


@pytest.mark.parametrize(
    ("standard_error", "count", "variance"), STANDARD_ERRORS.values(), ids=STANDARD_ERRORS
)
def test_a_standard_error_is_the_deviation_of_a_mean(standard_error, count, variance):
    found = np.array([standard_error(seed) for seed in range(2000)])
    is_the_deviation_of_a_mean(found, count, variance)
    for mistake in math.sqrt(1 - 1 / count), math.sqrt(count):  # ddof=0; the deviation of a single number
        with pytest.raises(AssertionError):
            is_the_deviation_of_a_mean(mistake * found, count, variance)
