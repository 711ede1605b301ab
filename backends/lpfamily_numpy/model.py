"""The network as it is passed: each layer keeps what the way back through it needs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.draws import Masks
from lpfamily.training.networks import Dense, Layer, Maxout, Network, State

Floats = NDArray[Any]


def forward(network: Network, state: State, x: Floats, masks: Masks | None = None) -> list[Passed]:
    """Return what passing x left in every layer; the last one's outputs are the logits."""
    passed: list[Passed] = []
    for index, layer in enumerate(network.layers):
        outputs = passed[-1].outputs if passed else x
        mask = None if masks is None else masks[index]
        weight, bias = (state[f"layers.{index}.{name}"] for name in ("weight", "bias"))
        passed.append(Passed.through(layer, weight, bias, outputs, mask))
    return passed


@dataclass(frozen=True)
class Passed:
    """A layer that a batch has passed: activation(inputs @ weight + bias), and what the way back needs."""

    layer: Layer
    weight: Floats
    inputs: Floats
    factor: Floats | None
    """What dropout multiplied the inputs by."""
    outputs: Floats
    winner: NDArray[np.bool_] | None
    """Of maxout: which piece is the first of the largest, (examples, units, pieces)."""

    @classmethod
    def through(cls, layer: Layer, weight: Floats, bias: Floats, x: Floats, mask: Any) -> Passed:
        """Pass x through a layer, dropping what the mask does not keep."""
        factor = None
        if mask is not None and layer.dropout is not None:
            factor = mask * x.dtype.type(layer.dropout.scale)
            x = x * factor
        z = x @ weight
        z += bias
        winner = None
        if isinstance(layer, Maxout):
            pieces = z.reshape(len(z), layer.units, layer.pieces)
            # argmax along so few takes four times as long as this, which needs it where there are ties
            outputs = functools.reduce(np.maximum, np.moveaxis(pieces, 2, 0))
            winner = pieces == outputs[..., None]
            if np.count_nonzero(winner) != outputs.size:
                winner = pieces.argmax(axis=2)[..., None] == np.arange(layer.pieces)
        else:
            sigmoid = isinstance(layer, Dense) and layer.activation == "sigmoid"
            outputs = _sigmoid(z) if sigmoid else z
        return cls(layer, weight, x, factor, outputs, winner)

    def to_inputs(self, delta: Floats) -> Floats:
        """Return the gradient in the layer's input from that in what enters its activation."""
        delta = delta @ self.weight.T
        return delta if self.factor is None else delta * self.factor

    def into(self, delta: Floats) -> Floats:
        """Return the gradient in what enters the activation from that in the outputs."""
        if self.winner is not None:
            delta = (delta[..., None] * self.winner).reshape(len(delta), self.weight.shape[1])
        return delta * self._slope

    def out_of(self, tangent: Floats) -> Floats:
        """Return the tangent of the outputs from that of what enters the activation."""
        if self.winner is not None:
            tangent = np.einsum("nup,nup->nu", tangent.reshape(self.winner.shape), self.winner)
        return tangent * self._slope

    def bent(self, delta_tangent: Floats, delta: Floats, inner: Floats) -> Floats:
        """Add what activation'' contributes where what enters the activation moves by `inner`."""
        if self._is_sigmoid:
            delta_tangent += delta * (1 - 2 * self.outputs) * inner
        return delta_tangent

    @property
    def _is_sigmoid(self) -> bool:
        return isinstance(self.layer, Dense) and self.layer.activation == "sigmoid"

    @property
    def _slope(self) -> Floats:
        return self.outputs * (1 - self.outputs) if self._is_sigmoid else np.ones((), self.outputs.dtype)


def _sigmoid(z: Floats) -> Floats:
    # tanh saturates where exp would overflow
    result: Floats = 0.5 * np.tanh(0.5 * z) + 0.5
    return result
