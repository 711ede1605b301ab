"""The backends under test: those that LPFAMILY_TEST_LIBRARIES names."""

import functools
import importlib
import os

import numpy as np

from lpfamily.training import backends, data
from lpfamily.training.backends import Objective, Rates, Task
from lpfamily.training.draws import Draws
from lpfamily.training.networks import Dense, Network, initial_state

_LIBRARIES = os.environ.get("LPFAMILY_TEST_LIBRARIES", "numpy,array-api-strict").split(",")

DEVICE = os.environ.get("LPFAMILY_TEST_DEVICE", "cpu")
"""The device on which the laws train: with a GPU, "cuda" for torch and "gpu" for JAX."""

NAMES = [name for name in ("numpy", "torch", "jax") if name in _LIBRARIES]

NETWORK = Network(
    64, (Dense(32, "sigmoid", max_norm=3.0), Dense(32, "sigmoid", max_norm=3.0), Dense(10, max_norm=3.0))
)

for name in NAMES:
    importlib.import_module(name)  # a library that is named must be there


@functools.cache
def trainer_on_digits(dtype: str, *, confidence: float = 1.0):
    """Return NumPy's trainer after ten epochs on digits, its last layer scaled, and the test set."""
    digits = data.load("digits")
    x, labels = (digits.train.x.astype(dtype), digits.train.labels)
    task = Task(NETWORK, Objective(), x, labels, batch_size=30, dtype=dtype)
    state = initial_state(NETWORK, 0, "float64")
    trainer = backends.find("numpy").trainer(
        Task(NETWORK, Objective(), x.astype("float64"), labels, batch_size=30, dtype="float64"), state
    )
    steps = -(-len(x) // 30)
    for epoch in range(10):
        rates = Rates(np.full(steps, 0.5), np.full(steps, 0.5), np.zeros(steps))
        trainer.epoch(Draws(0, epoch).order(len(x)), rates, Draws(0, epoch))
    state = trainer.state()
    last = f"layers.{len(NETWORK.layers) - 1}"
    for kind in "weight", "bias":
        state[f"{last}.{kind}"] *= confidence
    return backends.find("numpy").trainer(task, state), digits.test.x.astype(dtype), digits.test.labels
