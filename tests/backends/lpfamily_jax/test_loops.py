"""Training loops of Optax, Flax and Equinox work with a regularised loss."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.backends_under_test import NAMES
from lpfamily import epsilon

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

import equinox
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from helpers.jax_models import (
    OBJECTIVES,
    OfEquinox,
    OfFlax,
    compiled,
    digits,
    logits_of,
    loss,
    losses,
    odds,
    of_batch,
)
from lpfamily_jax import regularize

pytestmark = pytest.mark.jax


STEPS, RADIUS = 40, 0.3


def assert_learnt(model):
    """Raise unless a function to logits fits the digits, and withstands the steepest step."""
    x, labels = digits()

    @compiled
    def judge(x):
        values, back = jax.vjp(lambda x: losses(model, x, labels), x)
        eps = epsilon(back(jnp.ones_like(values))[0], 2, RADIUS)
        return values.mean(), (model(x + eps).argmax(axis=1) != labels).mean()

    value, error = judge(x)
    assert value < 1  # of chance it is log 10
    assert error < 0.4  # of chance it is 0.9


def test_a_loop_of_optax():
    x, labels = digits()
    rng = np.random.default_rng(0)
    params = tuple(jnp.asarray(0.1 * rng.standard_normal(n), "float32") for n in ((64, 32), 32, (32, 10), 10))
    robust, optimizer = regularize(loss, sigma=RADIUS, direction=odds), optax.adam(0.02)

    @compiled
    def step(params, state):
        updates, state = optimizer.update(jax.grad(lambda p: robust(p, x, labels).mean())(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert_learnt(lambda x: logits_of(params, x))


def test_a_loop_of_flax():
    x, labels = digits()
    model = OfFlax()
    robust, optimizer = (
        regularize(losses, sigma=RADIUS),
        nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param),
    )

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: robust(model, x, labels).mean())(model))

    for _ in range(STEPS):
        step(model, optimizer)
    assert_learnt(nnx.view(model, deterministic=True, use_running_average=True))
    assert model.dropout.rngs.count[...] == STEPS


def test_modules_of_flax_change_as_in_a_plain_step():
    x, labels = digits()
    names = "mixed", "penalty", "difference"
    functions = [losses, *(regularize(losses, sigma=0.0, **OBJECTIVES[name]) for name in names)]
    models = [OfFlax() for _ in functions]

    def slopes(function, model):
        return nnx.grad(lambda model: function(model, x, labels).mean())(model)

    found = nnx.jit(lambda models: list(map(slopes, functions, models)))(models)
    states = [nnx.to_pure_dict(nnx.state(model, (nnx.BatchStat, nnx.RngCount))) for model in models]
    expected, *others = [nnx.to_pure_dict(part) for part in found]
    for other, state in zip(others, states[1:], strict=True):
        jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-3), (other, state), (expected, states[0]))


def test_a_loop_of_equinox():
    x, labels = digits()
    model, state = equinox.nn.make_with_state(OfEquinox)()

    def with_state(model, x, labels, state):
        logits, state = of_batch(model, x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), state

    robust, optimizer = regularize(with_state, sigma=RADIUS, has_aux=True), optax.adam(0.02)

    @equinox.filter_jit
    def step(model, state, moments):
        def mean(model):
            values, new = robust(model, x, labels, state)
            return values.mean(), new

        slopes, state = equinox.filter_grad(mean, has_aux=True)(model)
        updates, moments = optimizer.update(slopes, moments)
        return equinox.apply_updates(model, updates), state, moments

    moments = optimizer.init(equinox.filter(model, equinox.is_array))
    for _ in range(STEPS):
        model, state, moments = step(model, state, moments)
    quiet = equinox.nn.inference_mode(model)
    assert_learnt(lambda x: of_batch(quiet, x, state)[0])
