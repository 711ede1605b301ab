"""Cross-entropy and the error log-odds: exact where softmax - onehot has rounded to nothing."""

import functools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp, softmax

from lpfamily import binary_error_log_odds, cross_entropy, epsilon, error_log_odds
from lpfamily.classification import relative_slope, softplus

SHAPES = [((), 2), ((), 5), ((2, 3), 2), ((2, 3), 5)]


def logits_and_labels(data, lib, *, spread=None):
    """Draw a dtype, logits that it holds (as float64), and labels."""
    floats = lib.floats[data.draw(st.sampled_from(lib.dtypes))]
    # every shape is a compilation
    batch, classes = ((2, 3), 5) if lib.compiles else data.draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3, 1e4] if spread is None else [spread]))
    z = floats.round(scale * rng.standard_normal((*batch, classes)))
    return floats, z, rng.integers(classes, size=batch)


def exact_odds(z, y):
    """Return log((1 - p_y) / p_y) in long floats."""
    z = z.astype(np.longdouble)
    right = np.arange(z.shape[-1]) == y[..., None]
    with np.errstate(divide="ignore"):
        return logsumexp(np.where(right, -math.inf, z), axis=-1) - np.sum(np.where(right, z, 0), axis=-1)


def call(lib, floats, function, z, labels):
    with lib.scope():
        logits = lib.from_numpy(z, floats.name)
        result = function(logits, labels)
    assert result.dtype == logits.dtype
    assert tuple(result.shape) == z.shape[:-1]
    return lib.to_numpy(result)


def allowed(floats, z, result):
    """What a logarithm of a sum, a subtraction of numbers like z, and the result may round."""
    with np.errstate(over="ignore"):
        compute = 2.0**-52 if floats.name == "float64" else 2.0**-23
        return compute * (8 + 4 * np.max(np.abs(z), axis=-1)) + floats.eps * np.abs(result) + floats.least


@given(data=st.data())
def test_the_odds_are_those_of_the_definition(data, lib):
    floats, z, y = logits_and_labels(data, lib)
    expected = exact_odds(z, y)
    error = np.abs(call(lib, floats, error_log_odds, z, lib.from_numpy(y)) - expected)
    assert np.all(error <= allowed(floats, z, expected))


@given(data=st.data())
def test_cross_entropy_is_softplus_of_the_odds(data, lib):
    floats, z, y = logits_and_labels(data, lib)
    odds = exact_odds(z, y)
    expected = np.logaddexp(odds, 0)
    loss = call(lib, floats, cross_entropy, z, lib.from_numpy(y))
    # its relative error is the odds' absolute one, wherever it is small
    error = np.abs(loss - expected)
    relative = np.minimum(allowed(floats, z, odds), 0.5)
    assert np.all(
        error
        <= (relative + 8 * floats.eps) * np.maximum(expected, 2.0**-126)
        + allowed(floats, z, 0) * expected
        + floats.least
    )


@given(data=st.data())
def test_the_sigmoid_of_the_odds_is_the_error(data, lib):
    floats, z, y = logits_and_labels(data, lib, spread=1.0)
    odds = call(lib, floats, error_log_odds, z, lib.from_numpy(y))
    wrong = np.arange(z.shape[-1]) != y[..., None]
    assert_allclose(
        1 / (1 + np.exp(-odds)), np.sum(softmax(z, axis=-1) * wrong, axis=-1), rtol=20 * floats.eps
    )


@given(data=st.data())
def test_soft_labels_average_the_losses(data, lib):
    floats, z, y = logits_and_labels(data, lib, spread=3.0)
    soft = floats.round(softmax(np.random.default_rng(0).standard_normal(z.shape), axis=-1))
    expected = -np.sum(soft * log_softmax(z, axis=-1), axis=-1)
    loss = call(lib, floats, cross_entropy, z, lib.from_numpy(soft, floats.name))
    assert_allclose(loss, expected, rtol=8 * floats.eps, atol=8 * floats.eps)
    onehot = np.eye(z.shape[-1])[y]
    hard = call(lib, floats, cross_entropy, z, lib.from_numpy(y))
    assert_allclose(
        call(lib, floats, cross_entropy, z, lib.from_numpy(onehot, floats.name)), hard, atol=16 * floats.eps
    )


