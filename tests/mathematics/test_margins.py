"""Distances to the decision boundary against an optimiser, bisection, and sampled points of the ball."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.laws import dual, norms
from helpers.libraries import Floats, TestLibrary, numpy_readonly
from lpfamily import epsilon
from lpfamily.margins import boundary_distance, flip_distance
from lpfamily_reference.definitions import maximise_on_ball

EXPONENTS = [1, 1.1, 1.5, 2, 3, 10, math.inf]
seeds = st.integers(0, 2**32 - 1)


def closed_form(weights, bias, x, labels, direction, **options):
    return flip_distance((weights, bias), x, direction, labels, **options)


def search(weights, bias, x, labels, direction, **options):
    return flip_distance(lambda x: x @ weights + bias, x, direction, labels, most=8.0, **options)


@functools.cache
def jitted(lib, function, p=None, **options):
    """Return the function of arrays alone, compiled where that is what makes it fast."""
    return lib.jit(lambda *arrays: function(*arrays, *(() if p is None else (p,)), **options))


@dataclass(frozen=True)
class Softmax:
    """A linear softmax, inputs and labels, in float64 numbers that the dtype holds."""

    lib: TestLibrary
    floats: Floats
    weights: np.ndarray
    bias: np.ndarray
    x: np.ndarray
    labels: np.ndarray
    p: float
    seed: int

    @property
    def gaps(self):
        """z_y - z_j, inf for the right class itself."""
        z = self.x @ self.weights + self.bias
        right = np.arange(z.shape[-1]) == self.labels[..., None]
        return np.where(right, math.inf, np.sum(np.where(right, z, 0), axis=-1, keepdims=True) - z)

    @property
    def wrong(self):
        return np.any(self.gaps <= 0, axis=-1)

    @property
    def rounding(self):
        """The error of a gap, a sum of products, in units of which a distance may err."""
        size = np.abs(self.x) @ np.abs(self.weights) + np.abs(self.bias)
        compute = Floats.of(self.floats.compute).eps
        return 4 * (2 + self.x.shape[-1]) * compute * size.max(axis=-1)

    @property
    def direction(self):
        return self.floats.round(np.random.default_rng(self.seed).standard_normal(self.x.shape))

    def arrays(self, *values):
        return [
            self.lib.from_numpy(value, self.floats.name if value.dtype.kind == "f" else None)
            for value in values
        ]

    def call(self, function, *args, **options):
        """Return function(...) as float64, checked to be an array like x with the labels' shape."""
        with self.lib.scope():
            weights, bias, x, labels, direction = self.arrays(
                self.weights, self.bias, self.x, self.labels, self.direction
            )
            rays = (direction,) if function in (closed_form, search) else ()
            result = jitted(self.lib, function, *args, **options)(weights, bias, x, labels, *rays)
        assert isinstance(result, type(x) | np.generic)
        assert result.dtype == x.dtype
        assert tuple(result.shape) == self.labels.shape
        return self.lib.to_numpy(result)


@st.composite
def softmaxes(draw, lib, *, dtypes=None):
    floats = lib.floats[draw(st.sampled_from(dtypes or lib.dtypes))]
    batch = draw(st.sampled_from([(), (2,), (2, 2)] if not lib.compiles else [(3,)]))
    inputs, classes = draw(st.sampled_from([(1, 2), (4, 2), (4, 3)] if not lib.compiles else [(4, 3)]))
    p = draw(st.sampled_from(EXPONENTS))
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    weights = floats.round(scale * rng.standard_normal((inputs, classes)))
    bias = floats.round(scale * rng.standard_normal(classes))
    x = floats.round(rng.standard_normal((*batch, inputs)))
    labels = np.argmax(x @ weights + bias, axis=-1)
    labels = np.where(rng.random(batch) < 0.2, rng.integers(classes, size=batch), labels)
    return Softmax(lib, floats, weights, bias, x, np.asarray(labels), p, seed)


def is_the_distance(function, case):
    """The distance to each half-space is its gap over the most that a unit ball gains, by an optimiser."""
    vectors = case.weights.T - case.weights.T[:, None]
    gains = np.array(
        [[v @ maximise_on_ball(v, case.p, 1.0) if v.any() else 0.0 for v in row] for row in vectors]
    )
    gain = gains[case.labels]
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.where(np.isfinite(case.gaps), case.gaps / gain, math.inf)
    expected = np.where(case.wrong, 0, distances.min(axis=-1))
    least = np.where(gain > 0, gain, math.inf).min(axis=-1)
    error = np.abs(case.call(function, case.p) - expected)
    allowed = case.rounding / least + (4e-6 + 8 * case.floats.eps) * expected + case.floats.least
    assert np.all(error <= allowed), (case, expected, error, allowed)


