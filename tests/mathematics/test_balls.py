"""The nearest point of an Lp ball, and uniform samples of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from helpers.balls import (
    assert_uniform_in_the_ball,
    generator,
    keeps_nan_in_its_row,
    points,
    stays_in_the_ball,
)
from helpers.laws import dual, norms
from helpers.libraries import numpy_readonly
from helpers.libraries_under_test import DIFFERENTIABLE, UNDER_TEST
from helpers.mutants import check as check_law
from lpfamily import epsilon, project, sample

# The laws. A case's grad is the point v; its radius is often far from v's scale, and often close.


def leaves_points_of_the_ball_alone(project, case):
    y, inside = case.step_rows(project), norms(case.rows, case.p) <= case.radii * (1 - case.tolerance)
    # what a library flushes elsewhere may pass through here
    assert_array_equal(case.floats.seen(y[inside]), case.rows[inside])


def nothing_in_the_ball_is_nearer(project, case):
    # y is nearest to v if no z of the ball has <v - y, z> > <v - y, y>, and of these the largest is
    # sigma * ||v - y||_{p*}; both sides in units of sigma and of that norm
    y = case.step_rows(project)
    rest = case.rows.astype(np.longdouble) - y
    size, radii = norms(rest, dual(case.p)), case.radii.astype(np.longdouble)
    # v - y is known to the rounding of y
    rounding = 4 * case.tolerance * radii * case.rows.shape[1] ** (1 - float(1 / dual(case.p)))
    outside = (norms(case.rows, case.p) > radii * (1 + case.tolerance)) & (
        radii > 64 * case.floats.least / case.floats.eps
    )
    outside &= size > rounding
    gap = 1 - np.sum(
        (rest / np.where(size > 0, size, 1)[:, None]) * (y / np.where(radii > 0, radii, 1)[:, None]), axis=1
    )
    allowed = 16 * case.tolerance * (1 + norms(y, 1) / np.where(size > 0, size, 1))
    bad = outside & ~(np.abs(gap) <= allowed)
    assert not bad.any(), f"gap {gap[bad]}, allowed {allowed[bad]}\n{case}"


LAWS = [
    stays_in_the_ball,
    leaves_points_of_the_ball_alone,
    nothing_in_the_ball_is_nearer,
    keeps_nan_in_its_row,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_project(data, lib, law):
    law(project, data.draw(points(lib)))


@pytest.mark.parametrize("p", [1.3, 1.5, 2, 3, 6])
def test_a_constrained_optimiser_comes_no_nearer(lib, p):
    rng = np.random.default_rng(0)
    for _ in range(5):
        v, radius = rng.standard_normal(6), rng.uniform(0.2, 1)
        with lib.scope():
            y = lib.to_numpy(project(lib.from_numpy(v, "float64"), p, radius))
        best = minimize(
            lambda z, v=v: np.sum((z - v) ** 2),
            v * radius / np.linalg.norm(v, p),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda z, r=radius: 1 - np.sum(np.abs(z / r) ** p)},
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        assert_allclose(y, best, atol=1e-4)
        assert np.sum((y - v) ** 2) <= np.sum((best - v) ** 2) * (1 + 1e-6)


@pytest.mark.parametrize("p", [1, 1.1, 1.5, 2, 3, 6, math.inf])
def test_inside_a_box_a_constrained_optimiser_comes_no_nearer(lib, p):
    rng = np.random.default_rng(0)
    for case in range(8):
        v, radius = rng.standard_normal(6), rng.uniform(0.2, 1.5)
        v[: case % 3] = 0  # what does not move takes nothing from the ball
        x = rng.uniform(size=6)
        with lib.scope():
            arrays = (lib.from_numpy(a, "float64") for a in (v, x))
            y = lib.to_numpy(project(next(arrays), p, radius, x=next(arrays), bounds=(0.0, 1.0)))
        assert norms(y[None], p)[0] <= radius * (1 + 1e-12)
        assert np.all((x + y > -1e-12) & (x + y < 1 + 1e-12))
        # y = a - b with a, b >= 0, so that the norm is smooth also at p = 1
        best = minimize(
            lambda ab, v=v: np.sum((ab[:6] - ab[6:] - v) ** 2),
            np.zeros(12),
            method="SLSQP",
            bounds=[(0, min(1 - low, radius)) for low in x] + [(0, min(low, radius)) for low in x],
            constraints=[]
            if p == math.inf
            else {"type": "ineq", "fun": lambda ab, r=radius: 1 - np.sum(((ab[:6] + ab[6:]) / r) ** p)},
            options={"ftol": 1e-14, "maxiter": 1000},
        ).x
        best = best[:6] - best[6:]
        best /= max(1, float(norms(best[None], p)[0] / radius))  # where the optimiser stops outside the ball
        assert np.sum((y - v) ** 2) <= np.sum((best - v) ** 2) * (1 + 1e-6)
        assert_allclose(y, best, atol=2e-4)


def test_with_a_multiplier_that_underflows_it_stays_in_ball_and_box(lib):
    rng = np.random.default_rng(0)
    v, x, sigma = rng.standard_normal((400, 3)), rng.random((400, 3)), 10 ** rng.uniform(-3, 0, 400)
    v[0], x[0], sigma[0] = (-0.33, 0.72, 2.81), (0.36, 0.45, 0.99), 0.02
    with lib.scope():
        at, radius = lib.from_numpy(x, "float64"), lib.from_numpy(sigma, "float64")
        y = lib.to_numpy(project(lib.from_numpy(v, "float64"), 1.1, radius, x=at, bounds=(0.0, 1.0)))
    inside = np.minimum(np.abs(v), np.where(v > 0, 1 - x, x))
    expected = np.minimum(norms(inside, 1.1).astype(float), sigma)
    assert_allclose(norms(y, 1.1).astype(float), expected, rtol=1e-9)
    assert np.all(np.abs(y) <= inside * (1 + 1e-12))


def test_projections_computed_by_hand(lib):
    v = lib.from_numpy(np.array([3.0, -4.0, 0.5]), "float32")
    for p, expected in (
        (1, [1, -2, 0]),
        (2, np.array([3, -4, 0.5]) * 3 / 25.25**0.5),
        (math.inf, [3, -3, 0.5]),
    ):
        assert_allclose(lib.to_numpy(project(v, p, 3.0)), expected, rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1 + 1e-12, 1.1, 1.5, 2, 3, 1e9, math.inf])
def test_project_commutes_with_scaling(lib, p):
    v = np.random.default_rng(1).standard_normal((5, 9))
    expected = lib.to_numpy(project(lib.from_numpy(v, "float32"), p, 0.7))
    for scale in 2.0**-100, 2.0**100:
        y = project(lib.from_numpy(v * scale, "float32"), p, 0.7 * scale)
        assert_allclose(lib.to_numpy(y) / scale, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1, 1.001, 1.5, 2, 10, math.inf])
@pytest.mark.parametrize("distance", [1e3, 1e6, 1e12, 1e30])
def test_far_from_ball_and_box_it_is_the_steepest_step_there(p, distance):
    rng = np.random.default_rng(5)
    v = (rng.standard_normal((200, 20)) * distance).astype(np.float32)
    x = rng.random(v.shape).astype(np.float32)
    y, eps = (function(v, p, 1.0, x=x, bounds=(0, 1)).astype(float) for function in (project, epsilon))
    assert np.all(norms(y, p) <= 1 + 1e-6)
    assert_allclose(np.sum(y * v, axis=1), np.sum(eps * v, axis=1), rtol=2 / distance + 1e-5)


def test_infinite_entries_in_a_box_leave_budget_to_others():
    y = project(np.array([[3.0, 0.1, -math.inf]]), 1, 1.2, x=0.5, bounds=(0, 1))
    assert_allclose(y, [[0.5, 0.1, -0.5]], atol=1e-12)


def test_an_infinite_entry_takes_any_budget(lib):
    for sigma in 1e-30, 1.0, 1e11, 1e30:
        y = project(lib.from_numpy(np.array([[math.inf, 1, 0]]), "float32"), 1, sigma)
        assert_allclose(lib.to_numpy(y), [[sigma, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_masked_entries_are_zero_and_the_others_as_without_them(lib, p):
    rng = np.random.default_rng(3)
    v, x, mask = rng.standard_normal((4, 6)), rng.random((4, 6)), rng.random(6) < 0.6
    wild = np.where(mask, x, 100.0)
    with lib.scope():
        inside, all_of_it, kept, at = (
            lib.from_numpy(a, "float64") for a in (v[:, mask], v, x[:, mask], wild)
        )
        for box, whole in (
            ({}, {}),
            ({"x": kept, "bounds": (0, 1)}, {"x": at, "bounds": (0, 1)}),
        ):
            y = lib.to_numpy(project(all_of_it, p, 0.7, mask=lib.from_numpy(mask), **whole))
            assert_allclose(y[:, mask], lib.to_numpy(project(inside, p, 0.7, **box)), atol=1e-9)
            assert_array_equal(y[:, ~mask], 0)


def test_infinite_entries_share_the_budget_equally(lib):
    v = lib.from_numpy(np.array([[math.inf, 1, -math.inf, 2]]), "float32")
    for p, share in (1, 0.5), (2, 0.5**0.5), (3, 0.5 ** (1 / 3)):
        assert_allclose(lib.to_numpy(project(v, p, 1.0)), [[share, 0, -share, 0]], rtol=1e-6)


def test_batch_ndim_sets_the_batch_axes(lib):
    v = np.random.default_rng(2).standard_normal((2, 3, 5))
    for batch_ndim, shape in (None, (2, 15)), (0, (1, 30)), (2, (6, 5)):
        y = lib.to_numpy(project(lib.from_numpy(v, "float32"), 1.5, 0.5, batch_ndim=batch_ndim))
        assert_allclose(norms(y.reshape(shape), 1.5).astype(float), 0.5, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_an_empty_array_gives_an_empty_array(lib, p):
    for shape in (0,), (0, 3), (3, 0), (2, 0, 4):
        assert tuple(project(lib.from_numpy(np.zeros(shape), "float32"), p, 1.0).shape) == shape


# Samples.


@pytest.fixture(
    params=[library for library in UNDER_TEST if library.name in ("numpy", "torch", "jax")], ids=str
)
def drawing(request):
    return request.param


@pytest.mark.parametrize(("p", "d"), [(1, 1), (1, 20), (1.1, 2), (2, 5), (3, 20), (100, 2), (math.inf, 5)])
def test_samples_are_uniform_in_the_ball(drawing, p, d):
    assert_uniform_in_the_ball(sample, drawing, p, d)


@pytest.mark.parametrize("p", [2, 1e9])
def test_each_example_has_a_sample_in_its_ball(drawing, p):
    for batch_ndim, shape in (None, (4, 15)), (0, (1, 60)), (2, (12, 5)):
        x = drawing.to_numpy(sample((4, 3, 5), p, 0.5, generator(drawing, 1), batch_ndim=batch_ndim))
        assert x.shape == (4, 3, 5)
        size = norms(x.reshape(shape), p)
        assert np.all((size > 0) & (size <= 0.5 * (1 + 1e-5)))
    radii = np.array([0.0, 1e-30, 1.0, 1e30])
    size = norms(drawing.to_numpy(sample((4, 15), p, radii, generator(drawing, 1))), p)
    assert np.all(size <= radii * (1 + 1e-5))
    assert np.all(size[1:] > radii[1:] * 0.1)


def test_the_same_seed_is_the_same_sample(drawing):
    one, other, third = (
        drawing.to_numpy(sample((3, 4), 1.5, 1.0, generator(drawing, seed))) for seed in (1, 1, 2)
    )
    assert_array_equal(one, other)
    assert np.all(one != third)


@pytest.mark.parametrize("lib", DIFFERENTIABLE, ids=str)
def test_a_sample_is_proportional_to_the_radius_for_derivatives_too(lib):
    sigma = lib.from_numpy(0.5, "float32")
    slope = lib.derivative(lambda radius: sample((3, 4), 1.5, radius, generator(lib, 1)).sum())(sigma)
    assert_allclose(float(slope), float(sample((3, 4), 1.5, 1.0, generator(lib, 1)).sum()), rtol=1e-5)


# a key is an array, a generator is none
@pytest.mark.parametrize("lib", [library for library in UNDER_TEST if library.name == "jax"], ids=str)
def test_a_key_may_be_traced(lib):
    keys = [generator(lib, seed) for seed in (1, 2)]
    expected = np.stack([lib.to_numpy(sample((3, 4), 1.5, 0.5, key)) for key in keys])
    several = lib.vmap(lambda key: sample((3, 4), 1.5, 0.5, key))
    found = lib.jit(several)(lib.xp.stack(keys))
    assert_allclose(lib.to_numpy(found), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_an_empty_shape_gives_an_empty_sample(drawing, shape):
    assert tuple(sample(shape, 1.5, 1.0, generator(drawing, 0)).shape) == shape


def test_an_error_says_what_was_given():
    for rng in 0, None, np.random.RandomState(0):
        with pytest.raises(TypeError, match=f"rng must be a NumPy or torch generator.*{type(rng).__name__}"):
            sample((2, 3), 2, 1.0, rng)
    with pytest.raises(ValueError, match="p must lie"):
        sample((2, 3), 0.5, 1.0, np.random.default_rng(0))
    assert sample(np.int64(3), 2, 1.0, np.random.default_rng(0)).shape == (3,)
    with pytest.raises(ValueError, match="p must lie"):
        project(np.ones(3), 0.5, 1.0)
    with pytest.raises(TypeError, match="v must be float16, bfloat16, float32 or float64"):
        project(np.ones(3, int), 2, 1.0)


# Mutants: each breaks a law.


def scaled_to_the_ball(v, p, sigma):
    rows = v.reshape(len(v), -1)
    size = np.maximum(norms(rows, p), 1e-300)
    factor = np.minimum(1, np.broadcast_to(sigma, len(v)) / size)[:, None]
    return (rows * factor).astype(v.dtype).reshape(v.shape)


def always_on_the_sphere(v, p, sigma):
    y = project(v * v.dtype.type(1.5), p, sigma)
    return np.where(np.isnan(v), v, y).astype(v.dtype)


def beyond_the_ball(v, p, sigma):
    return project(v, p, 1.01 * np.asarray(sigma))


def uniform_on_the_sphere(shape, p, sigma, rng):
    x = sample(shape, p, 1.0, rng)
    return sigma * x / norms(x, p)[:, None]


def projected_normals(shape, p, sigma, rng):
    z = rng.standard_normal(shape)
    return sigma * z / norms(z, p)[:, None] * rng.random((shape[0], 1)) ** (1 / shape[1])


def radius_of_one_dimension(shape, p, sigma, rng):
    x = sample(shape, p, 1.0, rng)
    return sigma * x / norms(x, p)[:, None] * rng.random((shape[0], 1))


MUTANTS = [
    (scaled_to_the_ball, nothing_in_the_ball_is_nearer),
    (always_on_the_sphere, leaves_points_of_the_ball_alone),
    (beyond_the_ball, stays_in_the_ball),
]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda function: function.__name__)
def test_a_mistake_breaks_its_law(mutant, law):
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        check_law(law, mutant, points(numpy_readonly()))


@pytest.mark.parametrize("mutant", [uniform_on_the_sphere, projected_normals, radius_of_one_dimension])
def test_a_biased_sample_breaks_the_law(mutant):
    with pytest.raises(AssertionError):
        assert_uniform_in_the_ball(mutant, numpy_readonly(), 1.0, 5)
