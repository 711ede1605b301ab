"""Many steps of ascent: feasible, never worse than the start, and as good as the known best."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import trainer_on_digits
from helpers.balls import generator
from helpers.laws import norms
from helpers.libraries import numpy_readonly
from lpfamily import ascend, epsilon, error_log_odds, project, sample
from lpfamily.ascent import frank_wolfe, projected
from lpfamily.linear import worst_residual

METHODS = "adaptive", "projected", "frank-wolfe"
EXPONENTS = 1, 1.5, 2, 3, math.inf


def near(lib, target):
    """Return -||x - target||^2 / 2 of each example, which is concave, and its gradient."""
    target = lib.from_numpy(target, "float64")

    def value_and_grad(x):
        rest = target - x
        return -lib.xp.sum(rest * rest, axis=-1) / 2, rest

    return value_and_grad


def problem(seed=0, n=5, d=8):
    rng = np.random.default_rng(seed)
    return rng.random((n, d)), rng.standard_normal((n, d))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)], ids=["ball", "box"])
def test_a_concave_top_is_the_projection(lib, p, bounds):
    x, target = problem()
    with lib.scope():
        at = lib.from_numpy(x, "float64")
        rest = lib.from_numpy(target - x, "float64")
        best = lib.to_numpy(project(rest, p, 0.5, **({"x": at, "bounds": bounds} if bounds else {})))
        for method, atol, options in (
            ("projected", 1e-2, {"step_size": 0.01, "steps": 60}),
            ("frank-wolfe", *((3e-2, {"steps": 200}) if lib.name == "numpy" else (0.1, {"steps": 60}))),
            ("adaptive", 1e-2, {"steps": 60}),
        ):
            if (lib.compiles or lib.slow) and method != "projected":
                continue  # the same lines; compiled or scheduled one by one they take minutes
            options["steps"] = 8 if lib.slow else options["steps"]
            eps = ascend(near(lib, target), at, p, 0.5, bounds=bounds, method=method, **options)
            loss = np.sum((x + lib.to_numpy(eps) - target) ** 2, axis=1)
            least = np.sum((x + best - target) ** 2, axis=1)
            assert np.all(loss >= least - 1e-9)
            assert_allclose(loss, least, atol=10 if lib.slow else atol)


def steep(lib, seed):
    """Return a value that oscillates, and its gradient."""
    weights = lib.from_numpy(np.random.default_rng(seed).standard_normal((8, 3)), "float64")

    def value_and_grad(x):
        z = 6 * (x @ weights)
        return lib.xp.sum(lib.xp.sin(z), axis=-1), 6 * lib.xp.cos(z) @ weights.T

    return value_and_grad


def is_feasible_and_no_worse(ascend, lib, p, seed, method, sigma, bounds, start):
    x, _ = problem(seed)
    function = steep(lib, seed)
    with lib.scope():
        at = lib.from_numpy(x, "float64")
        begin = generator(lib, seed) if start == "random" else None
        if start == "given":
            begin = lib.from_numpy(np.full(x.shape, 0.1), "float64")
        first = (
            project(begin, p, sigma, **({"x": at, "bounds": bounds} if bounds else {}))
            if start == "given"
            else 0 * at
        )
        eps = ascend(function, at, p, sigma, 7, start=begin, bounds=bounds, method=method)
        value, before = (lib.to_numpy(function(at + e)[0]) for e in (eps, first))
        eps = lib.to_numpy(eps)
    assert np.all(norms(eps, p) <= sigma * (1 + 1e-9))
    if bounds:
        assert np.all((x + eps >= bounds[0] - 1e-12) & (x + eps <= bounds[1] + 1e-12))
    if start != "random":
        rounding = 1e-12 if lib.slow else 0  # dask adds up the chunks of the two in different orders
        assert np.all(value >= before - rounding)


drawn = {
    "p": st.sampled_from(EXPONENTS),
    "seed": st.integers(0, 2**32 - 1),
    "method": st.sampled_from(METHODS),
    "sigma": st.sampled_from([0.0, 0.1, 2.0]),
    "bounds": st.sampled_from([None, (0.0, 1.0)]),
    "start": st.sampled_from([None, "random", "given"]),
}


@given(**drawn)
def test_is_feasible_and_no_worse(lib, p, seed, method, sigma, bounds, start):
    if lib.compiles:  # every combination is a compilation
        p, method, sigma, bounds = 1.5, "projected", 2.0, (0.0, 1.0)
    is_feasible_and_no_worse(ascend, lib, p, seed, method, sigma, bounds, start)


def with_drift(value_and_grad, x, p, sigma, steps, *, start=None, bounds=None, method=None):
    eps = before = best = np.zeros(x.shape)
    value, grad = value_and_grad(x)
    box = {"x": x, "bounds": bounds} if bounds else {}
    for _ in range(steps):
        there = project(eps + epsilon(grad, p, 2 * sigma), p, sigma, **box)
        eps, before = there + (eps - before) / 4, eps
        new, grad = value_and_grad(x + eps)
        best, value = np.where((new > value)[:, None], eps, best), np.maximum(value, new)
    return best


def last_iterate(value_and_grad, x, p, sigma, steps, *, start=None, bounds=None, method=None):
    eps = np.zeros(x.shape) if start is None or isinstance(start, np.random.Generator) else start
    box = {"x": x, "bounds": bounds} if bounds else {}
    for _ in range(steps):
        eps = project(eps + epsilon(value_and_grad(x + eps)[1], p, 2.5 / steps * sigma), p, sigma, **box)
    return eps


def unprojected(value_and_grad, x, p, sigma, steps, *, start=None, bounds=None, method=None):
    eps = np.zeros(x.shape)
    for _ in range(steps):
        eps = eps + epsilon(value_and_grad(x + eps)[1], p, 2.5 / steps * sigma)
    return eps


@pytest.mark.parametrize("mutant", [last_iterate, unprojected, with_drift])
def test_a_wrong_ascent_breaks_the_law(mutant):
    def run():
        for seed in range(50):
            is_feasible_and_no_worse(mutant, numpy_readonly(), 2, seed, "projected", 2.0, (0.0, 1.0), None)

    with pytest.raises(AssertionError):
        run()


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)], ids=["ball", "box"])
def test_one_step_is_the_closed_form(lib, p, bounds):
    x, weights = problem()
    with lib.scope():
        at, g = (lib.from_numpy(a, "float64") for a in (x, weights))
        function = lambda x: (lib.xp.sum(x * g, axis=-1), g)  # noqa: E731
        box = {"x": at, "bounds": bounds} if bounds else {}
        expected = lib.to_numpy(epsilon(g, p, 0.3, **box))
        for method in METHODS:
            eps = ascend(function, at, p, 0.3, 1, bounds=bounds, method=method)
            assert_allclose(lib.to_numpy(eps), expected, rtol=1e-9, atol=1e-12)
        last = frank_wolfe(lambda x: function(x)[1], at, p, 0.3, 1)
        assert_allclose(lib.to_numpy(last), lib.to_numpy(epsilon(g, p, 0.3)), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_projected_returns_the_last_iterate_of_an_ascent_whose_value_rises(p, steps):
    x, weights = problem()
    start = sample(x.shape, p, 0.3, np.random.default_rng(2))
    values = itertools.count()

    def value_and_grad(x):
        return np.full(len(x), float(next(values))), weights * x**2

    for begin in None, start:
        expected = ascend(value_and_grad, x, p, 0.3, steps, start=begin, method="projected")
        found = projected(lambda x: weights * x**2, x, p, 0.3, steps, begin)
        assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_restarts_find_the_worst_case_of_linear_regression(p):
    rng = np.random.default_rng(0)
    theta, residual = rng.standard_normal((4, 5)), rng.standard_normal((1, 4))
    loss = lambda eps: np.sum((residual - eps @ theta.T) ** 2, axis=-1)  # noqa: E731
    best = loss(worst_residual(theta, residual, p, 0.7))

    def value_and_grad(eps):
        return loss(eps), -2 * (residual - eps @ theta.T) @ theta

    starts = map(np.random.default_rng, range(20))
    found = [loss(ascend(value_and_grad, np.zeros((1, 5)), p, 0.7, 60, 1.4, start)) for start in starts]
    assert np.all(np.array(found) <= best * (1 + 1e-9))
    assert_allclose(max(found), best, rtol=1e-3)


@pytest.mark.parametrize("p", EXPONENTS)
def test_libraries_take_the_same_adaptive_steps(lib, p):
    x, _ = problem(5)
    box, sigma = (np.full((1, 8), -0.2), 1.1), np.linspace(0.1, 0.5, 5)
    numpy = steep(numpy_readonly(), 5)
    options = {"bounds": box, "stop_above": 1.5, "restarts": 1}
    expected = ascend(lambda x, _: numpy(x), x, p, sigma, 8, **options)
    with lib.scope():
        at, low = lib.from_numpy(x, "float64"), lib.from_numpy(box[0], "float64")
        function = steep(lib, 5)

        def ascended(x, sigma):
            options = {"bounds": (low, 1.1), "stop_above": 1.5, "restarts": 1}
            return ascend(lambda x, _: function(x), x, p, sigma, 8, **options)

        found = lib.to_numpy(lib.jit(ascended)(at, lib.from_numpy(sigma, "float64")))
    assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert np.abs(found).max() > 0.01


def adaptive_by_hand(value_and_grad, x, p, sigma, steps):
    """Do one example, in the plainest way; the ends of windows are Auto-PGD's for so many steps."""
    ends = {10: (3, 5, 6, 7, 8, 9, 10), 50: (11, 21, 29, 35, 40, 44, 47, 50)}[steps]
    eps = before = best = np.zeros_like(x)
    value, grad = value_and_grad(x)
    most, best_grad, rises, rose, drift, begun = value, grad, 0, False, 0.0, 0
    share = 1.0 if steps >= 50 or p not in (1, math.inf) else 0.5
    for k in range(1, steps + 1):
        if k == 1:
            step = epsilon(grad, p, sigma)
        elif p in (1, math.inf):
            step = epsilon(grad, p, 2 * sigma * share)
        else:
            step = share * (epsilon(grad, p, sigma) - eps)
        move = (1 - drift) * step + drift * (eps - before)
        eps, before, drift = project(eps + move, p, sigma), eps, 0.25
        new, grad = value_and_grad(x + eps)
        rises, value = rises + (new > value), new
        if new > most:
            best, most, best_grad, rose = eps, new, grad, True
        if k in ends:
            if rises < 0.75 * (k - begun) or not rose:
                eps, value, grad, share, drift = best, most, best_grad, share / 2, 0.0
            rises, rose, begun = 0, False, k
    return best


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("p", EXPONENTS)
def test_adaptive_steps_are_those_of_each_example_by_hand(p, steps):
    x, _ = problem(7)
    function = steep(numpy_readonly(), 7)

    def of_one(at):
        value, grad = function(at[None])
        return value[0], grad[0]

    expected = [adaptive_by_hand(of_one, each, p, 0.4, steps) for each in x]
    assert_allclose(ascend(function, x, p, 0.4, steps), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("p", EXPONENTS)
def test_adaptive_steps_climb_higher_than_others_in_a_network(p):
    trainer, x, labels = trainer_on_digits("float64", confidence=1)
    x, labels, sigma = x[:60], labels[:60], 0.0875 * 64 ** (1 / p)

    def value_and_grad(x):
        return error_log_odds(trainer.logits(x), labels), trainer.input_gradients(x, labels)

    for bounds in None, (0, 1):
        means = {}
        for method in METHODS:
            eps = ascend(value_and_grad, x, p, sigma, 25, bounds=bounds, method=method)
            means[method] = np.mean(value_and_grad(x + eps)[0])
        assert means["adaptive"] > means["projected"]
        assert means["adaptive"] > means["frank-wolfe"] or (p == 1 and bounds)


def test_the_method_is_adaptive_unless_there_is_a_step_size(lib):
    x, _ = problem()
    with lib.scope():
        at, function = lib.from_numpy(x, "float64"), steep(lib, 0)
        for method, options in ("adaptive", {}), ("projected", {"step_size": 0.1}):
            found, named = (ascend(function, at, 2, 0.4, 4, method=m, **options) for m in (None, method))
            assert_array_equal(lib.to_numpy(found), lib.to_numpy(named))


def counted(lib, seed, calls):
    """Return a function whose examples oscillate at different speeds; it notes the examples of each call."""
    function = steep(lib, seed)
    speed = np.linspace(0.1, 2.0, 12)

    def value_and_grad(x, rows):
        asked = np.arange(12)[rows if isinstance(rows, slice) else np.asarray(rows)]
        calls.append(asked)
        of = lib.from_numpy(speed[asked], "float64")
        value, grad = function(x * of[:, None])
        return value, grad * of[:, None]

    return value_and_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("restarts", [0, 2])
def test_an_example_whose_value_exceeds_stop_above_stops(lib, method, restarts):
    x, enough, calls = np.random.default_rng(4).random((12, 8)), 2.0, []
    sigma = np.linspace(0.05, 0.5, 12)
    low = np.minimum(x - 0.3, 0)  # each its own, and one for all
    bounds, mask = (low, np.full((1, 8), 1.2)), np.arange(96).reshape(12, 8) % 5 > 0
    steps, restarts = (2, restarts // 2) if lib.compiles or lib.slow else (12, restarts)
    with lib.scope():
        at = lib.from_numpy(x, "float64")
        given = [lib.from_numpy(each) for each in (low, bounds[1], mask)]
        options = {"method": method, "restarts": restarts, "stop_above": enough}
        eps = ascend(
            counted(lib, 4, calls), at, 2, lib.from_numpy(sigma), steps,
            bounds=tuple(given[:2]), mask=given[2], **options,
        )  # fmt: skip
        value = lib.to_numpy(counted(lib, 4, [])(at + eps, slice(None))[0])
        eps = lib.to_numpy(eps)
    # each alone, on NumPy, with what it has drawn at its place
    expected, path = np.zeros_like(x), counted(numpy_readonly(), 4, [])
    starts = [
        None,
        *[sample(x.shape, 2, sigma, rng) for rng in [np.random.default_rng(0)] for _ in range(restarts)],
    ]
    for i in range(12):
        most = -math.inf
        for start in starts:
            ball = {"bounds": (low[i : i + 1], bounds[1]), "mask": mask[i : i + 1]}
            begin = None if start is None else start[i : i + 1]
            if most <= enough:
                seen = []

                def value_and_grad(x, rows=None, i=i, seen=seen):
                    value, grad = path(x, slice(i, i + 1))
                    seen.append((value[0], x[0]))
                    return value, grad

                ascend(value_and_grad, x[i : i + 1], 2, sigma[i], steps, start=begin, method=method, **ball)
                beyond = [each for each in seen if each[0] > enough]
                reached, there = beyond[0] if beyond else max(seen, key=lambda each: each[0])
                if reached > most:
                    most, expected[i] = reached, there - x[i]
    assert_allclose(eps, expected, atol=1e-7)
    reached = value > enough
    if steps > 2:
        assert 2 < np.count_nonzero(reached) < 10
    if lib.name in ("numpy", "torch"):
        assert sum(map(len, calls)) < 0.8 * 12 * len(calls)
        for before, after in itertools.pairwise(calls):
            assert set(after) <= set(before)
        assert set(calls[-1]) >= set(np.flatnonzero(~reached))
    else:
        assert all(len(each) == 12 for each in calls)


def test_more_starts_are_never_worse_and_keep_the_best(lib):
    x, _ = problem(9)
    with lib.scope():
        at, function = lib.from_numpy(x, "float64"), steep(lib, 9)
        best = lib.to_numpy(function(at + ascend(function, at, 2, 0.6, 3))[0])
        draws = np.random.default_rng(0)
        for restarts in (1,) if lib.compiles or lib.slow else (1, 2, 3):
            start = lib.from_numpy(sample(x.shape, 2, 0.6, draws), "float64")
            again = lib.to_numpy(function(at + ascend(function, at, 2, 0.6, 3, start=start))[0])
            most = lib.to_numpy(function(at + ascend(function, at, 2, 0.6, 3, restarts=restarts))[0])
            best = np.maximum(best, again)
            assert_allclose(most, best, rtol=1e-9)
        if not lib.slow:
            drawn = ascend(function, at, 2, 0.6, 3, start=generator(lib, 1), restarts=1)
            once = ascend(function, at, 2, 0.6, 3, start=generator(lib, 1))
            gain = function(at + drawn)[0] - function(at + once)[0]
            assert np.all(lib.to_numpy(gain) >= 0)
            assert np.any(lib.to_numpy(gain) > 0)


def test_a_traced_ascent_is_one_loop(lib):
    if not lib.compiles:
        pytest.skip("a library that traces nothing")
    import jax

    x, _ = problem()
    function, calls = steep(lib, 0), []

    def value_and_grad(x):
        calls.append(x)
        return function(x)

    with lib.scope():
        at = lib.from_numpy(x, "float64")
        for method in METHODS:
            calls.clear()
            jitted = jax.jit(lambda x, method=method: ascend(value_and_grad, x, 2, 0.4, 40, method=method))
            found = lib.to_numpy(jitted(at))
            assert len(calls) <= 3
            assert_allclose(found, lib.to_numpy(ascend(function, at, 2, 0.4, 40, method=method)), atol=1e-6)
        twice = jax.lax.fori_loop(0, 2, lambda _, x: x + ascend(function, x, 2, 0.2, 3), at)
        once = at + ascend(function, at, 2, 0.2, 3)
        assert_allclose(
            lib.to_numpy(twice), lib.to_numpy(once + ascend(function, once, 2, 0.2, 3)), atol=1e-6
        )
        slope = jax.grad(lambda x: function(x + ascend(function, x, 2, 0.2, 3))[0].sum())(at)
        assert np.isfinite(lib.to_numpy(slope)).all()


def test_an_iterate_whose_value_is_nan_is_not_chosen(lib):
    x, _ = problem()

    def beyond(x):  # the logarithm of what soon is negative
        return lib.xp.log(1.05 - x[:, 0]), lib.xp.ones_like(x)

    with lib.scope(), np.errstate(invalid="ignore"):
        at = lib.from_numpy(np.minimum(x, 0.9), "float64")
        eps = lib.to_numpy(ascend(beyond, at, 2, 2.0, 3))
    assert np.isfinite(eps).all()
    assert_array_equal(eps, 0.0)


def test_a_mask_keeps_entries_where_they_are(lib):
    x, target = problem()
    mask = np.arange(8) < 3
    with lib.scope():
        at = lib.from_numpy(x, "float64")
        eps = ascend(near(lib, target), at, 1.5, 0.5, 3, start=generator(lib, 0), mask=lib.from_numpy(mask))
    eps = lib.to_numpy(eps)
    assert_array_equal(eps[:, ~mask], 0.0)
    assert np.all(np.abs(eps[:, mask]).max(axis=1) > 0)


def test_each_example_or_token_may_have_a_radius(lib):
    rng = np.random.default_rng(3)
    x, sigma = rng.random((2, 3, 4)), rng.random((2, 3))
    with lib.scope():
        at = lib.from_numpy(x, "float64")
        eps = ascend(
            lambda x: (lib.xp.sum(x, axis=-1), lib.xp.ones_like(x)),
            at,
            3,
            lib.from_numpy(sigma),
            batch_ndim=2,
        )
    assert_allclose(norms(lib.to_numpy(eps).reshape(6, 4), 3).astype(float), sigma.reshape(-1), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", EXPONENTS)
def test_a_bad_example_on_a_device_is_nan_and_not_robust(lib, p, method):
    if lib.name == "numpy":
        pytest.skip("NumPy's arrays are seen, so it is an error there")
    x = np.full((3, 4), 0.5)
    x[1, 2] = 1.5
    with lib.scope():
        at, sigma = lib.from_numpy(x, "float64"), lib.from_numpy(np.array([0.1, 0.1, -0.1]), "float64")
        function = near(lib, x + 1)
        if lib.name == "torch" and at.is_cpu:  # seen too, but for sigma
            with pytest.raises(ValueError, match=r"x = 1.5, high = 1 at \(1, 2\): clip x"):
                ascend(function, at, p, 0.1, 2, bounds=(0, 1), method=method)
        else:
            inside = lib.to_numpy(ascend(function, at, p, 0.1, 2, bounds=(0, 1), method=method))
            assert_array_equal(np.isnan(inside).all(axis=1), [False, True, False])
        around = ascend(function, at, p, sigma, 2, method=method)
    assert_array_equal(np.isnan(lib.to_numpy(around)).all(axis=1), [False, False, True])


@pytest.mark.parametrize("method", METHODS)
def test_rounding_puts_no_iterate_outside_the_bounds(lib, method):
    """The steps go there and back between bounds that are not round numbers."""
    mean, deviation = 0.1307, 0.3081
    low, high = -mean / deviation, (1 - mean) / deviation
    pixels = np.random.default_rng(0).integers(0, 3, (6, 40)) / 2
    for name in ("float32",) if lib.compiles else lib.dtypes:
        floats, count = lib.floats[name], iter(range(99))
        m, s = floats.round(mean), floats.round(deviation)
        at = lib.from_numpy(floats.round(floats.round(pixels - m) / s), name)

        def value_and_grad(x, at=at, count=count):
            step = next(count)
            return lib.xp.sum(0 * x, axis=-1) + float(step), (at * 0 + 1) * (-1) ** step

        eps = lib.to_numpy(ascend(value_and_grad, at, 3, 9.0, 9, bounds=(low, high), method=method))
        reached, slack = lib.to_numpy(at) + eps, 4 * lib.floats[name].eps * high
        assert np.abs(eps).max() > 0.1
        assert np.all((reached >= low - slack) & (reached <= high + slack)), name


@pytest.mark.parametrize("method", METHODS)
def test_bounds_may_have_any_dtype_and_their_rounding_counts(lib, method):
    """The float32 x is outside of the float16 low, by less than the rounding of float16."""
    x, end, far = np.full((2, 3), 0.0998), np.full(3, 0.9), np.array(1e300)

    def value_and_grad(x):
        return lib.xp.sum(x, axis=-1), 0 * x + 1

    for bounds in (
        (np.full(3, 0.1, "f2"), 1),
        (-(10**400), end.astype(">f8")),
        (np.array(0), far),
        (0, 10**400),
    ):
        for p in 1, 2, math.inf:
            eps = ascend(
                value_and_grad, lib.from_numpy(x, "float32"), p, 0.2, 3, bounds=bounds, method=method
            )
            assert_allclose(lib.to_numpy(eps), 0.2 / 3 ** (1 / p), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_masked_entries_of_x_may_have_any_value(lib, method):
    x, mask = (
        np.array([[0.5, 0.5, 7.0], [0.5, -3.0, 0.5]]),
        np.array([[True, True, False], [True, False, True]]),
    )
    for start in None, np.full((2, 3), 0.1):
        with lib.scope():
            at = lib.from_numpy(x, "float64")
            begin = None if start is None else lib.from_numpy(start, "float64")
            options = {"bounds": (0, 1), "mask": lib.from_numpy(mask), "start": begin, "method": method}
            eps = lib.to_numpy(ascend(near(lib, x + 1), at, 2, 0.25, 3, **options))
        assert_allclose(eps, np.where(mask, 0.25 / math.sqrt(2), 0), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_nan_leaves_its_example_at_the_start(lib, method):
    x = np.full((2, 3), 0.5)
    with lib.scope():
        at, bad = lib.from_numpy(x, "float64"), lib.from_numpy(np.array([[math.nan], [1.0]]), "float64")

        def value_and_grad(x):
            return lib.xp.sum(x, axis=-1), bad * lib.xp.ones_like(x)

        eps = lib.to_numpy(ascend(value_and_grad, at, 2, 0.25, 3, bounds=(0, 1), method=method))
    assert_allclose(eps, [[0] * 3, [0.25 / math.sqrt(3)] * 3], atol=1e-9)


def flips(trainer, x, labels, p, sigma, *, of_cross_entropy=False):
    def value_and_grad(x):
        odds = error_log_odds(trainer.logits(x), labels)
        grad = trainer.input_gradients(x, labels)
        if of_cross_entropy:
            # as automatic differentiation has it: softmax - onehot, which rounds to 0
            logits = trainer.logits(x)
            y = np.exp(logits - logits.max(axis=1, keepdims=True))
            y /= y.sum(axis=1, keepdims=True)
            grad = grad * (1 - y[np.arange(len(y)), labels])[:, None]
        return odds, grad

    eps = ascend(value_and_grad, x, p, x.dtype.type(sigma), 10)
    return np.mean(trainer.logits(x + eps).argmax(axis=1) != labels)


@pytest.mark.parametrize(("p", "sigma"), [(1, 2.0), (1.5, 1.0), (2, 0.7), (math.inf, 0.1)])
def test_float32_flips_as_many_examples_as_float64_on_a_confident_network(p, sigma):
    single, double = (trainer_on_digits(dtype, confidence=30) for dtype in ("float32", "float64"))
    share = flips(*double, p, sigma)
    assert 0.6 < share < 0.95  # not all, not none: there is something to lose
    assert abs(flips(*single, p, sigma) - share) <= 0.01
    # and the cross-entropy's own gradient, rounded, loses more
    assert flips(*single, p, sigma, of_cross_entropy=True) < share - 0.5


def test_an_error_says_what_was_given():
    x = np.ones((2, 3))

    def never(x):
        raise AssertionError("the model is called before its ball is looked at")

    for match, options in {
        "steps must be at least 1; got 0": {"steps": 0},
        "method must be": {"method": "newton"},
        "step_size needs .*got method='frank-wolfe'": {"method": "frank-wolfe", "step_size": 1.0},
        "step_size needs .*got method='adaptive'": {"method": "adaptive", "step_size": 1.0},
        "restarts must be at least 0; got -1": {"restarts": -1},
        "stop_above must be a number or None; got nan": {"stop_above": math.nan},
        r"start must have the shape of x, \(2, 3\); got \(3,\)": {"start": np.ones(3)},
        "start must be None, a floating array like x, or a generator or key; got 7": {"start": 7},
        "step_size is the ball's radius.*got -1.0": {"step_size": -1.0},
        r"bounds must be a pair \(low, high\)": {"bounds": (0.0,)},
        "sigma is the ball's radius": {"sigma": -1.0},
    }.items():
        with pytest.raises((TypeError, ValueError), match=match):
            ascend(never, x, 2, **({"sigma": 1.0} | options))
    with pytest.raises(ValueError, match=r"one value per example, \(2,\)"):
        ascend(lambda x: (x.sum(), x), x, 2, 1.0)
