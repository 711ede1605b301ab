"""The paper's equations against what knows nothing of them: optimisers, differences, 50 digits."""

import math
from collections.abc import Callable
from itertools import product

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from lpfamily_reference import equations as eq
from lpfamily_reference.definitions import central_difference, maximise_on_ball, maximise_residual

Array = NDArray[np.float64]

_rng = np.random.default_rng(20151108)
GRADS: list[Array] = [
    np.array([-0.7]),
    np.array([3.0, -4.0]),
    np.array([0.0, 2.0, -2.0, 1.0]),
    _rng.standard_normal(5),
    _rng.standard_cauchy(8),
    1e-150 * _rng.standard_normal(6),
    1e150 * _rng.standard_normal(6),
]
INNER = [1.01, 1.2, 1.5, 2.0, 3.0, 10.0, 100.0]
# Width 16 keeps entries within 6e-8 to 1e3: their products stay normal, so tolerances can be relative.
grads = arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e3, 1e3, width=16)).filter(np.any)
exponents = st.one_of(st.sampled_from(INNER), st.floats(1.01, 50))
sigmas = st.floats(1e-3, 1e3)

# It bends before its softmax, so no Hessian is rank one by accident: x (4) -> tanh (5) -> softmax (3).
W1, W2, X = _rng.standard_normal((5, 4)), _rng.standard_normal((3, 5)), _rng.standard_normal(4)
LABELS = range(3)


def logits(x: Array) -> Array:
    """Compute the network's logits."""
    return np.asarray(W2 @ np.tanh(W1 @ x))


def probabilities(x: Array) -> Array:
    """Compute the network's output y."""
    return np.asarray(softmax(logits(x)))


def loss_at(label: int) -> Callable[[Array], float]:
    """Return the cross-entropy of a label as a function of the input."""
    return lambda x: -float(log_softmax(logits(x))[label])


def gradient(function: Callable[[Array], float | Array], x: Array) -> Array:
    """Differentiate once, to about 1e-9."""
    return central_difference(function, x, 1e-5)


def hessian(function: Callable[[Array], float | Array], x: Array) -> Array:
    """Differentiate twice, to about 1e-5 of the largest derivative."""
    return central_difference(lambda z: central_difference(function, z, 2e-4), x, 2e-4)


def cross_entropy(t: Array) -> Callable[[Array], float]:
    """Return -sum_i t_i log y_i as a function of y."""
    return lambda y: -float(np.sum(t * np.log(y)))


def exact_eq3(grad: Array, p: float, sigma: float) -> Array:
    """Evaluate the closed form at 50 digits."""
    with mpmath.workdps(50):
        exponent = mpmath.mpf(p)
        dual = exponent / (exponent - 1)
        sizes = [abs(mpmath.mpf(float(value))) for value in grad]
        norm = mpmath.fsum(size**dual for size in sizes) ** (1 / dual)
        shares = [float((size / norm) ** (1 / (exponent - 1))) for size in sizes]
    return sigma * np.sign(grad) * np.array(shares, dtype=np.float64)


def exact_norm(x: Array, p: float) -> float:
    """Evaluate a p-norm at 50 digits, p < inf included; mpmath.norm truncates a fractional p."""
    with mpmath.workdps(50):
        sizes = [abs(mpmath.mpf(float(value))) for value in x]
        if p == math.inf:
            return float(max(sizes))
        return float(mpmath.fsum(size**p for size in sizes) ** (1 / mpmath.mpf(p)))


def assert_in_ball(epsilon: Array, p: float, sigma: float) -> None:
    """Raise unless the norm is at most sigma, to the rounding of a power 1 / (p - 1)."""
    slack = 1e-14 * (1 + 1 / (p - 1)) if p > 1 else 1e-14
    np.testing.assert_array_less(exact_norm(epsilon, p), sigma * (1 + slack))


@pytest.mark.parametrize("p", [1.0, 1.05, 1.5, 2.0, 4.0, 30.0, 1000.0, math.inf])
def test_oracle_finds_the_best_of_all_directions_in_the_plane(p: float) -> None:
    """No boundary point of a fine fan attains more, and the best of the fan attains almost as much."""
    angles = np.linspace(0, 2 * np.pi, 20001)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fan *= 0.3 / np.linalg.norm(fan, ord=p, axis=1)[:, None]
    for grad in GRADS[1], np.array([1.0, 1.0]), np.array([1e-3, -1.0]):
        epsilon = maximise_on_ball(grad, p, 0.3)
        assert_in_ball(epsilon, p, 0.3)
        assert_allclose(grad @ epsilon, np.max(fan @ grad), rtol=1e-3)
        np.testing.assert_array_less(np.max(fan @ grad), grad @ epsilon * (1 + 1e-7))