def test_a_confident_loss_does_not_round_to_zero(lib):
    z = lib.from_numpy(np.array([[60.0, 0.0, 0.0]]), "float32")
    y = lib.from_numpy(np.array([0]))
    assert_allclose(lib.to_numpy(error_log_odds(z, y)), math.log(2) - 60, rtol=1e-6)
    assert_allclose(lib.to_numpy(cross_entropy(z, y)), 2 * math.exp(-60), rtol=1e-5)


def test_infinite_logits_take_the_limit(lib):
    inf = math.inf
    z = lib.from_numpy(
        np.array([[0, -inf, 0], [-inf, 0, 0], [0, -inf, -inf], [inf, 0, 0], [0, inf, 0]]), "float32"
    )
    y = lib.from_numpy(np.zeros(5, int))
    with np.errstate(divide="ignore"):
        assert_allclose(lib.to_numpy(error_log_odds(z, y)), [0, inf, -inf, -inf, inf], atol=1e-7)
        assert_allclose(lib.to_numpy(cross_entropy(z, y)), [math.log(2), inf, 0, 0, inf], rtol=1e-6)


def test_a_soft_label_of_zero_ignores_its_logit(lib):
    z = lib.from_numpy(np.array([[0, -math.inf, 1]]), "float32")
    t = lib.from_numpy(np.array([[0.5, 0, 0.5]]), "float32")
    assert_allclose(lib.to_numpy(cross_entropy(z, t)), math.log(1 + math.e) - 0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64"])
def test_the_dtype_of_labels_may_be_too_small_for_the_number_of_classes(lib, dtype):
    z = np.zeros((2, 300))
    z[0, 256], z[1, 7] = 50, 50
    labels = lib.from_numpy(np.array([0, 7], dtype))
    found = lib.to_numpy(error_log_odds(lib.from_numpy(z, "float32"), labels))
    assert_allclose(found, [50, math.log(299) - 50], rtol=1e-5)


def test_nan_stays_in_its_row(lib):
    z = lib.from_numpy(np.array([[math.nan, 0.0], [0.0, 0.0]]), "float32")
    y = lib.from_numpy(np.array([1, 1]))
    assert_allclose(lib.to_numpy(error_log_odds(z, y)), [math.nan, 0.0], atol=1e-7)
    assert_allclose(lib.to_numpy(cross_entropy(z, y)), [math.nan, math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("function", [error_log_odds, cross_entropy])
def test_one_example_takes_a_plain_label(lib, function):
    z = lib.from_numpy(np.array([1.0, 3.0]), "float32")
    assert_array_equal(lib.to_numpy(function(z, 1)), lib.to_numpy(function(z, np.asarray(1))))


@pytest.mark.parametrize("function", [error_log_odds, cross_entropy])
def test_a_label_out_of_range_is_an_error_or_makes_its_row_nan(lib, function):
    z = lib.from_numpy(np.zeros((3, 2)), "float32")
    for bad in 2, -1, 255:
        labels = np.array([0, bad, 1])
        message = rf"labels must lie in 0\.\.1; got values from .*{bad}.*ignore_index"
        with pytest.raises(ValueError, match=message):
            function(z, labels)
        with pytest.raises(ValueError, match=message):
            function(z, labels, ignore_index=-100)
        if sees(lib):
            with pytest.raises(ValueError, match=message):
                function(z, lib.from_numpy(labels))
        else:
            result = lib.to_numpy(function(z, lib.from_numpy(labels)))
            assert_array_equal(np.isnan(result), [False, True, False])


def sees(lib):
    """Whether the library's arrays can be looked at without waiting for anything."""
    return lib.name in ("numpy", "torch")


# Ignored labels.


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64"])
@pytest.mark.parametrize("left_out", [100, 1], ids=["no class", "a class"])
@pytest.mark.parametrize("function", [error_log_odds, cross_entropy])
def test_ignore_index_leaves_out_an_example(lib, function, kind, left_out):
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((2, 4, 3)).astype("float32"), rng.integers(3, size=(2, 4))
    out = y == 1
    labels = np.where(out, left_out, y).astype(kind)
    logits = lib.from_numpy(z)
    expected = np.where(out, 0 if function is cross_entropy else -math.inf, function(z, y))
    for each in labels, lib.from_numpy(labels):
        assert_allclose(lib.to_numpy(function(logits, each, ignore_index=left_out)), expected, rtol=1e-5)
    assert lib.to_numpy(function(logits[0, 0, :], left_out, ignore_index=left_out)) in (0, -math.inf)


@pytest.mark.parametrize("left_out", [-100, -1, math.nan, 0])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_ignore_index_leaves_out_a_binary_output(lib, left_out, dtype):
    if math.isnan(left_out) and dtype == "int32":
        dtype = "float64"
    rng = np.random.default_rng(0)
    z, out = rng.standard_normal((4, 3)).astype("float32"), np.eye(4, 3) == 1
    out[3] = True
    y = np.where(out, left_out, 1).astype(dtype)
    expected = [binary_error_log_odds(row[~no], np.ones(2)) for row, no in zip(z[:3], out[:3], strict=True)]
    for labels in y, lib.from_numpy(y):
        odds = binary_error_log_odds(lib.from_numpy(z), labels, ignore_index=left_out)
        assert_allclose(lib.to_numpy(odds), [*expected, -math.inf], rtol=1e-5)


@pytest.mark.parametrize("label", [0.05, -1, 2, math.nan])
def test_an_invalid_binary_label_is_an_error_or_makes_its_row_nan(lib, label):
    z, y = lib.from_numpy(np.zeros((3, 2)), "float32"), np.array([[0, 1], [label, 0], [1, 1]])
    message = f"labels must be 0 or 1; got {label}: .*ignore_index.*direction='loss'"
    with pytest.raises(ValueError, match=message):
        binary_error_log_odds(z, y)
    labels = lib.from_numpy(y, "float32")
    if sees(lib):
        with pytest.raises(ValueError, match=message):
            binary_error_log_odds(z, labels, ignore_index=-100)
    else:
        odds = lib.to_numpy(binary_error_log_odds(z, labels, ignore_index=-100))
        assert_array_equal(np.isnan(odds), [False, True, False])


def test_ignore_index_must_be_a_number(lib):
    z, soft = lib.from_numpy(np.zeros((2, 3)), "float32"), lib.from_numpy(np.full((2, 3), 1 / 3), "float32")
    for bad in 0.5, True, "void":
        with pytest.raises(TypeError, match="ignore_index must be an integer or None; got"):
            error_log_odds(z, np.array([0, 1]), ignore_index=bad)
    with pytest.raises(TypeError, match="ignore_index must be a number or None; got 'void'"):
        binary_error_log_odds(z, np.zeros((2, 3)), ignore_index="void")
    with pytest.raises(ValueError, match="ignore_index needs integer labels; got 0 with probabilities"):
        cross_entropy(z, soft, ignore_index=0)


BAD_CALLS = [
    (lambda z, _: (z, np.array([0.0, 1.0])), TypeError, "labels must be integers; got .*float"),
    (lambda z, _: (z, np.array([True, False])), TypeError, "labels must be integers; got .*bool"),
    (lambda z, _: (z, np.array([0])), ValueError, r"labels must have shape \(2,\); got \(1,\)"),
    (lambda z, y: (z[:, :1], y), ValueError, "logits must hold at least two classes.*got shape .2, 1."),
    (lambda _, y: ([[0.0, 1.0]], y), TypeError, "logits must be an array.*got list"),
    (lambda z, _: (z, [0, 1]), TypeError, "labels must be .*got list"),
    (lambda z, _: (z, None), TypeError, "labels must be .*got NoneType"),
]


@pytest.mark.parametrize("function", [error_log_odds, cross_entropy])
@pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD_CALLS, ids=[message for *_, message in BAD_CALLS]
)
def test_an_error_says_what_was_given(lib, function, arguments, error, message):
    z = lib.from_numpy(np.zeros((2, 3)), "float32")
    with pytest.raises(error, match=f"(?s){message}"):
        function(*arguments(z, lib.from_numpy(np.array([0, 1]))))


def test_logits_are_real_floating(lib):
    with pytest.raises(TypeError, match="logits must be float16"):
        error_log_odds(lib.from_numpy(np.zeros((2, 3), "int32")), np.array([0, 1]))


@given(data=st.data())
def test_the_joint_odds_are_those_of_any_output_wrong(data, lib):
    floats = lib.floats[data.draw(st.sampled_from(lib.dtypes))]
    shape = (2, 3) if lib.compiles else data.draw(st.sampled_from([(1,), (2,), (2, 1), (2, 3), (3, 8)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    z = floats.round(data.draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3])) * rng.standard_normal(shape))
    y = rng.integers(2, size=shape)
    with mpmath.workdps(2000):  # 1 - P of e^-1000 has 434 zeros
        rights = [mpmath.fprod(1 / (1 + mpmath.exp(odd)) for odd in row) for row in _rows((1 - 2 * y) * z)]
        expected = np.reshape([float(mpmath.log((1 - right) / right)) for right in rights], shape[:-1])
    labels = lib.from_numpy(y, floats.name if data.draw(st.booleans()) else None)
    error = np.abs(call(lib, floats, binary_error_log_odds, z, labels) - expected)
    assert np.all(error <= shape[-1] * allowed(floats, z, expected))


def _rows(odds):
    return [[mpmath.mpf(float(odd)) for odd in row] for row in odds.reshape(-1, odds.shape[-1])]


def test_one_output_is_a_softmax_of_two(lib):
    z = np.array([[-200.0], [-1.0], [3.0], [200.0]])
    two = lib.from_numpy(np.concatenate([np.zeros_like(z), z], axis=-1), "float32")
    for label in 0, 1:
        y = lib.from_numpy(np.full((4, 1), label))
        odds = binary_error_log_odds(lib.from_numpy(z, "float32"), y)
        assert_allclose(
            lib.to_numpy(odds), lib.to_numpy(error_log_odds(two, lib.from_numpy(np.full(4, label))))
        )


def test_infinite_outputs_take_the_limit(lib):
    z = np.array([[math.inf, -math.inf], [-math.inf, -math.inf], [math.inf, 1.0], [math.nan, 1.0]])
    odds = binary_error_log_odds(lib.from_numpy(z, "float32"), lib.from_numpy(np.zeros((4, 2), int)))
    assert_array_equal(lib.to_numpy(odds), [math.inf, -math.inf, math.inf, math.nan])


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 3), (2,), r"labels must have the shape of the logits, \(2, 3\); got \(2,\)"),
        ((2, 0), (2, 0), r"at least one output.*got shape \(2, 0\)"),
    ],
)
def test_binary_errors_say_what_was_given(lib, shape, labels, message):
    with pytest.raises(ValueError, match=message):
        binary_error_log_odds(
            lib.from_numpy(np.zeros(shape), "float32"), lib.from_numpy(np.zeros(labels, int))
        )


