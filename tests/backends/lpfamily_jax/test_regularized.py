"""The regularised loss in JAX is its definition, costs no more than it must, and fits any model and loop."""

import functools
import inspect
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from helpers.boxes import maximiser
from helpers.commandline import python
from helpers.jaxprs import dot_generals
from helpers.laws import closed_form, dual, norms
from helpers.libraries import P
from lpfamily import binary_error_log_odds, cross_entropy, error_log_odds, project

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

import jax
import jax.numpy as jnp

from helpers.jax_models import (
    BETWEEN,
    OBJECTIVES,
    assert_same,
    by_hand,
    compiled,
    logits_at,
    logits_of,
    loss,
    odds,
    problem,
    run,
    values_and_slopes,
)
from lpfamily_jax import regularize

pytestmark = pytest.mark.jax

LAYERS = 2


# The definition: the network's derivatives by hand, and eq. 3 from `laws`.


def steepest(params, x, labels, p, radii):
    return closed_form(by_hand(params, x, labels)[1], p, radii).astype(np.float64)


def mixture(params, labels, *parts):
    """Return the weighted sum of losses at several inputs, and of their weight gradients."""
    found = [(share, *by_hand(params, x, labels)) for share, x in parts]
    values = sum(share * losses for share, losses, _, _ in found)
    return values, [sum(f[0] * f[3][k] for f in found) for k in range(4)]


def defined(objective, params, x, labels, p, radii):
    """Return the objective of each example and its weight gradients, from the definition."""
    eps = steepest(params, x, labels, p, radii)
    if objective == "perturb":
        return mixture(params, labels, (1, x + eps))
    if objective == "mixed":
        return mixture(params, labels, (0.3, x), (0.7, x + eps))
    if objective == "steps":
        for k in (1, 2):
            eps = eps + 2 / (k + 2) * (steepest(params, x + eps, labels, p, radii) - eps)
        return mixture(params, labels, (1, x + eps))
    if objective == "difference":
        return mixture(params, labels, (1 - 2.0**10, x), (2.0**10, x + 2.0**-10 * eps))

    def penalised(params):
        losses, grad, _ = by_hand(params, x, labels)
        return losses + radii * norms(grad, dual(p)).astype(np.float64)

    slopes = [np.zeros_like(array) for array in params]
    for array, slope in zip(params, slopes, strict=True):
        for index in np.ndindex(array.shape):
            sides, middle = [], array[index]
            for h in (1e-6, -1e-6):
                array[index] = middle + h
                sides.append(penalised(params).sum())
            array[index] = middle
            slope[index] = (sides[0] - sides[1]) / 2e-6
    return penalised(params), slopes


CASES = {
    "float64": [
        *itertools.product(["perturb"], P),
        *itertools.product(["penalty"], [1, 1 + 1e-12, 1.1, 3, math.inf]),
        *itertools.product(["mixed", "steps", "difference"], [1.5]),
    ],
    "float32": list(zip(OBJECTIVES, [1.1, math.inf, 1.5, 1.1, math.inf], strict=True)),
}


@functools.cache
def all_cases(dtype):
    return compiled(
        lambda params, x, labels, radii: [
            values_and_slopes(regularize(loss, p, sigma=radii, **OBJECTIVES[name]), params, x, labels)
            for name, p in CASES[dtype]
        ]
    )


