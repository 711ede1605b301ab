"""Networks of each kind, trained for an epoch: all backends and processes must reach the same parameters."""

import functools

import numpy as np

from helpers.backends_under_test import NETWORK
from lpfamily.training import backends, data
from lpfamily.training.backends import Optimiser, Rates, Task
from lpfamily.training.draws import Draws
from lpfamily.training.networks import ConvMaxout, Dense, Dropout, Maxout, Network, Rectifier, initial_state
from lpfamily.training.testing import WITH_DROPOUT

STEPS = 50


HALF = Dropout(0.5, 2.0)


OF_RECTIFIERS = Network(
    64,
    (
        Rectifier(24, max_norm=1.9, dropout=Dropout(0.8, 1.0)),
        Rectifier(16, max_norm=1.9, dropout=HALF, noise=0.2),
        Dense(10, max_norm=1.9, dropout=HALF, init=0.2),
    ),
)


OF_MAXOUT = Network(
    64,
    (
        Maxout(16, 3, max_norm=1.9, dropout=Dropout(0.8, 1.0), noise=0.2, init=0.2),
        Maxout(16, 2, max_norm=1.9, dropout=HALF, init=0.2),
        Dense(10, max_norm=1.9, dropout=HALF, init=0.2),
    ),
)


OF_CONVOLUTIONS = Network(
    64,
    (
        ConvMaxout(
            4, 2, 3, padding=1, pool=3, stride=2, tied_bias=False, max_norm=1.9, dropout=HALF, init=0.2
        ),
        ConvMaxout(4, 2, 2, pool=2, stride=2, max_norm=1.9, dropout=HALF, noise=0.2, init=0.2, lr_scale=0.5),
        Dense(10, max_norm=1.9, dropout=HALF, init=0.2),
    ),
    image=(1, 8, 8),
)


@functools.cache
def trained(name, network, objective):
    """Return the float64 state after 49 batches of 30 digits and one of 2, all with different rates."""
    train = data.load("digits").train
    task = Task(
        network,
        objective,
        train.x.astype(np.float64),
        train.labels,
        batch_size=30,
        dtype="float64",
        optimiser=Optimiser(weight_decay=1e-4, ema=0.9),
    )
    trainer = backends.find(name).trainer(task, initial_state(network, 0, "float64", averaged=True))
    draws = Draws(0, 0)
    ends = ((0.3, 0.1), (0.5, 0.7), (0.1, 0.3), (0.9, 0.1))
    rates = Rates(*(np.linspace(*each, STEPS) for each in ends))
    order = np.resize(draws.order(len(train.x)), 30 * STEPS - 28)
    trainer.epoch(order, rates, draws)
    return trainer.state()


def assert_same(expected, found):
    for key, array in expected.items():
        difference = np.linalg.norm(found[key] - array) / np.linalg.norm(array)
        assert difference < 1e-9, key


NETWORKS = {"sigmoid": NETWORK, "maxout": OF_MAXOUT, "convolutions": OF_CONVOLUTIONS}


CASES = [(name, objective) for k, name in enumerate(NETWORKS) for objective in WITH_DROPOUT[k::3]]