# Automatic differentiation.


@functools.cache
def slope(lib, function):
    return lib.jit(lib.derivative(lambda z, labels: lib.xp.sum(function(z, labels))))


def gradient(lib, function, z, y, dtype):
    labels = lib.from_numpy(y, dtype if y.dtype.kind == "f" else None)
    with lib.scope():
        return lib.to_numpy(slope(lib, function)(lib.from_numpy(z, dtype), labels))


@given(data=st.data())
def test_the_direction_of_the_loss_is_that_of_the_odds(data, autodiff):
    _, z, y = logits_and_labels(data, autodiff, spread=3.0)
    wrong = np.arange(z.shape[-1]) != y[..., None]
    error = np.sum(softmax(z, axis=-1) * wrong, axis=-1, keepdims=True)  # 1 - p_y
    loss = gradient(autodiff, cross_entropy, z, y, "float64")
    assert_allclose(
        loss, error * gradient(autodiff, error_log_odds, z, y, "float64"), rtol=1e-12, atol=1e-300
    )
    assert_allclose(loss, softmax(z, axis=-1) - ~wrong, atol=1e-14)


@given(data=st.data())
def test_the_direction_of_binary_losses_is_that_of_their_odds(data, autodiff):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    z, y = 3 * rng.standard_normal((2, 3)), rng.integers(2, size=(2, 3))
    slope_of_sum = 1 / (1 + np.exp(-z)) - y
    error = 1 - np.exp(-np.sum(np.logaddexp(0, (1 - 2 * y) * z), axis=-1, keepdims=True))
    odds = gradient(autodiff, binary_error_log_odds, z, y, "float64")
    assert_allclose(error * odds, slope_of_sum, rtol=1e-10, atol=1e-12)