@settings(max_examples=5)
@pytest.mark.parametrize("dtype", CASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_and_derivatives_are_those_of_the_definition(dtype, seed):
    params, x, labels = problem(seed)
    radii = np.random.default_rng(seed).uniform(0, 0.5, 4).astype(np.float32)
    with jax.enable_x64(True):
        operands = jax.tree.map(lambda array: jnp.asarray(array, dtype), (params, x))
        found = all_cases(dtype)(*operands, labels, radii)
    for case, (values, slopes) in zip(CASES[dtype], found, strict=True):
        name, p = case
        expected, expected_slopes = defined(name, params, x, labels, p, radii)
        assert values.dtype == dtype
        rounding = 1e-10 if dtype == "float64" else 1e-4
        if name == "difference":  # of two losses, divided by 2^-10
            rounding *= 2**10
        assert_allclose(values, expected, rtol=rounding, atol=rounding, err_msg=str(case))
        if name == "penalty":  # differences judge its derivative
            rounding = max(rounding, 1e-6)
        for got, slope in zip(slopes, expected_slopes, strict=True):
            assert_allclose(got, slope, rtol=rounding, atol=rounding, err_msg=str(case))


def test_a_pass_for_eps_computes_the_input_gradient_alone():
    params, x, labels = problem()

    def products(function):
        program = jax.make_jaxpr(jax.grad(lambda params: function(params, x, labels).mean()))(params)
        return dot_generals(program.jaxpr)

    plain, way = 3 * LAYERS - 1, 2 * LAYERS
    costs = {
        "perturb": plain + way,
        "mixed": 2 * plain + way,
        "steps": plain + 3 * way,
        "difference": 2 * plain + way,
    }
    assert products(loss) == plain
    for name, cost in costs.items():
        assert products(regularize(loss, sigma=0.1, **OBJECTIVES[name])) == cost, name


def test_eps_asks_for_no_second_derivative():
    @jax.custom_jvp
    def once(x):
        return x

    @once.defjvp
    def again(operands, tangents):
        raise AssertionError("differentiated twice")

    product = jax.custom_vjp(jnp.matmul)
    product.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda kept, by: (once(by @ kept[1].T), once(kept[0].T @ by))
    )
    robust = regularize(lambda w, x: product(x, w).sum(axis=1), sigma=0.1, steps=2)
    by_difference = regularize(robust.__wrapped__, sigma=0.1, **OBJECTIVES["difference"])

    def mean(function, w):
        return function(w, w.sum() * jnp.ones((2, 3))).mean()

    for function in robust, by_difference:
        jax.eval_shape(jax.grad(functools.partial(mean, function)), jnp.ones((3, 4)))


def test_the_penalty_costs_what_its_formula_does():
    params, x = (jnp.ones((64, 64)), jnp.ones(64), jnp.ones((64, 3)), jnp.ones(3)), jnp.ones((64, 64))
    labels = jnp.ones(64, int)

    def formula(params, x, labels):
        values, back = jax.vjp(lambda x: loss(params, x, labels), x)
        return values + 0.1 * jnp.linalg.norm(back(jnp.ones_like(values))[0], axis=1)

    def cost(function):
        step = compiled(jax.grad(lambda params: function(params, x, labels).mean()))
        return step.lower(params).compile().cost_analysis()["flops"]

    assert cost(regularize(loss, sigma=0.1, objective="penalty")) < 1.05 * cost(formula)


def test_tokens_have_balls_of_their_own_and_padding_none():
    rng = np.random.default_rng(0)
    table, w = rng.standard_normal((7, 4)), rng.standard_normal(4)
    tokens, keep, radii = rng.integers(0, 7, (2, 5)), rng.random((2, 5)) < 0.6, rng.uniform(0.1, 1, (2, 5))

    def scores(w, x, keep):
        return jnp.where(keep, jnp.tanh(x) @ w, 0.0).sum(axis=1), x

    def train(table, w):
        found = {}
        for objective in "perturb", "penalty":
            robust = regularize(
                scores, 3, sigma=radii, batch_ndim=2, mask=lambda w, x, keep: keep[..., None],
                objective=objective, has_aux=True,
            )  # fmt: skip
            found[objective] = robust(w, table[tokens], keep)
        return found["perturb"][0].sum(), found

    by_table, found = run(jax.grad(train, has_aux=True), table, w)
    x = table[tokens]
    grad = (1 - np.tanh(x) ** 2) * w * keep[..., None]
    eps = closed_form(grad.reshape(10, 4), 3, radii.reshape(10)).reshape(x.shape).astype(np.float64)
    values, seen = found["perturb"]
    assert_allclose(seen, x + eps, rtol=1e-12)
    assert_array_equal(seen[~keep], x[~keep])
    assert_allclose(values, (np.tanh(x + eps) @ w * keep).sum(axis=1), rtol=1e-12)
    # what made x is trained too, through x and not through eps
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, (1 - np.tanh(x + eps) ** 2) * w * keep[..., None])
    assert_allclose(by_table, expected, rtol=1e-10, atol=1e-12)
    values, seen = found["penalty"]
    sizes = radii.reshape(10) * norms(grad.reshape(10, 4), dual(3)).astype(np.float64)
    assert_allclose(values, (np.tanh(x) @ w * keep).sum(axis=1) + sizes.reshape(2, 5).sum(axis=1), rtol=1e-12)
    assert_array_equal(seen, x)


