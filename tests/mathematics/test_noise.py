"""Errors under Gaussian noise against the paper's tables, quadrature, simulation and 30 digits."""

import functools
import math
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.stats import norm as normal

from helpers.libraries import Floats, TestLibrary, numpy_readonly
from lpfamily.libraries import library_of
from lpfamily.noise import (
    additional_error,
    dimension_bound,
    error_from_distances,
    error_under_noise,
    linear_density,
    two_sided_error,
    union_bound,
)
from lpfamily_reference import equations_noise as eq

# Softmax with lambda = 1e-4, 1e-2, 1: column 0 of Table VIII, and Table VI.
ERROR = np.array([0.0602, 0.0629, 0.0893])
MEAN = np.array([0.2744, 0.4722, 1.2718])
STD = np.array([0.1511, 0.2531, 0.6654])
SIGMA = np.array([[0.1], [0.3]])
TABLE_8 = np.array([[12.12, 10.16, 11.61], [25.47, 17.01, 12.63]])
TABLE_9 = np.array([0.04, 0.02, 0.01])
seeds = st.integers(0, 2**32 - 1)


def tail(x):
    """P(N(0, 1) >= x) from 30 digits."""
    with mpmath.workdps(30):
        return float(mpmath.ncdf(-mpmath.mpf(float(x))))


def test_table_8_follows_from_table_6(lib):
    with lib.scope():
        arrays = [lib.from_numpy(value, "float64") for value in (ERROR, MEAN, STD, SIGMA)]
        percent = 100 * lib.to_numpy(error_under_noise(*arrays))
    assert_allclose(percent, [[12.125, 10.166, 11.605], [25.473, 17.018, 12.638]], atol=5e-4)
    assert_allclose(percent, TABLE_8, atol=0.01)
    # at sigma = 0 it is what the normal distribution puts below zero, not the measured error
    with lib.scope():
        clean = 100 * lib.to_numpy(error_under_noise(*arrays[:3], 0.0))
    assert_allclose(clean, [9.28, 9.20, 11.48], atol=5e-3)


def test_table_9_follows_from_table_6(lib):
    # a sample of the normal distribution at its quantiles; what lies below zero counts as far away
    quantiles = normal.ppf((np.arange(200_000) + 0.5) / 200_000)
    sample = MEAN[:, None] + STD[:, None] * quantiles
    with lib.scope():
        distances = lib.from_numpy(np.where(sample < 0, math.inf, sample), "float64")
        _, slope = linear_density(distances, 0.1, through_zero=True)
        error = lib.from_numpy(ERROR, "float64")
        percent = 100 * lib.to_numpy(additional_error(error, slope, 0.01))
    assert_allclose(percent, [0.042, 0.019, 0.005], atol=5e-4)
    assert_allclose(percent, TABLE_9, atol=0.005)


def test_the_intercept_of_a_line_may_be_negative():
    distances = np.abs(np.random.default_rng(0).normal(0.3, 0.08, 20000))
    intercept, slope = linear_density(distances, 0.25)
    assert intercept < 0
    assert additional_error(0.05, slope, 0.01, intercept) < additional_error(0.05, slope, 0.01)
    additional_error(0.05, slope, 0.01, intercept, two_sided=True)


def test_the_intercept_dominates_the_one_sided_error_and_cancels_in_the_two_sided():
    intercept, slope = np.array([0.69, 0.45, 0.18]), np.array([9.4, 2.7, 0.4])
    spoiled = 100 * additional_error(ERROR, slope, 0.01, intercept)
    assert_allclose(spoiled, [0.28, 0.17, 0.066], rtol=0.03)
    net = 100 * additional_error(ERROR, slope, 0.01, intercept, two_sided=True)
    assert_allclose(net, [0.044, 0.013, 0.002], atol=5e-4)


# Eq. 33 as a law, and the mutants that break it.


@dataclass(frozen=True)
class Noise:
    """Arguments of eq. 33 in float64 numbers that the dtype holds."""

    lib: TestLibrary
    floats: Floats
    error: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    sigma: np.ndarray
    directions: int

    def call(self, function, *names, **options):
        """Return function(...) as float64, checked to be of the library and the dtype."""
        with self.lib.scope():
            values = [getattr(self, name) for name in names]
            arrays = [
                self.lib.from_numpy(v, self.floats.name) if isinstance(v, np.ndarray) else v for v in values
            ]
            result = function(*arrays, **options)
        assert type(result) is type(arrays[0])
        assert result.dtype == arrays[0].dtype
        return self.lib.to_numpy(result)