def test_the_binary_direction_does_not_round_away(autodiff):
    z, y = np.array([[80.0, -81.0, 30.0], [80.0, 80.0, 80.0]]), np.array([[1, 0, 1], [1, 1, 1]])
    odds = gradient(autodiff, binary_error_log_odds, z, y, "float32")
    assert_allclose(odds, [[-math.exp(-50), math.exp(-51), -1], [-1 / 3] * 3], rtol=1e-4)


def test_an_impossible_error_has_a_zero_derivative(autodiff):
    z = autodiff.from_numpy(np.array([0.0, -math.inf, -math.inf]), "float32")
    assert_array_equal(autodiff.to_numpy(autodiff.derivative(lambda z: cross_entropy(z, 0))(z)), 0)


@given(data=st.data())
def test_soft_labels_have_the_textbook_gradient(data, autodiff):
    _, z, _ = logits_and_labels(data, autodiff, spread=3.0)
    soft = softmax(z[..., ::-1] / 2, axis=-1)
    assert_allclose(
        gradient(autodiff, cross_entropy, z, soft, "float64"), softmax(z, axis=-1) - soft, atol=1e-14
    )


@given(data=st.data())
def test_a_confident_network_keeps_its_direction(data, autodiff):
    dtype = data.draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    floats = autodiff.floats[dtype]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(5, size=8)
    z = floats.round(rng.standard_normal((8, 5)) + 40 * np.eye(5)[y])  # p_y rounds to 1
    with np.errstate(under="ignore"):
        assert_array_equal(floats.round(1 - softmax(z.astype(np.float32), axis=-1).max(axis=-1)), 0)
    exact = softmax(np.where(np.eye(5)[y] == 1, -math.inf, z), axis=-1) - np.eye(5)[y]
    grad = gradient(autodiff, error_log_odds, z, y, dtype)
    assert_allclose(grad, exact, rtol=4 * floats.eps)
    for p in 1.5, 2, 5:
        step = autodiff.to_numpy(epsilon(autodiff.from_numpy(grad, dtype), p, 1.0))
        assert_allclose(step, epsilon(exact, p, 1.0), rtol=16 * floats.eps)


