"""Derivatives, Lemma B.1 and the model of eq. 13-20, against differences, Hessians in full, and averages."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp, softmax

from helpers.backends_under_test import NAMES
from helpers.libraries import numpy_readonly
from lpfamily import cross_entropy, dual_exponent, epsilon
from lpfamily.curvature import (
    LossFunctions,
    gauss_newton,
    hutchinson,
    lemma_b1,
    logit_gradient,
    logit_hessian,
    loss_of,
    measure,
    probability_gradient,
    probability_hessian,
    rademacher,
    second_order,
)
from lpfamily.training import backends
from lpfamily.training.backends import Objective, Task
from lpfamily.training.networks import Dense, Network, initial_state
from lpfamily_reference import equations as eq
from lpfamily_reference.definitions import central_difference

LIBRARY = numpy_readonly()
CLASSES = 3
P = [1, 1.2, 1.5, 2, 3, 10, math.inf]
seeds = st.integers(0, 2**32 - 1)


def network(rng):
    """Return x (4) -> tanh (5) -> softmax (3) as functions of an input: logits, and its Jacobian."""
    w1, w2 = rng.standard_normal((5, 4)), rng.standard_normal((CLASSES, 5))

    def logits(x):
        return w2 @ np.tanh(w1 @ x)

    def jacobian(x):
        return w2 @ (w1 * (1 - np.tanh(w1 @ x) ** 2)[:, None])

    return logits, jacobian


def drawn(data, lib):
    """Draw a dtype of the library, and a generator."""
    floats = lib.floats[data.draw(st.sampled_from(lib.dtypes))]
    return floats, np.random.default_rng(data.draw(seeds))


def call(lib, floats, function, *arrays):
    """Return function of arrays in the dtype (integers as they are), checked for its dtype, as float64."""
    with lib.scope():
        given = [lib.from_numpy(a, floats.name if a.dtype.kind == "f" else None) for a in arrays]
        result = lib.jit(function)(*given)
    for each in result if isinstance(result, tuple) else (result,):
        assert type(each) is type(given[0])
        assert each.dtype == given[0].dtype
    return tuple(map(lib.to_numpy, result)) if isinstance(result, tuple) else lib.to_numpy(result)


# Derivatives of the cross-entropy.


@given(seed=seeds, soft=st.booleans())
def test_derivatives_are_those_of_the_loss(seed, soft):
    rng = np.random.default_rng(seed)
    z, t = rng.standard_normal(4), softmax(rng.standard_normal(4))
    labels = t if soft else np.asarray(rng.integers(4))
    t = t if soft else np.eye(4)[labels]
    y = softmax(z)
    by_y = central_difference(lambda q: -np.sum(t * np.log(q)), y, 1e-4 * y.min())
    assert_allclose(probability_gradient(y, labels), by_y, rtol=1e-6, atol=1e-5)
    by_y = central_difference(lambda q: probability_gradient(q, labels), y, 1e-4 * y.min())
    assert_allclose(probability_hessian(y, labels), by_y, rtol=1e-6, atol=1e-4)
    by_z = central_difference(lambda o: -np.sum(t * log_softmax(o)), z, 1e-5)
    assert_allclose(logit_gradient(z, labels), by_z, atol=1e-9)
    assert_allclose(
        logit_gradient(z, labels), central_difference(lambda o: cross_entropy(o, labels), z, 1e-5), atol=1e-9
    )
    by_z = central_difference(lambda o: logit_gradient(o, labels), z, 1e-5)
    assert_allclose(logit_hessian(z), by_z, atol=1e-9)


@given(data=st.data())
def test_derivatives_in_every_dtype(data, lib):
    floats, rng = drawn(data, lib)
    z = floats.round(3 * rng.standard_normal((2, 3, 4)))
    labels = rng.integers(4, size=(2, 3))
    t, y = np.eye(4)[labels], softmax(z, axis=-1)
    tolerance = {"rtol": 16 * floats.eps, "atol": 16 * floats.eps}
    assert_allclose(call(lib, floats, logit_gradient, z, labels), y - t, **tolerance)
    full = y[..., None] * np.eye(4) - y[..., None] * y[..., None, :]
    assert_allclose(call(lib, floats, logit_hessian, z), full, **tolerance)
    y = floats.round(np.maximum(y, 0.01))
    assert_allclose(call(lib, floats, probability_gradient, y, labels), -t / y, **tolerance)
    full = (t / y**2)[..., None] * np.eye(4)
    assert_allclose(call(lib, floats, probability_hessian, y, labels), full, **tolerance)
    soft = floats.round(softmax(rng.standard_normal(z.shape), axis=-1))
    assert_allclose(call(lib, floats, probability_gradient, y, soft), -soft / y, **tolerance)


@given(data=st.data())
def test_a_confident_network_keeps_its_derivatives(data, lib):
    floats = lib.floats["float32"]
    rng = np.random.default_rng(data.draw(seeds))
    label = rng.integers(4, size=5)
    right = np.eye(4)[label] == 1
    z = floats.round(rng.standard_normal((5, 4)) + 30 * right)  # 1 - p_y is below float32's rounding
    wrong = softmax(z, axis=-1)[~right].reshape(5, 3).sum(axis=1)
    gradient = call(lib, floats, logit_gradient, z, label)
    assert_allclose(gradient[right], -wrong, rtol=1e-5)
    hessian = call(lib, floats, logit_hessian, z)
    assert_allclose(np.einsum("...ii->...i", hessian)[right], wrong, rtol=1e-5)


# Gauss-Newton and Lemma B.1.


@given(data=st.data())
def test_gauss_newton_is_the_product(data, lib):
    floats, rng = drawn(data, lib)
    jacobian, root = floats.round(rng.standard_normal((2, 3, 4))), rng.standard_normal((2, 3, 3))
    hessian = floats.round(root + np.swapaxes(root, 1, 2))
    expected = np.einsum("bki,bkl,blj->bij", jacobian, hessian, jacobian)
    assert_allclose(call(lib, floats, gauss_newton, jacobian, hessian), expected, atol=200 * floats.eps)


def equates_one_hot(lemma, lib, floats, rng):
    y = floats.round(softmax(rng.standard_normal((2, CLASSES)), axis=-1))
    jacobian = floats.round(rng.standard_normal((2, CLASSES, 4)))
    labels = rng.integers(CLASSES, size=2)
    for target in labels, np.eye(CLASSES)[labels]:
        left, right = call(lib, floats, lemma, jacobian, y, target)
        assert_allclose(left, right, rtol=32 * floats.eps, atol=32 * floats.eps * np.abs(right).max())
        for i in range(2):
            both = eq.lemma_b1(jacobian[i].T, y[i], np.eye(CLASSES)[labels[i]])
            for side, expected in zip((left, right), both, strict=True):
                assert_allclose(side[i], expected, atol=64 * floats.eps * np.abs(expected).max())


@given(data=st.data())
def test_lemma_b1_equates_one_hot_labels(data, lib):
    equates_one_hot(lemma_b1, lib, *drawn(data, lib))


@given(data=st.data())
def test_lemma_b1_parts_soft_labels(data, lib):
    floats, rng = drawn(data, lib)
    y = floats.round(softmax(rng.standard_normal((2, CLASSES)), axis=-1))
    soft = floats.round(softmax(rng.uniform(-1, 1, (2, CLASSES)), axis=-1))
    # the probabilities' Jacobian with as many inputs as classes, of full rank: nothing hides the difference
    left, right = call(
        lib, floats, lemma_b1, np.broadcast_to(np.eye(CLASSES), (2, CLASSES, CLASSES)), y, soft
    )
    diagonal = np.eye(CLASSES) == 1
    assert_array_equal(right[:, ~diagonal], 0)
    assert np.all(left[:, ~diagonal] > 0.01)


@given(seed=seeds)
def test_the_rank_one_matrix_is_the_hessian_in_expectation_only(seed):
    """From eq. 13 to eq. 14: equal on average over labels drawn from the model, not for any one of them."""
    rng = np.random.default_rng(seed)
    logits, jacobian = network(rng)
    x = rng.standard_normal(4)
    y, to_logits = softmax(logits(x)), jacobian(x)
    to_y = logit_hessian(logits(x)) @ to_logits
    generalised = gauss_newton(to_logits, logit_hessian(logits(x)))
    rank_one = [lemma_b1(to_y, y, np.asarray(label))[1] for label in range(CLASSES)]
    hessians = [
        central_difference(
            lambda u, k=label: jacobian(u).T @ logit_gradient(logits(u), np.asarray(k)), x, 1e-5
        )
        for label in range(CLASSES)
    ]
    scale = np.abs(generalised).max() + 1e-3
    assert_allclose(np.tensordot(y, rank_one, 1), generalised, atol=1e-12 * scale)
    assert_allclose(np.tensordot(y, hessians, 1), generalised, atol=1e-6 * scale)
    for one, hessian in zip(rank_one, hessians, strict=True):
        assert np.linalg.matrix_rank(one, tol=1e-9 * scale) <= 1
        assert np.abs(one - hessian).max() > 1e-4 * scale


def test_the_rank_one_matrix_vanishes_beside_the_hessian_of_a_confident_prediction():
    """A linear softmax that is right with p_y = 1 - q: g g' is of order q^2, its Hessian of order q."""
    theta, ratios = np.eye(CLASSES), []
    for confidence in 5.0, 10.0, 20.0:
        z = np.array([confidence, 0.0, 0.0])
        hessian = gauss_newton(theta, logit_hessian(z))
        gradient = logit_gradient(z, np.asarray(0)) @ theta
        ratios.append(gradient @ gradient / np.trace(hessian))
        wrong = math.exp(logsumexp([0, 0]) - logsumexp(z))
        assert_allclose(ratios[-1], 3 / 4 * wrong, rtol=wrong * 2)
    assert ratios[2] < 1e-8


