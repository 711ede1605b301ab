"""The worst residual of linear regression: global by duality and enumeration, hard case included."""

import functools
import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.libraries import Floats, TestLibrary, numpy_readonly
from lpfamily import epsilon, linear
from lpfamily.linear import first_order, residual_bound, shortfall, worst_residual
from lpfamily_reference.definitions import maximise_residual

EXACT = [1, 2, math.inf]
P = [1, 1.1, 1.5, 2, 3, 10, math.inf]
KINDS = ["normal", "wide", "orthogonal", "near", "zero residual", "degenerate", "rank one", "hard by design"]
LIBRARY = numpy_readonly()
SHAPES = [(1, 4), (3, 5), (4, 2)]


@dataclass(frozen=True)
class Case:
    """One problem in numbers of the dtype, as float64; sigma is one number per row of the residual."""

    lib: TestLibrary
    floats: Floats
    theta: np.ndarray
    residual: np.ndarray
    sigma: np.ndarray
    seed: int

    @property
    def tolerance(self) -> float:
        """Relative, of a norm or a residual's size: a decomposition, some products, the result's rounding."""
        compute = Floats.of(self.floats.compute).eps
        own = 4 * self.floats.eps if self.floats.name != self.floats.compute else 0
        return (32 + 4 * sum(self.theta.shape)) * compute + own

    def call(self, function: Any, p: float) -> np.ndarray:
        with self.lib.scope():
            theta, residual = (self.lib.from_numpy(x, self.floats.name) for x in (self.theta, self.residual))
            sigma = self.lib.from_numpy(self.sigma, self.floats.compute)
            result = function(theta, residual, p, sigma)
        assert type(result) is type(residual)
        assert result.dtype == residual.dtype
        return self.lib.to_numpy(result)

    def sizes(self, eps: np.ndarray) -> np.ndarray:
        return np.linalg.norm(self.residual - eps @ self.theta.T, axis=-1)


