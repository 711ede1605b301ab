"""The laws of the steepest step, on every library under test."""

import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.laws import LAWS, Case, assert_rows_close, cases, closed_form
from helpers.libraries import P, numpy_readonly
from lpfamily import certify, epsilon, error_log_odds
from lpfamily.libraries import on_numpy
from lpfamily.libraries import powers as powers_of_numpy
from lpfamily.libraries import rows as rows_of_numpy
from lpfamily.steepest import steepest
from lpfamily_reference.definitions import maximise_on_ball

PLANE = np.array([[3.0, -4.0], [1.0, 1.0], [0.0, -2.0], [0.0, 0.0]])


def case_of(lib, grad, p, sigma, dtype="float32"):
    floats = lib.floats[dtype]
    return Case(lib, floats, floats.round(grad), p, sigma, 0)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_epsilon(data, lib, law):
    law(epsilon, data.draw(cases(lib)))


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_scale_of_gradient_and_radius(lib, p, dtype):
    """A radius far from the gradient's scale must not meet an intermediate that overflows."""
    lowest, highest = math.log2(lib.floats[dtype].tiny), math.log2(lib.floats[dtype].largest)
    powers = np.exp2(np.round(np.linspace(lowest + 1, highest - 4, 17)))
    scale, sigma = np.meshgrid(powers, powers)
    rows = np.random.default_rng(1).standard_normal((scale.size, 9)) * scale.reshape(-1, 1)
    case = case_of(lib, rows, p, sigma.ravel(), dtype)
    assert_rows_close(case.step_rows(epsilon), closed_form(case.rows, p, case.radii), case)


@pytest.mark.parametrize("p", [4, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("slow", [False, True])
def test_numpy_takes_cube_roots_in_either_way(monkeypatch, slow, dtype, p):
    """On some processors NumPy's are slower than logarithms."""
    monkeypatch.setattr(powers_of_numpy, "_cube_roots_are_slow", lambda dtype: slow)
    on_numpy._kernel.cache_clear()
    try:
        test_every_scale_of_gradient_and_radius(numpy_readonly(), p, dtype)
    finally:
        on_numpy._kernel.cache_clear()


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1, [[0, -1], [0.5, 0.5], [0, -1], [0, 0]]),
        (2, [[0.6, -0.8], [0.5**0.5, 0.5**0.5], [0, -1], [0, 0]]),
        (math.inf, [[1, -1], [1, 1], [0, -1], [0, 0]]),
    ],
)
def test_steps_computed_by_hand(lib, p, expected):
    case = case_of(lib, PLANE, p, 0.25)
    assert_allclose(case.step(epsilon), 0.25 * np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1.05, 1.5, 2, 4, 30, math.inf])
def test_a_constrained_optimiser_gains_no_more(lib, p):
    rng = np.random.default_rng(2)
    for grad in rng.standard_normal(5), rng.standard_cauchy(8), np.array([3.0, -4.0]):
        case = case_of(lib, grad[None], p, 0.3, "float64")
        best = maximise_on_ball(grad, p, 0.3)
        assert_allclose(case.step(epsilon)[0] @ grad, best @ grad, rtol=1e-6)


@pytest.mark.parametrize("p", [p for p in P if 1 < p < math.inf])
def test_sixty_digits_agree(lib, p):
    rng = np.random.default_rng(3)
    near = 1 - 1e-13 * rng.integers(0, 40, 6)  # where p near 1 magnifies every rounding
    for grad in rng.standard_normal(6), near, np.exp2(rng.uniform(-900, 900, 6)), 1e-300 * rng.random(6):
        case = case_of(lib, grad[None], p, 0.3, "float64")
        with mpmath.workdps(60):
            size = [mpmath.mpf(float(entry)) for entry in abs(grad)]
            dual = mpmath.mpf(p) / (mpmath.mpf(p) - 1)
            norm = mpmath.fsum(entry**dual for entry in size) ** (1 / dual)
            exact = [float(mpmath.mpf(0.3) * (entry / norm) ** (dual - 1)) for entry in size]
        # entries below sigma * eps are not part of what the step promises: they round to its scale
        assert_allclose(case.step(epsilon)[0], np.sign(grad) * exact, rtol=20 * 2**-52, atol=0.3 * 2**-52)


