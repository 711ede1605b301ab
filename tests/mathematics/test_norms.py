"""Norms, dual exponents and the penalty: safe at both ends of the range, and Hölder's equality."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from helpers.laws import cases, dual, norms
from helpers.libraries import P
from lpfamily import dual_exponent, epsilon, norm, penalty


def call(case, function, *args, **options):
    """Return function(grad, ...) of a case, checked to be one number per example, as float64."""
    with case.lib.scope(), np.errstate(over="ignore"):  # a norm may pass the dtype's end
        grad = case.lib.from_numpy(case.grad, case.floats.name)
        result = function(grad, *args, **options)
        assert type(result) is type(grad)
        assert result.dtype == grad.dtype
        assert tuple(result.shape) == (len(case.grad),)
        return case.lib.to_numpy(result)


def assert_sizes(actual, expected, q, case):
    """Raise unless each row's q-norm is right to rounding, and inf where the dtype ends.

    A largest entry that rounds as a subnormal takes the whole norm with it, ||(1, ..., 1)||_q times.
    """
    expected = np.asarray(expected, dtype=np.longdouble)
    allowed = case.tolerance * expected + 2 * case.floats.least * float(case.rows.shape[1] ** (1 / q))
    with np.errstate(invalid="ignore"):
        overflows = (actual == math.inf) & (expected * (1 + case.tolerance) > case.floats.largest)
        bad = ~((np.abs(actual - expected) <= allowed) | overflows)
    assert not bad.any(), f"got {actual[bad]}, expected {expected[bad]}\n{case}"


@given(data=st.data())
def test_norm_is_the_sum_of_powers(data, lib):
    case = data.draw(cases(lib))
    assert_sizes(call(case, norm, case.p), norms(case.rows, case.p), case.p, case)


@given(data=st.data())
def test_penalty_is_sigma_times_the_dual_norm(data, lib):
    case = data.draw(cases(lib))
    expected = case.radii * norms(case.rows, dual(case.p))
    assert_sizes(call(case, penalty, case.p, case.sigma), expected, dual(case.p), case)


@given(data=st.data())
def test_penalty_is_what_epsilon_gains(data, lib):
    case = data.draw(cases(lib, kinds=("normal", "tied", "sparse", "zero")))
    gain = np.sum(case.rows.astype(np.longdouble) * case.step_rows(epsilon), axis=1)
    got = call(case, penalty, case.p, case.sigma)
    allowed = (
        2 * case.tolerance * gain + case.underflow * norms(case.rows, dual(case.p)) + 2 * case.floats.least
    )
    with np.errstate(invalid="ignore"):
        assert np.all((np.abs(got - gain) <= allowed) | (got == math.inf)), case


@given(data=st.data())
def test_differences_of_the_penalty_are_epsilon(data, lib):
    p = data.draw(st.sampled_from([p for p in P if 1.1 <= p <= 5]))
    grad = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).standard_normal((1, 9))
    grad += np.copysign(0.2, grad)  # away from the kinks of |x|
    h = 1e-5
    with lib.scope():
        up, down = (
            lib.to_numpy(penalty(lib.from_numpy(grad + s * h * np.eye(9), "float64"), p, 0.5))
            for s in (1, -1)
        )
        step = lib.to_numpy(epsilon(lib.from_numpy(grad, "float64"), p, 0.5))
    assert_allclose((up - down) / (2 * h), step[0], atol=1e-7)


@pytest.mark.parametrize(
    "function", [norm, lambda x, p, **o: penalty(x, p, 1.0, **o)], ids=["norm", "penalty"]
)
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_batch_axes_are_kept(lib, p, function):
    x = lib.from_numpy(np.ones((2, 3, 4)), "float32")
    for batch_ndim, shape in (None, (2,)), (0, ()), (1, (2,)), (2, (2, 3)), (3, (2, 3, 4)):
        assert tuple(function(x, p, batch_ndim=batch_ndim).shape) == shape
    for shape in (0, 3), (3, 0):
        empty = function(lib.from_numpy(np.zeros(shape), "float32"), p)
        assert_allclose(lib.to_numpy(empty), np.zeros(shape[0]))


@pytest.mark.parametrize("p", P)
def test_nan_and_infinite_rows_affect_no_other_row(lib, p):
    rows = np.array([[math.nan, 1.0], [math.inf, 1.0], [-math.inf, 0.0], [math.nan, math.inf], [3.0, 0.0]])
    for result in norm(lib.from_numpy(rows, "float32"), p), penalty(lib.from_numpy(rows, "float32"), p, 1.0):
        assert_allclose(lib.to_numpy(result), [math.nan, math.inf, math.inf, math.nan, 3.0], rtol=1e-6)


@pytest.mark.parametrize(("p", "expected"), [(1, math.inf), (2, 2.0), (math.inf, 1.0), (3, 1.5), (1.5, 3.0)])
def test_dual_exponents_of_common_p(p, expected):
    assert dual_exponent(p) == expected


@given(p=st.one_of(st.sampled_from(P), st.floats(1, exclude_min=True)))
def test_dual_exponents_are_conjugate(p):
    with mpmath.workdps(60):
        exact = (
            mpmath.mpf(1) if p == math.inf else mpmath.mpf(p) / (mpmath.mpf(p) - 1) if p > 1 else mpmath.inf
        )
    assert_allclose(dual_exponent(p), float(exact), rtol=4e-16)


@pytest.mark.parametrize("p", [0.99, math.nan, -1])
def test_p_below_1_is_an_error(lib, p):
    x = lib.from_numpy(np.ones((2, 2)), "float32")
    for bad in (lambda: dual_exponent(p), lambda: norm(x, p), lambda: penalty(x, p, 1.0)):
        with pytest.raises(ValueError, match=r"p must lie in \[1, inf\]"):
            bad()


def test_an_error_names_its_argument(lib):
    whole = lib.from_numpy(np.ones((2, 2), dtype="int32"))
    with pytest.raises(TypeError, match="x must be float16"):
        norm(whole, 2)
    with pytest.raises(TypeError, match="grad must be float16"):
        penalty(whole, 2, 1.0)
    with pytest.raises(TypeError, match=r"x\[0\] must be an array.*got float"):
        norm([1.0], 2)
    with pytest.raises(ValueError, match=r"sigma .*got -1"):
        penalty(lib.from_numpy(np.ones((2, 2)), "float32"), 2, -1)
    with pytest.raises(ValueError, match=r"batch_ndim must lie in 0..2, the number of axes of x"):
        norm(lib.from_numpy(np.ones((2, 2)), "float32"), 2, batch_ndim=3)