# The second-order model.


def quadratic(lib, dtype, rng, d=5, n=3):
    """Return L(x) = c + b'x + x'Ax/2 of n examples as a Loss in a library, and c, b, A."""
    c, b, a = rng.standard_normal(n), rng.standard_normal((n, d)), rng.standard_normal((n, d, d))
    c, b, a = (lib.floats[dtype].round(v) for v in (c, b, a + np.swapaxes(a, 1, 2)))
    with lib.scope():
        c_, b_, a_ = (lib.from_numpy(v, dtype) for v in (c, b, a))
    xp = lib.xp

    def product(v):
        return xp.sum(a_ * v[:, None, :], axis=-1)

    return (
        LossFunctions(
            lambda x: c_ + xp.sum((b_ + product(x) / 2) * x, axis=-1),
            lambda x: b_ + product(x),
            lambda _, v: product(v),
        ),
        c,
        b,
        a,
    )


def is_eq13_to_eq20(model, lib, floats, rng, p):
    """Every term is the reference's, one example at a time, where L is a quadratic; so eq. 13 is exact."""
    loss, c, b, a = quadratic(lib, floats.name, rng)
    x, sigma = floats.round(rng.standard_normal(b.shape)), floats.round(rng.random(3))
    probes = np.repeat(math.sqrt(5) * np.eye(5)[:, None, :], 3, axis=1)  # which give the trace exactly
    with lib.scope():
        inputs = lib.from_numpy(x, floats.name)
        terms = model(
            loss, inputs, p, lib.from_numpy(sigma, floats.name), lib.from_numpy(probes, floats.name)
        )
        assert terms.second.dtype == inputs.dtype
    terms = {name: lib.to_numpy(value) for name, value in vars(terms).items()}
    assert all(value.shape == (3,) for value in terms.values())
    for i in range(3):
        grad = b[i] + a[i] @ x[i]
        value = c[i] + b[i] @ x[i] + x[i] @ a[i] @ x[i] / 2
        step = eq.eq3(grad, p, sigma[i])
        size = (
            1
            + sigma[i] ** 2 * np.abs(a[i]).sum()
            + np.sum(grad**2)
            + abs(value)
            + np.abs(x[i]) @ np.abs(a[i]) @ np.abs(x[i])
        )
        allowed = 64 * floats.eps * size
        expected = {
            "loss": value,
            "first": eq.eq4(0, grad, p, sigma[i]),
            "second": step @ a[i] @ step / 2,
            "rank_one": eq.remark2(grad, p, sigma[i]),
            "trace": eq.eq20(0, np.zeros(5), a[i], sigma[i]),
        }
        for name, number in expected.items():
            assert abs(terms[name][i] - number) <= allowed, name
        if p == 2:
            assert (
                abs(value + terms["first"][i] + terms["second"][i] - eq.eq13(value, grad, a[i], sigma[i]))
                <= allowed
            )
            assert (
                abs(value + terms["first"][i] + terms["rank_one"][i] - eq.eq17(value, grad, sigma[i]))
                <= allowed
            )
        moved = x[i] + step
        assert (
            abs(
                value
                + terms["first"][i]
                + terms["second"][i]
                - (c[i] + b[i] @ moved + moved @ a[i] @ moved / 2)
            )
            <= allowed
        )