def test_a_nan_gradient_in_the_padding_does_no_harm():
    x, keep = np.ones((2, 3, 4)), np.array([[True, True, False], [True, False, False]])
    x[~keep] = 0  # where a norm has no derivative

    def lengths(x):
        return jnp.where(keep, jnp.linalg.norm(x, axis=-1), 0.0).sum(axis=1)

    options = {"sigma": 0.5, "argnum": 0, "batch_ndim": 2, "mask": keep[..., None]}
    for objective in "perturb", "penalty":
        found = run(regularize(lengths, 2, objective=objective, **options), x)
        assert_allclose(found, (2 + 0.5) * keep.sum(axis=1), rtol=1e-12)


KEPT = np.arange(6) % 3 > 0
JOINT = [
    (1, {"start": lambda params, *_: jax.random.key(7), "clean_weight": 0.3}),
    (math.inf, {"steps": 2, "bounds": (-2.5, 2.5), "mask": KEPT}),
    (1.5, {"objective": "penalty", "mask": KEPT}),
    (2, {"objective": "penalty", "penalty_by": "difference"}),
]


def parted(x):
    return {"first": x[..., :2], "rest": (x[..., 2:].reshape(*x.shape[:-1], 2, 2),)}


def of_arguments(params, first, rest, labels):
    rows = rest[0].reshape(*first.shape[:-1], 4)
    return loss(params, jnp.concatenate([first, rows], axis=-1), labels)


def test_several_arguments_are_one_point():
    """They give the result of a loss that takes their concatenation and splits it."""

    def train(params, x, labels):
        found = []
        for p, options in JOINT:
            options = {"p": p, "sigma": 0.5} | options
            flatly = values_and_slopes(regularize(loss, **options), params, x, labels)
            if "mask" in options:
                options["mask"] = tuple(parted(options["mask"]).values())
            robust = regularize(of_arguments, argnum=(1, 2), **options)
            found.append((values_and_slopes(robust, params, *parted(x).values(), labels), flatly))
        return found

    for made, flatly in run(train, *problem()):
        assert_same(made, flatly)


def test_a_pytree_is_one_point_and_not_joint_each_leaf_has_a_ball():
    def of_tree(params, x, labels):
        return of_arguments(params, x["first"], x["rest"], labels)

    def train(params, x, labels):
        given = params, dict(reversed(parted(x).items())), labels  # gradients of JAX come in order
        found = [
            regularize(of_tree, p, sigma=0.5, joint=joint)(*given)
            for p in (1.5, math.inf)
            for joint in (True, False)
        ]
        return found, [regularize(loss, p, sigma=0.5)(params, x, labels) for p in (1.5, math.inf)]

    found, flatly = run(train, *problem())
    assert_allclose(found[::2], flatly, rtol=1e-9)
    assert np.all(np.abs(found[1] - flatly[0]) > 1e-3)
    assert_allclose(found[3], flatly[1], rtol=1e-9)  # that ball is a product


def test_each_ball_may_have_its_own_radius():
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((2, 4, 6))
    radii = {"first": 0.5, "rest": (rng.uniform(0, 0.1, 4),)}

    def linear(w, first, rest):
        return (w["first"] * first).sum(axis=1) + (w["rest"][0] * rest[0]).sum(axis=(1, 2))

    for objective in "perturb", "penalty":
        robust = regularize(
            linear, 3, sigma=tuple(radii.values()), argnum=(1, 2), joint=False, objective=objective
        )
        found = run(robust, parted(w), *parted(x).values())
        sizes = norms(w[:, :2], dual(3)) * 0.5 + norms(w[:, 2:], dual(3)) * radii["rest"][0]
        assert_allclose(found, (w * x).sum(axis=1) + sizes.astype(float), rtol=1e-12)


def test_a_tree_maps_over_examples():
    def of_one(params, x, label):
        return loss(params, jnp.concatenate(x)[None], label[None])[0]

    def both(params, x, labels):
        robust = regularize(of_one, 1.5, sigma=0.2, batch_ndim=0, objective="penalty")
        whole = regularize(loss, 1.5, sigma=0.2, objective="penalty")
        return jax.vmap(robust, (None, 0, 0))(params, (x[:, :2], x[:, 2:]), labels), whole(params, x, labels)

    one, other = run(both, *problem())
    assert_allclose(one, other, rtol=1e-12)