@given(data=st.data())
def test_it_is_the_distance_to_the_nearest_half_space(data, lib):
    is_the_distance(boundary_distance, data.draw(softmaxes(lib)))


@given(data=st.data())
def test_the_ball_holds_no_change_and_its_sphere_does(data, lib):
    case = data.draw(softmaxes(lib, dtypes=["float64"]))
    distance = case.call(boundary_distance, case.p)
    rng = np.random.default_rng(case.seed)
    for index in np.ndindex(case.labels.shape):
        x, y, far = case.x[index], case.labels[index], distance[index]
        if not far > 1e-9:
            continue
        steps = rng.standard_normal((200, x.size)) ** 3
        steps *= far * (1 - 1e-9) / norms(steps, case.p)[:, None].astype(float)
        vectors = np.delete(case.weights.T, y, axis=0) - case.weights[:, y]
        nearest = far * (1 + 1e-9) * epsilon(vectors, case.p, 1.0)
        z = (x + np.concatenate([steps, nearest])) @ case.weights + case.bias
        changed = np.argmax(z, axis=1) != y
        assert not changed[:200].any(), case
        assert changed[200:].any(), case


@given(data=st.data())
def test_the_distance_does_not_see_the_scale_of_the_logits(data, lib):
    case = data.draw(softmaxes(lib, dtypes=["float32", "float64"]))
    other = replace(case, weights=2.0**20 * case.weights, bias=2.0**20 * case.bias)
    assert_allclose(
        other.call(boundary_distance, case.p), case.call(boundary_distance, case.p), rtol=8 * case.floats.eps
    )


def first_change(case):
    """Bisect: the right logit's lead along a ray is concave, so it is lost once at most."""

    def lead(t):
        z = (case.x + t[..., None] * case.direction) @ case.weights + case.bias
        right = np.arange(z.shape[-1]) == case.labels[..., None]
        return np.min(np.where(right, math.inf, np.sum(z * right, axis=-1, keepdims=True) - z), axis=-1)

    low, high = np.zeros(case.labels.shape), np.full(case.labels.shape, 1e6)
    never = lead(high) > 0
    for _ in range(100):
        middle = (low + high) / 2
        holds = lead(middle) > 0
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return np.where(case.wrong, 0, np.where(never, math.inf, high))


@given(data=st.data())
def test_the_closed_form_is_what_bisection_finds(data, lib):
    case = data.draw(softmaxes(lib))
    got, expected = case.call(closed_form), first_change(case)
    # rounding of the slope matters as much as that of the gap, where the ray is nearly parallel
    speeds = case.direction @ case.weights
    speeds = speeds - np.take_along_axis(speeds, case.labels[..., None], axis=-1)
    slowest = np.where(speeds > 0, speeds, math.inf).min(axis=-1)
    slip = Floats.of(case.floats.compute).eps * 60 * np.abs(case.direction) @ np.abs(case.weights).max(axis=1)
    loss = case.rounding / slowest + slip / slowest * np.where(np.isfinite(expected), expected, 0)
    sure = (expected < 1e5) & (slip < slowest / 8) | (expected == 0)
    allowed = 4 * loss + 8 * case.floats.eps * np.abs(expected) + case.floats.least
    with np.errstate(invalid="ignore"):
        right = (np.abs(got - expected) <= allowed) | (got == expected)
    assert np.all(right[sure]), (case, got, expected, allowed)
    cut, far = case.call(closed_form, most=2.0), np.abs(got - 2) > 4 * case.floats.eps
    assert_allclose(cut[far], np.where(got > 2, math.inf, got)[far], rtol=1e-6)


@given(data=st.data())
def test_the_search_brackets_the_closed_form(data, lib):
    case = data.draw(softmaxes(lib, dtypes=["float64"]))
    expected, found = case.call(closed_form, most=8.0), case.call(search, brackets=5, steps=40)
    near = np.abs(expected - 8) < 1e-9
    assert_array_equal(np.isinf(found)[~near], np.isinf(expected)[~near])
    both = np.isfinite(found) & np.isfinite(expected)
    # where the ray is nearly parallel the margin's rounding is all there is to find
    assert_allclose(found[both], expected[both], rtol=1e-6, atol=1e-9)