@pytest.mark.parametrize("p", P)
@given(data=st.data())
def test_the_terms_are_eq13_to_eq20(data, lib, p):
    floats, rng = drawn(data, lib)
    if floats.name in ("float16", "bfloat16"):
        floats = lib.floats["float32"]
    is_eq13_to_eq20(second_order, lib, floats, rng, p)


def test_a_zero_gradient_has_a_trace_alone(lib):
    loss = LossFunctions(lambda x: x[:, 0], lambda x: x * 0, lambda _, v: 3 * v)
    x = lib.from_numpy(np.ones((2, 4)), "float32")
    for p in P:
        terms = second_order(loss, x, p, 0.5, rademacher(x, 3))
        for term, expected in (terms.first, 0), (terms.second, 0), (terms.rank_one, 0), (terms.trace, 1.5):
            assert_allclose(lib.to_numpy(term), expected, atol=1e-6)
        assert_allclose(lib.to_numpy(terms.trace_error), 0, atol=1e-6)


@given(seed=seeds, batch_ndim=st.sampled_from([0, 1, 2]))
def test_batch_axes_are_as_those_of_epsilon(seed, batch_ndim):
    rng = np.random.default_rng(seed)
    x, curve = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    loss = LossFunctions(
        lambda x: np.sum(curve * x**2, axis=tuple(range(batch_ndim, 3))) / 2,
        lambda x: curve * x,
        lambda _, v: curve * v,
    )
    terms = second_order(loss, x, 1.5, 0.1, rademacher(x, 2), batch_ndim=batch_ndim)
    axes = tuple(range(batch_ndim, 3))
    assert_allclose(terms.trace, 0.005 * np.sum(curve, axis=axes))  # no error: H is diagonal
    assert_allclose(terms.trace_error, 0, atol=1e-12)
    step = epsilon(curve * x, 1.5, 0.1, batch_ndim=batch_ndim)
    assert_allclose(terms.second, np.sum(curve * step**2, axis=axes) / 2)