def test_in_a_box_it_is_the_exact_maximum():
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((5, 8)), np.clip(rng.normal(0.5, 0.5, (5, 8)), 0, 1)
    mask = np.arange(8) != 2
    x[:, 2] = 7.0
    cases = [("perturb", 1), ("perturb", math.inf), ("penalty", 1.5)]

    def linear(w, x):
        return (w * x).sum(axis=1)

    def train(w, x):
        options = {"sigma": 0.6, "bounds": (0, 1), "mask": mask}
        return [
            values_and_slopes(regularize(linear, p, objective=objective, **options), w, x)
            for objective, p in cases
        ]

    rooms = np.where(mask, np.where(w < 0, x, 1 - x), 0)
    for (_, p), (values, slopes) in zip(cases, run(train, w, x), strict=True):
        if p == math.inf:
            eps = np.sign(w) * np.minimum(rooms, 0.6)
        else:
            rows = zip(w * mask, rooms, strict=True)
            eps = np.stack([maximiser(row, p, 0.6, room) for row, room in rows]).astype(np.float64)
        assert_allclose(values, (w * (x + eps)).sum(axis=1), rtol=1e-12)
        # the derivative of a linear loss is where it was taken; of the penalty, by Danskin's theorem
        assert_allclose(slopes, x + eps, atol=1e-12)
        assert np.all(np.abs(slopes[:, mask] - 0.5) <= 0.5 + 1e-15)
        assert_array_equal(slopes[:, 2], 7.0)