@st.composite
def noises(draw, lib):
    floats = lib.floats[draw(st.sampled_from(lib.dtypes))]
    rng = np.random.default_rng(draw(seeds))
    size = 3
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    mean = floats.round(scale * rng.exponential(size=size))
    std = floats.round(rng.choice([0, 0.1, 0.5, 1], size) * scale * rng.random(size))
    sigma = floats.round(rng.choice([0, 0.03, 1, 30], size) * scale * rng.random(size))
    error = floats.round(rng.choice([0, 0.01, 0.3, 1], size) * rng.random(size))
    return Noise(lib, floats, error, mean, std, sigma, draw(st.sampled_from([1, 3])))


def is_eq33(function, case):
    got = case.call(function, "error", "mean", "std", "sigma", "directions")
    for e, m, s, t, result in zip(case.error, case.mean, case.std, case.sigma, got, strict=True):
        scale = math.hypot(s, t)
        bound = float(m <= 0) if scale == 0 else min(1.0, case.directions * tail(m / scale))
        expected = e + (1 - e) * bound
        # rounding of the ratio moves its tail by the square of the ratio
        compute = Floats.of(case.floats.compute).eps
        loss = 8 * compute * (1 + (0 if scale == 0 else m / scale) ** 2) * bound
        underflow = (1 + case.directions) * case.floats.least
        allowed = loss + (4 * compute + case.floats.eps) * expected + underflow
        assert abs(result - expected) <= allowed, (case, result, expected)


@given(data=st.data())
def test_error_under_noise_is_eq33(data, lib):
    case = data.draw(noises(lib))
    is_eq33(error_under_noise, case)
    for e, m, s, t in zip(case.error, case.mean, case.std, case.sigma, strict=True):
        if s > 0 or t > 0:
            assert_allclose(
                error_under_noise(e, m, s, t), eq.eq33(e, 1, m, s, t), rtol=1e-12, atol=1e-300
            )  # the reference


def cumulative(error, mean, std, sigma, directions, *, q=normal.sf, scale=np.hypot, kept=True, cut=True):
    """Eq. 33 in float64, with a mistake for each option."""
    e, m, s, t = (value.astype(float) for value in (error, mean, std, sigma))
    with np.errstate(divide="ignore", invalid="ignore"):
        width = scale(s, t)
        ratio = m / width
    p = directions * np.where(width == 0, m <= 0, q(ratio))
    p = np.minimum(p, 1) if cut else p
    return (e + (1 - e if kept else 1) * p).astype(error.dtype)


MISTAKES = {
    "P(delta <= 0)": {"q": normal.cdf},
    "1 - cdf, which has no far tail": {"q": lambda x: 1 - normal.cdf(x)},
    "the noise alone": {"scale": lambda s, t: t},
    "the spread of the distances alone": {"scale": lambda s, t: s},
    "standard deviations summed": {"scale": np.add},
    "a variance for a standard deviation": {"scale": lambda s, t: s * s + t * t},
    "a floor of 1e-12": {"scale": lambda s, t: np.hypot(s, t) + 1e-12, "cut": True},
    "wrong examples spoiled again": {"kept": False},
    "more than all": {"cut": False},
}