@pytest.mark.parametrize("batch_ndim", [None, 0, 1, 2])
@given(data=st.data())
def test_examples_are_what_batch_ndim_says(data, lib, batch_ndim):
    p, seed = data.draw(st.sampled_from([1, 1.5, 2, math.inf])), data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    grad = lib.floats["float32"].round(rng.standard_normal((2, 3, 5)))
    split = grad.reshape(*{None: (2, 15), 0: (1, 30), 1: (2, 15), 2: (6, 5)}[batch_ndim])
    sigma = rng.random({None: (2,), 0: (), 1: (2,), 2: (2, 1)}[batch_ndim])  # broadcast along the second
    step = epsilon(lib.from_numpy(grad, "float32"), p, sigma, batch_ndim=batch_ndim)
    radii = np.broadcast_to(sigma, (2, 3) if batch_ndim == 2 else sigma.shape).reshape(-1)
    case = case_of(lib, split, p, radii)
    assert_rows_close(
        lib.to_numpy(step).reshape(split.shape), closed_form(split, p, radii.astype(np.float32)), case
    )


def test_one_axis_is_one_example(lib):
    grad = np.array([3.0, -4.0])
    assert_allclose(lib.to_numpy(epsilon(lib.from_numpy(grad, "float32"), 2, 1.0)), [0.6, -0.8], rtol=1e-6)


@given(data=st.data())
def test_sigma_may_be_a_number_or_any_array(data, lib):
    case = data.draw(cases(lib, kinds=("normal", "sparse")))
    numbers = [
        replace(case, grad=g[None], sigma=float(s)).step(epsilon)
        for g, s in zip(case.grad, case.radii, strict=True)
    ]
    expected = np.concatenate(numbers).reshape(case.rows.shape)
    for sigma in np.array(case.radii), lib.from_numpy(case.radii, case.floats.compute):
        with case.lib.scope():
            step = replace(case, sigma=sigma).step_rows(epsilon)
        assert_rows_close(step, expected, case)


@pytest.mark.parametrize("p", [1, 1.5, 2, 5, math.inf])
def test_a_bad_radius_on_a_device_spoils_its_row_alone(lib, p):
    if lib.name == "numpy":
        pytest.skip("NumPy's arrays are seen, so it is an error there")
    sigma = lib.from_numpy(np.array([1.0, -1.0, math.nan, math.inf]), "float32")
    step = lib.to_numpy(epsilon(lib.from_numpy(PLANE[[0, 1, 2, 1]], "float32"), p, sigma))
    assert_allclose(step[0], closed_form(PLANE[:1], p, [1])[0].astype(float), rtol=1e-6)
    nonzero = PLANE[[1, 2, 1]] != 0
    assert np.isnan(step[1:][nonzero]).all()
    zeros = lib.from_numpy(np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), "float32")
    if p < math.inf:  # there entries do not depend on each other
        assert np.isnan(lib.to_numpy(epsilon(zeros, p, lib.from_numpy(-np.ones(2), "float32")))).all()


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 4)])
def test_an_empty_array_gives_an_empty_array(lib, p, shape):
    grad = lib.from_numpy(np.zeros(shape), "float32")
    assert tuple(epsilon(grad, p, 1.0).shape) == shape
    assert tuple(epsilon(grad, p, 1.0, batch_ndim=0).shape) == shape


def test_an_array_without_axes_is_one_example(lib):
    grad = lib.from_numpy(np.array(-3.0), "float32")
    assert lib.to_numpy(epsilon(grad, 1.5, 0.5, batch_ndim=0)) == -0.5


@pytest.mark.parametrize("p", P)
def test_flushed_subnormals_are_zeros(lib, p):
    if not lib.flushes:
        pytest.skip("its subnormals are numbers: the laws cover them")
    rows = lib.from_numpy(np.array([[1e-39, 2e-39]]), "float32")
    assert_array_equal(lib.to_numpy(epsilon(rows, p, 1.0)), 0.0)