# Hutchinson's trace.


def is_unbiased_with_its_error(probing, lib, floats, rng):
    loss, *_, a = quadratic(lib, floats.name, rng, d=6)
    with lib.scope():
        x = lib.from_numpy(np.zeros((3, 6)), floats.name)
        found, error = (
            lib.to_numpy(v) for v in hutchinson(lambda v: loss.hessian_products(x, v), probing(x, 400))
        )
    off = a * (1 - np.eye(6))
    deviation = np.sqrt(2 * np.sum(off**2, axis=(1, 2)))
    assert_allclose(error, deviation / 20, rtol=0.25)
    assert np.all(np.abs(found - np.trace(a, axis1=1, axis2=2)) <= 5.5 * deviation / 20)


@settings(max_examples=20)  # of 400 probes
@given(data=st.data())
def test_hutchinson_is_unbiased_and_knows_its_error(data, lib):
    if lib.slow:
        pytest.skip("400 products an example; the trace among the terms of eq. 13-20 needs 5")
    floats, rng = drawn(data, lib)
    if floats.name in ("float16", "bfloat16"):
        floats = lib.floats["float32"]
    seed = int(rng.integers(2**31))
    is_unbiased_with_its_error(lambda x, count: rademacher(x, count, seed), lib, floats, rng)