@given(data=st.data())
def test_the_prediction_is_changed_where_the_search_ends_and_not_before(data, lib):
    case = data.draw(softmaxes(lib, dtypes=["float32"]))
    t = case.call(search, brackets=16, steps=12)
    for index in np.ndindex(t.shape):
        for at, changed in (t[index], True), (t[index] - 8 / 16 / 2**12, False):
            if 0 < at < math.inf:
                z = (case.x[index] + at * case.direction[index]) @ case.weights + case.bias
                y = case.labels[index]
                lead = z[y] - np.delete(z, y).max()
                slack = (1 + 4 * at) * case.rounding[index]  # of x + t d in float32
                assert lead <= slack if changed else lead >= -slack, (case, at)


def test_the_search_finds_changes_in_half_precision(lib):
    if "float16" not in lib.dtypes:
        pytest.skip("the library has no half precision")
    rng = np.random.default_rng(0)
    n = 10 if lib.slow else 100
    x, w, d = rng.standard_normal((n, 5)), rng.standard_normal((5, 3)), rng.standard_normal((n, 5))
    at, weights, ray = (lib.from_numpy(each, "float16") for each in (x, w, d))
    labels = lib.from_numpy(np.argmax(lib.to_numpy(at @ weights), axis=1))
    t = lib.to_numpy(flip_distance(lambda x: x @ weights, at, ray, labels, most=10))
    found = np.isfinite(t)
    assert found.sum() > n / 3
    there = lib.from_numpy(np.where(found, t, 0)[:, None], "float16")
    logits = lib.to_numpy((at + there * ray) @ weights)
    own = np.take_along_axis(logits, lib.to_numpy(labels).astype(int)[:, None], axis=1)
    others = np.sum(logits >= own, axis=1) - 1  # a tie counts
    assert (others[found] > 0).all()


def ring(xp):
    """Class 1 between the circles of radius 1 and 1.25, and beyond 2; class 0 elsewhere."""

    def logits(x):
        r = xp.sum(x * x, axis=(-2, -1))
        return xp.stack([xp.zeros_like(r), -(r - 1) * (r - 1.25**2) * (4 - r)], axis=-1)

    return logits


def test_the_search_finds_the_first_change_that_its_grid_sees(lib):
    with lib.scope():
        x = lib.from_numpy(np.zeros((3, 2, 2)), "float64")
        rays = np.zeros((3, 2, 2))
        rays[0, 0, 0], rays[1, 1, 0], rays[2] = 1, 2, 0.5
        direction = lib.from_numpy(rays, "float64")
        labels = lib.from_numpy(np.array([0, 0, 0]))
        logits = ring(lib.xp)
        steps = 20 if lib.slow else 40
        rtol = 2.0**-steps  # of a bracket that is shorter than 1
        fine = flip_distance(logits, x, direction, labels, most=4.0, brackets=64, steps=steps)
        assert_allclose(lib.to_numpy(fine), [1, 0.5, 1], rtol=rtol)
        coarse = flip_distance(logits, x, direction, labels, most=4.0, brackets=5, steps=steps)
        assert_allclose(lib.to_numpy(coarse), [2, 1, 2], rtol=rtol)  # the ring lies between two points
        short = flip_distance(logits, x, direction, labels, most=0.9)
        assert_allclose(lib.to_numpy(short), [math.inf, 0.5, math.inf], rtol=1e-6)
        ones = lib.from_numpy(np.array([1, 1, 1]))
        assert_array_equal(lib.to_numpy(flip_distance(logits, x, direction, ones, most=1.0)), 0)


def test_a_tie_is_on_the_boundary(lib):
    weights = lib.from_numpy(np.array([[0.0, 1.0]]), "float32")
    bias = lib.from_numpy(np.zeros(2), "float32")
    x, step = lib.from_numpy(np.zeros((2, 1)), "float32"), lib.from_numpy(np.ones((2, 1)), "float32")
    labels = lib.from_numpy(np.array([0, 1]))
    for result in (
        boundary_distance(weights, bias, x, labels, 2),
        flip_distance((weights, bias), x, step, labels),
        flip_distance(lambda v: v @ weights + bias, x, step, labels, most=1.0),
    ):
        assert_array_equal(lib.to_numpy(result), 0)