BAD_CALLS = [
    (lambda g: epsilon(g, 0.5, 1.0), ValueError, r"p must lie in \[1, inf\]; got 0.5"),
    (lambda g: epsilon(g, -math.inf, 1.0), ValueError, r"p must lie in \[1, inf\]; got -inf"),
    (lambda g: epsilon(g, math.nan, 1.0), ValueError, r"p must lie in \[1, inf\]; got nan"),
    (lambda g: epsilon(g, True, 1.0), TypeError, "p must be a Python number.*got True"),
    (lambda g: epsilon(g, "2", 1.0), TypeError, "p must be a Python number.*got '2'"),
    (lambda g: epsilon(g, 2 + 0j, 1.0), TypeError, "p must be a Python number"),
    (lambda g: epsilon(g, None, 1.0), TypeError, "p must be a Python number.*got None"),
    (lambda g: epsilon(g, 2, -1.0), ValueError, r"sigma .*must lie in \[0, .*got -1.0"),
    (lambda g: epsilon(g, 2, math.nan), ValueError, "sigma .*got nan"),
    (lambda g: epsilon(g, 2, math.inf), ValueError, "sigma .*got inf"),
    (lambda g: epsilon(g, 2, 1e39), ValueError, "sigma .*got 1e.39"),
    (lambda g: epsilon(g, 2, np.array([1.0, -2.0])), ValueError, "sigma .*-2"),
    (lambda g: epsilon(g, 2, np.array([1.0, math.nan])), ValueError, "sigma .*nan"),
    (lambda g: epsilon(g, 2, np.ones(3)), ValueError, r"sigma must .*batch axes \(2,\).*got shape \(3,\)"),
    (lambda g: epsilon(g, 2, np.ones((2, 2))), ValueError, r"sigma must .*got shape \(2, 2\)"),
    (lambda g: epsilon(g, 2, np.array([1j, 1])), TypeError, "sigma must be real; got complex128"),
    (lambda g: epsilon(g, 2, np.complex128(1)), TypeError, "sigma must be real; got complex128"),
    (lambda g: epsilon(g, 2, np.bool_(True)), TypeError, "sigma must be real; got bool"),
    (lambda g: epsilon(g, 2, g == 1), TypeError, "sigma must be real; got .*bool"),
    (lambda g: epsilon(g, 2, 10**400), ValueError, "sigma .*must lie in"),
    (lambda g: epsilon(np.ma.masked_equal([3.0, 4.0], 3), 2, 1.0), TypeError, "grad .*got MaskedArray"),
    (lambda g: epsilon(g, 2, [1.0, 2.0]), TypeError, "sigma must be an array.*got list"),
    (lambda g: epsilon(g, 2, "1"), TypeError, "sigma must be an array.*got str"),
    (lambda g: epsilon(g, 2, None), TypeError, "sigma must be an array.*got NoneType"),
    (lambda g: epsilon([1.0, 2.0], 2, 1.0), TypeError, r"grad\[0\] must be an array.*got float"),
    (lambda g: epsilon(1.0, 2, 1.0), TypeError, "grad must be an array.*got float"),
    (lambda g: epsilon(g, 2, 1.0, batch_ndim=3), ValueError, r"batch_ndim must lie in 0\.\.2.*got 3"),
    (lambda g: epsilon(g, 2, 1.0, batch_ndim=-1), ValueError, r"batch_ndim must lie in 0\.\.2.*got -1"),
    (lambda g: epsilon(g, 2, 1.0, batch_ndim=1.0), TypeError, "batch_ndim"),
    (lambda g: epsilon(g, 2, 1.0, batch_ndim=True), TypeError, "batch_ndim must be a whole number"),
    (lambda g: epsilon(g, 2, 1.0, mask=np.ones((2, 2))), TypeError, "mask must be boolean.*got .*float"),
    (
        lambda g: epsilon(g, 2, 1.0, mask=np.ones(3, bool)),
        ValueError,
        r"mask must broadcast.*\(2, 2\).*got \(3,\)",
    ),
    (lambda g: epsilon(g, 2, 1.0, mask=np.ones((3, 2, 2), bool)), ValueError, "mask must broadcast"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[message for *_, message in BAD_CALLS])
def test_an_error_says_what_was_given(lib, call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call(lib.from_numpy(np.ones((2, 2)), "float32"))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_only_real_floating_gradients_have_a_direction(lib, dtype):
    if (lib.name, dtype) == ("ndonnx", "complex64"):
        pytest.skip("it has no complex numbers")
    grad = lib.from_numpy(np.ones((2, 2), dtype))
    with pytest.raises(TypeError, match=f"grad must be float16, bfloat16, float32 or float64; got .*{dtype}"):
        epsilon(grad, 2, 1.0)


def test_arrays_of_another_library_are_an_error(lib):
    if lib.name == "numpy":
        pytest.skip("NumPy's arrays go with any")
    one, other = np.ones((2, 2)), lib.from_numpy(np.ones((2, 2)))
    message = "must be an array of numpy, as the array beside it is, or a NumPy array; got an array of"
    for call in (
        lambda: epsilon(one, 2, other[:, 0]),
        lambda: epsilon(one, 2, 1.0, x=other, bounds=(0, 1)),
        lambda: certify(one, other, 2, 1.0),
        lambda: error_log_odds(one, lib.from_numpy(np.zeros(2, int))),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_p_sigma_and_batch_ndim_may_be_numpy_or_huge_numbers(lib):
    with lib.scope():
        grad = lib.from_numpy(PLANE, "float64")
        step = lib.to_numpy(epsilon(grad, 2, 0.5))
        for sigma, batch_ndim in (np.float32(0.5), 1), (np.float16(0.5), np.int64(1)), (0.5, np.int8(1)):
            assert_array_equal(lib.to_numpy(epsilon(grad, 2, sigma, batch_ndim=batch_ndim)), step)
        assert_array_equal(
            lib.to_numpy(epsilon(grad, 10**400, 1.0)), lib.to_numpy(epsilon(grad, math.inf, 1.0))
        )


@pytest.mark.parametrize("p", [1.01, 2, 3, 30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_examples_lose_no_more_precision(lib, p, dtype):
    size = 300_001
    with lib.scope():
        step = lib.to_numpy(epsilon(lib.from_numpy(np.full((1, size), 0.7), dtype), p, 1.0))
    eps = lib.floats[dtype].eps
    assert_allclose(step, size ** (-1 / p), rtol=16 * eps)


@pytest.mark.parametrize("p", [2, Fraction(2), np.float32(2), np.int64(2), 2.0])
def test_p_is_any_real_number(lib, p):
    case = case_of(lib, PLANE, p, 1.0)
    assert_array_equal(case.step(epsilon), case_of(lib, PLANE, 2, 1.0).step(epsilon))


# NumPy's implementations against the definition that they replace.


@given(data=st.data(), per_block=st.integers(1, 4))
def test_numpy_blocks_agree_with_the_definition(data, per_block):
    case = data.draw(cases(numpy_readonly()))
    rows = case.rows.astype(case.floats.compute)
    sigma = case.radii.astype(rows.dtype)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of_numpy, "CACHE_BYTES", 3 * per_block * rows[0].nbytes)
        blocks = steepest(case.p, rows, sigma)
    with np.errstate(all="ignore"):
        definition = steepest.value(case.p, rows, sigma)
    assert_rows_close(blocks.astype(float), definition.astype(float), case)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(3, 200_000), (3000, 100)])
def test_numpy_blocks_agree_on_large_arrays(p, shape):
    rng = np.random.default_rng(4)
    rows = (rng.standard_normal(shape) * np.exp2(rng.integers(-140, 120, (shape[0], 1)))).astype(np.float32)
    sigma = np.exp2(rng.integers(-20, 20, (shape[0], 1))).astype(np.float32)
    with np.errstate(all="ignore"):
        definition = steepest.value(p, rows, sigma)
    assert_allclose(steepest(p, rows, sigma), definition, rtol=1e-4, atol=1e-9 * sigma.max())
