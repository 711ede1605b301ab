"""In JAX the loss at the steepest step of the weights is its definition, and fits any training loop."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from helpers.laws import closed_form

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

import equinox
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from helpers.jax_models import OfEquinox, OfFlax, by_hand, digits, loss, losses, of_batch, problem
from lpfamily_jax import perturb_weights, regularize, weights

pytestmark = pytest.mark.jax

P = (1, 1.1, 1.5, 2, 3, math.inf)
SCALES = (None, "weights")


def mean(params, x, labels):
    return loss(params, x, labels).mean()


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in tree])


def defined(params, x, labels, p, sigma, scale):
    """Return the loss at the moved weights, its gradient there, and the step, from a network by hand."""
    grad = flat(by_hand(params, x, labels)[2])
    size = np.abs(flat(params)) if scale else 1.0
    step = size * closed_form((size * grad)[None], p, [sigma])[0].astype(float)
    ends = np.cumsum([w.size for w in params])[:-1]
    moved = [w + s.reshape(w.shape) for w, s in zip(params, np.split(step, ends), strict=True)]
    losses, _, slopes = by_hand(moved, x, labels)
    return losses.mean(), flat(slopes) / len(x)


def is_the_definition(function, exponents=P):
    params, x, labels = problem()
    with jax.enable_x64(True):
        cases = {(p, scale): function(mean, p, sigma=0.3, scale=scale) for p in exponents for scale in SCALES}
        found = jax.jit(
            lambda params: {
                str(case): jax.value_and_grad(each)(params, x, labels) for case, each in cases.items()
            }
        )(params)
    for p, scale in cases:
        value, slopes = found[str((p, scale))]
        expected = defined(params, x, labels, p, 0.3, scale)
        assert_allclose(value, expected[0], rtol=1e-9)
        assert_allclose(flat(slopes), expected[1], rtol=1e-7, atol=1e-12)


def test_the_loss_is_the_definition():
    is_the_definition(perturb_weights)


def textbook(eps, scaled="both", fixed=True):
    """Return `perturb_weights` as it may be written, with a mistake for each option."""

    def perturb(loss, p, *, sigma, scale):
        def perturbed(params, *rest):
            size = jax.tree.map(lambda w: jnp.abs(w) if scale else jnp.ones_like(w), params)
            grads = jax.tree.map(
                lambda s, g: g if scaled == "after" else s * g, size, jax.grad(loss)(params, *rest)
            )
            steps = jax.tree.map(lambda s, e: e if scaled == "before" else s * e, size, eps(grads, p, sigma))
            steps = jax.lax.stop_gradient(steps) if fixed else steps
            return loss(jax.tree.map(jnp.add, params, steps), *rest)

        return perturbed

    return perturb


def joint(grads, p, sigma):
    return weights.epsilon(grads, p, sigma, batch_ndim=0)


MUTANTS = {
    "a ball per array": textbook(lambda grads, *ball: tuple(joint(grad, *ball) for grad in grads)),
    "the scale before alone": textbook(joint, scaled="before"),
    "the scale after alone": textbook(joint, scaled="after"),
    "eps that moves": textbook(joint, fixed=False),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_breaks_the_definition(mutant):
    is_the_definition(textbook(joint), [1.5])
    with pytest.raises(AssertionError):
        is_the_definition(mutant, [1.5])


def test_a_loop_of_optax():
    """Steps of sharpness-aware minimisation, by hand and as one compiled loop."""
    params, x, labels = problem()
    sharp, optimizer = perturb_weights(mean, sigma=0.3), optax.sgd(0.1)

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(sharp)(weights, x, labels), state)
        return (optax.apply_updates(weights, updates), state), None

    with jax.enable_x64(True):
        begin = jax.tree.map(jnp.asarray, (params, optimizer.init(params)))
        (found, _), _ = jax.lax.scan(step, begin, length=5)
    expected = flat(params)
    for _ in range(5):
        ends = np.cumsum([w.size for w in params])[:-1]
        now = [part.reshape(w.shape) for w, part in zip(params, np.split(expected, ends), strict=True)]
        expected = expected - 0.1 * defined(now, x, labels, 2, 0.3, None)[1]
    assert_allclose(flat(found), expected, rtol=1e-9)


def test_the_aux_is_that_of_the_unmoved_weights():
    params, x, labels = problem()

    def with_aux(params, x, labels):
        return mean(params, x, labels), params[1]

    value, aux = jax.jit(perturb_weights(with_aux, has_aux=True))(params, x, labels)
    assert_allclose(value, jax.jit(perturb_weights(mean))(params, x, labels), rtol=1e-6)
    assert_array_equal(aux, params[1])
    sharp = perturb_weights(with_aux, has_aux=True)
    (value, aux), _ = jax.jit(jax.value_and_grad(sharp, has_aux=True))(params, x, labels)
    assert_array_equal(aux, params[1])


def test_only_floating_arrays_are_moved():
    params, x, labels = problem()
    tree = {"w": params, "count": jnp.arange(3), "name": "of the network", "rate": 0.5, "none": None}
    seen = []

    def of_tree(tree, x, labels):
        seen.append({key: tree[key] for key in tree.keys() - {"w"}})
        return mean(tree["w"], x, labels)

    value = perturb_weights(of_tree, 1.5, sigma=0.3)(tree, x, labels)
    assert_allclose(value, perturb_weights(mean, 1.5, sigma=0.3)(params, x, labels))
    for each in seen:
        assert each == {key: tree[key] for key in tree.keys() - {"w"}}


def test_weights_under_stop_gradient_are_not_moved():
    params, x, labels = problem()

    def stopped(params, x, labels):
        return mean((jax.lax.stop_gradient(params[0]), *params[1:]), x, labels)

    for p in P:
        found = []

        def spy(params, x, labels, found=found):
            found.append(params)
            return stopped(params, x, labels)

        perturb_weights(spy, p, sigma=0.3)(params, x, labels)
        assert_allclose(found[-1][0], params[0], rtol=1e-6)
        assert abs(found[-1][3] - params[3]).max() > 1e-3 or p == 1


def test_each_weight_keeps_its_dtype():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float16), "c": jnp.ones(2)}
    seen = []

    def total(params):
        seen.append(params)
        return sum(w.astype(jnp.float32).sum() for w in params.values())

    perturb_weights(total, sigma=0.5)(params)
    moved = seen[-1]
    for tree in (*seen, jax.grad(perturb_weights(total, sigma=0.5))(params)):
        assert {key: w.dtype for key, w in tree.items()} == {key: w.dtype for key, w in params.items()}
    for w in moved.values():
        assert_allclose(w.astype(jnp.float32), 1 + 0.5 / 7**0.5, rtol=4e-3)


def test_inputs_and_weights_may_be_perturbed_together():
    """Adversarial weight perturbation; the input's step is that of the moved weights."""
    params, x, labels = problem()
    robust = regularize(loss, math.inf, sigma=0.1)
    both = perturb_weights(lambda *args: robust(*args).mean(), 2, sigma=0.3)
    value, plain = jax.jit(both)(params, x, labels), robust(params, x, labels).mean()
    assert value > plain > mean(params, x, labels)