@st.composite
def cases(draw: Any, lib: TestLibrary, kinds: list[str] = KINDS) -> Case:
    floats = lib.floats[draw(st.sampled_from(lib.dtypes))]
    if lib.compiles:  # every shape and dtype is a compilation; half precision is float32 and its ends
        m, n = (3, 5) if floats.name != "float32" else draw(st.sampled_from(SHAPES))
    else:
        m, n = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(kinds))
    half = floats.name in ("float16", "bfloat16")
    exponent = draw(st.integers(-2, 2) if half else st.integers(-40, 40))
    ratio = 10 ** draw(st.floats(-2, 2) if half else st.floats(-9, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((m, n))
    residual = rng.standard_normal((3, m))
    if kind == "degenerate":
        u, s, v = np.linalg.svd(theta, full_matrices=False)
        theta = u * np.where(s >= s[len(s) // 2], 1.0, 0.5) @ v
    if kind == "rank one":
        theta = np.outer(theta[:, 0], theta[0])
    if kind == "hard by design":  # a diagonal, so that no rounding softens it
        theta = np.diag([2.0, 2.0, 1.0, 0.5, 0.25, 0.125])[:m, :n]
        residual[:, :2] = 0
    if kind == "wide":  # eigenvalues from far below the leading one to just below it
        decades = 1 if half else 8  # so that no result is subnormal
        below = 10 ** -rng.uniform(0, decades, min(m, n))
        theta = np.eye(m, n)
        theta[np.arange(min(m, n)), np.arange(min(m, n))] = np.where(
            rng.random(min(m, n)) < 0.5, below, 1 - below
        )
        residual *= 10 ** -rng.uniform(0, decades, residual.shape)
    if kind in ("orthogonal", "near"):
        leading = np.linalg.svd(theta)[0][:, :1]
        keep = 1e-7 if kind == "near" else 0
        residual = residual - (1 - keep) * (residual @ leading) @ leading.T
    if kind == "zero residual":
        residual *= 0
    scale = 2.0**exponent
    sigma = floats.round(10 ** rng.uniform(-1, 1, 3))
    largest = np.linalg.norm(theta, 2)
    return Case(
        lib,
        floats,
        floats.round(theta * scale),
        floats.round(residual * largest * scale * ratio),
        sigma,
        seed,
    )


def dual_maximum(case: Case) -> np.ndarray:
    """Return the maximum for p = 2 as the minimum of its Lagrangian dual, which has no gap (S-lemma).

    ||r||^2 + mu sigma^2 + sum (s c)^2 / (mu - s^2) is an upper bound for every mu > max s^2.
    """
    largest = max(np.abs(case.theta).max(), np.finfo(float).tiny)
    u, s, _ = np.linalg.svd(case.theta / largest, full_matrices=False)
    found = []
    for residual, sigma in zip(case.residual / largest, case.sigma, strict=True):
        g = (s * (u.T @ residual))[:, None] ** 2

        def bound(k, g=g, residual=residual, sigma=sigma):
            gap = (s[0] - s) * (s[0] + s)
            return residual @ residual + (s[0] ** 2 + k) * sigma**2 + np.sum(g / (k + gap[:, None]), axis=0)

        grid = np.linspace(-60, 60, 1201)
        for _ in range(7):
            best = grid[np.argmin(bound(np.exp(grid)))]
            grid = best + (grid[1] - grid[0]) * np.linspace(-1.5, 1.5, 101)
        found.append(math.sqrt(bound(np.exp(best))[0]) * largest)
    return np.array(found)


def extreme_points(n: int, p: float) -> np.ndarray:
    if p == 1:
        return np.concatenate([np.eye(n), -np.eye(n)])
    return np.array(list(product((-1.0, 1.0), repeat=n)))


def largest_of(case: Case, points: np.ndarray) -> np.ndarray:
    """Return the largest size of the residual over the given points of the unit ball."""
    moves = case.sigma[:, None, None] * (points @ case.theta.T)
    return np.linalg.norm(case.residual[:, None, :] - moves, axis=-1).max(axis=1)


def exact_maximum(case: Case, p: float) -> np.ndarray:
    if p == 2:
        return dual_maximum(case)
    return largest_of(case, extreme_points(case.theta.shape[1], p))


# The laws, of a solver with the signature of worst_residual.


def uses_the_budget(solver: Any, case: Case, p: float) -> None:
    assert_allclose(np.linalg.norm(case.call(solver, p), p, axis=-1), case.sigma, rtol=case.tolerance)


def is_the_global_maximum(solver: Any, case: Case, p: float) -> None:
    assert_allclose(case.sizes(case.call(solver, p)), exact_maximum(case, p), rtol=case.tolerance)


def is_scale_free(solver: Any, case: Case, p: float) -> None:
    scale = 2.0 ** np.random.default_rng(case.seed).integers(-30, 30)
    if case.floats.name in ("float16", "bfloat16"):
        scale = 2.0
    other = replace(case, theta=scale * case.theta, residual=scale * case.residual)
    assert_array_equal(other.call(solver, p), case.call(solver, p))


LAWS = [uses_the_budget, is_the_global_maximum, is_scale_free]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("p", EXACT)
@given(data=st.data())
def test_law(data, lib, p, law):
    law(worst_residual, data.draw(cases(lib)), p)


def textbook(theta, residual, p, sigma, *, hard=True, floor=0.0, against=True, along_gradient=False):
    """Eq. 21 in long floats, one row at a time, by bisection for p = 2, with a mistake for each option."""
    wide = np.longdouble
    rows = []
    for r, radius in zip(residual.astype(wide), np.broadcast_to(sigma, len(residual)), strict=True):
        a = theta.astype(wide)
        if p != 2:
            points = extreme_points(a.shape[1], p).astype(wide) * radius
            gain = np.linalg.norm((r - points @ a.T).astype(float), axis=-1)
            if along_gradient:
                gain = -(points @ (a.T @ r)).astype(float)
            rows.append(points[np.argmax(gain)])
            continue
        u, s, v = np.linalg.svd(theta.astype(float), full_matrices=False)
        c = u.T.astype(wide) @ r
        gap = (s[0].astype(wide) - s) * (s[0] + s)
        b = s * np.abs(c)
        low, high = wide(0), np.linalg.norm(b.astype(float)) / wide(radius)
        for _ in range(400):
            middle = (low + high) / 2
            w = b / np.where(middle + gap == 0, 1, middle + gap)
            low, high = (middle, high) if np.sum(w * w) > wide(radius) ** 2 else (low, middle)
        gap = high + gap + floor
        w = b / np.where(gap == 0, 1, gap)
        short = max(wide(0), wide(radius) ** 2 - np.sum(w * w))
        if hard:
            w[0] = np.sqrt(w[0] ** 2 + short)
        elif np.any(w):
            w = w * (radius / np.sqrt(np.sum(w * w)))
        rows.append((np.where(c > 0, -1, 1) * (1 if against else -1) * w) @ v)
    return np.stack(rows).astype(residual.dtype)


MUTANTS = {
    "no hard case": (functools.partial(textbook, hard=False), is_the_global_maximum, 2),
    "no hard case, seen by its norm": (functools.partial(textbook, hard=False), uses_the_budget, 2),
    "a floor of 1e-12": (functools.partial(textbook, floor=1e-12), is_scale_free, 2),
    "the residual made small": (functools.partial(textbook, against=False), is_the_global_maximum, 2),
    "the first order for p = 1": (functools.partial(textbook, along_gradient=True), is_the_global_maximum, 1),
    "the first order for p = 2": (first_order, is_the_global_maximum, 2),
    "the first order for p = inf": (
        functools.partial(textbook, along_gradient=True),
        is_the_global_maximum,
        math.inf,
    ),
}


def check(law, solver, p):
    """Raise what `law` raises of `solver`, without looking for the smallest example."""

    @settings(
        max_examples=60,  # the mistakes are found among the first 40
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(LIBRARY))
    def run(case):
        law(solver, case, p)

    run()


@pytest.mark.parametrize("p", EXACT)
def test_the_textbook_obeys_the_laws(p):
    """So what breaks a law below is the mistake, not the way that it is written."""
    for law in LAWS:
        check(law, textbook, p)


@pytest.mark.parametrize(("mutant", "law", "p"), MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_breaks_its_law(mutant, law, p):
    with pytest.raises(AssertionError):
        check(law, mutant, p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_newton_converges_well_before_its_step_limit(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    decades = -np.log10(np.finfo(dtype).tiny) / 2
    for inputs in 2, 5, 50:
        gap = 10 ** -rng.uniform(0, rng.uniform(0, decades, (4000, 1)), (4000, inputs))
        gap = np.sort(np.where(rng.random(gap.shape) < 0.2, 0, gap), axis=1)
        gap[:, 0] = 0
        # shares near gap make the pole that rules change along the way
        share = gap * 10 ** rng.uniform(-3, 2, gap.shape)
        share = np.where(rng.random(gap.shape) < 0.3, 10 ** -rng.uniform(0, decades, gap.shape), share)
        share, gap = np.minimum(share, 1).astype(dtype), gap.astype(dtype)
        full = linear._secular(np, share, gap) ** 2  # what rounding leaves of the budget is a square
        monkeypatch.setattr(linear, "NEWTON_STEPS", 22)
        assert_allclose(linear._secular(np, share, gap) ** 2, full, atol=256 * np.finfo(dtype).eps)
        monkeypatch.undo()


@pytest.mark.parametrize("seed", range(20))
def test_many_climbs_from_many_starts_reach_no_higher(lib, seed):
    rng = np.random.default_rng(seed)
    theta, residual = rng.standard_normal((3, 4)), rng.standard_normal(3) * [0, 1, 1][seed % 3]
    with lib.scope():
        ours = worst_residual(lib.from_numpy(theta), lib.from_numpy(residual), 2, 0.7)
    climbed = maximise_residual(theta, residual, 2, 0.7)
    found = np.linalg.norm(residual - theta @ lib.to_numpy(ours))
    assert_allclose(found, np.linalg.norm(residual - theta @ climbed), rtol=1e-8)


# The hard case in numbers that can be checked by hand: theta = diag(2, 2, 1), sigma = 1.
HARD = {
    # c has nothing along s = 2: w_3 = 1 * 0.6 / (4 - 1), and the rest goes along the leading plane
    "orthogonal": ([0.0, 0.0, 0.6], [0, 0.2], 4 * 0.96 + 0.8**2),
    "zero residual": ([0.0, 0.0, 0.0], [0, 0], 4.0),
    # at c_3 = 3 the last direction takes all that mu = 4 has: the border of the hard case
    "border": ([0.0, 0.0, 3.0], [0, 1.0], 16.0),
    # beyond it mu = 5 > 4 solves 4 / (mu - 1) = 1, and nothing is left for the others
    "beyond": ([0.0, 0.0, 4.0], [0, 1.0], 25.0),
    "degenerate": ([3.0, 4.0, 0.0], [1.0, 0.0], 49.0),
}


@pytest.mark.parametrize(("residual", "lengths", "square"), HARD.values(), ids=HARD)
def test_the_hard_case_by_hand(lib, residual, lengths, square):
    theta = np.diag([2.0, 2.0, 1.0])
    with lib.scope():
        eps = worst_residual(lib.from_numpy(theta, "float64"), lib.from_numpy(residual, "float64"), 2, 1.0)
    eps = lib.to_numpy(eps)
    assert_allclose(np.sum((residual - theta @ eps) ** 2), square, rtol=1e-14)
    assert_allclose(np.linalg.norm(eps), 1, rtol=1e-14)
    assert_allclose(abs(eps[2]), lengths[1], atol=1e-7)
    if lengths[0]:
        assert_allclose(eps, [-0.6, -0.8, 0.0], atol=1e-14)


# First order, shortfall and bounds, compared with the exact solution.


@given(data=st.data())
def test_the_first_order_is_epsilon_of_the_gradient(data, lib):
    case = data.draw(cases(lib, ["normal"]))
    p = data.draw(st.sampled_from(P))
    gradient = -(case.residual @ case.theta)
    step = case.call(first_order, p)
    assert_allclose(np.linalg.norm(step, p, axis=-1), case.sigma, rtol=case.tolerance)
    gained = np.sum(gradient * step, axis=-1)
    best = np.sum(gradient * epsilon(gradient, p, case.sigma), axis=-1)
    noise = case.sigma * case.tolerance * np.abs(case.residual).sum(-1) * np.abs(case.theta).sum()
    assert np.all(np.abs(gained - best) <= noise)


@pytest.mark.parametrize("p", EXACT)
@given(data=st.data())
def test_the_shortfall_is_the_difference(data, lib, p):
    case = data.draw(cases(lib))
    found = case.call(shortfall, p)
    worst, first = (case.sizes(case.call(solver, p)) for solver in (worst_residual, first_order))
    allowed = 2 * case.tolerance * exact_maximum(case, p)
    assert np.all(np.abs(found - (worst - first)) <= allowed)
    assert np.all(found >= -allowed)
    if len(case.theta) == 1 and case.residual.all():
        assert np.all(found <= allowed)


def bounds(bound: Any, case: Case, p: float) -> None:
    """No point of the ball leaves more than the bound."""
    points = np.random.default_rng(case.seed).standard_normal((400, case.theta.shape[1]))
    points = np.concatenate([points, extreme_points(case.theta.shape[1], math.inf), case.theta])
    points = points / np.maximum(np.linalg.norm(points, p, axis=1, keepdims=True), np.finfo(float).tiny)
    points = np.concatenate([points, -points, extreme_points(case.theta.shape[1], 1)])
    if p in EXACT:
        assert np.all(case.call(bound, p) >= (1 - case.tolerance) * exact_maximum(case, p))
    assert np.all(case.call(bound, p) >= (1 - case.tolerance) * largest_of(case, points))


@pytest.mark.parametrize("p", P)
@given(data=st.data())
def test_the_bound_holds(data, lib, p):
    bounds(residual_bound, data.draw(cases(lib)), p)


@pytest.mark.parametrize("p", [1, 2])
@given(data=st.data())
def test_the_bound_is_exact_where_it_says_so(data, lib, p):
    case = data.draw(cases(lib))
    assert_allclose(case.call(residual_bound, p), exact_maximum(case, p), rtol=case.tolerance)


@given(data=st.data())
def test_the_bound_of_one_output_is_what_the_first_order_attains(data, lib):
    case = data.draw(cases(lib, ["normal"]))
    case = replace(case, theta=case.theta[:1], residual=case.residual[:, :1])
    p = data.draw(st.sampled_from(P))
    assert_allclose(case.call(residual_bound, p), case.sizes(case.call(first_order, p)), rtol=case.tolerance)


def no_wider_ball(theta, residual, p, sigma):
    return residual_bound(theta, residual, 2, sigma)


def own_exponent_for_the_rows(theta, residual, p, sigma):
    rows = np.linalg.norm(theta, p, axis=1)
    return np.linalg.norm(np.abs(residual) + np.asarray(sigma)[:, None] * rows, axis=1)


@pytest.mark.parametrize("mutant", [no_wider_ball, own_exponent_for_the_rows])
def test_a_mistake_breaks_the_bound(mutant):
    with pytest.raises(AssertionError):
        check(bounds, lambda theta, residual, p, sigma: mutant(theta, residual, p, sigma), math.inf)


# Shapes, extreme values and errors.


@pytest.mark.parametrize("p", EXACT)
@pytest.mark.parametrize(("of_theta", "of_sigma"), [(-100, -60), (100, 60), (-60, -100), (-80, -80)])
def test_the_product_of_radius_and_slope_may_leave_the_dtype(lib, p, of_theta, of_sigma):
    theta, sigma = np.diag([1.0, 3.0, 2.0]), 0.5
    given = (theta * 2.0**of_theta, np.zeros((1, 3))), p, sigma * 2.0**of_sigma
    eps = lib.to_numpy(worst_residual(*(lib.from_numpy(a, "float32") for a in given[0]), *given[1:]))
    size = np.linalg.norm(eps / 2.0**of_sigma @ theta)
    assert_allclose(size, sigma * (math.sqrt(14) if p == math.inf else 3), rtol=1e-6)
    residual = np.array([[1.0, -1.0, 0.5]])
    first = lib.to_numpy(
        first_order(*(lib.from_numpy(a, "float32") for a in (given[0][0], residual)), *given[1:])
    )
    assert_allclose(first / 2.0**of_sigma, -epsilon(residual @ theta, p, sigma), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("p", EXACT)
def test_batches_and_sigmas_broadcast(lib, p):
    rng = np.random.default_rng(0)
    theta, residual = rng.standard_normal((3, 4)), rng.standard_normal((2, 5, 3))
    sigma = rng.random(5)
    a, r = lib.from_numpy(theta, "float32"), lib.from_numpy(residual, "float32")
    eps = lib.to_numpy(worst_residual(a, r, p, lib.from_numpy(sigma, "float32")))
    sizes = lib.to_numpy(residual_bound(a, r, p, lib.from_numpy(sigma, "float32")))
    assert eps.shape == (2, 5, 4)
    assert sizes.shape == (2, 5)
    for i, j in product(range(2), range(5)):
        one = worst_residual(a, lib.from_numpy(residual[i, j], "float32"), p, float(sigma[j]))
        assert_allclose(eps[i, j], lib.to_numpy(one), atol=1e-5)


@pytest.mark.parametrize("function", [worst_residual, first_order, shortfall, residual_bound])
@pytest.mark.parametrize("p", EXACT)
def test_zero_or_empty_parameters_move_nothing(lib, p, function):
    for shape in (0, 3), (3, 0), (0, 0):
        theta, r = (
            lib.from_numpy(np.zeros(shape), "float32"),
            lib.from_numpy(np.ones((2, shape[0])), "float32"),
        )
        found = lib.to_numpy(function(theta, r, p, 0.5))
        if function in (worst_residual, first_order):
            assert_array_equal(found, np.zeros((2, shape[1])))
    theta = lib.from_numpy(np.zeros((3, 4)), "float32")
    r = lib.from_numpy(np.ones((0, 3)), "float32")
    assert lib.to_numpy(function(theta, r, p, 0.5)).shape[0] == 0
    r = lib.from_numpy(np.ones((2, 3)), "float32")
    expected = math.sqrt(3) if function is residual_bound else 0
    assert_allclose(lib.to_numpy(function(theta, r, p, 0.5)), expected, rtol=1e-6)
    theta = lib.from_numpy(np.ones((3, 4)), "float32")
    assert_allclose(lib.to_numpy(function(theta, r, p, 0.0)), expected, rtol=1e-6)


@pytest.mark.parametrize("function", [worst_residual, first_order, shortfall, residual_bound])
@pytest.mark.parametrize("p", EXACT)
def test_a_row_that_is_not_finite_makes_only_itself_nan(lib, p, function):
    rng = np.random.default_rng(0)
    theta, residual = rng.standard_normal((2, 3)), rng.standard_normal((3, 2))
    good = lib.to_numpy(
        function(lib.from_numpy(theta, "float32"), lib.from_numpy(residual, "float32"), p, 1.0)
    )
    residual[0, 1], residual[2, 0] = math.nan, -math.inf
    found = lib.to_numpy(
        function(lib.from_numpy(theta, "float32"), lib.from_numpy(residual, "float32"), p, 1.0)
    )
    assert np.isnan(found[[0, 2]]).all()
    assert_allclose(found[1], good[1], rtol=1e-6)


def test_at_most_20_inputs_are_enumerated(lib):
    rng = np.random.default_rng(0)
    theta, residual = rng.standard_normal((2, 20)), rng.standard_normal(2)
    eps = worst_residual(lib.from_numpy(theta, "float32"), lib.from_numpy(residual, "float32"), math.inf, 0.1)
    # the corners of a zonogon in the plane: each is the sign pattern of some direction
    angles = np.linspace(0, 2 * np.pi, 20001)
    fan = np.sign(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ theta)
    best = np.linalg.norm(residual - 0.1 * fan @ theta.T, axis=1).max()
    assert_allclose(np.linalg.norm(residual - theta @ lib.to_numpy(eps)), best, rtol=1e-6)
    theta = lib.from_numpy(np.ones((2, 21)), "float32")
    with pytest.raises(ValueError, match=r"at most 20 inputs; got 21: residual_bound"):
        worst_residual(theta, lib.from_numpy(residual, "float32"), math.inf, 0.1)


def test_an_error_says_what_was_given(lib):
    theta, r = lib.from_numpy(np.ones((2, 3)), "float32"), lib.from_numpy(np.ones(2), "float32")
    for function in worst_residual, shortfall:
        with pytest.raises(ValueError, match=r"p must be 1, 2 or inf .*got 1.5: residual_bound"):
            function(theta, r, 1.5, 1.0)
    for function in worst_residual, first_order, shortfall, residual_bound:
        with pytest.raises(ValueError, match=r"p must lie in \[1, inf\]"):
            function(theta, r, 0.5, 1.0)
        with pytest.raises(ValueError, match=r"sigma .*got -1"):
            function(theta, r, 2, -1)
        with pytest.raises(
            ValueError, match=r"theta must be \(outputs, inputs\).*got shapes \(2, 3\) and \(3,\)"
        ):
            function(theta, lib.from_numpy(np.ones(3), "float32"), 2, 1.0)
        with pytest.raises(TypeError, match=r"residual must be an array.*got list"):
            function(theta, [1.0, 2.0], 2, 1.0)
        with pytest.raises(TypeError, match="theta must be float16"):
            function(lib.from_numpy(np.ones((2, 3), "int32")), r, 2, 1.0)
    if lib.name == "numpy":
        with pytest.raises(ValueError, match="theta must be finite"):
            worst_residual(np.array([[1.0, math.nan]]), np.ones(1), 2, 1.0)
    else:
        with pytest.raises(TypeError, match="theta and residual must be arrays of one library; got ndarray"):
            worst_residual(np.ones((2, 3), "float32"), r, 2, 1.0)


@pytest.mark.parametrize("p", EXACT)
def test_vmap_is_the_batch(autodiff, p):
    rng = np.random.default_rng(0)
    theta, residual = (autodiff.from_numpy(rng.standard_normal(s), "float32") for s in ((2, 3, 5), (2, 3)))
    mapped = autodiff.jit(autodiff.vmap(lambda a, r: worst_residual(a, r, p, 0.5)))(theta, residual)
    for i in range(2):
        one = worst_residual(theta[i], residual[i], p, 0.5)
        assert_allclose(autodiff.to_numpy(mapped[i]), autodiff.to_numpy(one), atol=1e-5)
