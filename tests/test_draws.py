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
        ConvMaxout(3, 2, 3, dropout=Dropout(0.8, 1.0)),
        Maxout(5, 2),
        Dense(4, dropout=Dropout(0.5, 2.0)),
    ),
    image=(1, 8, 8),
)


def test_masks_have_the_shapes_of_what_enters_the_layers():
    masks = Draws(0, 0).masks(3, NETWORK, 7)
    assert [None if mask is None else mask.shape for mask in masks] == [(7, 1, 8, 8), None, (7, 5)]


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
def test_an_input_stays_with_its_probability(include):
    kept = Draws(0, 0).kept(0, 0, (400, 1000), include)
    for share, count in (kept.mean(), kept.size), (kept[0].mean(), 1000), (kept[:, 0].mean(), 400):
        assert abs(share - include) <= 5 * np.sqrt(include * (1 - include) / count)


@pytest.mark.parametrize("include", [0.0, 0.3, 0.5, 0.8, 1 - 2**-24, 1.0])
def test_what_stays_is_where_numpys_generator_is_below_the_probability(include):
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
    assert len(together.arrays()) == 5
    for place, step in enumerate(range(2, 5)):
        for many, one in zip(together.arrays(), draws.step(step, task, 7).arrays(), strict=True):
            np.testing.assert_array_equal(many[place], one)


def test_every_seed_epoch_step_layer_and_pass_has_its_own():
    drawn = [
        Draws(seed, epoch).kept(step, layer, (1000,), 0.5, again)
        for seed, epoch, step, layer, again in [
            (0, 0, 0, 0, 0),
            (1, 0, 0, 0, 0),
            (0, 1, 0, 0, 0),
            (0, 0, 1, 0, 0),
            (0, 0, 0, 1, 0),
            (0, 0, 0, 0, 1),
        ]
    ]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)


def test_what_is_drawn_depends_on_nothing_else():
    draws = Draws(3, 4)
    expected = [draws.kept(step, 1, (50,), 0.5) for step in range(3)]
    draws.order(100)
    draws.noise(0, (5,), "float32")
    for step in reversed(range(3)):
        np.testing.assert_array_equal(Draws(3, 4).kept(step, 1, (50,), 0.5), expected[step])


def test_the_passes_of_a_direction():
    draws = Draws(0, 0)
    same = draws.masks(1, NETWORK, 20)
    assert draws.direction_masks(1, NETWORK, 20, "none", 2, same) == [[None] * 3] * 2
    assert draws.direction_masks(1, NETWORK, 20, "same", 2, same) == [same] * 2
    passes = [same, *draws.direction_masks(1, NETWORK, 20, "independent", 2, same)]
    for one, other in pairwise(passes):
        assert np.mean(one[0] == other[0]) < 0.9
        assert one[1] is other[1] is None