@pytest.mark.parametrize("p", [1.0, 1.5, 7.0, math.inf])
def test_oracle_is_scale_free(p: float) -> None:
    """Scaling the gradient changes nothing, scaling sigma scales the answer; zero stays zero."""
    expected = maximise_on_ball(GRADS[3], p, 1.0)
    for scale in 2.0**-1000, 2.0**1000:
        assert_array_equal(maximise_on_ball(scale * GRADS[3], p, 2.0**-20), expected * 2.0**-20)
    assert_array_equal(maximise_on_ball(np.zeros(3), p, 1.0), np.zeros(3))


def test_central_difference_agrees_with_50_digits() -> None:
    """A gradient matches mpmath's derivatives; a vector function gives one row per entry of x."""
    found = gradient(lambda x: float(np.sum(np.exp(np.sin(x)))), X)
    assert_allclose(found, [float(mpmath.diff(lambda z: mpmath.exp(mpmath.sin(z)), z)) for z in X], atol=1e-9)
    assert_allclose(gradient(lambda x: W1 @ x, X), W1.T, atol=1e-9)


def test_eq2_is_the_loss_to_first_order() -> None:
    """Halving epsilon divides the error of eq. 2 by 4."""
    loss = loss_at(0)
    step = np.array([0.01, -0.02, 0.005, 0.01])
    errors = [abs(loss(X + e) - eq.eq2(loss(X), gradient(loss, X), e)) for e in (step, step / 2)]
    assert_allclose(errors[0] / errors[1], 4, rtol=0.05)


