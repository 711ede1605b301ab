"""Random numbers by counter: reproducible one by one, and independent of each other."""

from itertools import pairwise

import numpy as np
import pytest

from lpfamily.training.draws import Draws
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


@pytest.mark.parametrize("include", [0.8, 0.5, 1.0])
def test_an_input_stays_with_its_probability(include):
    kept = Draws(0, 0).kept(0, 0, (400, 1000), include)
    for share, count in (kept.mean(), kept.size), (kept[0].mean(), 1000), (kept[:, 0].mean(), 400):
        assert abs(share - include) <= 5 * np.sqrt(include * (1 - include) / count)


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
