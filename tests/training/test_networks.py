"""Layers: how their weights are drawn, how they are told apart, and how they are read from JSON."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lpfamily.training import networks
from lpfamily.training.networks import (
    ConvMaxout,
    Dense,
    FullyConnected,
    Layer,
    Maxout,
    Network,
    Rectifier,
    initial_state,
    parameter_shapes,
    shapes,
)
from lpfamily.training.testing import NETWORKS
from lpfamily_reference.networks import dense, maxout, rectifier


@pytest.mark.parametrize("inputs", [50, 2000])
def test_rectifiers_keep_the_mean_square(inputs):
    """As He et al. derive it: through many layers it neither vanishes nor grows."""
    weight = initial_state(Network(inputs, (Rectifier(500),)), 0, "float64")["layers.0.weight"]
    x = 1 + np.random.default_rng(1).standard_normal((200, inputs))
    outputs = rectifier(dense(x, weight, np.zeros(500)))
    assert np.mean(outputs**2) == pytest.approx(np.mean(x**2), rel=0.1)


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (Dense(30, "sigmoid"), 4 * math.sqrt(6 / (75 + 30))),
        (Rectifier(30), math.sqrt(6 / 75)),
        (Maxout(10, 3), 4 * math.sqrt(6 / (75 + 30))),
        (ConvMaxout(10, 3, 2), 4 * math.sqrt(6 / (3 * 2 * 2 + 30 * 2 * 2))),
    ],
    ids=repr,
)
def test_first_weights_fill_their_range(layer, bound):
    for init, expected in (None, bound), (0.3, 0.3):
        network = Network(75, (replace(layer, init=init), Dense(2)), (3, 5, 5))
        largest = np.abs(initial_state(network, 0, "float64")["layers.0.weight"]).max()
        assert 0.98 * expected < largest <= expected


def test_the_reference_gives_ties_to_the_first():
    """A complex step finds the derivative of the first of the largest alone."""
    for place, expected in enumerate((1, 0, 0)):
        z = np.zeros(3, complex)
        z[place] = 1e-30j
        assert maxout(z[None], 3).imag[0, 0] / 1e-30 == expected
    z = np.array([-1, 0, 2]) + 1e-30j
    np.testing.assert_array_equal(rectifier(z).real, [0, 0, 2])
    np.testing.assert_array_equal(rectifier(z).imag / 1e-30, [0, 0, 1])


@dataclass(frozen=True)
class Doubling(FullyConnected):
    """A stranger's layer: each unit has two outputs."""

    base: float = 2.0

    def output_shape(self, entering):
        return (2 * self.units,)


def test_a_layer_of_another_package_gives_its_shapes_and_json():
    network = Network(12, (Doubling(3, base=3.0), Dense(2)), (3, 2, 2))
    assert shapes(network) == ((12,), (6,), (2,))
    assert parameter_shapes(network)["layers.1.weight"] == (6, 2)
    assert networks.from_json(networks.to_json(network)) == network


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_network_can_be_read_from_its_json(network):
    assert networks.from_json(networks.to_json(network)) == network


def test_a_network_of_an_earlier_version_has_no_noise():
    network = Network(4, (Rectifier(3, noise=0.5), Dense(2)))
    values = networks.to_json(network)
    assert networks.from_json(values) == network
    for layer in values["layers"]:
        del layer["noise"]
    assert networks.from_json(values) == Network(4, (Rectifier(3), Dense(2)))


def test_two_layers_of_one_name_are_refused():
    with pytest.raises(
        TypeError, match=r"test_networks has a layer Dense, and so has lpfamily.training.netw"
    ):
        type("Dense", (FullyConnected,), {"__module__": __name__})
    network = Network(2, (Dense(3),))
    assert type(networks.from_json(networks.to_json(network)).layers[0]) is Dense
    with pytest.raises(TypeError, match="abstract"):
        Layer()


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ((Dense(3), ConvMaxout(1, 1, 1)), r"layer 1 is a convolution and needs an image; got shape .3,."),
        ((ConvMaxout(1, 1, 4),), r"layer 0 is larger than its input of shape .1, 3, 4."),
        ((ConvMaxout(1, 1, 3, pool=2, stride=2),), "layer 0 is larger"),
        ((ConvMaxout(1, 1, 1), ConvMaxout(1, 1, 1, pool=2, stride=3)), "layer 1 has --stride 3 and --pool 2"),
    ],
)
def test_an_error_names_the_layer_that_does_not_fit(layers, problem):
    with pytest.raises(ValueError, match=f"^{problem}"):
        shapes(Network(12, layers, (1, 3, 4)))