def test_a_boundary_that_does_not_exist_is_infinitely_far(lib):
    weights = lib.from_numpy(np.ones((3, 3)), "float32")
    bias = lib.from_numpy(np.array([1.0, 0.0, -1.0]), "float32")
    x = lib.from_numpy(np.array([[1.0, 2.0, 3.0], [math.nan, 0, 0], [0, 0, 0]]), "float32")
    labels = lib.from_numpy(np.array([0, 0, 1]))
    direction = lib.from_numpy(np.ones((3, 3)), "float32")
    for result in (
        boundary_distance(weights, bias, x, labels, 3),
        flip_distance((weights, bias), x, direction, labels),
        flip_distance(lambda v: v @ weights + bias, x, direction, labels, most=1e3),
    ):
        assert_array_equal(lib.to_numpy(result), [math.inf, math.nan, 0])


def test_a_nan_at_the_end_of_the_search_gives_nan(lib):
    def logits(x):
        return lib.xp.stack([x[:, 0] * 0, lib.xp.where(x[:, 0] > 0.5, math.nan, -1.0 + 0 * x[:, 0])], axis=-1)

    x = lib.from_numpy(np.array([[0.0], [-2.0]]), "float32")
    found = flip_distance(
        logits,
        x,
        lib.from_numpy(np.ones((2, 1)), "float32"),
        lib.from_numpy(np.array([0, 0])),
        most=1.0,
    )
    assert_array_equal(lib.to_numpy(found), [math.nan, math.inf])


def test_no_examples_give_no_distances(lib):
    weights, bias = lib.from_numpy(np.ones((3, 2)), "float32"), lib.from_numpy(np.ones(2), "float32")
    x, labels = lib.from_numpy(np.ones((0, 3)), "float32"), lib.from_numpy(np.ones(0, dtype=int))
    for result in (
        boundary_distance(weights, bias, x, labels, 2),
        flip_distance((weights, bias), x, x, labels),
        flip_distance(lambda v: v @ weights, x, x, labels, most=1.0),
    ):
        assert lib.to_numpy(result).shape == (0,)


# Mutants: each breaks the law.


def textbook(
    weights, bias, x, labels, p, *, own_norm=False, first_wrong=False, signed=False, along_loss=False
):
    """The distance in a loop over examples, with a mistake for each option."""
    result = np.empty(labels.shape)
    for index in np.ndindex(labels.shape):
        z, y = x[index].astype(float) @ weights + bias, labels[index]
        wrong = [j for j in np.argsort(-z, kind="stable") if j != y]
        q = p if own_norm else dual(p)
        lengths = norms((weights.T - weights[:, y]).astype(float), q).astype(float)
        if along_loss:  # the normal of the softmax's loss instead of each class's own
            odds = np.exp(z - z[wrong].max()) * (np.arange(len(z)) != y)
            mixed = weights @ (odds / odds.sum()) - weights[:, y]
            step = epsilon(mixed.astype(float), p, 1.0)
            lengths = step @ (weights - weights[:, [y]])
        with np.errstate(divide="ignore"):
            far = [(z[y] - z[j]) / lengths[j] if lengths[j] > 0 else math.inf for j in wrong]
        nearest = far[0] if first_wrong else min(far)
        if any(z[j] >= z[y] for j in wrong) and not signed:
            nearest = 0.0
        result[index] = nearest
    return result.astype(x.dtype)[()] if labels.shape else np.asarray(result.astype(x.dtype))