def check(function):
    library = numpy_readonly()

    @settings(phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
    @given(noises(library))
    def run(case):
        is_eq33(function, case)

    run()


def test_the_textbook_obeys_the_law():
    check(cumulative)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_breaks_the_law(mistake):
    with pytest.raises(AssertionError):
        check(functools.partial(cumulative, **mistake))


@given(data=st.data())
def test_the_tail_is_accurate_as_far_as_the_dtype_goes(data, lib):
    name = data.draw(st.sampled_from(["float32", "float64"]))
    floats = lib.floats[name]
    x = floats.round(np.array(data.draw(st.lists(st.floats(-40, 40), min_size=1, max_size=4))))
    with lib.scope():
        array = lib.from_numpy(x, name)
        got = lib.to_numpy(library_of(array).normal_tail(array))
    exact = np.array([tail(value) for value in x])
    # rounding x moves its tail by x^2 roundings; a library may lose, or flush, what is subnormal
    assert np.all(np.abs(got - exact) <= 2 * floats.eps * (1 + x * x) * exact + floats.tiny)


def test_error_under_noise_takes_zero_infinite_and_subnormal_values(lib):
    with lib.scope():
        mean = lib.from_numpy(np.array([0.0, 0.1, 0.1, -0.1, math.inf, math.nan, 1e-300]), "float64")
        sigma = lib.from_numpy(np.array([0.0, 0.0, 1e-300, 0.0, 1.0, 0.0, 1e-300]), "float64")
        got = lib.to_numpy(error_under_noise(0.0, mean, 0.0, sigma))
        assert_allclose(got, [1, 0, 0, 1, 0, math.nan, tail(1)], rtol=1e-14)
        # eq. 33 does not see a common factor
        for scale in 2.0**-1000, 2.0**1000:
            got = error_under_noise(0.0, scale * lib.from_numpy(MEAN, "float64"), scale * STD, scale * 0.1)
            assert_allclose(
                lib.to_numpy(got),
                lib.to_numpy(error_under_noise(0.0, lib.from_numpy(MEAN, "float64"), STD, 0.1)),
                rtol=1e-14,
            )


# The bounds.


@given(data=st.data())
def test_union_bound_is_eq27(data, lib):
    rng = np.random.default_rng(data.draw(seeds))
    perturbations = rng.standard_normal((2, 3, 5)) * data.draw(st.sampled_from([0.3, 1.0, 10.0]))
    sigma = rng.random(2)
    distances = np.linalg.norm(perturbations, axis=-1)
    with lib.scope():
        got = union_bound(lib.from_numpy(distances, "float64"), lib.from_numpy(sigma, "float64"))
    expected = [eq.eq27(rows, s) for rows, s in zip(perturbations, sigma, strict=True)]
    assert_allclose(lib.to_numpy(got), np.minimum(expected, 1), rtol=1e-9, atol=1e-300)
    terms = [sum(eq.eq28(a, s) for a in row) for row, s in zip(distances, sigma, strict=True)]
    assert_allclose(expected, terms, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_reference_eq26_happens_no_more_often_than_eq27(sigma):
    rng = np.random.default_rng(26)
    perturbations = np.array([[1.0, 0.5, 0.0], [0.9, 0.7, 0.1], [0.0, 0.0, -2.0]])
    eta = sigma * rng.standard_normal((20_000, 3))
    happens = np.mean([eq.eq26(row, perturbations) for row in eta])
    bound = float(union_bound(np.linalg.norm(perturbations, axis=1), sigma))
    error = math.sqrt(bound / len(eta))
    assert happens <= bound + 4 * error
    one = np.mean([eq.eq26(row, perturbations[:1]) for row in eta])
    assert abs(one - eq.eq27(perturbations[:1], sigma)) <= 4 * error


@given(d=st.integers(1, 1000), n=st.integers(0, 100))
def test_dimension_bound_is_eq29(d, n):
    assert_allclose(dimension_bound(d, n), min(1, eq.eq29(n, d)), rtol=1e-11)
    # sigma = ||a|| / sqrt(d)
    assert_allclose(dimension_bound(d), union_bound(np.array([2.5]), 2.5 / math.sqrt(d)), rtol=1e-11)


def test_dimension_bound_shrinks_exponentially(lib):
    d = lib.from_numpy(np.array([1.0, 784.0, 3072.0]), "float32")
    got = lib.to_numpy(dimension_bound(d, directions=9))
    assert_allclose(got, [1, 0, 0], atol=1e-30)


@given(mean=st.floats(0, 3), std=st.floats(0.05, 2), sigma=st.floats(0.05, 2), n=st.sampled_from([1.0, 2.0]))
@settings(max_examples=200)
def test_reference_eq30_to_eq32_are_one_chain(mean, std, sigma, n):
    last = eq.eq32(n, mean, std, sigma)
    assert_allclose(eq.eq30(n, mean, std, sigma), last, rtol=1e-8, atol=1e-13)
    assert_allclose(eq.eq31(n, mean, std, sigma), last, rtol=1e-8, atol=1e-13)


# The other rules.


@given(
    error=st.floats(0, 1),
    intercept=st.floats(0, 10),
    slope=st.floats(-10, 100),
    sigma=st.floats(1e-3, 1),
)
def test_additional_error_is_the_integral(lib, error, intercept, slope, sigma):
    with lib.scope():
        arrays = [lib.from_numpy(np.asarray([v]), "float64") for v in (error, slope, sigma, intercept)]
        spoiled, net = additional_error(*arrays), additional_error(*arrays, two_sided=True)
    terms = abs(slope) * sigma**2 + intercept * sigma
    atol = 1e-8 * terms + 4 * lib.floats["float64"].least  # a library may flush the slope
    expected = eq.table9(error, intercept, slope, sigma)
    assert_allclose(lib.to_numpy(spoiled)[0], expected, rtol=1e-8, atol=atol)
    corrected = eq.table9(error, intercept, -slope, sigma)  # the same line, on the other side of zero
    assert_allclose(lib.to_numpy(net)[0], lib.to_numpy(spoiled)[0] - corrected, rtol=1e-8, atol=atol)


@given(share=st.floats(0.01, 1), tilt=st.floats(-1, 1), cut=st.floats(0.01, 100))
def test_linear_density_finds_the_line(lib, share, tilt, cut):
    # quantiles of the density share / cut * (1 + tilt * (2 a / cut - 1)) on [0, cut], the rest beyond
    inside = round(4000 * share)
    u = (np.arange(inside) + 0.5) / inside
    at = 2 * u / (1 - tilt + np.sqrt((1 - tilt) ** 2 + 4 * tilt * u))
    distances = np.concatenate([cut * at, np.full(4000 - inside, math.inf)])
    with lib.scope():
        array = lib.from_numpy(distances, "float64")
        intercept, slope = (lib.to_numpy(v) for v in linear_density(array, cut))
        zero, through = (lib.to_numpy(v) for v in linear_density(array, cut, through_zero=True))
    height = inside / 4000 / cut
    atol = 8 / inside**0.5 * height if tilt in (-1, 1) else 8 / inside * height
    assert_allclose(intercept, height * (1 - tilt), atol=atol)
    assert_allclose(slope, height * 2 * tilt / cut, atol=2 * atol / cut)
    assert zero == 0
    assert_allclose(through * cut**2 / 2, inside / 4000)


@given(seed=seeds)
def test_linear_density_is_the_least_squares_fit(seed):
    # of a + b t to a sum of atoms: what is left is orthogonal to 1 and to t
    rng = np.random.default_rng(seed)
    distances, cut = rng.exponential(size=(2, 30)), 0.7
    for row, a, b in zip(distances, *linear_density(distances, cut), strict=True):
        for power in 0, 1:
            line, _ = quad(lambda t, power=power, a=a, b=b: (a + b * t) * t**power, 0, cut)
            assert_allclose(line, np.mean(np.where(row <= cut, row, 0) ** power * (row <= cut)), atol=1e-12)


@given(data=st.data())
def test_error_from_distances_is_a_mean_of_tails(data, lib):
    rng = np.random.default_rng(data.draw(seeds))
    signed, sigma = rng.standard_normal((3, 7)), rng.random(3) * data.draw(st.sampled_from([0, 0.1, 1.0]))
    signed[0, 0], signed[1, 1] = math.inf, -math.inf
    with lib.scope():
        got = error_from_distances(lib.from_numpy(signed, "float64"), lib.from_numpy(sigma, "float64"))
    expected = [
        np.mean([tail(m / s) if s else m <= 0 for m in row]) for row, s in zip(signed, sigma, strict=True)
    ]
    assert_allclose(lib.to_numpy(got), expected, rtol=1e-12)


def test_two_classes_err_under_noise_as_their_distances_say():
    rng = np.random.default_rng(8)
    weight, x = rng.standard_normal(6), rng.standard_normal((400, 6))
    right = np.sign(x @ weight) * np.where(rng.random(400) < 0.1, -1, 1)
    signed = right * (x @ weight) / np.linalg.norm(weight)
    noisy = x + 0.5 * rng.standard_normal((500, 400, 6))
    rates = np.mean(np.sign(noisy @ weight) != right, axis=1)
    predicted = float(error_from_distances(signed, 0.5))
    standard_error = rates.std() / math.sqrt(len(rates))
    assert abs(rates.mean() - predicted) <= 4 * standard_error
    # eq. 33's assumption, that noise corrects nothing, is far from it
    uncorrected = float(error_from_distances(np.where(signed < 0, -math.inf, signed), 0.5))
    assert uncorrected - predicted > 5 * standard_error


@given(data=st.data())
def test_two_sided_error_is_what_normal_distances_make(data, lib):
    case = data.draw(noises(lib))
    rng = np.random.default_rng(data.draw(seeds))
    if case.floats.name != "float64":
        return
    wrong_mean, wrong_std = rng.random(3), rng.random(3)
    with lib.scope():
        arrays = [
            lib.from_numpy(v, "float64")
            for v in (case.error, case.mean, case.std, wrong_mean, wrong_std, case.sigma)
        ]
        got = lib.to_numpy(two_sided_error(*arrays, case.directions))
        one_sided = case.call(error_under_noise, "error", "mean", "std", "sigma", "directions")
    corrected = normal.sf(wrong_mean / np.hypot(wrong_std, case.sigma))
    assert_allclose(got, one_sided - case.error * corrected, rtol=1e-12, atol=1e-15)


def test_two_sided_error_is_that_of_a_sample():
    rng = np.random.default_rng(9)
    right, wrong = 0.5 + 0.2 * rng.standard_normal(180_000), 0.1 + 0.05 * rng.standard_normal(20_000)
    sample = error_from_distances(np.concatenate([right, -wrong]), 0.2)
    assert_allclose(two_sided_error(0.1, 0.5, 0.2, 0.1, 0.05, 0.2), sample, atol=1e-3)


# Derivatives and arguments.


def test_derivatives_are_finite_where_there_is_no_noise(autodiff):
    with autodiff.scope():
        zero, mean = (autodiff.from_numpy(np.array(v), "float64") for v in ([0.0, 0.0], [0.0, 0.3]))
        for which in range(3):

            def total(v, which=which):
                values = [mean, zero, zero]
                values[which] = v
                return autodiff.xp.sum(error_under_noise(0.1, *values))

            slope = autodiff.derivative(total)([mean, zero, zero][which])
            assert_array_equal(autodiff.to_numpy(slope), 0)


def test_numbers_and_arrays_may_be_mixed(lib):
    mean = lib.from_numpy(MEAN, "float32")
    result = error_under_noise(0.1, mean, STD.astype(np.float32), np.float64(0.2), np.array([1, 2, 3]))
    assert type(result) is type(mean)
    assert result.dtype == mean.dtype
    number = error_under_noise(0.1, MEAN[2], STD[2], 0.2, 3)
    assert isinstance(number, np.float64)
    assert_allclose(lib.to_numpy(result)[2], number, rtol=1e-5)
    whole = lib.from_numpy(np.array([1, 2]))
    assert_allclose(lib.to_numpy(dimension_bound(4, whole)), [tail(2), 2 * tail(2)], rtol=1e-5)


def test_a_sigma_out_of_range_is_an_error_or_makes_its_entry_nan(lib):
    for bad in -1.0, math.nan:
        with pytest.raises(ValueError, match=r"sigma must be a standard deviation >= 0.*got .*(-1\.|nan)"):
            error_under_noise(0.1, lib.from_numpy(MEAN, "float32"), 0.1, np.array([0.1, bad, 0.1]))
        if lib.name != "numpy":
            sigma = lib.from_numpy(np.array([0.1, bad, 0.1]), "float32")
            got = lib.to_numpy(error_under_noise(0.1, 0.3, 0.1, sigma))
            assert_array_equal(np.isnan(got), [False, True, False])


BAD = {
    r"error must be a fraction in \[0, 1\]: divide percentages by 100; got 6.02": lambda a: error_under_noise(
        6.02, a, 0.1, 0.1
    ),
    r"std must be a standard deviation >= 0.*got -0.1": lambda a: error_under_noise(0.1, a, -0.1, 0.1),
    r"directions must be a number of directions >= 0; got -1": lambda a: error_under_noise(
        0.1, a, 0.1, 0.1, -1
    ),
    r"distances must be norms >= 0; got": lambda a: union_bound(np.array([-1.0]), 0.1),
    r"distances must have the directions along its last axis; got a number": lambda a: union_bound(0.1, 0.1),
    r"dimension must be a number of inputs >= 1; got 0": lambda a: dimension_bound(0),
    r"cut must be a distance > 0.*got 0": lambda a: linear_density(a, 0),
    r"distances must have at least one example along the last axis; got shape \(0,\)": lambda a: (
        linear_density(a[:0], 0.1)
    ),
    r"signed_distances must be an array.*got list": lambda a: error_from_distances([0.1], 0.1),
    r"mean must be float16.*complex": lambda a: error_under_noise(0.1, np.array([1j]), 0.1, 0.1),
    r"sigma must be a standard deviation.*got True": lambda a: error_under_noise(0.1, a, 0.1, True),
}


@pytest.mark.parametrize(("message", "call"), BAD.items(), ids=BAD)
def test_an_error_says_what_was_given(lib, message, call):
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        call(lib.from_numpy(MEAN, "float32"))
