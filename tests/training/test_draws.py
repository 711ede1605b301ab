"""Random numbers by counter: reproducible one by one, and independent of each other."""

from itertools import pairwise

import numpy as np
import pytest

from lpfamily.training.backends import Objective, Task
from lpfamily.training.draws import Draws, by_threads
from lpfamily.training.networks import ConvMaxout, Dense, Dropout, Maxout, Network

NETWORK = Network(
    64,
    (
        ConvMaxout(3, 2, 3, dropout=Dropout(0.8, 1.0), noise=0.5),
        Maxout(5, 2, noise=2.0),
        Dense(4, dropout=Dropout(0.5, 2.0)),
    ),
    image=(1, 8, 8),
)


def test_masks_have_the_shapes_of_what_enters_the_layers():
    masks = Draws(0, 0).masks(3, NETWORK, 7)
    assert [None if mask is None else mask.shape for mask in masks] == [(7, 1, 8, 8), None, (7, 5)]


def test_noise_has_the_shapes_of_what_enters_the_activations():
    noises = Draws(0, 0).layer_noise(3, NETWORK, 7, "float32")
    assert [None if noise is None else noise.shape for noise in noises] == [(7, 6, 6, 6), (7, 10), None]
    assert noises[0].dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("deviation", [0.1, 2.0])
def test_the_noise_of_layers_is_normal_with_its_deviation(dtype, deviation):
    """By mean, variance and fourth moment, of all and along each axis."""
    noise = Draws(0, 0).added(0, 0, (400, 1000), deviation, dtype).astype(np.float64) / deviation
    for power, moment, variance in (1, 0, 1), (2, 1, 2), (4, 3, 96):
        for axis in None, 0, 1:
            means = np.mean(noise**power, axis=axis)
            spread = np.sqrt(variance * np.size(means) / noise.size)
            assert np.max(np.abs(means - moment)) <= (5 if power < 4 else 12) * spread
    lag = [np.mean(noise[1:] * noise[:-1]), np.mean(noise[:, 1:] * noise[:, :-1])]
    assert np.max(np.abs(lag)) <= 5 / np.sqrt(noise.size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_noise_of_layers_is_numpys_generators(dtype):
    """So every backend, and any other program, can draw it from seed, epoch, step, layer and pass."""
    bits = np.random.Philox(key=(2, 5), counter=(0, 5 + (1 << 16), 3, 1))
    expected = np.dtype(dtype).type(0.3) * np.random.Generator(bits).standard_normal((7, 9), dtype)
    np.testing.assert_array_equal(Draws(2, 1).added(3, 5, (7, 9), 0.3, dtype, again=1), expected)


def test_a_subset_of_a_batch_gets_its_rows_of_all_draws():
    objective = Objective("perturb", 1.5, direction_dropout="independent", random_start=True)
    task = Task(NETWORK, objective, np.zeros((7, 64), "float32"), np.zeros(7, "int64"), batch_size=7)
    whole, part = Draws(3, 4).step(2, task, 7), Draws(3, 4).part(7, slice(2, 5)).step(2, task, 3)
    for many, few in zip(whole.arrays(), part.arrays(), strict=True):
        np.testing.assert_array_equal(few, many[2:5])


def test_weights_are_how_often_an_example_is_visited():
    counts = np.random.default_rng(0).integers(0, 5, 10_000)
    visits = counts.sum()
    order = Draws(3, 1).order(visits, counts.astype(float))
    np.testing.assert_array_equal(order, np.arange(10_000).repeat(counts)[Draws(3, 1).order(visits)])
    weights = np.random.default_rng(1).exponential(size=50)
    expected = 60 * weights / weights.sum()
    drawn = [np.bincount(Draws(0, epoch).order(60, weights), minlength=50) for epoch in range(2000)]
    assert np.all(np.abs(drawn - expected) < 1)
    assert {counts.sum() for counts in drawn} == {60}
    fraction = expected % 1
    assert np.all(np.abs(np.mean(drawn, axis=0) - expected) <= 5 * np.sqrt(fraction * (1 - fraction) / 2000))


@pytest.mark.parametrize("include", [0.8, 0.5, 1.0])
def test_an_input_is_kept_with_its_keep_probability(include):
    kept = Draws(0, 0).kept(0, 0, (400, 1000), include)
    for share, count in (kept.mean(), kept.size), (kept[0].mean(), 1000), (kept[:, 0].mean(), 400):
        assert abs(share - include) <= 5 * np.sqrt(include * (1 - include) / count)


@pytest.mark.parametrize("include", [0.0, 0.3, 0.5, 0.8, 1 - 2**-24, 1.0])
def test_an_input_is_kept_where_numpys_generator_is_below_the_probability(include):
    for shape in (), (1,), (7, 9), (3, 2, 50):
        bits = np.random.Philox(key=(2, 4), counter=(0, 5 + (1 << 16), 3, 1))
        expected = np.random.Generator(bits).random(shape, np.float32) < np.float32(include)
        np.testing.assert_array_equal(Draws(2, 1).kept(3, 5, shape, include, again=1), expected)


def test_steps_are_drawn_alike_one_by_one_and_together():
    objective = Objective("perturb", 1.5, direction_dropout="independent", random_start=True)
    task = Task(NETWORK, objective, np.zeros((7, 64), "float32"), np.zeros(7, "int64"), batch_size=7)
    draws = Draws(3, 4)
    with by_threads() as mapped:
        together = draws.steps(range(2, 5), task, 7, mapped)
    assert len(together.arrays()) == 9
    for place, step in enumerate(range(2, 5)):
        for many, one in zip(together.arrays(), draws.step(step, task, 7).arrays(), strict=True):
            np.testing.assert_array_equal(many[place], one)


def test_draws_differ_by_seed_epoch_step_layer_and_pass():
    drawn = [
        (
            Draws(seed, epoch).kept(step, layer, (1000,), 0.5, again),
            Draws(seed, epoch).added(step, layer, (1000,), 1.0, "float64", again),
        )
        for seed, epoch, step, layer, again in [
            (0, 0, 0, 0, 0),
            (1, 0, 0, 0, 0),
            (0, 1, 0, 0, 0),
            (0, 0, 1, 0, 0),
            (0, 0, 0, 1, 0),
            (0, 0, 0, 0, 1),
        ]
    ]
    for index, (one, noise) in enumerate(drawn):
        for other, another in drawn[:index]:
            assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)
            assert abs(np.mean(noise * another)) < 5 / np.sqrt(1000)
    inputs = Draws(0, 0).noise(0, (1000,), "float64")
    assert abs(np.mean(drawn[0][1] * inputs)) < 5 / np.sqrt(1000)