def test_a_module_of_flax():
    x, labels = digits()
    graphdef, params, rest = nnx.split(OfFlax(), nnx.Param, ...)

    def with_rest(params, rest):
        model = nnx.merge(graphdef, params, rest)
        return losses(model, x, labels).mean(), nnx.split(model, nnx.Param, ...)[2]

    (value, after), grads = jax.jit(
        jax.value_and_grad(perturb_weights(with_rest, has_aux=True), has_aux=True)
    )(params, rest)
    plain, expected = jax.jit(with_rest)(params, rest)
    assert value > plain
    jax.tree.map(
        assert_allclose,
        nnx.to_pure_dict(nnx.filter_state(after, nnx.BatchStat)),
        nnx.to_pure_dict(nnx.filter_state(expected, nnx.BatchStat)),
    )
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_a_module_of_equinox():
    x, labels = digits()
    model, state = equinox.nn.make_with_state(OfEquinox)()

    def with_state(model, state):
        logits, state = of_batch(model, x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    sharp = perturb_weights(with_state, sigma=0.05, has_aux=True)
    (value, _), grads = equinox.filter_jit(equinox.filter_value_and_grad(sharp, has_aux=True))(model, state)
    assert value > with_state(model, state)[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


ERRORS = [
    (lambda: perturb_weights(mean, 0.5), ValueError, r"p must lie in \[1, inf\]"),
    (lambda: perturb_weights(mean, scale=2.0), ValueError, "scale must be None or 'weights'; got 2.0"),
    (lambda: perturb_weights(loss)(*problem()), TypeError, "scalar-output"),
    (lambda: perturb_weights(mean, sigma=-1.0)(*problem()), ValueError, "sigma is the ball's radius"),
    (
        lambda: perturb_weights(lambda w: 1.0)({"n": 3}),
        TypeError,
        "first argument of the loss must hold floating arrays, its weights; got {'n': 3}",
    ),
]


@pytest.mark.parametrize(("call", "error", "says"), ERRORS, ids=range(len(ERRORS)))
def test_unsupported_calls_are_errors(call, error, says):
    with pytest.raises(error, match=says):
        call()
