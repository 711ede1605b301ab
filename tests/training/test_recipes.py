"""The published recipes: their networks, schedules, and the gradients of their first steps."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.backends_under_test import NAMES
from lpfamily.training import backends, choices, commands, data
from lpfamily.training.backends import Objective, Rates, Task
from lpfamily.training.commands.options import recipe_of as recipe_of_command
from lpfamily.training.draws import Draws, Random
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import initial_state, layer_of, parameter_shapes, shapes
from lpfamily.training.recipes import PUBLISHED, Recipe, continued_rates, default, network_of, rates
from lpfamily.training.testing.oracle import cross_entropy, logits

IMAGES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8)}


def recipe_of(model, objective="plain", p=2.0, data=None):
    data = data or ("cifar10" if model.startswith("cifar") else "mnist")
    return default(model, data, objective, p, math.prod(IMAGES[data]))


def network(model):
    recipe = recipe_of(model)
    return network_of(recipe, IMAGES[recipe.data], 10)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("softmax", 7_850),
        ("sigmoid-mlp", 837_610),
        ("relu-mlp", 1_276_810),
        ("maxout", 1_233_610),
        ("conv-maxout", 471_994),
        ("cifar-maxout-small", 5_468_282),
    ],
)
def test_networks_have_the_published_number_of_parameters(model, count):
    assert sum(math.prod(shape) for shape in parameter_shapes(network(model)).values()) == count


def test_the_layers_of_the_convolutional_networks_have_their_input_shapes():
    assert shapes(network("conv-maxout")) == ((1, 28, 28), (48, 10, 10), (48, 4, 4), (216,), (10,))
    assert shapes(network("cifar-maxout-small")) == (
        (3, 32, 32), (48, 16, 16), (128, 7, 7), (3200,), (240,), (10,)
    )  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_first_weights_keep_to_their_range_and_constraint(model):
    state = initial_state(network(model), 0, "float64")
    for name in parameter_shapes(network(model)):
        array, layer = state[name], layer_of(network(model), name)
        if name.endswith("bias"):
            assert not array.any()
            continue
        if layer.init:
            assert 0.99 * layer.init < np.abs(array).max() <= layer.init
            assert np.std(array) == pytest.approx(layer.init / math.sqrt(3), rel=0.05)
        if layer.max_norm:
            assert np.sqrt(np.sum(array**2, axis=layer.norm_axes)).max() <= layer.max_norm * (1 + 1e-12)


def test_layers_have_the_noise_of_their_recipe():
    assert [layer.noise for layer in network("relu-mlp").layers] == [0.3, 0.3, None]
    assert {layer.noise for layer in network("conv-maxout").layers} == {None}
    one = network_of(replace(recipe_of("maxout"), layer_noise=(0.25,)), IMAGES["mnist"], 10)
    assert [layer.noise for layer in one.layers] == [0.25] * 3


def test_only_the_first_layer_does_not_rescale_its_dropout():
    for model in "relu-mlp", "maxout", "conv-maxout", "cifar-maxout-small":
        first, *others = (layer.dropout for layer in network(model).layers)
        assert (first.include, first.scale) == (0.8, 1.0)
        assert {(dropout.include, dropout.scale) for dropout in others} == {(0.5, 2.0)}


# What the scripts that the paper builds on wrote down at their best epochs: lr, momentum.
@pytest.mark.parametrize(
    ("model", "best", "steps", "lr", "momentum"),
    [
        ("maxout", 243, 500, 0.0615082606673, 0.694376766682),
        ("conv-maxout", 189, 391, 0.00260159000754, 0.651003837585),
        ("cifar-maxout-small", 231, 313, None, 0.592369556427),
    ],
)
def test_schedules_reproduce_the_published_rates(model, best, steps, lr, momentum):
    recipe = recipe_of(model)
    last, after = rates(recipe, best - 1, steps), rates(recipe, best, steps)
    assert last.momentum == pytest.approx(np.full(steps, momentum), rel=2e-6)
    if lr is not None:
        assert after.lr[0] == pytest.approx(lr, rel=1e-5)
    second = continued_rates(recipe, best, steps, 0, steps + 100)
    assert second.momentum == pytest.approx(np.full(steps + 100, momentum), rel=2e-6)
    if model == "maxout":  # the decay goes on
        assert second.lr[0] == after.lr[0]
        assert continued_rates(recipe, best, steps, 3, steps + 100).lr[0] == pytest.approx(
            after.lr[0] / recipe.lr_factor ** (3 * (steps + 100)), rel=1e-12
        )
    if model == "conv-maxout":
        assert set(second.lr) == set(continued_rates(recipe, best, steps, 9, steps).lr) == {after.lr[0]}


def test_linear_decay_ends_at_its_share():
    recipe = recipe_of("cifar-maxout-small")
    found = [rates(recipe, epoch, 1).lr[0] for epoch in (0, 124, 249, 250, 900)]
    assert found == pytest.approx([0.1 - 0.099 / 250, 0.1 - 0.099 / 2, 0.001, 0.001, 0.001])


def test_sigma_follows_the_paper():
    assert recipe_of("maxout").sigma == recipe_of("sigmoid-mlp").sigma == 1
    assert recipe_of("cifar-maxout-small").sigma == 2
    assert recipe_of("maxout", p=math.inf).sigma == pytest.approx(1 / 28)
    assert recipe_of("maxout", p=1.0).sigma == pytest.approx(28)
    assert recipe_of("maxout", "noise").sigma == pytest.approx(1 / 28)
    assert recipe_of("softmax", data="digits").sigma == pytest.approx(8 / 28)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_quick_recipe_is_short_and_of_the_same_network(model):
    quick, paper = (default(model, "mnist", inputs=784, recipe=name) for name in ("quick", "paper"))
    assert quick.epochs <= 15
    assert (quick.patience, quick.second_stage, quick.sigma) == (0, "none", paper.sigma)
    if model != "cifar-maxout-small":
        assert network_of(replace(quick, init=paper.init), (1, 28, 28), 10) == network_of(
            paper, (1, 28, 28), 10
        )
    if quick.lr_decay == "linear":
        assert rates(quick, quick.epochs - 1, 1).lr[0] == pytest.approx(quick.lr / 100)


def test_the_best_recipe_trains_on_every_image_down_to_a_hundredth_of_its_rate():
    paper, best = (default("relu-mlp", "mnist", inputs=784, recipe=name) for name in ("paper", "best"))
    assert (best.validation, best.patience, best.second_stage) == (0, 0, "none")
    assert best.sigma == 1.5 * paper.sigma
    assert default("maxout", "mnist", inputs=784, recipe="best").sigma == paper.sigma
    assert rates(best, best.epochs - 1, 1).lr[0] == pytest.approx(best.lr / 100)
    dataset = of_examples(20)
    short = recipe_of_command({"model": "relu-mlp", "recipe": "best", "epochs": 2}, dataset)
    assert rates(short, 1, 1).lr[0] == pytest.approx(short.lr / 100)
    with pytest.raises(BadInput, match="no best recipe of softmax, only of sigmoid-mlp, relu-mlp, maxout"):
        default("softmax", "digits", recipe="best", inputs=64)


def of_examples(count, name="mine.npz", numbers=None):
    split = data.Split(np.zeros((count, 12), np.float32), np.zeros(count, int))
    return data.Dataset(name, split, split, 2, (3, 2, 2), recipe=numbers or {})


@pytest.mark.parametrize(
    ("count", "epochs"), [(70_000, 15), (50_000, 15), (49_999, 16), (25_000, 30), (2_000, 100)]
)
def test_a_quick_recipe_of_few_examples_has_more_epochs(count, epochs):
    found = default("sigmoid-mlp", of_examples(count), recipe="quick")
    assert (found.epochs, found.lr_epochs) == (epochs, epochs)


@pytest.mark.parametrize("name", ["paper", "quick"])
def test_the_default_recipe_for_arrays_is_that_of_the_command(name):
    numbers = {"validation": 7, "epochs": 40}
    for dataset in data.load("digits"), of_examples(100), of_examples(100, numbers=numbers):
        recipe = default("maxout", dataset, "penalty", 1.0, recipe=name)
        given = {"model": "maxout", "objective": "penalty", "p": 1.0, "recipe": name}
        assert recipe == recipe_of_command(given, dataset)
        if dataset.recipe:
            assert (recipe.validation, recipe.epochs) == (7, 40 if name == "paper" else 100)
    with pytest.raises(TypeError, match="pass inputs"):
        default("maxout", "digits")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"pieces": ()}, "--kernel for 3 convolutions needs as many layers in --units, and --pieces"),
        ({"units": (48, 48)}, "--kernel for 3 convolutions needs as many layers"),
        ({"max_norm": (1.0, 2.0)}, "--max-norm must have one number or 4; got 2"),
        ({"dropout": (0.5, 0.5)}, "--dropout must have one number or 4"),
        ({"layer_noise": (0.5, 0.5)}, "--layer-noise must have one number or 4; got 2"),
        ({"padding": (0, 3)}, "--padding must have one number or 3"),
        ({"kernel": (40, 8, 5)}, "layer 0 is larger than its input of shape (1, 28, 28)"),
        ({"pool": (30, 4, 2)}, "layer 0 is larger"),
        ({"stride": (4, 4, 3)}, "layer 2 has --stride 3 and --pool 2"),
    ],
)
def test_sizes_that_do_not_fit_the_network_are_named(changes, part):
    with pytest.raises(BadInput) as caught:
        network_of(replace(recipe_of("conv-maxout"), **changes), (1, 28, 28), 10)
    assert part in str(caught.value)


def test_a_recipe_survives_its_file():
    for model in PUBLISHED:
        recipe = recipe_of(model, p=math.inf)
        assert choices.from_json(Recipe, choices.to_json(recipe)) == recipe
    with pytest.raises(ValueError, match="units must be a whole number"):
        Recipe(units=(3, 1.5))


# Gradients of the first step at full size, along a random direction in each parameter: by central
# differences of the reference, with the dropout and the noise of the draws.


@pytest.mark.parametrize(
    ("name", "model"),
    # but the one that JAX compiles for a quarter of a minute: it differs from conv-maxout in sizes alone
    sorted({*itertools.product(NAMES, PUBLISHED)} - {("jax", "cifar-maxout-small")}),
)
def test_the_first_step_descends(name, model):
    of = network(model)
    backend = backends.find(name)
    if any(type(layer) not in backend.layers for layer in of.layers):
        with pytest.raises(BadInput, match=f"'{name}' does not train ConvMaxout layers"):
            backends.check_layers(name, backend, of)
        return
    rng, draws = np.random.default_rng(0), Draws(0, 0)
    of = replace(of, layers=tuple(replace(layer, max_norm=None, lr_scale=1.0) for layer in of.layers))
    # larger weights than the first ones, whose gradients are next to nothing
    state = {
        name: array + (0.05 * rng.standard_normal(array.shape) if name in parameter_shapes(of) else 0)
        for name, array in initial_state(of, 0, "float64").items()
    }
    x, labels = rng.random((3, of.inputs)), rng.integers(0, 10, 3)
    trainer = backend.trainer(Task(of, Objective(), x, labels, 3, dtype="float64"), state)
    trainer.epoch(np.arange(3), Rates(np.ones(1), np.zeros(1), np.zeros(1)), draws)
    after = trainer.state()
    random = list(map(Random, draws.masks(0, of, 3), draws.layer_noise(0, of, 3, "float64")))
    for parameter, shape in parameter_shapes(of).items():
        direction = rng.standard_normal(shape)
        direction /= np.linalg.norm(direction)
        ends = [
            cross_entropy(
                logits(of, state | {parameter: state[parameter] + h * direction}, x, random), labels
            )
            for h in (1e-5, -1e-5)
        ]
        slope = np.mean(ends[0] - ends[1]) / 2e-5
        moved = np.vdot(state[parameter] - after[parameter], direction)
        assert_allclose(moved, slope, rtol=1e-5, atol=1e-8, err_msg=parameter)


def test_an_option_is_one_field():
    """Its flag, help, range, dependency, JSON and default are made from it."""

    @dataclass(frozen=True, kw_only=True)
    class Extended(Recipe):
        damping: float = choices.option(
            0.25, choices.FRACTION, "of steps", group="optimiser", needs={"objective": "penalty"}
        )

    (option,) = (each for each in choices.in_group("optimiser", Extended) if each.name == "damping")
    parser = commands.Parser(prog="extended")
    parser.group("the optimiser")(option.flag, option.help, option.values, default=option.default)
    assert parser.parse(["--damping", "0.5"]) == {"damping": 0.5}
    assert "--damping X" in parser.format_help()
    assert "of steps (default: 0.25)" in parser.format_help()
    with pytest.raises(BadInput, match="--damping: must be a number from 0 to 1; got 2"):
        parser.parse(["--damping", "2"])
    with pytest.raises(ValueError, match="damping must be a number from 0 to 1; got -1"):
        Extended(damping=-1)
    assert (option.needed, option.has_effect(Extended())) == ("--objective penalty", False)
    assert option.has_effect(Extended(objective="penalty"))
    values = choices.to_json(Extended(damping=1, p=math.inf))
    assert choices.from_json(Extended, values) == Extended(damping=1, p=math.inf)
    del values["damping"]
    assert choices.from_json(Extended, values).damping == 0.25
    with pytest.raises(ValueError, match="lacks damping"):
        choices.from_json(Extended, values, complete=True)
