"""Models, batches and losses in JAX, Flax and Equinox."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.testing import assert_allclose

from lpfamily import error_log_odds
from lpfamily.training import data


def logits_of(params, x):
    w, b, v, c = params
    return jnp.tanh(x @ w + b) @ v + c


def loss(params, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), labels)


def problem(seed=0, n=4):
    """Return weights, inputs and labels; float32 represents them exactly."""
    rng = np.random.default_rng(seed)
    shapes = (6, 5), (5,), (5, 3), (3,)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (*shapes, (n, 6))]
    *params, x = (array.astype(np.float64) for array in arrays)
    return tuple(params), x, rng.integers(0, 3, n)


def by_hand(params, x, labels):
    """Return the loss of each example, its input gradient, and the weight gradients of the sum."""
    w, b, v, c = params
    hidden = np.tanh(x @ w + b)
    exponentials = np.exp(hidden @ v + c)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    right = np.eye(3)[labels]
    losses = -np.log((probabilities * right).sum(axis=1))
    wrong = probabilities * (1 - right)
    by_logits = wrong - right * wrong.sum(axis=1, keepdims=True)
    by_hidden = by_logits @ v.T * (1 - hidden**2)
    weights = x.T @ by_hidden, by_hidden.sum(axis=0), hidden.T @ by_logits, by_logits.sum(axis=0)
    return losses, by_hidden @ w.T, weights


@functools.cache
def digits():
    train = data.load("digits").train
    return train.x[:300], train.labels[:300]


def losses(model, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels)


class OfFlax(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(32, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class OfEquinox(equinox.Module):
    first: equinox.nn.Linear
    norm: equinox.nn.BatchNorm
    last: equinox.nn.Linear

    def __init__(self):
        one, other = jax.random.split(jax.random.key(0))
        self.first, self.last = equinox.nn.Linear(64, 32, key=one), equinox.nn.Linear(32, 10, key=other)
        self.norm = equinox.nn.BatchNorm(32, "batch", mode="batch")

    def __call__(self, x, state):
        hidden, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(hidden)), state


def of_batch(model, x, state):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


OBJECTIVES = {
    "perturb": {},
    "mixed": {"clean_weight": 0.3},
    "steps": {"steps": 3},
    "penalty": {"objective": "penalty"},
    "difference": {"objective": "penalty", "penalty_by": "difference"},
}


def odds(params, x, labels):
    return error_log_odds(logits_of(params, x), labels)


def values_and_slopes(function, params, *rest):
    """Return the values of each example, and the derivative of their sum with respect to the weights."""

    def total(params):
        values = function(params, *rest)
        return values.sum(), values

    slopes, values = jax.grad(total, has_aux=True)(params)
    return values, slopes


# Compiling takes most of the time of these tests: XLA does not optimise, and a program has many cases.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(function, *arrays):
    """Compile a function, call it on arrays without casting float64, and return NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(function)(*jax.tree.map(jnp.asarray, arrays)))


def logits_at(params, x, *_):
    return logits_of(params, x)


BETWEEN = {"outputs": logits_at, "beta": 3.0}


def assert_same(found, expected):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)