def test_draws_depend_on_seed_epoch_and_step_alone():
    draws = Draws(3, 4)
    expected = [draws.kept(step, 1, (50,), 0.5) for step in range(3)]
    draws.order(100)
    draws.noise(0, (5,), "float32")
    for step in reversed(range(3)):
        np.testing.assert_array_equal(Draws(3, 4).kept(step, 1, (50,), 0.5), expected[step])


def test_direction_dropout_sets_the_masks_of_each_pass():
    draws = Draws(0, 0)
    same = draws.masks(1, NETWORK, 20)
    assert draws.direction_masks(1, NETWORK, 20, "none", 2, same) == [[None] * 3] * 2
    assert draws.direction_masks(1, NETWORK, 20, "same", 2, same) == [same] * 2
    passes = [same, *draws.direction_masks(1, NETWORK, 20, "independent", 2, same)]
    for one, other in pairwise(passes):
        assert np.mean(one[0] == other[0]) < 0.9
        assert one[1] is other[1] is None


def test_the_noise_of_layers_follows_the_rule_of_dropout():
    draws, none = Draws(0, 0), [[None] * 3] * 2
    same = draws.layer_noise(1, NETWORK, 20, "float64")
    assert draws.direction_noise(1, NETWORK, 20, "float64", "none", 2, same) == none
    assert draws.direction_noise(1, NETWORK, 20, "float64", "same", 2, same) == [same] * 2
    passes = [same, *draws.direction_noise(1, NETWORK, 20, "float64", "independent", 2, same)]
    for one, other in pairwise(passes):
        assert not np.any(one[0] == other[0])
        assert one[2] is other[2] is None
    for dropout in "none", "same", "independent":
        objective = Objective("perturb", 2.0, steps=2, direction_dropout=dropout)
        task = Task(NETWORK, objective, np.zeros((20, 64)), np.zeros(20, "int64"), 20, dtype="float64")
        drawn, noises = (
            draws.step(1, task, 20),
            draws.direction_noise(1, NETWORK, 20, "float64", dropout, 2, same),
        )
        masks = draws.direction_masks(1, NETWORK, 20, dropout, 2, draws.masks(1, NETWORK, 20))
        for layers, kept, added in zip(drawn.passes, masks, noises, strict=True):
            for random, *expected in zip(layers, kept, added, strict=True):
                np.testing.assert_equal(tuple(random), tuple(expected))
