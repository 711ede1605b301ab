"""Networks as data, and their initial weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
"""Named arrays: parameters, and under `velocity.` their velocities."""


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: activation(x @ weight + bias), weight of shape (inputs, units)."""

    units: int
    activation: Literal["linear", "sigmoid"] = "linear"
    max_norm: float | None = None
    """The limit on the Euclidean norm of a unit's incoming weights, kept after every step; None is none."""


@dataclass(frozen=True)
class Network:
    """Layers from the inputs to the logits, one logit a class."""

    inputs: int
    layers: tuple[Dense, ...]

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.layers[-1].units


def softmax_regression(inputs: int, classes: int) -> Network:
    """Return softmax regression, the linear model of section V."""
    return Network(inputs, (Dense(classes),))


def sigmoid_mlp(inputs: int, classes: int) -> Network:
    """Return section IV-A's sigmoid network: 600-600 units, incoming norms of at most sqrt(15)."""
    limit = math.sqrt(15)
    hidden = Dense(600, "sigmoid", limit)
    return Network(inputs, (hidden, hidden, Dense(classes, max_norm=limit)))


def parameter_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = network.inputs
    for index, layer in enumerate(network.layers):
        shapes[f"layers.{index}.weight"] = (inputs, layer.units)
        shapes[f"layers.{index}.bias"] = (layer.units,)
        inputs = layer.units
    return shapes


def state_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array in a trainer's state: parameters, then velocities."""
    shapes = parameter_shapes(network)
    return shapes | {f"velocity.{name}": shape for name, shape in shapes.items()}


def initial_state(network: Network, seed: int, dtype: str) -> State:
    """Return the state before the first step: drawn weights, biases and velocities of zero.

    Weights are uniform in +-4 sqrt(6 / (inputs + units)), the draw for sigmoid units (Glorot, Bengio
    2010), scaled down to the norm constraint where they exceed it; drawn in float64, so that a seed
    means the same network in every dtype and backend.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in state_shapes(network).items():
        if name.startswith("velocity.") or name.endswith("bias"):
            state[name] = np.zeros(shape, dtype)
            continue
        bound = 4 * math.sqrt(6 / sum(shape))
        weight = rng.uniform(-bound, bound, shape)
        limit = network.layers[int(name.split(".")[1])].max_norm
        if limit is not None:
            norms = np.linalg.norm(weight, axis=0)
            weight *= np.where(norms > limit, limit / norms, 1.0)
        state[name] = weight.astype(dtype)
    return state