def test_an_entry_outside_by_rounding_counts_as_at_the_bound():
    low, high = (0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081
    x = (np.arange(24, dtype="float32").reshape(4, 6) % 2 - np.float32(0.1307)) / np.float32(0.3081)
    w = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    clipped = np.clip(x, np.float32(low), np.float32(high))
    assert np.any(x != clipped)
    x[3, 0] = clipped[3, 0] = 9.0

    def linear(w, x):
        return (w * x).sum(axis=1)

    robust = jax.jit(regularize(linear, 2, sigma=0.5, bounds=(low, high)))
    values = robust(w, x)
    assert_array_equal(np.isnan(values), [False, False, False, True])
    assert_allclose(values, robust(w, clipped), rtol=1e-5)


def test_the_first_step_is_taken_at_the_start():
    x = np.full((3, 4), 0.9)

    def coupled(x, key, step):
        return (x**2).sum(axis=1) / 2 + x[:, 0] * x[:, 1], x

    def draw(x, key, step):
        return 0.5 * jax.random.normal(key, x.shape)

    robust = regularize(
        coupled, 2, sigma=lambda x, key, step: 0.05 * step, argnum=0, has_aux=True,
        start=draw, bounds=(-math.inf, 1), mask=np.arange(4) > 0,
    )  # fmt: skip
    assert np.all(np.linalg.norm(run(draw, x, jax.random.PRNGKey(0), 2), axis=1) > 0.1)  # outside the ball
    seen, drawn = run(lambda *given: (robust(*given)[1], draw(*given)), x, jax.random.PRNGKey(0), 2)
    moved = np.where(np.arange(4) > 0, drawn, 0)
    grad = x + project(moved, 2, 0.1, x=x, bounds=(-math.inf, 1))
    grad[:, 1] += 0.9  # of an entry that does not move
    grad[:, 0] = 0
    assert_allclose(seen, x + 0.1 * grad / np.linalg.norm(grad, axis=1, keepdims=True), rtol=1e-12)


def test_the_penalty_of_confident_examples_is_a_number_in_half_precision():
    (w, b, v, c), x, _ = problem()
    wide = [w, b, 300 * v, c]
    labels = np.argmax(logits_of(wide, x), axis=1)
    half = [each.astype(np.float16) for each in wide]
    robust = regularize(loss, sigma=0.5, objective="penalty", direction=odds)
    losses = robust(half, jnp.asarray(x, jnp.float16), labels)
    assert losses.dtype == jnp.float16
    assert_allclose(losses, robust([np.float32(each) for each in half], x, labels), atol=1e-3)


def test_the_log_odds_direction_does_not_round_away():
    params, x, _ = problem(n=20)
    labels = np.asarray(logits_of(params, x)).argmax(axis=1)  # the network is right, and sure
    *below, v, c = params
    params = (*below, 30 * v, 30 * c)
    expected = closed_form(by_hand(params, x, labels)[1], 1.5, np.full(20, 0.1)).astype(np.float64)

    def seen(*arguments):
        return loss(*arguments), arguments[1]

    def moved(*arguments):
        given = [regularize(seen, 1.5, sigma=0.1, has_aux=True, direction=d) for d in (odds, None)]
        return [robust(*arguments)[1] - arguments[1] for robust in given]

    by_odds, by_loss = run(moved, *jax.tree.map(np.float32, (params, x)), labels)
    assert_allclose(by_odds, expected, atol=1e-4)
    assert np.abs(by_loss - expected).max() > 0.05


def test_the_penalty_by_the_odds_equals_that_by_the_loss():
    one, other = run(
        lambda *given: [
            values_and_slopes(regularize(loss, 3, sigma=0.2, objective="penalty", direction=d), *given)
            for d in (odds, None)
        ],
        *problem(),
    )
    assert_same(one, other)


SIZES = np.array([-1e4, -1e3, -200, -100, -60, -44, -20, -5, 0, 5, 20, 50, 100, 1e3, 1e4])
CONFIDENT = {"float64": [1, 1.5, 2, 3, math.inf], "float32": [1.1, math.inf], "float16": [2]}


def several(labels):
    return jnp.stack([labels == k for k in range(3)], axis=-1)


def each_logits(weights, x):
    return jnp.einsum("ni,nic->nc", x, weights)


OUTPUTS = {
    "softmax": (
        lambda w, x, y: error_log_odds(each_logits(w, x), y),
        lambda w, x, y: jax.nn.softplus(error_log_odds(each_logits(w, x), y)),
    ),
    "sigmoid": (
        lambda w, x, y: binary_error_log_odds(each_logits(w, x), several(y)),
        lambda w, x, y: jax.nn.softplus((1 - 2 * several(y)) * each_logits(w, x)).sum(axis=-1),
    ),
}


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dtype", CONFIDENT)
def test_the_penalty_by_odds_of_any_size_has_the_derivative_of_that_by_the_loss(outputs, dtype):
    rng = np.random.default_rng(0)
    w, u = rng.standard_normal((4, 3)), rng.standard_normal((len(SIZES), 4))
    *_, second, first = np.sort(u @ w, axis=1).T
    x, labels = -SIZES[:, None] * u / (first - second)[:, None], np.argmax(u @ w, axis=1)
    by_odds, own_loss = OUTPUTS[outputs]

    def slopes(weights, x, labels):  # each example with weights of its own
        return [
            [
                values_and_slopes(
                    regularize(own_loss, p, sigma=0.1, objective="penalty", direction=direction),
                    weights,
                    x,
                    labels,
                )[1]
                for direction in (by_odds, None)
            ]
            for p in CONFIDENT[dtype]
        ]

    found = run(slopes, np.tile(w, (len(SIZES), 1, 1)).astype(dtype), x.astype(dtype), labels)
    limits = np.finfo(dtype)
    for p, (one, other) in zip(CONFIDENT[dtype], np.asarray(found, np.float64), strict=True):
        size = np.abs(other).max(axis=(1, 2), keepdims=True)
        bound = 16 * limits.eps * size + 1e3 * limits.tiny
        assert (size.ravel()[SIZES >= -5] > 1e-3).all()
        assert_array_equal(np.abs(one - other) <= bound, True, err_msg=str(p))


def test_no_nan_arises_inside_a_finite_loss():
    params, x, labels = problem()
    *below, v, c = (np.float32(array) for array in params)
    x, out = np.float32(x), jnp.array([*labels[:3], 255])
    cases = [
        lambda z: cross_entropy(z, out, ignore_index=255),
        lambda z: error_log_odds(z, out, ignore_index=255).at[3].set(0),
        lambda z: binary_error_log_odds(z, several(out), ignore_index=1),
        lambda z: binary_error_log_odds(0 * z, several(out)),
    ]
    robust = [regularize(loss, sigma=0.2, direction=odds, **options) for options in OBJECTIVES.values()]
    step = compiled(lambda *given: [values_and_slopes(function, *given) for function in robust])
    with jax.debug_nans(True):
        for scale in 1, 30, 1e4:
            sure = (*below, scale * v, scale * c)
            step(sure, x, labels)
            for case in cases:
                jax.grad(lambda z, case=case: case(z).sum())(logits_of(sure, x))


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_ignored_labels_move_nothing_and_invalid_labels_give_nan(options):
    params, x, labels = problem()
    given = np.array([labels[0], 255, 7, labels[3]])

    def of_loss(params, x, labels):
        return cross_entropy(logits_of(params, x), labels, ignore_index=255)

    def of_odds(params, x, labels):
        return error_log_odds(logits_of(params, x), labels, ignore_index=255)

    def both(params, x, labels, known):
        robust = regularize(of_loss, 1.5, sigma=0.2, direction=of_odds, **options)
        plain = regularize(loss, 1.5, sigma=0.2, **options)
        slopes = jax.grad(lambda params: robust(params, x[:2], labels[:2]).sum())(params)
        expected = jax.grad(lambda params: plain(params, x[:1], known[:1]).sum())(params)
        return robust(params, x, labels), plain(params, x, known), slopes, expected

    found, values, slopes, expected = run(both, params, x, given, labels)
    assert_allclose(found, [values[0], 0, math.nan, values[3]], rtol=1e-9)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-9, atol=1e-12), slopes, expected)


