"""The step between outputs in JAX is one of power iteration, as in the training of VAT and TRADES."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from helpers.laws import closed_form

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

import jax
import jax.numpy as jnp

from helpers.jax_models import BETWEEN, assert_same, logits_of, loss, problem, run, values_and_slopes
from lpfamily_jax import regularize

pytestmark = pytest.mark.jax


def kl(clean, logits):
    f, g = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
    return (jnp.exp(f) * (f - g)).sum(axis=-1)


def test_between_outputs_a_step_is_one_of_power_iteration():
    """By the dense Hessian of the divergence; repeated, it ends at the leading eigenvector."""
    params, x, labels = problem()
    start = 1e-7 * np.random.default_rng(0).standard_normal(x.shape)  # in all balls

    def of_one(params, x, at):
        return kl(jax.lax.stop_gradient(logits_of(params, x)), logits_of(params, at))

    def train(params, x, labels, start):
        dense = jax.vmap(lambda x: jax.hessian(lambda at: of_one(params, x, at))(x))(x)
        found = {}
        for p in 1.5, 2.0:
            seen = regularize(
                lambda params, x, labels, start: (loss(params, x, labels), x),
                p, sigma=1e-6, start=lambda *given: given[-1], has_aux=True, **BETWEEN,
            )  # fmt: skip
            robust = regularize(None, p, sigma=1e-6, start=lambda *given: given[-1], **BETWEEN)
            found[p] = robust(params, x, labels, start), seen(params, x, labels, start)[1]
        last = jax.lax.fori_loop(0, 60, lambda _, start: moved(params, x, start), start)
        return dense, found, last

    def moved(params, x, start):
        """Return eps, which the outputs see."""
        at = []

        def seen(params, x):
            at.append(x)
            return logits_of(params, x)

        regularize(None, 2, sigma=1e-6, start=lambda *_: start, outputs=seen, beta=1.0)(params, x)
        return at[-2] - x

    dense, found, last = run(train, params, x, labels, start)
    turned = (dense @ start[..., None])[..., 0]
    for p, (apart, at) in found.items():
        assert_array_equal(at, x)  # the aux is of the clean input
        eps = closed_form(turned, p, np.full(4, 1e-6)).astype(np.float64)
        quadratic = (eps * (dense @ eps[..., None])[..., 0]).sum(axis=1) / 2
        assert_allclose(apart, 3 * quadratic, rtol=1e-3)
    leading = np.linalg.eigh(dense)[1][..., -1]
    assert_allclose(np.abs((last * leading).sum(axis=1)), 1e-6, rtol=1e-5)


def test_between_outputs_it_is_the_loss_of_trades_and_without_labels_of_vat():
    options = {"p": math.inf, "sigma": 0.2, "steps": 2, "start": lambda *_: jax.random.key(3)}

    def train(params, x, labels):
        seen = []

        def looking(params, x, *_):
            seen.append(x)
            return logits_of(params, x)

        def by_hand(trained, labels):
            clean = logits_of(trained, x)
            far = kl(clean if labels is not None else jax.lax.stop_gradient(clean), logits_of(trained, at))
            return 3 * far + (0 if labels is None else loss(trained, x, labels))

        found, expected = [], []
        for function, rest in (loss, (x, labels)), (None, (x,)):
            robust = regularize(function, **options, outputs=looking, beta=3.0)
            found.append(values_and_slopes(robust, params, *rest))
            robust(params, *rest)
            at = jax.lax.stop_gradient(seen[-2])
            expected.append(values_and_slopes(by_hand, params, labels if function else None))
        return found, expected

    assert_same(*run(train, *problem()))


def test_between_outputs_no_step_follows_rounding_errors():
    params, x, _ = problem(n=40)
    directions = np.random.default_rng(1).standard_normal(x.shape)

    def train(params, x, start):
        seen = []

        def looking(params, x):
            seen.append(x)
            return logits_of(params, x)

        regularize(None, sigma=0.5, start=lambda *_: start, outputs=looking, beta=1.0)(params, x)
        return seen[-2] - x

    exact = run(train, params, x, 1e-5 * directions)
    single = jax.tree.map(np.float32, (params, x))
    for length, least, most in (0, 0, 0), (1e-30, 0, 0), (1e-6, 0, 39), (1e-2, 40, 40):
        eps = run(train, *single, np.float32(length * directions))
        still = np.abs(eps).max(axis=1) < 1e-6
        assert least <= np.sum(~still) <= most
        assert np.all((eps * exact).sum(axis=1)[~still] > 0.9 * 0.25)
