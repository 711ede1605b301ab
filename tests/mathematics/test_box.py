"""Laws of the step in a ball and a box, and the mutants that break them."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog, minimize

from helpers.boxes import (
    Box,
    attains_the_most,
    boxes,
    keeps_nan_in_its_row,
    loses_nothing_to_clipping,
    maximiser,
    moves_nothing_further_outside,
    spends_nothing_outside_the_mask,
    stays_in_ball_and_box,
)
from helpers.laws import closed_form, norms
from helpers.libraries import P, numpy_readonly
from helpers.libraries_under_test import NAMES
from helpers.mutants import check as check_law
from lpfamily import ascend, certify, epsilon, project
from lpfamily._arrays import namespace_of
from lpfamily.box import step_in_box
from lpfamily.libraries import largest_first, multipliers
from lpfamily.libraries import rows as rows_of_numpy
from lpfamily.nearest import nearest

needs_jax = pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")


# The laws.


def is_unbounded_where_the_box_is(epsilon, box):
    open_box = replace(box, low=np.full_like(box.x, -math.inf), high=np.full_like(box.x, math.inf))
    expected, case = closed_form(box.case.rows, box.case.p, box.case.radii), box.case
    error = norms(open_box.step(epsilon) - expected, case.p)
    assert np.all(error <= case.tolerance * case.radii + case.underflow), box


def hands_on_what_infinite_entries_leave(epsilon, box):
    # infinite entries whose room costs up to half of the budget: they use it up, finite ones follow
    case = box.case
    if case.p == math.inf:
        return
    infinite = case.rng.random(case.grad.shape) < 0.2
    share = (0.5 / infinite[0].size) ** (1 / case.p) * case.rng.random(case.grad.shape)
    with np.errstate(under="ignore"):
        near = case.floats.round(share * case.radii.reshape(-1, *[1] * (case.grad.ndim - 1)))
    other = Box(
        replace(case, grad=np.where(infinite, np.copysign(math.inf, case.grad), case.grad)),
        *(np.where(infinite, at, side) for at, side in ((0, box.x), (-near, box.low), (near, box.high))),
    )
    step, flat, rest = (
        other.step(epsilon),
        infinite.reshape(case.rows.shape),
        np.where(infinite, 0, case.grad),
    )
    room = other.room
    assert_array_equal(np.abs(step[flat]), np.where(case.radii[:, None] < case.floats.least, 0, room)[flat])
    with np.errstate(divide="ignore", invalid="ignore"):
        paid = np.where(flat & (room > 0), room / case.radii[:, None].astype(np.longdouble), 0)
    left = case.radii * (1 - np.sum(paid ** np.longdouble(case.p), axis=1)) ** (1 / np.longdouble(case.p))
    finite = replace(other, case=replace(case, grad=rest))
    rows = zip(finite.case.rows, left, room, strict=True)
    most = finite.gain(np.stack([maximiser(row, case.p, radius, near) for row, radius, near in rows]))
    got = finite.gain(np.where(flat, 0, step))
    assert np.all(got >= most * (1 - 2 * case.tolerance) - finite.slack), other


def is_scale_free(epsilon, box):
    # powers of two are exact where they lose no bit
    factor, seen = 2.0 ** box.case.rng.integers(-8, 9), box.case.floats.seen
    with np.errstate(over="ignore", under="ignore"):
        grad = box.case.floats.round(box.case.grad * factor)
    if np.array_equal(seen(grad) / factor, seen(box.case.grad)):
        other = replace(box, case=replace(box.case, grad=grad))
        got, expected = (b.gain(b.step(epsilon)) for b in (other, box))
        assert np.all(np.abs(got - expected) <= 2 * (box.case.tolerance * np.abs(expected) + box.slack)), box


LAWS = [
    stays_in_ball_and_box,
    moves_nothing_further_outside,
    attains_the_most,
    loses_nothing_to_clipping,
    is_unbounded_where_the_box_is,
    hands_on_what_infinite_entries_leave,
    spends_nothing_outside_the_mask,
    keeps_nan_in_its_row,
    is_scale_free,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_epsilon_in_a_box(data, lib, law):
    law(epsilon, data.draw(boxes(lib)))


# Other solvers, other shapes and errors.


@pytest.mark.parametrize("p", [1, 1.05, 1.2, 1.5, 2, 3, 10, math.inf])
def test_a_constrained_optimiser_gains_no_more(lib, p):
    rng = np.random.default_rng(1)
    for _ in range(6):
        grad, x, radius = rng.standard_normal(6), rng.random(6).round(1), rng.uniform(0.1, 2)
        with lib.scope():
            args = (lib.from_numpy(a, "float64") for a in (grad, x))
            step = lib.to_numpy(epsilon(next(args), p, radius, x=next(args), bounds=(0, 1)))
        sides = np.stack([-x, 1 - x], axis=1)
        if p == 1:
            both = np.concatenate([sides[:, 1], -sides[:, 0]])
            best = -linprog(
                np.concatenate([-grad, grad]),
                A_ub=np.ones((1, 12)),
                b_ub=[radius],
                bounds=[(0, side) for side in both],
            ).fun
        elif p == math.inf:
            best = -linprog(-grad, bounds=np.clip(sides, -radius, radius)).fun
        else:
            best = -minimize(
                lambda e, grad=grad: -grad @ e,
                np.zeros(6),
                jac=lambda e, grad=grad: -grad,
                method="SLSQP",
                bounds=sides,
                constraints={
                    "type": "ineq",
                    "fun": lambda e, r=radius: 1 - np.sum(np.abs(e / r) ** p),
                    "jac": lambda e, r=radius: -p * np.abs(e / r) ** (p - 1) * np.sign(e) / r,
                },
                options={"ftol": 1e-13, "maxiter": 500},
            ).fun
        assert step @ grad >= best * (1 - 1e-6)
        assert step @ grad <= best * (1 + 1e-4)  # the optimiser itself may stop short


def by_sorting(row, p, radius, room):
    """Solve in float64 by sorting the t where entries meet their bounds."""
    size, order = np.abs(row), np.argsort(room ** (p - 1) / np.abs(row))
    cost, weight = room[order] ** p, size[order] ** (p / (p - 1))
    before = np.concatenate([[0], np.cumsum(cost)[:-1]])
    after = np.cumsum(weight[::-1])[::-1]
    t = (np.maximum(radius**p - before, 0) / after) ** (1 / p)
    ends = np.flatnonzero(t * size[order] ** (1 / (p - 1)) <= room[order])
    if not ends.size:
        return np.sign(row) * room
    return np.sign(row) * np.minimum(t[ends[0]] * size ** (1 / (p - 1)), room)


@pytest.mark.parametrize("p", [1.2, 1.5, 2, 3, 4, 10])
@pytest.mark.parametrize("radius", [0.05, 1.0, 5.0, 1000.0])
def test_sorting_in_float64_agrees(lib, p, radius):
    rng = np.random.default_rng(2)
    grad = rng.standard_normal((20, 784)).astype(np.float32)
    x = np.where(rng.random(grad.shape) < 0.7, rng.integers(0, 2, grad.shape), rng.random(grad.shape))
    x = x.astype(np.float32)
    step = lib.to_numpy(epsilon(lib.from_numpy(grad), p, radius, x=lib.from_numpy(x), bounds=(0, 1)))
    room = np.where(grad < 0, x, 1 - x).astype(float)
    for g, w, got in zip(grad.astype(float), room, step, strict=True):
        # the gain is known to rounding; entries to what rounding of the budget makes of them
        best = by_sorting(g, p, radius, w)
        assert_allclose(got @ g, best @ g, rtol=3e-6)
        assert_allclose(got, best, atol=1e-4)


@pytest.mark.parametrize("p", [1.05, 1.1, 1.3, 1.49, 1.8, 2, 2.7, 3.5, 5, 12, 40])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_an_entry_at_its_bound_sets_no_scale(lib, name, p):
    # not of the powers of the rest, however much smaller that is
    rng, floats = np.random.default_rng(6), lib.floats[name]
    for span in np.log(floats.largest) * np.array([0.01, 0.1, 0.45]):
        grad = floats.round(np.exp(rng.uniform(-span, span, (8, 33))))
        pressed = rng.random(grad.shape) < 0.5
        rest, radii = np.where(pressed, 0, grad), np.full((8, 1), 0.25)
        room = np.where(pressed, 0.0, 1.0)
        with lib.scope():
            options = {"x": lib.from_numpy(1 - room, name), "bounds": (0, 1)}
            step, near = (
                lib.to_numpy(f(lib.from_numpy(grad, name), p, 0.25, **options)) for f in (epsilon, project)
            )
        tolerance = 40 * floats.eps
        assert_allclose(norms(step, p), 0.25, rtol=tolerance)
        assert np.all(norms(step - closed_form(rest, p, radii[:, 0]), p) <= 0.25 * max(1, span) * tolerance)
        assert_allclose(near, nearest.value(p, rest, radii, room), rtol=0, atol=tolerance)


@given(data=st.data(), p=st.floats(1.2, 5), seed=st.integers(0, 2**32 - 1))
def test_the_optimality_conditions_hold(data, lib, p, seed):
    p = data.draw(st.sampled_from([1.2, 1.5, 2, 3, 5])) if lib.compiles else p
    rng = np.random.default_rng(seed)
    grad, x, radius = rng.standard_normal((2, 8)), rng.random((2, 8)), np.exp2(rng.uniform(-4, 2, 2))
    with lib.scope():
        args = (lib.from_numpy(a, "float64") for a in (grad, x, radius))
        step = np.abs(lib.to_numpy((lambda g, x, s: epsilon(g, p, s, x=x, bounds=(0.0, 1.0)))(*args)))
    room = np.where(grad < 0, x, 1 - x)
    for g, e, w, s in zip(np.abs(grad), step, room, radius, strict=True):
        multiplier = g / (e / s) ** (p - 1)
        free = e < w
        spent = np.sum((e / s) ** p)
        assert spent <= 1 + 1e-12
        if free.any():
            assert_allclose(spent, 1, rtol=1e-12)
            assert_allclose(multiplier[free], multiplier[free][0], rtol=1e-8)
            assert np.all(multiplier[~free] >= multiplier[free][0] * (1 - 1e-8))


def test_the_example_of_the_docs(lib):
    grad, x = (lib.from_numpy(np.array(a), "float32") for a in ([[3.0, 2.0, 1.0]], [[0.9, 0.5, 0.5]]))
    step = lib.to_numpy(epsilon(grad, 1, 0.5, x=x, bounds=(0, 1)))
    assert_allclose(step, [[0.1, 0.4, 0]], atol=1e-7)


@pytest.mark.parametrize("p", P)
def test_an_entry_moves_no_further_than_its_bound(lib, p):
    grad = lib.from_numpy(np.array([[3.0, -2.0, 1.0, 0.0]]), "float32")
    x = lib.from_numpy(np.array([[1.0, 0.0, 1.0, 0.5]]), "float32")
    assert_array_equal(lib.to_numpy(epsilon(grad, p, 0.5, x=x, bounds=(0, 1))), 0.0)
    x = lib.from_numpy(np.array([[0.75, 0.5, 1.0, 0.5]]), "float32")
    step = lib.to_numpy(epsilon(grad, p, 50.0, x=x, bounds=(0, 1)))
    assert_array_equal(step, [[0.25, -0.5, 0, 0]])


@pytest.mark.parametrize("p", [3.5e38, 1e39, 1e300])
def test_a_p_beyond_the_dtype_is_a_large_p(lib, p):
    grad, x = np.array([[-1.0, -2.0, 0.5]]), np.array([[0.98, 0.0, 0.875]])
    step = epsilon(lib.from_numpy(grad, "float32"), p, 0.25, x=x, bounds=(0, 1))
    assert_allclose(lib.to_numpy(step), [[-0.25, 0, 0.125]], rtol=1e-6)


@pytest.mark.parametrize("batch_ndim", [None, 0, 1, 2])
def test_x_and_bounds_may_be_numbers_or_broadcast(lib, batch_ndim):
    rng = np.random.default_rng(3)
    grad, high = rng.standard_normal((2, 3, 5)), rng.uniform(0.1, 1, 5)
    grad, high = (lib.floats["float32"].round(a) for a in (grad, high))
    options = {"batch_ndim": batch_ndim, "x": 0.0, "bounds": (-math.inf, lib.from_numpy(high, "float32"))}
    step = lib.to_numpy(epsilon(lib.from_numpy(grad, "float32"), 1.5, 1.0, **options))
    split = grad.reshape(*{None: (2, 15), 0: (1, 30), 1: (2, 15), 2: (6, 5)}[batch_ndim])
    room = np.where(grad < 0, math.inf, high).reshape(split.shape)
    expected = [maximiser(row, 1.5, 1.0, w) for row, w in zip(split, room, strict=True)]
    assert_allclose(step.reshape(split.shape), np.array(expected, float), atol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_an_empty_array_gives_an_empty_array(lib, p):
    for shape in (0,), (0, 3), (3, 0), (2, 0, 4):
        grad = lib.from_numpy(np.zeros(shape), "float32")
        assert tuple(epsilon(grad, p, 1.0, x=grad, bounds=(0, 1)).shape) == shape


def certified(grad, p, sigma, *, x, bounds):
    return certify(grad, grad, p, sigma, x, bounds).gain


def ascended(grad, p, sigma, *, x, bounds):
    def value_and_grad(at):
        products = namespace_of(grad).reshape(at * grad, (grad.shape[0], -1))
        return namespace_of(grad).sum(products, axis=-1), grad

    return ascend(value_and_grad, x, p, sigma, 2, bounds=bounds)


FUNCTIONS = [epsilon, project, ascended, certified]
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
FURTHER = 12
"""Units in the last place that are not rounding any more."""


@functions
@pytest.mark.parametrize("p", [1.5, math.inf])
def test_entries_outside_by_more_than_rounding_are_errors_or_spoil_their_example(lib, p, function):
    """Where values can be read, the error names the entry; elsewhere its example, and no other, is NaN."""
    x, grad = np.full((4, 2), 0.5), np.ones((4, 2))
    grad[1, 1] = 0  # nor is it hidden by a gradient that asks for nothing
    for name in lib.dtypes[1::2] if lib.compiles else lib.dtypes:
        floats = lib.floats[name]
        for bad, (low, high) in (
            (1 + FURTHER * floats.eps, (0, 1)),
            (-3 - FURTHER * 2 * floats.eps, (-3.0, math.inf)),
            (FURTHER * floats.eps, (-1, np.zeros(2))),
            (math.nan, (0, np.ones((4, 1)))),
            (math.inf, (0, math.inf)),
        ):
            at = np.minimum(x, high).astype(float)
            at[1, 1] = bad
            with lib.scope():
                g, at = (lib.from_numpy(a, name) for a in (grad, at))
                sides = [
                    lib.from_numpy(side, name) if isinstance(side, np.ndarray) else side
                    for side in (low, high)
                ]
                if lib.name in ("numpy", "torch"):
                    with pytest.raises(ValueError, match=r"low = .*, x = .*, high = .* at \(1, 1\): clip x"):
                        function(g, p, 0.25, x=at, bounds=tuple(sides))
                    continue
                with np.errstate(invalid="ignore"):  # dask computes inf - inf in its caller's error state
                    found = lib.to_numpy(function(g, p, 0.25, x=at, bounds=tuple(sides)))
            spoilt = np.isnan(found).reshape(4, -1)
            assert_array_equal(spoilt, np.broadcast_to([[False], [True], [False], [False]], spoilt.shape))


@functions
@pytest.mark.parametrize("p", [1.5, math.inf])
def test_normalised_pixels_give_the_result_of_clipped_ones(lib, p, function):
    """In every dtype, as it is done everywhere: the result is that of the pixels that are clipped."""
    mean, deviation = (np.array(a)[:, None] for a in ([0.1307, 0.485, 0.406], [0.3081, 0.229, 0.225]))
    low, high = -mean / deviation, (1 - mean) / deviation
    pixels = np.random.default_rng(0).integers(0, 2, (2, 3, 20)) * 1.0
    grad = np.where(pixels > 0, -1.0, 1.0)
    grad[0] *= -1  # all that is outside is pressed against its bound in one, and leaves it in the other
    outside = 0
    for name in lib.dtypes[1::2] if lib.compiles else lib.dtypes:
        floats = lib.floats[name]
        m, s = (floats.round(a) for a in (mean, deviation))
        x = floats.round(floats.round(pixels - m) / s)
        clipped = np.clip(x, floats.round(low), floats.round(high))
        outside += np.sum(x != clipped)
        results = []
        for at in x, clipped:
            with lib.scope():
                g, at = (lib.from_numpy(a, name) for a in (grad, at))
                sides = tuple(lib.from_numpy(a, name) for a in (low, high))
                results.append(lib.to_numpy(function(g, p, 0.25, x=at, bounds=sides)))
        assert_allclose(*results, atol=8 * floats.eps, err_msg=name)
    assert outside > 0


HALF = np.full((2, 2), 0.5)
BAD_CALLS = [
    ({"x": 0.5}, ValueError, "x and bounds.*belong together"),
    ({"bounds": (0, 1)}, ValueError, "x and bounds.*belong together"),
    ({"x": 0.5, "bounds": 1.0}, ValueError, "bounds must be a pair.*got 1.0"),
    ({"x": 0.5, "bounds": (0, 0.5, 1)}, ValueError, "bounds must be a pair"),
    ({"x": 2.0, "bounds": (0, 1)}, ValueError, "x must lie within its bounds.*x = 2.0, high = 1"),
    ({"x": HALF - 1, "bounds": (0, 1)}, ValueError, r"low = 0, x = -0.5, high = 1 at \(0, 0\): clip x first"),
    ({"x": HALF * math.nan, "bounds": (0, 1)}, ValueError, "x = nan"),
    ({"x": HALF, "bounds": (0, HALF / 2)}, ValueError, "high = 0.25 at"),
    ({"x": 0.5, "bounds": (1, 0)}, ValueError, "low = 1, x = 0.5"),
    ({"x": True, "bounds": (0, 1)}, TypeError, "x must be an array.*got bool"),
    ({"x": [0.5], "bounds": (0, 1)}, TypeError, "x must be an array.*got list"),
    ({"x": HALF, "bounds": ("0", 1)}, TypeError, "low must be an array.*got str"),
    ({"x": HALF * 1j, "bounds": (0, 1)}, TypeError, "x must be real; got complex128"),
    ({"x": np.complex64(0.5), "bounds": (0, 1)}, TypeError, "x must be real; got complex64"),
    (
        {"x": np.ones(3), "bounds": (0, 1)},
        ValueError,
        r"x must be a number or broadcast.*\(2, 2\); got \(3,\)",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_CALLS, ids=[m for *_, m in BAD_CALLS])
def test_an_error_says_what_was_given(lib, options, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        epsilon(lib.from_numpy(np.ones((2, 2)), "float32"), 2, 1.0, **options)


def test_bounds_beyond_the_largest_number_do_not_bind(lib):
    for name in lib.dtypes:
        with lib.scope():
            ones = lib.from_numpy(np.ones((2, 3)), name)
            free = lib.to_numpy(epsilon(ones, 2, 1.0))
            for bound in 2 * lib.floats[name].largest, 10**400:
                for x in 0.0, np.zeros((2, 3)):
                    assert_array_equal(lib.to_numpy(epsilon(ones, 2, 1.0, x=x, bounds=(-bound, bound))), free)


def test_bounds_round_as_x_does(lib):
    for name in lib.dtypes:
        with lib.scope():
            ones = lib.from_numpy(np.ones(2), name)
            x = lib.from_numpy(np.full(2, 0.3), name)
            assert_array_equal(lib.to_numpy(epsilon(ones, 2, 1.0, x=x, bounds=(0, 0.3))), 0.0)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_numpy_sorts_only_entries_near_the_last_that_the_budget_reaches(dtype, monkeypatch):
    rng, sorted_ = np.random.default_rng(0), []
    grad, room = rng.standard_normal((60, 4000)), np.clip(rng.normal(0.3, 0.5, (60, 4000)), 0, 1)
    grad[1::3] = np.round(2 * grad[1::3])
    grad[2::3] *= 10 ** rng.uniform(-12, 0, (20, 4000))
    operands = [a.astype(dtype) for a in (grad, 10 ** rng.uniform(-2, 3, (60, 1)), room)]
    sort_together = largest_first._sort_together
    monkeypatch.setattr(
        largest_first, "_sort_together", lambda *a: sorted_.append(a[0].size) or sort_together(*a)
    )
    step = step_in_box(1, *operands)
    with np.errstate(all="ignore"):
        definition = step_in_box.value(1, *(a.astype("f8") for a in operands))
    assert np.all(np.abs(step - definition) <= 4 * np.finfo(dtype).eps * operands[1])
    assert sum(sorted_) < grad.size


@pytest.mark.jax
@needs_jax
@pytest.mark.parametrize("function", [epsilon, project])
@pytest.mark.parametrize("p", [1, 1.5])
def test_jax_compiles_no_more_for_more_entries(p, function):
    """Searches are loops: with a step for every bit of that number, it would compile for seconds."""
    import jax

    def operations(entries):
        x = jax.numpy.zeros((2, entries))
        program = jax.make_jaxpr(lambda grad: function(grad, p, 0.5, x=x, bounds=(-1, 1)))(x)
        return str(program).count(" = ")

    assert operations(4096) == pytest.approx(operations(64), rel=0.01)  # common parts may be shared


@pytest.mark.jax
@needs_jax
@pytest.mark.parametrize("function", [epsilon, project])
@pytest.mark.parametrize("p", [1, 1.5])
def test_jax_vmap_leaves_conditions_what_they_are(p, function):
    """It would evaluate both sides, also the definition, which takes ten times as long or more."""
    import jax

    def step(grad, x, batch_ndim=0):
        return function(grad, p, 0.5, x=x, bounds=(-1, 1), batch_ndim=batch_ndim)

    def conditions(function, *operands):
        return str(jax.make_jaxpr(function)(*operands)).count(" = cond[")

    x = jax.numpy.zeros((2, 3, 8))
    whole = conditions(functools.partial(step, batch_ndim=2), x, x)
    assert conditions(jax.vmap(jax.vmap(step)), x, x) == whole > 0
    assert conditions(jax.vmap(jax.vmap(step, (0, None)), (0, None)), x, x[0, 0]) == whole


def test_small_gradients_spend_the_budget_to_rounding(lib):
    """The large ones are at their bounds, so the multiplier is huge, and magnifies every rounded exponent."""
    least_entries = ("float32", 1e-15), ("float64", 1e-15), ("float64", 1e-40)
    for p, (dtype, least) in itertools.product((6 / 5, 1.5, 3), least_entries):
        grad, room = np.array([[least, -1.0]], dtype), np.array([[math.inf, 1e-6]], dtype)
        with lib.scope():
            x, low, high = (lib.from_numpy(each, dtype) for each in (0 * grad, -room, room))
            eps = lib.to_numpy(epsilon(lib.from_numpy(grad, dtype), p, 0.1, x=x, bounds=(low, high)))
        size = np.sum(np.abs(eps).astype(np.longdouble) ** p) ** (1 / np.longdouble(p))
        assert abs(size / np.longdouble(np.dtype(dtype).type(0.1)) - 1) < 4 * np.finfo(dtype).eps


def test_many_equal_entries_spend_the_whole_budget(lib):
    """A sum that adds one after another loses d / 8 units in the last place."""
    d = 1 << 15
    grad, x = np.full((2, d), 0.1), np.random.default_rng(0).random((2, d)).astype("f4")
    for p, function in (1, epsilon), (1, project), (3, project):
        arrays = (lib.from_numpy(a, "float32") for a in (grad, x))
        step = lib.to_numpy(function(next(arrays), p, d ** (1 / p) / 32, x=next(arrays), bounds=(0, 1)))
        assert_allclose(norms(step, p).astype(float), d ** (1 / p) / 32, rtol=(16 + d**0.5) * 2.0**-23)


@given(data=st.data(), per_block=st.integers(1, 4), sampled_from=st.sampled_from([1, 512]))
def test_numpy_blocks_agree_with_the_definition(data, per_block, sampled_from):
    box = data.draw(boxes(numpy_readonly()))
    rows = box.case.rows.astype(box.case.floats.compute)
    sigma, room = box.case.radii.astype(rows.dtype)[:, None], box.room.astype(rows.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of_numpy, "CACHE_BYTES", 4 * per_block * rows[0].nbytes)
        patch.setattr(largest_first, "SAMPLED_FROM", sampled_from)
        blocks = step_in_box(box.case.p, rows, sigma, room)
    with np.errstate(all="ignore"):
        definition = step_in_box.value(box.case.p, rows, sigma, room)
    got, expected = box.gain(blocks.astype(float)), box.gain(definition.astype(float))
    assert np.all(np.abs(got - expected) <= 2 * (box.case.tolerance * expected + box.slack)), box


# Derivatives.


@functools.cache
def slopes(lib, p):
    """Return the derivatives of the sum of the step with respect to grad, radii and x."""

    def total(operands, low, high):
        grad, radii, x = operands
        return lib.xp.sum(epsilon(grad, p, radii, x=x, bounds=(low, high)))

    return lib.jit(lib.derivative(total))


@given(data=st.data())
def test_derivatives_are_never_nan(data, autodiff):
    box = data.draw(boxes(autodiff))
    name = box.case.floats.name
    with autodiff.scope():
        arrays = (autodiff.from_numpy(a, name) for a in (box.case.grad, box.x, box.low, box.high))
        grad, x, low, high = arrays
        radii = autodiff.from_numpy(box.case.radii, box.case.floats.compute)
        found = slopes(autodiff, box.case.p)((grad, radii, x), low, high)
    for slope in found:
        assert not np.isnan(autodiff.to_numpy(slope)).any(), box


# Mutants: each breaks a law.


def maximum(grad, p, sigma, *, x, bounds, mask=None, spills=1000, infinite_spill=True):
    """Solve in long floats, handing on the budget of those at their bounds `spills` times."""
    kept = grad if mask is None else np.where(mask, grad, 0)
    room = np.maximum(np.where(grad < 0, x - bounds[0], bounds[1] - x), 0)
    out = np.zeros(grad.shape)
    for i, radius in enumerate(np.broadcast_to(sigma, len(grad))):
        row, limit = kept[i].ravel().astype(float), room[i].ravel().astype(float)
        if np.isnan(row).any():
            out[i] = np.where(np.isnan(kept[i]), math.nan, 0) if p == math.inf else math.nan
            continue
        out[i] = _spill(row, p, float(radius), limit, spills, infinite_spill).reshape(grad.shape[1:])
    return out.astype(grad.dtype)


def _spill(row, p, radius, room, spills, infinite_spill):
    if p == math.inf:
        return np.sign(row) * np.minimum(radius, room)
    room = np.where(row == 0, 0, room)
    done, left = np.zeros(row.shape), radius
    rest = row
    for _ in range(spills + 1):
        infinite = np.isinf(rest)
        now = np.where(infinite, np.sign(rest), 0) if infinite.any() else rest
        step = closed_form(now[None], p, [left])[0].astype(float)
        passed = np.abs(step) > room
        if not passed.any():
            break
        done = np.where(passed, np.copysign(room, row), done)
        rest = np.where(passed | (np.isinf(rest) & (room == 0)), 0, rest)
        if infinite.any() and not infinite_spill:
            rest = np.where(infinite, rest, 0)
        spent = np.sum((np.abs(done).astype(np.longdouble) / radius) ** np.longdouble(p))
        left = radius * max(1 - spent, 0) ** (1 / np.longdouble(p))
        step = np.zeros(row.shape)
    return np.where(rest == 0, done, step)


def clip_afterwards(grad, p, sigma, *, x, bounds, mask=None):
    step = epsilon(grad, p, sigma, mask=mask)
    return np.clip(step, bounds[0] - x, bounds[1] - x)


def saturated_budget_is_lost(grad, p, sigma, **options):
    return maximum(grad, p, sigma, spills=1, **options)


def infinite_budget_is_lost(grad, p, sigma, **options):
    return maximum(grad, p, sigma, infinite_spill=False, **options)


def masked_entries_spend(grad, p, sigma, *, x, bounds, mask=None):
    if mask is None:
        return epsilon(grad, p, sigma, x=x, bounds=bounds)
    step = epsilon(np.nan_to_num(grad), p, sigma, x=np.clip(x, *bounds), bounds=bounds)
    return np.where(mask, step, np.zeros_like(step))


def bounds_of_the_other_side(grad, p, sigma, *, x, bounds, mask=None):
    return epsilon(grad, p, sigma, x=-x, bounds=(-bounds[1], -bounds[0]), mask=mask)


def nothing_is_outside_by_rounding(grad, p, sigma, *, x, bounds, mask=None):
    outside = (x < bounds[0]) | (x > bounds[1])
    outside = (outside if mask is None else outside & mask).any(
        axis=tuple(range(1, grad.ndim)), keepdims=True
    )
    return np.where(outside, math.nan, epsilon(grad, p, sigma, x=x, bounds=bounds, mask=mask))


def back_to_the_bound(grad, p, sigma, *, x, bounds, mask=None):
    step = epsilon(grad, p, sigma, x=x, bounds=bounds, mask=mask)
    return np.where((x < bounds[0]) | (x > bounds[1]), np.clip(x, *bounds) - x, step)


def beyond_the_ball(grad, p, sigma, *, x, bounds, mask=None):
    return epsilon(grad, p, 1.01 * np.asarray(sigma), x=x, bounds=bounds, mask=mask)


def short_of_the_ball(grad, p, sigma, *, x, bounds, mask=None):
    return epsilon(grad, p, 0.9 * np.asarray(sigma), x=x, bounds=bounds, mask=mask)


def bounds_ignored(x, room, t):
    """Stand for `multipliers.within`."""


def numpys_implementations_are_right_on_ordinary_rows():
    rng = np.random.default_rng(0)
    v, room = rng.standard_normal((4, 50)).astype("f4"), rng.random((4, 50)).astype("f4")
    for p in 1, 1.5, 2, 2.7, 6:
        for primitive in step_in_box, nearest:
            operands = v, np.full((4, 1), 50 ** (1 / p) / 4, "f4"), room
            with np.errstate(all="ignore"):
                definition = primitive.value(p, *operands)
            assert_allclose(primitive(p, *operands), definition, rtol=1e-5, atol=1e-6)


IMPLEMENTATION_MUTANTS = [("within", bounds_ignored), ("ROUNDINGS", 2.0**22), ("NEWTON_END", 2.0**22)]


@pytest.mark.parametrize(
    ("name", "mutant"), IMPLEMENTATION_MUTANTS, ids=[name for name, _ in IMPLEMENTATION_MUTANTS]
)
def test_a_mistake_in_numpys_implementations_is_found(name, mutant, monkeypatch):
    """Bounds ignored, a budget that is not spent, Newton's method stopped early."""
    numpys_implementations_are_right_on_ordinary_rows()
    monkeypatch.setattr(multipliers, name, mutant)
    with pytest.raises(AssertionError):
        numpys_implementations_are_right_on_ordinary_rows()


MUTANTS = [
    (clip_afterwards, attains_the_most),
    (saturated_budget_is_lost, attains_the_most),
    (short_of_the_ball, loses_nothing_to_clipping),
    (infinite_budget_is_lost, hands_on_what_infinite_entries_leave),
    (bounds_of_the_other_side, stays_in_ball_and_box),
    (bounds_of_the_other_side, moves_nothing_further_outside),
    (nothing_is_outside_by_rounding, attains_the_most),
    (back_to_the_bound, stays_in_ball_and_box),
    (beyond_the_ball, stays_in_ball_and_box),
    (masked_entries_spend, spends_nothing_outside_the_mask),
]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda function: function.__name__)
def test_a_mistake_breaks_its_law(mutant, law):
    with pytest.raises(AssertionError):
        check_law(law, mutant, boxes(numpy_readonly()))