def test_probes_are_signs_that_a_seed_repeats(lib):
    x = lib.from_numpy(np.ones((3, 4)), "float32")
    probes = lib.to_numpy(rademacher(x, 5, seed=1))
    assert probes.shape == (5, 3, 4)
    assert_array_equal(np.abs(probes), 1)
    assert_array_equal(probes, lib.to_numpy(rademacher(x, 5, seed=1)))
    assert np.any(probes != lib.to_numpy(rademacher(x, 5, seed=2)))
    assert np.isnan(lib.to_numpy(hutchinson(lambda v: v, rademacher(x, 1))[1])).all()


# Measured gaps and orders.


def cubic(rng):
    """Return L = b'x + x'diag(a)x/2 + sum c x^3 of each of 3 examples, whose mean under noise is known."""
    a, b, c = rng.standard_normal((3, 3, 4))
    return LossFunctions(
        lambda x: np.sum(b * x + a * x**2 / 2 + c * x**3, axis=1),
        lambda x: b + a * x + 3 * c * x**2,
        lambda x, v: (a + 6 * c * x) * v,
    ), (a, b, c)


@settings(max_examples=50)  # each draws 1,500 points
@given(seed=seeds)
def test_gaps_are_the_terms_left_out(seed):
    """With a cubic loss, eq. 13 leaves out sum c eps^3, and Remark 1 nothing but the noise of its draws."""
    rng = np.random.default_rng(seed)
    loss, (a, _, c) = cubic(rng)
    x = rng.standard_normal((3, 4))
    found = measure(loss, x, [1, 2, math.inf], [0.1, 0.5], probes=2, draws=500, seed=seed)
    assert [(m.p, m.sigma) for m in found] == [(p, s) for p in (1, 2, math.inf) for s in (0.1, 0.5)]
    for m in found:
        grad = loss.gradients(x)
        step, gaps = epsilon(grad, m.p, m.sigma), m.gaps()
        cubed = np.sum(c * step**3, axis=1)
        second = np.sum((a + 6 * c * x) * step**2, axis=1) / 2
        assert_allclose(m.perturbed, loss.losses(x + step))
        assert_allclose(gaps["eq13"], -cubed, atol=1e-12)
        assert_allclose(gaps["eq4"], -cubed - second, atol=1e-12)
        rank_one = (m.sigma * np.linalg.norm(grad, dual_exponent(m.p), axis=1)) ** 2 / 2
        assert_allclose(gaps["eq17"], -cubed - second + rank_one, atol=1e-12)
        trace = m.sigma**2 / 2 * np.sum(a + 6 * c * x, axis=1)
        assert_allclose(gaps["eq20"], -cubed - second + trace, atol=1e-12)
        # E L(x + eta) = L + sigma^2/2 Tr H exactly, so that the gap is what the draws miss
        assert np.all(np.abs(gaps["remark1"]) <= 6 * m.noisy_error + 1e-12)
        spread = m.sigma**2 * np.sqrt(np.sum((a + 6 * c * x) ** 2, axis=1) / 2)
        assert_allclose(m.noisy_error, spread / math.sqrt(500), rtol=0.6)


@given(seed=seeds)
def test_orders_of_the_gaps(seed):
    """On a smooth network: eq. 4 is right to order sigma^2, eq. 13 to sigma^3."""
    rng = np.random.default_rng(seed)
    logits, jacobian = network(rng)
    label = np.asarray(0)

    def gradient(x):
        return jacobian(x).T @ logit_gradient(logits(x), label)

    loss = LossFunctions(
        lambda x: np.array([cross_entropy(logits(row), label) for row in x]),
        lambda x: np.array([gradient(row) for row in x]),
        lambda x, v: np.array(
            [(gradient(r + 1e-4 * w) - gradient(r - 1e-4 * w)) / 2e-4 for r, w in zip(x, v, strict=True)]
        ),
    )
    x = rng.standard_normal((2, 4))
    near, far = measure(loss, x, [2], [0.001, 0.002], probes=1, draws=1)
    for name, order in ("eq4", 2), ("eq13", 3):
        low, high = near.gaps()[name], far.gaps()[name]
        clear = np.abs(low) > 1e-9
        assert np.all(np.abs(low) <= 1e4 * near.sigma**order)
        if order == 2:
            second = near.terms.second
            clear = np.abs(second) > 1e-6
            assert_allclose((high / low)[clear], 4, rtol=0.3)