def check(function):
    library = numpy_readonly()

    @settings(phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
    @given(softmaxes(library, dtypes=["float64"]))
    def run(case):
        is_the_distance(function, case)

    run()


def test_the_textbook_obeys_the_law():
    check(textbook)


@pytest.mark.parametrize("mistake", ["own_norm", "first_wrong", "signed", "along_loss"])
def test_a_mistake_breaks_the_law(mistake):
    with pytest.raises(AssertionError):
        check(functools.partial(textbook, **{mistake: True}))


# Derivatives.


def smooth(seed):
    """Return weights, bias, x, direction and labels, all examples right."""
    rng = np.random.default_rng(seed)
    weights, bias, x = rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal((5, 4))
    return weights, bias, x, rng.standard_normal((5, 4)), np.argmax(x @ weights + bias, axis=1)


def test_derivatives_are_never_nan(autodiff):
    weights, bias, x, direction, labels = smooth(4)
    weights[:, 1], bias[1] = weights[:, 0], bias[0]  # two classes that never part
    direction[1] = 0
    labels = np.where(np.arange(5) < 2, labels, 0)

    def total(w):
        far = boundary_distance(w, b, v, y, 1.5), flip_distance((w, b), v, d, y)
        return sum(autodiff.xp.sum(autodiff.xp.where(t < 1e9, t, 0.0)) for t in far)

    with autodiff.scope():
        w, b, v, d = (autodiff.from_numpy(a, "float64") for a in (weights, bias, x, direction))
        y = autodiff.from_numpy(labels)
        assert np.isfinite(autodiff.to_numpy(autodiff.derivative(total)(w))).all()


# Errors.


def test_a_label_out_of_range_is_an_error_or_makes_its_row_nan(lib):
    weights, bias = lib.from_numpy(np.eye(2), "float32"), lib.from_numpy(np.zeros(2), "float32")
    x = lib.from_numpy(np.array([[1.0, 0.0], [0.0, 1.0]]), "float32")
    distances = (
        lambda labels: boundary_distance(weights, bias, x, labels, 2),
        lambda labels: flip_distance((weights, bias), x, -x, labels),
        lambda labels: flip_distance(lambda v: v @ weights, x, -x, labels, most=1.0),
    )
    for distance in distances:
        for labels in np.array([0, 2]), lib.from_numpy(np.array([0, 2])):
            if lib.name in ("numpy", "torch") or isinstance(labels, np.ndarray):
                with pytest.raises(ValueError, match=r"labels must lie in 0..1; got values from 0 to 2$"):
                    distance(labels)
            else:
                assert_array_equal(np.isnan(lib.to_numpy(distance(labels))), [False, True])


BAD_DISTANCES = {
    r"p must lie in \[1, inf\]": lambda w, b, x, y: boundary_distance(w, b, x, y, 0.5),
    r"weights must have shape \(inputs, classes\).*got \(3,\)": lambda w, b, x, y: boundary_distance(
        w[:, 0], b, x, y, 2
    ),
    r"weights must have shape .*got \(3, 1\)": lambda w, b, x, y: boundary_distance(w[:, :1], b, x, y, 2),
    r"bias must have shape \(2,\).*got \(1,\)": lambda w, b, x, y: boundary_distance(w, b[:1], x, y, 2),
    r"x must have shape \(..., 3\).*got \(4, 2\)": lambda w, b, x, y: boundary_distance(w, b, x[:, :2], y, 2),
    r"labels must have shape \(4,\); got \(2,\)": lambda w, b, x, y: boundary_distance(w, b, x, y[:2], 2),
    r"weights must be an array.*got list": lambda w, b, x, y: boundary_distance([1.0], b, x, y, 2),
    r"direction must have x's shape, \(4, 3\); got \(2, 3\)": lambda w, b, x, y: flip_distance(
        (w, b), x, x[:2, :], y
    ),
    r"most must be finite for a logits function": lambda w, b, x, y: flip_distance(lambda v: v @ w, x, x, y),
    r"most must be a number > 0.*got 0": lambda w, b, x, y: flip_distance((w, b), x, x, y, most=0),
    r"most must be a number > 0.*got nan": lambda w, b, x, y: flip_distance((w, b), x, x, y, most=math.nan),
    r"brackets must be a whole number >= 1; got 0": lambda w, b, x, y: flip_distance(
        lambda v: v @ w, x, x, y, most=1, brackets=0
    ),
    r"steps must be a whole number >= 0; got 1.5": lambda w, b, x, y: flip_distance(
        lambda v: v @ w, x, x, y, most=1, steps=1.5
    ),
    r"logits must be a function of x, or a pair \(weights, bias\); got .*": lambda w, b, x, y: flip_distance(
        w, x, x, y
    ),
}


@pytest.mark.parametrize(("message", "call"), BAD_DISTANCES.items(), ids=BAD_DISTANCES)
def test_an_error_says_what_was_given(lib, message, call):
    w, b, x = (lib.from_numpy(np.ones(shape), "float32") for shape in ((3, 2), (2,), (4, 3)))
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        call(w, b, x, lib.from_numpy(np.zeros(4, dtype=int)))


def test_weights_may_be_arrays_of_the_same_library_or_of_numpy(lib):
    x, labels = lib.from_numpy(np.array([[3.0, 0.0]]), "float32"), lib.from_numpy(np.array([0]))
    weights, bias = np.eye(2, dtype=np.float32), np.zeros(2, dtype=np.float32)
    far = boundary_distance(weights, bias, x, labels, 2)
    assert type(far) is type(x)
    assert_allclose(lib.to_numpy(far), 3 / math.sqrt(2), rtol=1e-6)
    if lib.name != "numpy":
        with pytest.raises(TypeError, match="weights must be an array of numpy, as the array beside it is"):
            boundary_distance(lib.from_numpy(weights), bias, np.ones((1, 2)), labels, 2)
