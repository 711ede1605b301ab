"""Laws of a certificate, and the mutants that break them."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog

import lpfamily
from helpers.boxes import boxes, maximiser
from helpers.laws import closed_form
from helpers.libraries import P, numpy_readonly
from helpers.mutants import check
from lpfamily import epsilon

FIELDS = ["norm_used", "gain", "zero", "nonfinite", "underused"]
KINDS = ("normal", "tied", "sparse", "zero", "huge")


def of(box, step, certify):
    """Return the certificate of a perturbation, its arrays as float64."""
    lib, case = box.case.lib, box.case
    with lib.scope():
        arrays = [lib.from_numpy(a, case.floats.name) for a in (case.grad, box.x, box.low, box.high)]
        grad, x, low, high = arrays
        eps = step(grad, case.p, case.sigma, x=x, bounds=(low, high))
        found = certify(grad, eps, case.p, case.sigma, x, (low, high))
        for name in FIELDS:
            assert tuple(getattr(found, name).shape) == (len(case.grad),)
        return found, {name: lib.to_numpy(getattr(found, name)) for name in FIELDS}


def is_sane(box):
    """Whether radii and room are far from the ends of the range, which eps itself cannot round to."""
    # the certificate's ratios are those of the numbers that eps could hold
    room = box.room[(box.room > 0) & np.isfinite(box.room)]
    radii = box.case.radii[box.case.radii > 0]
    sizes = np.concatenate([room, radii, np.abs(box.case.rows[box.case.rows != 0])])
    middle = math.sqrt(math.sqrt(box.case.floats.largest))
    return np.all((sizes < middle) & (sizes > 1 / middle))


# The laws.


def certifies_the_maximiser(certify, box):
    if not is_sane(box):
        return
    _, found = of(box, epsilon, certify)
    useful = ((box.case.rows != 0) & (box.room > 0)).any(axis=1) & (box.case.radii > 0)
    loose = 1e-5 if box.case.floats.name == box.case.floats.compute else 8 * box.case.floats.eps
    assert_allclose(found["gain"], 1, rtol=loose)
    assert np.all(found["norm_used"] <= 1 + loose)
    assert_array_equal(found["underused"], 0)
    assert_array_equal(found["nonfinite"], 0)
    assert np.all(found["zero"][useful] == 0) or box.case.floats.name == "float16"
    free = (box.case.rows != 0) & (box.room == math.inf)
    assert_allclose(found["norm_used"][free.any(axis=1)], 1, rtol=loose)


def sides(xp, x, bounds):
    """Return how far down and up x may move: where rounding put it outside, not at all."""
    down, up = bounds[0] - x, bounds[1] - x
    return xp.minimum(down, xp.zeros_like(down)), xp.maximum(up, xp.zeros_like(up))


def clip(xp, grad, p, sigma, *, x, bounds):
    down, up = sides(xp, x, bounds)
    return xp.minimum(xp.maximum(epsilon(grad, p, sigma), down), up)


def measures_the_waste_of_clipping(certify, box):
    if not is_sane(box) or box.case.p in (1 + 1e-12, 1e9, math.inf):
        return
    _, clipped = of(box, functools.partial(clip, box.case.lib.xp), certify)
    rows = zip(box.case.rows, box.case.radii, box.room, strict=True)
    most = box.gain(np.stack([maximiser(row, box.case.p, radius, room) for row, radius, room in rows]))
    step = closed_form(box.case.rows, box.case.p, box.case.radii)
    got = box.gain(np.sign(step) * np.minimum(np.abs(step), box.room))
    share = np.where(most > 0, got / np.where(most > 0, most, 1), 1).astype(float)
    assert_allclose(clipped["gain"], share, rtol=1e-2, atol=1e-2)
    assert np.all(clipped["underused"][share < 0.9] == 1), box


def finds_no_waste_where_all_entries_are_at_their_bounds(certify, box):
    def to_the_bounds(grad, p, sigma, *, x, bounds):
        xp = box.case.lib.xp
        down, up = sides(xp, x, bounds)
        return xp.where(grad > 0, up, xp.where(grad < 0, down, xp.zeros_like(x)))

    if np.isfinite(box.low).all() and np.isfinite(box.high).all():
        _, found = of(box, to_the_bounds, certify)
        assert_array_equal(found["underused"], 0)


LAWS = [
    certifies_the_maximiser,
    measures_the_waste_of_clipping,
    finds_no_waste_where_all_entries_are_at_their_bounds,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_certify(data, lib, law):
    law(lpfamily.certify, data.draw(boxes(lib, kinds=KINDS)))


def test_a_p_beyond_the_dtype_is_a_large_p(lib):
    grad, x = (lib.from_numpy(a, "float32") for a in ([[-1.0, -2.0, 0.5]], [[0.98, 0.0, 0.875]]))
    for p in 3.5e38, 1e300:
        eps = epsilon(grad, p, 0.25, x=x, bounds=(0, 1))
        assert_allclose(lib.to_numpy(lpfamily.certify(grad, eps, p, 0.25, x, (0, 1)).gain), 1, rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1.3, 2, 5, math.inf])
def test_the_steepest_step_in_a_box_is_certified_to_rounding(lib, p):
    rng = np.random.default_rng(5)
    grad, x = rng.standard_normal((20, 6)), rng.random((20, 6))
    with lib.scope():
        g, at = lib.from_numpy(grad, "float64"), lib.from_numpy(x, "float64")
        eps = epsilon(g, p, 0.8, x=at, bounds=(0, 1))
        gain = lib.to_numpy(lpfamily.certify(g, eps, p, 0.8, at, (0, 1)).gain)
    assert_allclose(gain, 1, rtol=1e-13)


@pytest.mark.parametrize("p", [1, 1.3, 2, 5, math.inf])
def test_the_gain_is_that_of_linear_programming(lib, p):
    """The polar of ball and box, cut by random planes: no more than the bound, whatever p."""
    rng = np.random.default_rng(0)
    grad, x, radius = rng.standard_normal((3, 5)), rng.random((3, 5)), 0.4
    with lib.scope():
        g, at = lib.from_numpy(grad, "float64"), lib.from_numpy(x, "float64")
        tried = epsilon(g, p, radius, x=at, bounds=(0, 1)) * 0.5
        found = lpfamily.certify(g, tried, p, radius, at, (0, 1))
        gain = lib.to_numpy(found.gain)
        attained = np.sum(grad * lib.to_numpy(tried), axis=1)
    for row, here, bound in zip(grad, x, attained / gain, strict=True):
        # tangent planes of the ball, <n, e> <= radius * ||n||_{p*}, hold it from outside
        planes = np.concatenate(
            [rng.standard_normal((3000, 5)), np.sign(rng.standard_normal((50, 5))), np.eye(5)]
        )
        dual = math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)
        sides = radius * np.linalg.norm(planes, dual, axis=1)
        both, sides = np.concatenate([planes, -planes]), np.concatenate([sides, sides])
        most = -linprog(
            -row,
            A_ub=both,
            b_ub=sides,
            bounds=np.stack([-here, 1 - here], axis=1),
        ).fun
        assert bound <= most * (1 + 1e-9)
        assert bound >= most * 0.85
    assert_allclose(gain, 0.5, rtol=1e-7)


@pytest.mark.parametrize("p", P)
def test_zero_nonfinite_and_underused_examples_are_flagged(lib, p):
    grad = np.array([[1.0, -2.0], [0, 0], [1, -2], [math.nan, 1], [1, 1], [1, 1]])
    eps = np.array([[0.25, -0.25], [0, 0], [0, 0], [0, 0], [0, math.inf], [0.1, 0.1]])
    found = lpfamily.certify(lib.from_numpy(grad, "float32"), lib.from_numpy(eps, "float32"), p, 1.0)
    flags = {name: lib.to_numpy(getattr(found, name)) for name in FIELDS}
    assert_array_equal(flags["zero"], [0, 1, 1, 1, 0, 0])
    assert_array_equal(flags["nonfinite"], [0, 0, 0, 1, 1, 0])
    assert_array_equal(flags["underused"], [1, 0, 1, 0, 0, 1])
    assert_allclose(flags["gain"][[1, 2]], [1, 0])
    assert_allclose(flags["norm_used"][[1, 2]], [0, 0])
    with lib.looking():
        summary = found.summary()
    assert "6 examples" in summary
    assert "3 zero, 2 nonfinite, 3 underused" in summary
    assert "\n" not in summary


def test_half_of_the_budget_gains_half(lib):
    grad = lib.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 4)), "float32")
    for batch_ndim, shape in (None, (2,)), (0, ()), (2, (2, 3)):
        step = epsilon(grad, 1.5, 0.5, batch_ndim=batch_ndim)
        found = lpfamily.certify(grad, step, 1.5, 1.0, batch_ndim=batch_ndim)
        assert tuple(found.gain.shape) == shape
        assert_allclose(lib.to_numpy(found.gain), 0.5, rtol=1e-5)
        assert_allclose(lib.to_numpy(found.norm_used), 0.5, rtol=1e-5)
        assert np.all(lib.to_numpy(found.underused) == 1)


def test_norm_used_exceeds_1_outside_the_ball(lib):
    grad = lib.from_numpy(np.ones((1, 4)), "float32")
    found = lpfamily.certify(grad, grad, 2, 1.0)
    assert_allclose(lib.to_numpy(found.norm_used), 2)
    assert_allclose(lib.to_numpy(found.gain), 2)


def test_the_summary_of_no_examples_has_zeros(lib):
    empty = lib.from_numpy(np.zeros((0, 3)), "float32")
    with lib.looking():
        summary = lpfamily.certify(empty, empty, 2, 1.0).summary()
    assert summary == "0 examples: 0 zero, 0 nonfinite, 0 underused"


def test_eps_is_floating(lib):
    grad, eps = lib.from_numpy(np.ones((2, 3)), "float32"), lib.from_numpy(np.zeros((2, 3), int))
    with pytest.raises(TypeError, match=r"eps must be float16, bfloat16, float32 or float64; got .*int"):
        lpfamily.certify(grad, eps, 2, 0.1)


def test_shapes_must_agree(lib):
    one, other = (lib.from_numpy(np.ones(shape), "float32") for shape in ((2, 2), (2, 3)))
    with pytest.raises(ValueError, match=r"eps must have the shape of grad, \(2, 2\); got \(2, 3\)"):
        lpfamily.certify(one, other, 2, 1.0)


# Mutants: each breaks a law.


def bound_without_the_box(grad, eps, p, sigma, x, bounds):
    return lpfamily.certify(grad, eps, p, sigma)


def bounds_are_forgotten(grad, eps, p, sigma, x, bounds):
    found = lpfamily.certify(grad, eps, p, sigma, x, bounds)
    return dataclasses.replace(found, underused=found.norm_used < 0.99)


def the_bound_is_what_was_attained(grad, eps, p, sigma, x, bounds):
    found = lpfamily.certify(grad, eps, p, sigma, x, bounds)
    return dataclasses.replace(found, gain=np.ones_like(found.gain))


MUTANTS = [
    (bound_without_the_box, certifies_the_maximiser),
    (bounds_are_forgotten, finds_no_waste_where_all_entries_are_at_their_bounds),
    (the_bound_is_what_was_attained, measures_the_waste_of_clipping),
]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda function: function.__name__)
def test_a_mistake_breaks_its_law(mutant, law):
    with pytest.raises(AssertionError):
        check(law, mutant, boxes(numpy_readonly(), kinds=KINDS))