def trained(name):
    """Return a trainer of this backend after no step, in float64, with inputs and labels."""
    shape = Network(6, (Dense(5, "sigmoid"), Dense(CLASSES)))
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((7, 6)), rng.integers(CLASSES, size=7)
    task = Task(shape, Objective("plain"), x, labels, batch_size=7, dtype="float64")
    state = {key: 2 * array for key, array in initial_state(shape, 0, "float64").items()}
    return backends.find(name).trainer(task, state), x, labels


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_functions_of_a_trainer_are_derivatives_of_each_other(name):
    trainer, x, labels = trained(name)
    loss = loss_of(trainer, labels)
    difference = np.stack(
        [(loss.losses(x + 1e-5 * e) - loss.losses(x - 1e-5 * e)) / 2e-5 for e in np.eye(6)], axis=1
    )
    assert_allclose(loss.gradients(x), difference, atol=1e-9)
    v = np.random.default_rng(1).standard_normal(x.shape)
    along = (loss.gradients(x + 1e-5 * v) - loss.gradients(x - 1e-5 * v)) / 2e-5
    assert_allclose(loss.hessian_products(x, v), along, atol=1e-8)
    for m in measure(loss, x, [1, 2, math.inf], [0.01], probes=400, draws=400):
        gaps = m.gaps()
        assert np.abs(gaps["eq13"]).max() < 0.1 * np.abs(gaps["eq4"]).max()
        allowed = 6 * np.hypot(m.noisy_error, m.terms.trace_error) + 1e-9
        assert np.all(np.abs(gaps["remark1"]) <= allowed)


# Mutants.