@settings(max_examples=150, deadline=None)
@given(grads, exponents, sigmas)
def test_eq3_and_eq44_agree_with_50_digits(grad: Array, p: float, sigma: float) -> None:
    """Both are the closed form, to the rounding of a power 1 / (p - 1)."""
    tolerance = 1e-15 * (4 + 4 / (p - 1)) * sigma
    expected = exact_eq3(grad, p, sigma)
    assert_allclose(eq.eq3(grad, p, sigma), expected, rtol=0, atol=tolerance)
    assert_allclose(eq.eq44(grad, p, sigma), expected, rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(grads, st.one_of(exponents, st.sampled_from([1.0, math.inf])), sigmas)
def test_eq3_stays_in_the_ball_and_beats_the_optimiser(grad: Array, p: float, sigma: float) -> None:
    """Nothing that the optimiser finds inside the ball attains more than eq. 3, 8 and 11 attain."""
    epsilon = eq.eq3(grad, p, sigma)
    assert_in_ball(epsilon, p, sigma)
    best = float(grad @ maximise_on_ball(grad, p, sigma))
    np.testing.assert_array_less(best, float(grad @ epsilon) * (1 + 1e-12))


@pytest.mark.parametrize("p", [1.0, *INNER, math.inf])
@pytest.mark.parametrize("grad", GRADS, ids=len)
def test_eq4_is_the_maximum_of_eq2(grad: Array, p: float) -> None:
    """The optimiser's best value of eq. 2 is eq. 4, eq. 43 its gain per sigma, eq. 34 on the sphere."""
    largest = float(np.max(np.abs(grad)))
    epsilon = maximise_on_ball(grad, p, 0.3)
    value = eq.eq2(largest, grad, epsilon)
    assert_allclose(eq.eq4(largest, grad, p, 0.3), value, rtol=1e-6)
    assert_allclose(eq.eq43(grad, p), (value - largest) / 0.3, rtol=1e-6)
    assert_allclose(eq.eq34(grad, epsilon, p, 0.3), (value - largest, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grad", GRADS, ids=len)
def test_eq5_to_eq8_are_the_limit_p_inf(grad: Array) -> None:
    """Eq. 3 at 50 digits tends to eq. 6 and 8 like 1 / p; they fill the budget everywhere iff eq. 7."""
    for p in 1e6, 1e9:
        assert_allclose(eq.eq8(grad, 0.3), exact_eq3(grad, p, 0.3), rtol=0, atol=10 / p)
    assert_allclose(eq.eq5(grad, 0.3), exact_eq3(grad, 1e9, 0.3), rtol=1e-12)
    assert_array_equal(eq.eq6(grad, 0.3), eq.eq8(grad, 0.3))
    assert_allclose(np.all(np.abs(eq.eq8(grad, 0.3)) == 0.3), eq.eq7(grad))
    best = grad @ maximise_on_ball(grad, math.inf, 0.3)
    assert_allclose(grad @ eq.eq8(grad, 0.3), best, rtol=1e-9)


@pytest.mark.parametrize("grad", [*GRADS, np.array([2.0, -2.0, 0.0, 2.0, 1.999])], ids=len)
def test_eq9_to_eq11_are_the_limit_p_1(grad: Array) -> None:
    """Eq. 3 at 50 digits tends to eq. 10 and 11, ties included; both fill the ball and none leaves it."""
    assert_allclose(eq.eq11(grad, 0.3), exact_eq3(grad, 1 + 1e-9, 0.3), rtol=0, atol=1e-8)
    assert_allclose(eq.eq9(grad, 0.3), exact_eq3(grad, 1 + 2.0**-24, 0.3), rtol=0, atol=1e-7)
    assert_allclose(eq.eq10(grad, 0.3), eq.eq11(grad, 0.3), rtol=1e-15)
    assert_in_ball(eq.eq11(grad, 0.3), 1, 0.3)
    best = grad @ maximise_on_ball(grad, 1, 0.3)
    assert_allclose(grad @ eq.eq11(grad, 0.3), best, rtol=1e-9)


@pytest.mark.parametrize("grad", GRADS, ids=len)
def test_eq12_eq22_and_eq23_are_the_case_p_2(grad: Array) -> None:
    """All three are the closed form at 50 digits with p = 2."""
    for equation in eq.eq12, eq.eq22, eq.eq23:
        assert_allclose(equation(grad, 0.3), exact_eq3(grad, 2, 0.3), rtol=1e-14)


@pytest.mark.parametrize("label", LABELS)
def test_eq13_is_the_loss_to_second_order(label: int) -> None:
    """Halving sigma divides the error of eq. 13, along the direction of p = 2, by 8."""
    loss = loss_at(label)
    grad, curvature = gradient(loss, X), hessian(loss, X)
    errors = []
    for sigma in 0.08, 0.04:
        epsilon = sigma * grad / np.sqrt(np.sum(grad**2))
        errors.append(abs(loss(X + epsilon) - eq.eq13(loss(X), grad, curvature, sigma)))
    assert_allclose(errors[0] / errors[1], 8, rtol=0.15)


@pytest.mark.parametrize("label", LABELS)
def test_eq14_to_eq19_are_one_chain(label: int) -> None:
    """Jacobian and Hessian by differences, or the gradient alone: the same regulariser."""
    loss, y = loss_at(label), probabilities(X)
    grad, jacobian = gradient(loss, X), gradient(probabilities, X)
    hessian_y = hessian(cross_entropy(np.eye(3)[label]), y)
    expected = loss(X) + 0.7 * exact_norm(grad, 2) + 0.49 / 2 * exact_norm(grad, 2) ** 2
    for equation in eq.eq14, eq.eq19:
        assert_allclose(equation(loss(X), grad, jacobian, hessian_y, 0.7), expected, rtol=1e-4)
    for short in eq.eq15, eq.eq16, eq.eq17, eq.eq18:
        assert_allclose(short(loss(X), grad, 0.7), expected, rtol=1e-12)


def test_eq20_equals_eq19_on_average_over_the_models_labels() -> None:
    """Fisher's identity, at every x; for a single label they differ, so the last step is no equality."""
    y, jacobian = probabilities(X), gradient(probabilities, X)
    gaps = []
    for label in LABELS:
        loss = loss_at(label)
        grad, hessian_y = gradient(loss, X), hessian(cross_entropy(np.eye(3)[label]), y)
        rank_one = eq.eq19(loss(X), grad, jacobian, hessian_y, 0.7)
        gaps.append(eq.eq20(loss(X), grad, hessian(loss, X), 0.7) - rank_one)
    assert_allclose(y @ np.array(gaps), 0, atol=1e-5)
    np.testing.assert_array_less(1e-2, np.abs(gaps))


def test_eq20_adds_what_gaussian_noise_adds() -> None:
    """Its last term is the mean loss under noise of deviation sigma per entry, to order sigma^4."""
    loss, sigma = loss_at(1), 0.03
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    mean = sum(
        math.prod(weights[list(index)]) / (2 * np.pi) ** 2 * loss(X + sigma * nodes[list(index)])
        for index in product(range(5), repeat=4)
    )
    grad = gradient(loss, X)
    last_term = eq.eq20(loss(X), grad, hessian(loss, X), sigma) - eq.eq4(loss(X), grad, 2, sigma)
    assert_allclose(last_term, mean - loss(X), rtol=0.02)


@settings(deadline=None)
@given(grads, exponents, sigmas)
def test_remark2_is_the_rank_one_term_of_any_p(grad: Array, p: float, sigma: float) -> None:
    """It is half the square of what the closed form gains, and at p = 2 the last term of eq. 17."""
    gain = float(grad @ exact_eq3(grad, p, sigma))
    assert_allclose(eq.remark2(grad, p, sigma), gain**2 / 2, rtol=1e-9)
    last_term = eq.eq17(0.0, grad, sigma) - eq.eq4(0.0, grad, 2, sigma)
    assert_allclose(eq.remark2(grad, 2, sigma), last_term, rtol=1e-6)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_oracle_finds_the_worst_residual_in_the_plane(p: float) -> None:
    """No point of a fine fan on the ball's boundary leaves more, and the best leaves almost as much."""
    angles = np.linspace(0, 2 * np.pi, 20001)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fan *= 0.7 / np.linalg.norm(fan, ord=p, axis=1)[:, None]
    rng = np.random.default_rng(21)
    theta = rng.standard_normal((3, 2))
    for residual in rng.standard_normal(3), np.zeros(3):
        epsilon = maximise_residual(theta, residual, p, 0.7)
        assert_allclose(np.linalg.norm(epsilon, p), 0.7, rtol=1e-12)
        found = np.linalg.norm(residual - theta @ epsilon)
        assert_allclose(found, np.max(np.linalg.norm(residual - fan @ theta.T, axis=1)), rtol=1e-4)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_eq21_is_beyond_its_first_order(p: float) -> None:
    """On the ball the worst residual exceeds the first-order one, and equals it for a single output."""
    rng = np.random.default_rng(21)
    for outputs in 1, 3:
        theta, x, t = (rng.standard_normal(shape) for shape in ((outputs, 4), 4, outputs))
        residual = t - theta @ x
        worst = maximise_residual(theta, residual, p, 0.7)
        first = (
            exact_eq3(-theta.T @ residual, p, 0.7)
            if 1 < p < math.inf
            else eq.eq3(-theta.T @ residual, p, 0.7)
        )
        (high, slack), (low, _) = (eq.eq21(t, theta, x, step, p, 0.7) for step in (worst, first))
        assert_allclose(slack, 0, atol=1e-12)
        np.testing.assert_array_less(low, high * (1 + 1e-9))
        if outputs == 1:
            assert_allclose(low, high, rtol=1e-9)
        elif p in (1.5, 2.0, 4.0):
            np.testing.assert_array_less(low * (1 + 1e-4), high)


@pytest.mark.parametrize("label", LABELS)
def test_eq24_and_eq25_factor_the_gradient(label: int) -> None:
    """The chain rule through y or through the logits gives the direction of the input gradient."""
    t, y = np.eye(3)[label], probabilities(X)
    expected = exact_eq3(gradient(loss_at(label), X), 2, 0.3)
    grad_y = gradient(cross_entropy(t), y)
    assert_allclose(eq.eq24(grad_y, gradient(probabilities, X), 0.3), expected, atol=1e-7)
    assert_allclose(eq.eq25(y, t, gradient(logits, X), 0.3), expected, atol=1e-7)


@settings(deadline=None)
@given(grads, exponents, st.floats(0.01, 0.99))
def test_eq35_a_point_of_the_ball_gains_more_on_the_sphere(grad: Array, p: float, part: float) -> None:
    """Eq. 34 reports the slack of an inner point; using it up reaches eq. 35 and raises the gain."""
    gain, slack = eq.eq34(grad, part * grad / exact_norm(grad, p), p, 1.0)
    assert_allclose(slack, 1 - part, rtol=1e-12)
    outer, residual = eq.eq35(grad, grad / exact_norm(grad, p), p, 1.0)
    assert_allclose(residual, 0, atol=1e-12)
    assert_allclose(gain, part * outer, rtol=1e-12)


@pytest.mark.parametrize("p", [1.2, 2.0, 3.0, 10.0])
def test_eq36_to_eq38_hold_the_derivative_of_the_norm(p: float) -> None:
    """At any point of the sphere their right sides are lambda times the norm's numerical gradient."""
    epsilon = np.array([0.3, -1.1, 0.8, 0.05])
    slope = gradient(lambda e: exact_norm(e, p), epsilon)
    grad = GRADS[2]
    assert_allclose(eq.eq36(grad, slope, 1.7), (grad, 1.7 * slope))
    assert_allclose(eq.eq37(grad, epsilon, 1.7, p), (grad, 1.7 * slope), atol=1e-6)
    assert_allclose(eq.eq38(grad, epsilon, 1.7, p, exact_norm(epsilon, p)), (grad, 1.7 * slope), atol=1e-6)


@pytest.mark.parametrize("p", [1.2, 1.5, 2.0, 3.0, 5.0])
def test_eq36_to_eq42_balance_at_the_maximum_and_only_there(p: float) -> None:
    """The optimiser's answer, with its gain per sigma as lambda, balances every step of appendix A."""
    grad, sigma = GRADS[3], 0.3
    epsilon = maximise_on_ball(grad, p, sigma)
    multiplier = float(grad @ epsilon) / sigma
    slope = central_difference(lambda e: exact_norm(e, p), epsilon, 1e-7)
    for left, right in (
        eq.eq36(grad, slope, multiplier),
        eq.eq37(grad, epsilon, multiplier, p),
        eq.eq38(grad, epsilon, multiplier, p, sigma),
        eq.eq39(grad, epsilon, multiplier, p, sigma),
        eq.eq41(grad, epsilon, multiplier, p, sigma),
        eq.eq42(grad, multiplier, p),
    ):
        assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    left, right = eq.eq38(grad, epsilon[::-1], multiplier, p, sigma)
    np.testing.assert_array_less(0.1, np.max(np.abs(left - right)))


def test_eq45_and_eq46_are_the_derivatives_of_the_cross_entropy() -> None:
    """Gradient and Hessian with respect to y agree with differences, for soft labels too."""
    y, t = probabilities(X), np.array([0.2, 0.5, 0.3])
    assert_allclose(eq.eq45(y, t), gradient(cross_entropy(t), y), rtol=1e-6)
    assert_allclose(eq.eq46(y, t), hessian(cross_entropy(t), y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label", LABELS)
def test_lemma_b1_holds_for_one_hot_labels(label: int) -> None:
    """Both sides are the outer product of the loss's numerical gradient."""
    grad = gradient(loss_at(label), X)
    for side in eq.lemma_b1(gradient(probabilities, X), probabilities(X), np.eye(3)[label]):
        assert_allclose(side, np.outer(grad, grad), atol=1e-6)


def test_lemma_b1_needs_one_hot_labels() -> None:
    """With a soft label its sides differ: the garbled hypothesis is not idle."""
    left, right = eq.lemma_b1(gradient(probabilities, X), probabilities(X), np.array([0.2, 0.5, 0.3]))
    np.testing.assert_array_less(0.1 * np.max(np.abs(right)), np.max(np.abs(left - right)))


def test_a_zero_gradient_stays_zero() -> None:
    """No perturbation of a zero gradient moves, and no expansion of it exceeds the loss."""
    zero = np.zeros(3)
    for p in 1.0, 1.5, 2.0, math.inf:
        assert_array_equal(eq.eq3(zero, p, 1.0), zero)
    for equation in eq.eq5, eq.eq6, eq.eq8, eq.eq9, eq.eq10, eq.eq11, eq.eq12, eq.eq22, eq.eq23:
        assert_array_equal(equation(zero, 1.0), zero)
    assert_array_equal(eq.eq44(zero, 3.0, 1.0), zero)
    for expansion in eq.eq15, eq.eq16, eq.eq17, eq.eq18:
        assert_allclose(expansion(0.5, zero, 1.0), 0.5)


@pytest.mark.parametrize("p", [0.5, -1.0, math.nan])
def test_p_below_1_is_an_error(p: float) -> None:
    """Below 1 the ball is not convex: neither the equations nor the optimiser answer."""
    for answer in eq.eq3, eq.eq44, maximise_on_ball:
        with pytest.raises(ValueError, match="not convex"):
            answer(GRADS[3], p, 1.0)