def test_vmap_and_checkpoint_do_not_change_the_loss():
    mixed = {"p": 1.5, "sigma": 0.2} | OBJECTIVES["mixed"]
    penalised = {"p": 1.5, "sigma": 0.2} | OBJECTIVES["penalty"]
    one = regularize(lambda p, x, y: loss(p, x[None], y[None])[0], batch_ndim=0, **mixed)
    functions = [
        regularize(loss, **mixed),
        jax.vmap(one, (None, 0, 0)),
        regularize(loss, **penalised),
        jax.checkpoint(regularize(loss, **penalised)),
        regularize(jax.checkpoint(loss), **penalised),
    ]
    batch, mapped, *rest = run(lambda *given: [values_and_slopes(f, *given) for f in functions], *problem())
    assert_same(mapped, batch)
    assert_same(rest[1], rest[0])
    assert_same(rest[2], rest[0])


def test_nan_stays_in_its_example():
    params, x, labels = problem()
    spoilt = x.copy()
    spoilt[1, 2] = np.nan
    bad, good = run(
        lambda *both: [
            [regularize(loss, 3, sigma=0.2, **options)(params, x, labels) for options in OBJECTIVES.values()]
            for x in both
        ],
        spoilt,
        x,
    )
    assert_array_equal(np.isnan(bad), [[False, True, False, False]] * len(OBJECTIVES))
    assert_same(np.delete(bad, 1, axis=1), np.delete(good, 1, axis=1))


BAD_CHOICES = {
    "p must lie in": {"p": 0.5},
    "objective must be 'perturb' or 'penalty'; got 'plain'": {"objective": "plain"},
    "penalty_by must be 'gradient' or 'difference'; got 'hand'": {"penalty_by": "hand"},
    "steps must be a whole number of at least 1; got 0": {"steps": 0},
    "clean_weight must lie in .*; got 2": {"clean_weight": 2},
    "steps and start belong to objective='perturb'": {"objective": "penalty", "steps": 2},
    "penalty_by='difference' belongs to objective='penalty'": {"penalty_by": "difference"},
    "difference_step belongs to": {"objective": "penalty", "difference_step": 0.1},
    "difference_step must be .* above 0": {"difference_step": 0},
    "argnum must be the position of x, from 0, .*; got -1": {"argnum": -1},
    "argnum must be .* a tuple of several; got \\(\\)": {"argnum": ()},
    "outputs need a start, .* a function .* returns a key": BETWEEN,
    "outputs and direction exclude each other": BETWEEN | {"start": 0, "direction": odds},
    "beta weighs a divergence": {"beta": 1.0},
    "beta, .* must be a number of at least 0; got None": {"outputs": logits_at},
    "it has no penalty, as the divergence": BETWEEN | {"objective": "penalty"},
    "direction must be a function of the loss's arguments, .*; got 'log-odds'": {"direction": "log-odds"},
}


@pytest.mark.parametrize(("message", "options"), BAD_CHOICES.items())
def test_an_invalid_option_is_an_error_before_any_call(message, options):
    with pytest.raises(ValueError, match=message):
        regularize(loss, **{"sigma": 0.1} | options)


