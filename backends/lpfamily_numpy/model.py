"""The network as it is passed: each layer keeps what the way back through it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lpfamily.training.draws import Mask, Random
from lpfamily.training.networks import Dense, Floats, Layer, Maxout, Network, Rectifier, State


class Activation(NamedTuple):
    """What a layer makes of z = inputs @ weight + bias, and how it is differentiated."""

    outputs: Callable[[Floats], tuple[Floats, Any]]
    """Return the outputs, and what is kept for the derivatives."""
    to_z: Callable[[Floats, Any], Floats]
    """Return the gradient in z from that in the outputs, and what was kept."""
    from_z: Callable[[Floats, Any], Floats]
    """Return the tangent of the outputs from that of z, and what was kept."""
    bend: Callable[[Any], Floats] | None = None
    """Return activation'' / activation' from what was kept; None is 0, of piecewise linear functions."""


def _elementwise(
    function: Callable[[Floats], Floats],
    slope: Callable[[Floats], Floats | Mask],
    bend: Callable[[Floats], Floats] | None = None,
) -> Activation:
    """Return an activation that is a function of each number, its derivatives functions of its outputs."""

    def outputs(z: Floats) -> tuple[Floats, Floats]:
        result = function(z)
        return result, result

    def scaled(change: Floats, kept: Floats) -> Floats:
        return change * slope(kept)

    return Activation(outputs, scaled, scaled, bend)


def _sigmoid(z: Floats) -> Floats:
    # tanh saturates where exp would overflow
    result: Floats = 0.5 * np.tanh(0.5 * z) + 0.5
    return result


_DENSE = {
    "linear": Activation(lambda z: (z, None), lambda delta, _: delta, lambda tangent, _: tangent),
    "sigmoid": _elementwise(_sigmoid, lambda y: y * (1 - y), lambda y: 1 - 2 * y),
}


def _maxout(layer: Maxout) -> Activation:
    """Return the largest of each unit's pieces; kept is which one that is, (examples, units, pieces)."""

    def outputs(z: Floats) -> tuple[Floats, Mask]:
        pieces = z.reshape(len(z), layer.units, layer.pieces)
        # argmax along so few takes four times as long as this, which needs it where there are ties
        largest = functools.reduce(np.maximum, np.moveaxis(pieces, 2, 0))
        winner = pieces == largest[..., None]
        if np.count_nonzero(winner) != largest.size:
            winner = pieces.argmax(axis=2)[..., None] == np.arange(layer.pieces)
        return largest, winner

    def to_z(delta: Floats, winner: Mask) -> Floats:
        return (delta[..., None] * winner).reshape(len(delta), layer.columns)

    def from_z(tangent: Floats, winner: Mask) -> Floats:
        result: Floats = np.einsum("nup,nup->nu", tangent.reshape(winner.shape), winner)
        return result

    return Activation(outputs, to_z, from_z)


LAYERS: dict[type[Layer], Callable[[Any], Activation]] = {
    Dense: lambda layer: _DENSE[layer.activation],
    Rectifier: lambda layer: _elementwise(lambda z: np.maximum(z, 0), lambda y: y > 0),
    Maxout: _maxout,
}
"""By layer type, the activation of a layer."""

Resolved = tuple[tuple[Layer, Activation], ...]


def resolved(network: Network) -> Resolved:
    """Return the layers of a network with their activations."""
    return tuple((layer, LAYERS[type(layer)](layer)) for layer in network.layers)


def forward(layers: Resolved, state: State, x: Floats, random: list[Random] | None = None) -> list[Passed]:
    """Return what passing x left in every layer; the last one's outputs are the logits."""
    passed: list[Passed] = []
    for index, (layer, activation) in enumerate(layers):
        inputs, factor = passed[-1].outputs if passed else x, None
        mask, noise = Random() if random is None else random[index]
        if mask is not None and layer.dropout is not None:
            factor = mask * x.dtype.type(layer.dropout.scale)
            inputs = inputs * factor
        weight = state[f"layers.{index}.weight"]
        z = inputs @ weight
        z += state[f"layers.{index}.bias"]
        if noise is not None:
            z += noise
        passed.append(Passed(activation, weight, inputs, factor, *activation.outputs(z)))
    return passed


@dataclass(frozen=True)
class Passed:
    """A layer that a batch has passed, and what the way back needs."""

    activation: Activation
    weight: Floats
    inputs: Floats
    factor: Floats | None
    """What dropout multiplied the inputs by."""
    outputs: Floats
    kept: Any

    def to_inputs(self, delta: Floats) -> Floats:
        """Return the gradient in the layer's input from that in what enters its activation."""
        delta = delta @ self.weight.T
        return delta if self.factor is None else delta * self.factor

    def into(self, delta: Floats) -> Floats:
        """Return the gradient in what enters the activation from that in the outputs."""
        return self.activation.to_z(delta, self.kept)

    def bent(self, delta_tangent: Floats, delta: Floats, inner: Floats) -> Floats:
        """Add what activation'' contributes where what enters the activation moves by `inner`."""
        if self.activation.bend:
            delta_tangent += delta * self.activation.bend(self.kept) * inner
        return delta_tangent
