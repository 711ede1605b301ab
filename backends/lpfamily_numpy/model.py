"""The forward pass of a network; each layer saves what its backward pass needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lpfamily.training.draws import Mask, Random
from lpfamily.training.networks import Dense, Floats, Layer, Maxout, Network, Rectifier, State


class Activation(NamedTuple):
    """The function of a layer that follows z = inputs @ weight + bias, and its derivatives."""

    outputs: Callable[[Floats], tuple[Floats, Any]]
    """Return the outputs for z, and what to save for the derivatives."""
    to_z: Callable[[Floats, Any], Floats]
    """Return the gradient with respect to z, from that of the outputs and what was saved."""
    from_z: Callable[[Floats, Any], Floats]
    """Return the tangent of the outputs, from that of z and what was saved."""
    curvature: Callable[[Any], Floats] | None = None
    """Return activation'' / activation' from what was saved; None is 0, for piecewise linear functions."""


def _elementwise(
    function: Callable[[Floats], Floats],
    slope: Callable[[Floats], Floats | Mask],
    curvature: Callable[[Floats], Floats] | None = None,
) -> Activation:
    """Return an elementwise activation, whose derivatives are functions of its outputs."""

    def outputs(z: Floats) -> tuple[Floats, Floats]:
        result = function(z)
        return result, result

    def scaled(change: Floats, saved: Floats) -> Floats:
        return change * slope(saved)

    return Activation(outputs, scaled, scaled, curvature)


def _sigmoid(z: Floats) -> Floats:
    # tanh does not overflow, unlike exp
    result: Floats = 0.5 * np.tanh(0.5 * z) + 0.5
    return result


_DENSE = {
    "linear": Activation(lambda z: (z, None), lambda delta, _: delta, lambda tangent, _: tangent),
    "sigmoid": _elementwise(_sigmoid, lambda y: y * (1 - y), lambda y: 1 - 2 * y),
}


def _maxout(layer: Maxout) -> Activation:
    """Return the maximum of each unit's pieces; it saves which one that is, (examples, units, pieces)."""

    def outputs(z: Floats) -> tuple[Floats, Mask]:
        pieces = z.reshape(len(z), layer.units, layer.pieces)
        # argmax over few pieces takes four times as long as this comparison, and is needed only for ties
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
"""For each layer type, the activation of a layer."""

Resolved = tuple[tuple[Layer, Activation], ...]


def resolved(network: Network) -> Resolved:
    """Return the layers of a network with their activations."""
    return tuple((layer, LAYERS[type(layer)](layer)) for layer in network.layers)


def forward(layers: Resolved, state: State, x: Floats, random: list[Random] | None = None) -> list[LayerPass]:
    """Return the forward pass of x through every layer; the outputs of the last one are the logits."""
    tape: list[LayerPass] = []
    for index, (layer, activation) in enumerate(layers):
        inputs, factor = tape[-1].outputs if tape else x, None
        mask, noise = Random() if random is None else random[index]
        if mask is not None and layer.dropout is not None:
            factor = mask * x.dtype.type(layer.dropout.scale)
            inputs = inputs * factor
        weight = state[f"layers.{index}.weight"]
        z = inputs @ weight
        z += state[f"layers.{index}.bias"]
        if noise is not None:
            z += noise
        tape.append(LayerPass(activation, weight, inputs, factor, *activation.outputs(z)))
    return tape


@dataclass(frozen=True)
class LayerPass:
    """The forward pass of a batch through a layer, with what its backward pass needs."""

    activation: Activation
    weight: Floats
    inputs: Floats
    factor: Floats | None
    """The factor of dropout in the inputs."""
    outputs: Floats
    saved: Any
    """What the activation saved for its derivatives."""

    def to_inputs(self, delta: Floats) -> Floats:
        """Return the gradient with respect to the layer's inputs, before dropout, from that of z."""
        delta = delta @ self.weight.T
        return delta if self.factor is None else delta * self.factor

    def to_z(self, delta: Floats) -> Floats:
        """Return the gradient with respect to z from that of the outputs."""
        return self.activation.to_z(delta, self.saved)

    def add_curvature(self, delta_tangent: Floats, delta: Floats, z_tangent: Floats) -> Floats:
        """Add the term of activation'' to the tangent of the gradient with respect to z."""
        if self.activation.curvature:
            delta_tangent += delta * self.activation.curvature(self.saved) * z_tangent
        return delta_tangent