@given(data=st.data())
def test_derivatives_of_finite_logits_are_finite(data, autodiff):
    floats, z, y = logits_and_labels(data, autodiff)
    for function in error_log_odds, cross_entropy:
        assert np.isfinite(gradient(autodiff, function, z, y, floats.name)).all()


def test_the_derivative_is_zero_for_ignored_labels_and_nan_for_invalid_ones(autodiff):
    xp, z = autodiff.xp, np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [math.nan, 0.0, 1.0]], "float32")
    hard, many = np.array([0, 7, 255]), np.array([[0, 1, 255], [7, 0, 0], [255, 255, 255]])
    for function, labels in (error_log_odds, hard), (cross_entropy, hard), (binary_error_log_odds, many):
        each = autodiff.vmap(functools.partial(function, ignore_index=255))  # under which 7 is not seen
        derivative = autodiff.jit(autodiff.derivative(lambda z, y, each=each: xp.sum(each(z, y))))
        slope = autodiff.to_numpy(derivative(autodiff.from_numpy(z), autodiff.from_numpy(labels)))
        assert slope[0].any()
        assert np.isfinite(slope[0]).all()
        assert np.isnan(slope[1]).any()
        assert_array_equal(slope[2], 0)
    assert slope[0, 2] == 0  # of the output without a label


