"""Weighted balls: eps / scale obeys the laws that eps obeys in a plain ball."""

import functools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from helpers import boxes
from helpers.balls import (
    assert_uniform_in_the_ball,
    generator,
    keeps_nan_in_its_row,
    points,
    stays_in_the_ball,
)
from helpers.laws import LAWS, attains_the_gain, cases, dual, norms, uses_the_budget
from helpers.libraries import numpy_readonly
from helpers.libraries_under_test import DIFFERENTIABLE, NAMES, UNDER_TEST
from helpers.mutants import check as check_law
from lpfamily import ascend, certify, epsilon, norm, penalty, project, robustness, sample

EXPONENTS = 1, 1.1, 1.5, 2, 3, 40, math.inf
SCALE = np.array([0.2, 3.0, 0.0, 1.0, 0.5, 40.0])


# A scale of powers of two rounds nothing: in its units every law of the plain step holds, entry by entry.


def in_units(lib, epsilon, floats):
    """Return a step that equals the plain one if epsilon is right about scales."""

    def of_array(grad, p, sigma, *, x=None, bounds=None, **options):
        exponents = (np.arange(math.prod(grad.shape)) % 5 - (2 if bounds is None else 0)).reshape(grad.shape)
        radii = sigma if isinstance(sigma, float | np.ndarray) else lib.to_numpy(sigma)
        radii = np.broadcast_to(radii, grad.shape[:1]).reshape(-1, *[1] * (grad.ndim - 1))
        exact = (radii < floats.largest / 16) & ((radii > 1e3 * floats.tiny) | (radii == 0))
        for each in map(lib.to_numpy, (grad,) if x is None else (grad, x, *bounds)):
            size = np.abs(each)
            exact = (
                exact
                & ((size == 0) | (size > 16 * floats.tiny))
                & ((size < floats.largest / 16) | (size == math.inf))
            )
        scale = lib.from_numpy(np.where(exact, 2.0**exponents, 1.0), floats.name)
        if x is not None:
            options |= {"x": x * scale, "bounds": tuple(bound * scale for bound in bounds)}
        return epsilon(grad / scale, p, sigma, scale=scale, **options) / scale

    return of_array


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_every_law_of_the_step_holds_in_units_of_the_scale(data, lib, law):
    case = data.draw(cases(lib))
    law(in_units(lib, epsilon, case.floats), case)


BOX_LAWS = [
    boxes.stays_in_ball_and_box,
    boxes.attains_the_most,
    boxes.loses_nothing_to_clipping,
]