def check(law, *arguments):
    """Raise what `law` raises, without looking for the smallest example."""

    @settings(phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
    @given(seed=seeds)
    def run(seed):
        law(*arguments[:1], LIBRARY, LIBRARY.floats["float64"], np.random.default_rng(seed), *arguments[1:])

    run()


def changed(**change):
    def model(*args):
        terms = second_order(*args)
        return type(terms)(**{**vars(terms), **{name: f(terms) for name, f in change.items()}})

    return model


TERMS = {
    "rank one for the Hessian": changed(second=lambda t: t.rank_one),
    "no half": changed(second=lambda t: 2 * t.second),
    "the trace for Remark 2": changed(rank_one=lambda t: t.trace),
    "the norm of p, not p*": lambda loss, x, p, s, v: second_order(loss, x, dual_exponent(p), s, v),
}


@pytest.mark.parametrize("mutant", TERMS.values(), ids=TERMS)
def test_a_mistake_breaks_the_terms(mutant):
    with pytest.raises(AssertionError):
        check(is_eq13_to_eq20, mutant, 1.5)


def without_signs(jacobian, y, labels):
    left, right = lemma_b1(jacobian, y, labels)
    return left, np.abs(right)


def without_square(jacobian, y, labels):
    left, _ = lemma_b1(jacobian, y, labels)
    t = labels if labels.ndim == y.ndim else np.eye(CLASSES)[labels]
    return left, gauss_newton(jacobian, np.eye(CLASSES) * (t / y)[..., None])


@pytest.mark.parametrize("mutant", [without_signs, without_square])
def test_a_mistake_breaks_the_lemma(mutant):
    with pytest.raises(AssertionError):
        check(equates_one_hot, mutant)


def uniform(x, count):
    return np.random.default_rng(0).uniform(-1, 1, (count, *x.shape))


def one_for_all(x, count):
    return np.ones((count, *x.shape))


@pytest.mark.parametrize("mutant", [uniform, one_for_all])
def test_a_mistake_breaks_the_trace(mutant):
    with pytest.raises(AssertionError):
        check(is_unbiased_with_its_error, mutant)


# Errors, tracing, the page.


def test_an_error_says_what_was_given(lib):
    def array(*shape):
        return lib.from_numpy(np.ones(shape), "float32")

    with pytest.raises(ValueError, match=r"jacobian must be .*got shapes \(3, 4\) and \(2, 2\)"):
        gauss_newton(array(3, 4), array(2, 2))
    with pytest.raises(TypeError, match="hessian must be float16"):
        gauss_newton(array(3, 4), lib.from_numpy(np.ones((3, 3), "int32")))
    with pytest.raises(ValueError, match=r"y must hold at least two classes.*got shape \(2, 1\)"):
        probability_gradient(array(2, 1), np.array([0, 0]))
    with pytest.raises(ValueError, match=r"labels must lie in 0..2; got values from 0 to 3"):
        logit_gradient(array(2, 3), np.array([0, 3]))
    good = LossFunctions(lambda x: x[:, 0], lambda x: x, lambda _, v: v)
    x = array(2, 3)
    with pytest.raises(ValueError, match=r"gradients\(x\) must have the shape of x, \(2, 3\); got \(2,\)"):
        second_order(
            LossFunctions(good.losses, good.losses, good.hessian_products), x, 2, 1.0, rademacher(x, 1)
        )
    with pytest.raises(ValueError, match=r"must have the shape of x; got \(2,\) and \(2, 3\)"):
        second_order(
            LossFunctions(good.losses, good.gradients, lambda _, v: v[:, 0]), x, 2, 1.0, rademacher(x, 1)
        )
    with pytest.raises(
        ValueError, match=r"losses\(x\) must have shape \(2,\), one per example; got \(2, 1\)"
    ):
        second_order(
            LossFunctions(lambda x: x[:, :1], good.gradients, good.hessian_products),
            x,
            2,
            1.0,
            rademacher(x, 1),
        )
    for probes in array(4, 2, 2), array(2, 3):
        with pytest.raises(
            ValueError, match=r"probes must be of x's shape, \(2, 3\), along a first axis; got"
        ):
            second_order(LossFunctions(good.losses, good.gradients, lambda x, v: v), x, 2, 1.0, probes)
    with pytest.raises(ValueError, match=r"at least one direction .*got shape \(0, 2, 3\)"):
        hutchinson(lambda v: v, array(0, 2, 3))
    with pytest.raises(ValueError, match=r"at least 1; got 0 and 32"):
        measure(good, x, [2], [1.0], probes=0)
    for bad in (
        lambda: second_order(good, x, 0.5, 1.0, rademacher(x, 1)),
        lambda: measure(good, x, [0.5], [1.0]),
    ):
        with pytest.raises(ValueError, match=r"p must lie in \[1, inf\]"):
            bad()


@pytest.mark.parametrize("p", [1.5, 2, math.inf])
def test_automatic_hessian_products_under_a_trace(autodiff, p):
    """What one writes in torch or JAX: the whole model from one function, jitted and mapped."""
    xp, w = (
        autodiff.xp,
        autodiff.from_numpy(np.random.default_rng(0).standard_normal((CLASSES, 4)), "float32"),
    )

    def value(x):
        return cross_entropy(w @ xp.tanh(x), 0)

    grad = autodiff.derivative(value)
    loss = LossFunctions(value, grad, lambda x, v: autodiff.derivative(lambda u: xp.sum(grad(u) * v))(x))

    def terms(x):
        found = second_order(loss, x, p, 0.1, rademacher(x, 8))
        return found.first, found.second, found.rank_one, found.trace

    x = autodiff.from_numpy(np.random.default_rng(1).standard_normal((3, 4)), "float32")
    mapped, alone = autodiff.jit(autodiff.vmap(terms))(x), autodiff.jit(terms)
    for i in range(3):
        for many, one in zip(mapped, alone(x[i]), strict=True):
            assert_allclose(autodiff.to_numpy(many[i]), autodiff.to_numpy(one), rtol=1e-4, atol=1e-6)