# Scalar formulas, as functions of one number: their value and two derivatives.


def pair(xp, a, b):
    return xp.stack([a, b + xp.zeros_like(a)], axis=-1)


FORMULAS = {
    "softplus": (lambda xp, z, y: softplus(z), lambda z: mpmath.log1p(mpmath.exp(z))),
    "relative slope": (
        lambda xp, z, y: relative_slope(z),
        lambda z: 1 / (1 + mpmath.exp(-z)) / mpmath.log1p(mpmath.exp(z)),
    ),
    "cross-entropy": (
        lambda xp, z, y: cross_entropy(pair(xp, z, 0.5), y + 1),
        lambda z: mpmath.log1p(mpmath.exp(z - 0.5)),
    ),
    "odds of three classes": (
        lambda xp, z, y: error_log_odds(xp.stack([z, 0 * z + 0.5, -z / 2], axis=-1), y + 2),
        lambda z: mpmath.log(mpmath.exp(z) + mpmath.exp(0.5)) + z / 2,
    ),
    "joint odds": (
        lambda xp, z, y: binary_error_log_odds(pair(xp, z, 0.5), pair(xp, y, 0)),
        lambda z: mpmath.log(mpmath.exp(z) + mpmath.exp(0.5) + mpmath.exp(z + 0.5)),
    ),
}
POINTS = np.array([-1e4, -200, -100, -80, -50, -20, -9, -1, 0, 0.5, 1, 5, 20, 25, 50, 100, 1e4])
"""With 0 and 0.5, where the arguments of a maximum are equal."""


@functools.cache
def exact_derivatives(name):
    """Return the value of a formula and its first two derivatives at each point, in long numbers."""
    with mpmath.workdps(60):
        return [[mpmath.diff(FORMULAS[name][1], mpmath.mpf(z), k) for z in POINTS] for k in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMULAS)
def test_scalar_formulas_have_two_derivatives(autodiff, name, dtype):
    floats, function = autodiff.floats[dtype], functools.partial(FORMULAS[name][0], autodiff.xp)

    def first(z, y):
        return autodiff.derivative(lambda z: autodiff.xp.sum(function(z, y)))(z)

    def second(z, y):
        return autodiff.derivative(lambda z: autodiff.xp.sum(first(z, y)))(z)

    with autodiff.scope():
        z, y = autodiff.from_numpy(POINTS, dtype), autodiff.from_numpy(np.zeros(len(POINTS), int))
        found = autodiff.jit(lambda z, y: (function(z, y), first(z, y), second(z, y)))(z, y)
    for got, exact in zip(found, exact_derivatives(name), strict=True):
        expected = np.array([float(number) for number in exact])
        # relative where it is a loss that is tiny, else to the rounding of 1
        tiny = (POINTS < 0) & (name in ("softplus", "cross-entropy"))
        bound = floats.eps * (16 * np.abs(expected) + 4 * ~tiny) + 16 * floats.tiny
        assert_array_equal(np.abs(autodiff.to_numpy(got) - expected) <= bound, True)