@pytest.mark.parametrize("law", BOX_LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_every_law_of_the_step_in_a_box_holds_in_units_of_the_scale(data, lib, law):
    box = data.draw(boxes.boxes(lib))
    law(in_units(lib, epsilon, box.case.floats), box)


PROJECTION_LAWS = [stays_in_the_ball, keeps_nan_in_its_row]


@pytest.mark.parametrize("law", PROJECTION_LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_a_weighted_projection_keeps_laws_of_the_plain_one(data, lib, law):
    case = data.draw(points(lib))
    law(in_units(lib, project, case.floats), case)


def drawn(lib, *seeds, shape=(4, 6), dtype="float64"):
    return [lib.from_numpy(np.random.default_rng(seed).standard_normal(shape), dtype) for seed in seeds]


# Exact by construction.


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_scale_of_one_changes_nothing(lib, p):
    grad, x = drawn(lib, 1, 2)
    with lib.scope():
        for options in {}, {"x": x, "bounds": (-4.0, 4.0)}:
            for one in 1, np.ones(6), lib.from_numpy(np.ones((4, 6)), "float64"):
                found = epsilon(grad, p, 0.7, scale=one, **options)
                assert_array_equal(lib.to_numpy(found), lib.to_numpy(epsilon(grad, p, 0.7, **options)))
                found = project(grad, p, 0.7, scale=one, **options)
                assert_allclose(
                    lib.to_numpy(found),
                    lib.to_numpy(project(grad, p, 0.7, **options)),
                    rtol=1e-12,
                    atol=1e-14,
                )
        assert_array_equal(lib.to_numpy(norm(grad, p, scale=1.0)), lib.to_numpy(norm(grad, p)))
        assert_array_equal(lib.to_numpy(penalty(grad, p, 0.7, scale=1)), lib.to_numpy(penalty(grad, p, 0.7)))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize(
    ("sigma", "scale"), [(0.7, 2.5), (0.0, 1e300), (1e-200, 1e180), (2.0**600, 1e-180), (1e-200, 1e200)]
)
def test_a_number_scales_as_an_array_of_it(lib, p, sigma, scale):
    grad, x = drawn(lib, 1, 2)
    with lib.scope():
        for box in {}, {"x": x, "bounds": (-4.0, 4.0)}:
            for function in epsilon, project:
                by_number = lib.to_numpy(function(grad, p, sigma, scale=scale, **box))
                by_array = lib.to_numpy(function(grad, p, sigma, scale=np.full(6, scale), **box))
                assert_allclose(by_number, by_array, rtol=1e-9, atol=1e-12 * sigma * scale)
        gains = (penalty(grad, p, sigma, scale=each) for each in (scale, np.full(6, scale)))
        assert_allclose(*map(lib.to_numpy, gains), rtol=1e-12)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("function", [epsilon, project])
def test_a_scale_of_zero_is_a_mask(lib, function, p):
    """Entries that stay may have any value."""
    moves = np.arange(6) != 2
    with lib.scope():
        wild = lib.from_numpy(
            np.where(moves, np.random.default_rng(1).standard_normal((4, 6)), math.nan), "float64"
        )
        x = drawn(lib, 2)[0]
        scale, mask = lib.from_numpy(np.where(moves, SCALE + 0.1, 0.0), "float64"), lib.from_numpy(moves)
        for options in {}, {"x": x, "bounds": (-4.0, 4.0)}:
            found = lib.to_numpy(function(wild, p, 0.7, scale=scale, **options))
            expected = lib.to_numpy(function(wild, p, 0.7, scale=SCALE + 0.1, mask=mask, **options))
        assert_array_equal(found, expected)
        assert_array_equal(found[:, 2], 0)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_may_leave_the_range_of_the_dtype(lib, p, dtype):
    """Where they do, budget, gain and penalty are those of long floats."""
    rng, floats = np.random.default_rng(3), lib.floats[dtype]
    size = np.exp2(rng.uniform(math.log2(floats.tiny), math.log2(floats.largest) - 1, (60, 9)))
    scale = np.exp2(rng.uniform(math.log2(floats.tiny) + 30, math.log2(floats.largest) - 30, size.shape))
    with np.errstate(over="ignore"):
        scale[:20] = np.exp2(rng.uniform(-30, 30, (20, 9))) / size[:20]  # products that a sum holds
    scale[20:40] = np.exp2(rng.uniform(0, 9, (20, 9))) * np.where(
        np.arange(20)[:, None] % 2, scale[20:40, :1], 1e-30
    )
    grad, scale = floats.round(size * rng.choice([-1, 1], size.shape)), floats.round(scale)
    with lib.scope():
        g, s = (lib.from_numpy(a, dtype) for a in (grad, scale))
        eps = epsilon(g, p, 2.0**-20, scale=s)
        gain, used = lib.to_numpy(penalty(g, p, 2.0**-20, scale=s)), lib.to_numpy(norm(eps, p, scale=s))
        judged = lib.to_numpy(certify(g, eps, p, 2.0**-20, scale=s).gain)
        step = lib.to_numpy(eps).astype(np.longdouble)
    seen = np.abs(step.astype(float)) > 64 * floats.tiny
    units = step / scale
    rows = np.all(np.isfinite(step.astype(float)), axis=1) & np.all(seen | (step == 0), axis=1)
    assert rows.sum() > 15
    rtol = 512 * floats.eps
    assert_allclose(norms(units[rows], p).astype(float), 2.0**-20, rtol=rtol)
    assert_allclose(used[rows], 2.0**-20, rtol=rtol)
    most = 2.0**-20 * norms(grad.astype(np.longdouble) * scale, dual(p))
    assert_allclose(np.sum(grad * step, axis=1)[rows] / most[rows], 1, rtol=rtol)
    assert_allclose(judged[rows], 1, rtol=rtol)
    fits = (most < floats.largest) & (most > 64 * floats.tiny)
    assert_allclose(gain[fits], most[fits].astype(float), rtol=rtol)
    assert np.all(gain[most > floats.largest] == math.inf)


# Comparisons with an optimiser.


def most(grad, p, radius, scale, room):
    """Maximise <grad, eps> over eps >= 0, on which the norm is smooth also at p = 1."""
    ball = {"type": "ineq", "fun": lambda eps: 1 - np.sum((eps / scale / radius) ** p)}
    best = minimize(
        lambda eps: -grad @ eps,
        np.zeros(6),
        jac=lambda eps: -grad,
        method="SLSQP",
        bounds=[(0, side) for side in room],
        constraints=[] if p == math.inf else ball,
        options={"ftol": 1e-13, "maxiter": 500},
    ).x
    return best / max(1, float(norms((best / scale)[None], p)[0] / radius))


@pytest.mark.parametrize("p", [1, 1.3, 2, 3, 6, math.inf])
def test_a_constrained_optimiser_gains_no_more_in_a_box_and_over_leaves(lib, p):
    rng = np.random.default_rng(10)
    for _ in range(4):
        grad, scale, radius = rng.standard_normal(6), np.exp(rng.uniform(-2, 2, 6)), rng.uniform(0.2, 2)
        x = rng.uniform(size=6)

        def tree(row):
            a, b = (lib.from_numpy(part[None], "float64") for part in (row[:2], row[2:]))
            return {"a": a, "b": [b]}

        with lib.scope():
            step = epsilon(tree(grad), p, radius, scale=tree(scale), x=tree(x), bounds=(0.0, 1.0))
            step = np.concatenate([lib.to_numpy(each)[0] for each in (step["a"], step["b"][0])])
        assert norms((step / scale)[None], p)[0] <= radius * (1 + 1e-12)
        assert np.all((x + step > -1e-12) & (x + step < 1 + 1e-12))
        room = np.minimum(np.where(grad > 0, 1 - x, x), radius * scale)
        best = most(np.abs(grad), p, radius, scale, room)
        assert grad @ step >= np.abs(grad) @ best * (1 - 1e-6)


def nothing_in_the_weighted_ball_is_nearer(project):
    rng = np.random.default_rng(4)
    for p in 1, 1.1, 1.5, 2, 3, 6, math.inf:
        for case in range(6):
            v, s, radius = rng.standard_normal(6), np.exp(rng.uniform(-2, 2, 6)), rng.uniform(0.2, 1.5)
            x = rng.uniform(size=6)
            low, high = (-math.inf, math.inf) if case % 2 else (0.0, 1.0)
            y = project(v, p, radius, scale=s, x=x, bounds=(low, high))
            assert norms((y / s)[None], p)[0] <= radius * (1 + 1e-12)
            assert np.all((x + y >= low - 1e-12) & (x + y <= high + 1e-12))
            sides = np.stack([np.maximum(low - x, -radius * s), np.minimum(high - x, radius * s)], axis=1)
            # y = a - b with a, b >= 0, so that the norm is smooth also at p = 1
            best = minimize(
                lambda ab, v=v: np.sum((ab[:6] - ab[6:] - v) ** 2),
                np.zeros(12),
                method="SLSQP",
                bounds=[(0, side) for side in (*sides[:, 1], *-sides[:, 0])],
                constraints=[]
                if p == math.inf
                else {
                    "type": "ineq",
                    "fun": lambda ab, s=s, r=radius, p=p: 1 - np.sum(((ab[:6] + ab[6:]) / s / r) ** p),
                },
                options={"ftol": 1e-14, "maxiter": 1000},
            ).x
            best = best[:6] - best[6:]
            best /= max(1, float(norms((best / s)[None], p)[0] / radius))
            assert np.sum((y - v) ** 2) <= np.sum((best - v) ** 2) * (1 + 1e-6)
            assert_allclose(y, best, atol=5e-4)


def test_a_constrained_optimiser_comes_no_nearer(lib):
    def of_library(v, p, radius, scale, x, bounds):
        with lib.scope():
            v, scale, x = (lib.from_numpy(each[None], "float64") for each in (v, scale, x))
            return lib.to_numpy(project(v, p, radius, scale=scale, x=x, bounds=bounds))[0]

    nothing_in_the_weighted_ball_is_nearer(of_library)


@pytest.mark.parametrize("p", [1, 1.1, 1.5, 2, 3, 6])
@pytest.mark.parametrize("distance", [1e3, 1e8])
def test_far_from_the_ball_the_nearest_point_is_the_steepest_step(p, distance):
    rng = np.random.default_rng(5)
    v, s = rng.standard_normal((50, 20)) * distance, np.exp(rng.uniform(-2, 2, 20))
    y, eps = project(v, p, 1.0, scale=s), epsilon(v, p, 1.0, scale=s)
    assert_allclose(norm(y, p, scale=s), 1, rtol=1e-12)
    assert_allclose(np.sum(y * v, axis=1), np.sum(eps * v, axis=1), rtol=200 / distance)


# Derivatives.


@pytest.fixture(params=DIFFERENTIABLE, ids=str)
def autodiff(request):
    return request.param


CALLS = {
    "epsilon": lambda x, p, r, s: epsilon(x, p, r, scale=s),
    "epsilon in a box": lambda x, p, r, s: epsilon(x, p, r, scale=s, x=0.0, bounds=(-0.3, 0.4)),
    "penalty": lambda x, p, r, s: penalty(x, p, r, scale=s),
    "norm": lambda x, p, r, s: norm(x, p, scale=s),
    "project": lambda x, p, r, s: project(x, p, r, scale=s),
    "project in a box": lambda x, p, r, s: project(x, p, r, scale=s, x=0.0, bounds=(-0.3, 0.4)),
}


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("name", CALLS)
def test_derivatives_are_central_differences(autodiff, name, p):
    """The derivatives with respect to the input, the radius and the scale."""
    rng, function = np.random.default_rng(6), CALLS[name]
    point, scale = rng.standard_normal((2, 5)), np.exp(rng.uniform(-1, 1, (2, 5)))
    operands = [point, np.array([0.5, 0.8]), scale]
    with autodiff.scope():
        given = [autodiff.from_numpy(each, "float64") for each in operands]
        shape = tuple(function(given[0], p, *given[1:]).shape)
        weights = autodiff.from_numpy(rng.standard_normal(shape), "float64")

        def total(operands):
            return autodiff.xp.sum(weights * function(operands[0], p, *operands[1:]))

        found = autodiff.jit(autodiff.derivative(total))(given)
        for k, operand in enumerate(operands):
            along = rng.standard_normal(operand.shape)
            moved = (autodiff.from_numpy(operand + h * along, "float64") for h in (1e-6, -1e-6))
            ends = [float(total([*given[:k], each, *given[k + 1 :]])) for each in moved]
            slope = np.sum(autodiff.to_numpy(found[k]) * along)
            assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_vmap_is_the_batch_of_examples(autodiff, p):
    """Traced scales too."""
    with autodiff.scope():
        grad, x = drawn(autodiff, 1, 2)
        scale = autodiff.from_numpy(np.exp(np.random.default_rng(3).uniform(-1, 1, (4, 6))), "float64")

        def calls(grad, x, scale, batch_ndim):
            ball = {"batch_ndim": batch_ndim, "scale": scale}
            box = {"x": x, "bounds": (-4.0, 4.0)}
            return (
                epsilon(grad, p, 0.5, **ball),
                epsilon(grad, p, 0.5, **ball, **box),
                project(grad, p, 0.5, **ball),
                penalty(grad, p, 0.5, **ball),
            )

        mapped = autodiff.jit(autodiff.vmap(lambda *each: calls(*each, 0)))(grad, x, scale)
        for one, other in zip(mapped, calls(grad, x, scale, 1), strict=True):
            assert_allclose(autodiff.to_numpy(one), autodiff.to_numpy(other), rtol=1e-10, atol=1e-13)


@pytest.mark.torch
@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
@pytest.mark.parametrize("p", [1.5, math.inf])
def test_torch_compiles_weighted_functions_whole(p):
    import torch

    torch._dynamo.reset()

    def calls(grad, scale):
        box = {"x": 0.5, "bounds": (0.0, 1.0)}
        return (
            epsilon(grad, p, 0.5, scale=scale),
            epsilon(grad, p, 0.5, scale=2.0, **box),
            norm(grad, p, scale=scale),
        )

    grad, scale = torch.randn(4, 6), torch.rand(6) + 0.1
    compiled = torch.compile(calls, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(grad, scale), calls(grad, scale))


# Samples, certificates, ascents.


@pytest.mark.parametrize(("p", "d"), [(1, 5), (1.5, 3), (2, 5), (math.inf, 4)])
def test_samples_are_uniform_in_the_weighted_ball(p, d):
    """Also among the entries that move, if some do not."""
    scale = np.append(np.exp2(np.arange(d)), 0.0)

    def in_units(shape, p, sigma, rng):
        points = sample((shape[0], shape[1] + 1), p, sigma, rng, scale=scale)
        assert not points[:, -1].any()
        return points[:, :-1] / scale[:-1]

    assert_uniform_in_the_ball(in_units, numpy_readonly(), p, d)


@pytest.mark.parametrize(
    "lib", [each for each in UNDER_TEST if each.name in ("numpy", "torch", "jax")], ids=str
)
def test_a_sample_is_scale_times_that_of_the_plain_ball(lib):
    for scale in 4.0, np.full(5, 4.0), lib.from_numpy(np.full((3, 5), 4.0), "float32"):
        found = sample((3, 5), 1.5, 0.5, generator(lib, 1), scale=scale)
        plain = sample((3, 5), 1.5, 0.5, generator(lib, 1))
        assert found.dtype == plain.dtype
        assert_array_equal(lib.to_numpy(found), 4 * lib.to_numpy(plain))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("box", [{}, {"x": 0.5, "bounds": (0, 1)}], ids=["ball", "box"])
def test_a_certificate_knows_the_weighted_ball(lib, p, box):
    with lib.scope():
        (grad,) = drawn(lib, 1)
        step = epsilon(grad, p, 0.1, scale=SCALE, **box)
        found = certify(grad, step, p, 0.1, scale=SCALE, **box)
        assert_allclose(lib.to_numpy(found.gain), 1, rtol=1e-9)
        assert np.all(lib.to_numpy(found.norm_used) <= 1 + 1e-12)
        assert not lib.to_numpy(found.underused).any()
        half = certify(grad, 0.5 * step, p, 0.1, scale=SCALE, **box)
        assert_allclose(lib.to_numpy(half.gain), 0.5, rtol=1e-9)
        assert lib.to_numpy(half.underused).all()
        moved = certify(grad, step + 1e-3, p, 0.1, scale=SCALE, **box)  # also the entry that must stay
        assert_array_equal(lib.to_numpy(moved.norm_used), math.inf)
        assert not lib.to_numpy(moved.nonfinite).any()
        other = certify(
            grad, epsilon(grad, p, 0.1, mask=lib.from_numpy(SCALE > 0), **box), p, 0.1, scale=SCALE, **box
        )
        assert np.all(lib.to_numpy(other.gain / other.norm_used) < 1)


TARGET = np.random.default_rng(7).standard_normal((5, 2, 3))


def near(lib, x, rows=slice(None)):
    """Return a concave value of each example, and its gradient."""
    rest = lib.from_numpy(TARGET, "float64")[rows, ...] - x
    return -lib.xp.sum(lib.xp.reshape(rest * rest, (rest.shape[0], -1)), axis=-1), 2 * rest


OPTIONS = {
    "adaptive": {},
    "in a box": {"bounds": (-1.0, 1.0)},
    "projected": {"method": "projected", "step_size": 0.2},
    "frank-wolfe": {"method": "frank-wolfe", "bounds": (-1.0, 1.0)},
    "from a start": {"start": True},
    "until it is enough": {"stop_above": -3.0, "bounds": (-1.0, 1.0)},
}


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_ascent_is_that_in_units_of_the_scale(lib, p, options):
    x = np.random.default_rng(8).uniform(-1, 1, TARGET.shape)
    scale = np.array([0.25, 2.0, 0.0])
    steps, floor = 2 if lib.slow else 6, np.array([0.25, 2.0, 1.0])
    with lib.scope():
        at, s = lib.from_numpy(x, "float64"), lib.from_numpy(floor, "float64")
        options = dict(options)
        if options.pop("start", False):
            options["start"] = lib.from_numpy(np.full(x.shape, 0.01) * (scale > 0), "float64")
        found = lib.to_numpy(ascend(lambda *x: near(lib, *x), at, p, 0.5, steps, scale=scale, **options))

        def in_units(u, rows=slice(None)):
            value, grad = near(lib, at[rows, ...] + s * u, rows)
            return value, s * grad

        if "bounds" in options:
            options["bounds"] = tuple((bound - at) / s for bound in options["bounds"])
        if "start" in options:
            options["start"] = options["start"] / s
        mask = lib.from_numpy(scale > 0)
        plain = ascend(in_units, 0 * at, p, 0.5, steps, mask=mask, **options)
        expected = lib.to_numpy(plain) * scale
    assert_allclose(found, expected, atol=1e-12)
    assert_array_equal(found[..., 2], 0)
    units = (found / np.array([0.25, 2.0, 1.0])).reshape(5, -1)
    assert np.all(norms(units, p) <= 0.5 * (1 + 1e-12))


def test_an_ascent_begins_anywhere_in_the_weighted_ball(lib):
    x = lib.from_numpy(np.zeros((5, 2, 3)), "float64")
    with lib.scope():
        found = ascend(
            lambda x: near(lib, x),
            x,
            2,
            0.5,
            1,
            start=np.random.default_rng(0),
            scale=np.array([0.25, 2.0, 1.0]),
            restarts=1,
            bounds=(-0.4, 0.4),
        )
        units = lib.to_numpy(found) / np.array([0.25, 2.0, 1.0])
    assert np.all(norms(units.reshape(5, -1), 2) <= 0.5 * (1 + 1e-12))


@pytest.mark.parametrize("bounds", [None, (-2.0, 2.0)])
def test_robustness_is_that_in_units_of_the_scale(bounds):
    """With powers of two the inputs in these units are exact, and so is every attack."""
    rng = np.random.default_rng(9)
    weights, x = rng.standard_normal((6, 3)), rng.uniform(-1, 1, (30, 6))
    y, scale = np.argmax(np.tanh(x) @ weights, axis=1), np.exp2(np.arange(6) - 2)

    def model(x, scale=1.0):
        hidden = np.tanh(x * scale)
        return hidden @ weights, lambda v: (v @ weights.T) * (1 - hidden**2) * scale

    options = {"p": (1, 2, math.inf), "sigma": (0.05, 0.3), "effort": "quick", "progress": False}
    found = robustness(model, x, y, bounds=bounds, scale=scale, **options)
    in_units = None if bounds is None else tuple(bound / scale for bound in bounds)
    plain = robustness(lambda u: model(u, scale), x / scale, y, bounds=in_units, **options)
    for p in options["p"]:
        assert_allclose(found.balls[p].smallest, plain.balls[p].smallest, rtol=0.02)
        assert_array_equal(found.balls[p].fooled, plain.balls[p].fooled)
        assert 0 < found.error(p, 0.05).value < 1


# Errors.


@pytest.mark.parametrize("function", [epsilon, project, norm, penalty])
def test_a_scale_that_is_negative_infinite_or_misshapen_is_refused(lib, function):
    (x,) = drawn(lib, 1)
    call = functools.partial(function, x, 2, **({} if function is norm else {"sigma": 1.0}))
    for scale in -1.0, math.nan, math.inf, np.array([1, 1, 1, 1, 1, -2.0]), np.array(math.nan):
        with pytest.raises(ValueError, match=r"scale must lie in \[0, 1.798e\+308\]"), lib.scope():
            call(scale=scale)
    (single,) = drawn(lib, 1, dtype="float32")
    for scale in 1e39, np.full(6, 1e39):
        with (
            pytest.raises(ValueError, match=r"scale must lie in \[0, 3.403e\+38\].* got .*1e\+39"),
            lib.scope(),
        ):
            function(single, 2, **call.keywords, scale=scale)
    with (
        pytest.raises(
            ValueError,
            match=re.escape(
                "scale must be a number or broadcast to the shape of the input, (4, 6); got (3,)"
            ),
        ),
        lib.scope(),
    ):
        call(scale=np.ones(3))
    for scale in np.ones(6, bool), np.ones(6, complex):
        with pytest.raises(TypeError, match="scale must be real"), lib.scope():
            call(scale=scale)


def test_a_bad_scale_that_cannot_be_read_makes_its_example_nan(lib):
    (x,) = drawn(lib, 1)
    scale = np.ones((4, 6))
    scale[1, 2], scale[3, 0] = -1.0, math.nan
    with lib.scope():
        given = lib.from_numpy(scale, "float64")
        if isinstance(given, np.ndarray) or lib.name == "torch":  # whose values are seen
            return
        for p in 1, 2, math.inf:
            for made in (
                epsilon(x, p, 1.0, scale=given),
                project(x, p, 1.0, scale=given),
                norm(x, p, scale=given),
            ):
                bad = np.isnan(lib.to_numpy(made).reshape(4, -1))
                assert_array_equal(bad, np.broadcast_to([[False], [True], [False], [True]], bad.shape))


def test_a_radius_for_every_entry_is_refused_with_what_to_use(lib):
    with pytest.raises(ValueError, match="scale"), lib.scope():
        epsilon(drawn(lib, 1)[0], 2, np.ones(6))


# Mutants: each breaks a law.


def on_the_wrong_side(grad, p, sigma, *, scale, **options):
    return epsilon(grad, p, sigma, scale=1 / scale, **options)


def of_the_gradient_alone(grad, p, sigma, *, scale, **options):
    return epsilon(grad * scale, p, sigma, **options)


def of_the_step_alone(grad, p, sigma, *, scale, **options):
    return scale * epsilon(grad, p, sigma, **options)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (on_the_wrong_side, uses_the_budget),
        (of_the_gradient_alone, uses_the_budget),
        (of_the_step_alone, attains_the_gain),
    ],
    ids=lambda function: function.__name__,
)
def test_a_mistake_breaks_its_law(mutant, law):
    lib = numpy_readonly()

    def of_case(step, case):
        law(in_units(lib, step, case.floats), case)

    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        check_law(of_case, mutant, cases(lib))


def test_a_projection_in_units_of_the_scale_is_not_the_nearest_point():
    def rescaled(v, p, sigma, *, scale, x, bounds):
        box = {"x": 0.0, "bounds": tuple((bound - x) / scale for bound in bounds)}
        return scale * project(v / scale, p, sigma, **box)

    with pytest.raises(AssertionError):
        nothing_in_the_weighted_ball_is_nearer(rescaled)