def test_a_bad_loss_or_input_says_what_to_do():
    params, x, labels = problem()
    mean = regularize(lambda *given: loss(*given).mean(), sigma=0.1)
    with pytest.raises(
        ValueError, match=r"one value per example, of shape \(4,\); got \(\): take the mean of"
    ):
        jax.eval_shape(mean, params, x, labels)
    with pytest.raises(ValueError, match=r"got \(4, 3\): take the mean over the further axes"):
        jax.eval_shape(regularize(lambda *_: jnp.ones((4, 3)), sigma=0.1), params, x, labels)
    with pytest.raises(ValueError, match=r"got tuple: .* needs has_aux=True"):
        jax.eval_shape(regularize(lambda *given: (loss(*given), 0), sigma=0.1), params, x, labels)
    with pytest.raises(TypeError, match=r"argument 1 .* must be floating; got int.*: .*embed tokens first"):
        regularize(loss, sigma=0.1)(params, labels, labels)
    with pytest.raises(TypeError, match=r"argument 1 .* by position; got 1 positional"):
        regularize(loss, sigma=0.1)(params, x=x, labels=labels)
    with pytest.raises(
        TypeError, match=r"argument 1 .*, \['b'\], .* an array or a pytree of arrays; got str"
    ):
        regularize(loss, sigma=0.1)(params, {"a": x, "b": "x"}, labels)
    with pytest.raises(TypeError, match=r"argument 1 .* holds no array"):
        regularize(loss, sigma=0.1)(params, {}, labels)
    with pytest.raises(ValueError, match=r"of the same examples; .*\(3,\)"):
        regularize(lambda x: x[0].sum(axis=1), sigma=0.1, argnum=0)((x, x[:3]))
    with pytest.raises(ValueError, match=r"has_aux=True the loss must return \(values, aux\); got"):
        regularize(loss, sigma=0.1, has_aux=True)(params, x, labels)
    with pytest.raises(TypeError, match="None is for batches without labels, with outputs"):
        regularize(None, sigma=0.1)
    means = regularize(None, sigma=0.1, outputs=lambda params, x: x.mean(), beta=1.0, start=lambda *_: x)
    with pytest.raises(ValueError, match=r"logits of shape \(4, '...', 'classes'\); got \(\)"):
        jax.eval_shape(means, params, x)
    half = regularize(lambda x: x.sum(axis=1), sigma=0.1, argnum=0, **OBJECTIVES["difference"])
    with pytest.raises(ValueError, match="rounds away in bfloat16: give a larger difference_step"):
        jax.eval_shape(half, jnp.ones((2, 3), jnp.bfloat16))


def test_the_regularised_loss_has_the_signature_of_the_loss():
    robust = regularize(loss, sigma=0.1)
    assert inspect.signature(robust) == inspect.signature(loss)
    assert robust.__name__ == "loss"


def test_devices_exchange_weight_gradients_alone(tmp_path):
    result = python(ON_DEVICES, cwd=tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert result.returncode == 0, result.stderr


ON_DEVICES = r"""
import math, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lpfamily_jax import regularize

def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w), axis=1)

mesh = jax.make_mesh((3,), ("examples",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 5), (6, 8)))
put = [jax.device_put(a, NamedSharding(mesh, P(*axes))) for a, axes in ((w, ()), (x, ("examples",)))]
for options in {}, {"objective": "penalty"}:
    robust = jax.jit(regularize(loss, 1.5, sigma=0.3, **options))
    step = jax.jit(jax.grad(lambda w, x: robust(w, x).mean()))
    for function, exchanged in (robust, set()), (step, {w.size}):
        program = function.lower(*put).compile().as_text()
        results = re.findall(r"= (.*) (?:all-|collective-|reduce-scatter)", program)
        shapes = re.findall(r"\[(.*?)\]", " ".join(results))
        assert {math.prod(map(int, shape.split(","))) for shape in shapes} == exchanged, results
        np.testing.assert_allclose(function(*put), function(w, x), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("p", [1.5, math.inf])
def test_jax_a_scale_is_that_of_inputs_before_they_were_normalised(name, p):
    params, x, labels = problem()
    std = np.array([0.5, 0.2, 3.0, 1.0, 0.7, 0.01])
    with jax.enable_x64(True):
        inside = regularize(lambda params, x, y: loss(params, x / std, y), p, sigma=0.3, **OBJECTIVES[name])
        scaled = regularize(loss, p, sigma=0.3, scale=1 / std, **OBJECTIVES[name])
        called = regularize(loss, p, sigma=0.3, scale=lambda *_: 1 / std, **OBJECTIVES[name])
        expected = inside(params, x, labels)
        assert_allclose(scaled(params, x / std, labels), expected, rtol=1e-9)
        assert_allclose(jax.jit(called)(params, x / std, labels), expected, rtol=1e-9)
