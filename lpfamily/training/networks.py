"""Networks as data, and their initial weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
"""Named arrays: parameters, and under `velocity.` their velocities."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dropout:
    """What happens to the inputs of a layer in training: each stays, times `scale`, or becomes 0.

    It stays with probability `include`, for itself. Outside of training nothing happens, so that with
    include 0.5 and scale 2 the layer sees the same mean, and with scale 1 a larger one in testing.
    """

    include: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What every layer has: a weight, a bias, and how they are trained."""

    max_norm: float | None = None
    """The limit on the Euclidean norm of the weights into one unit or piece, kept after every step."""
    dropout: Dropout | None = None
    lr_scale: float = 1.0
    """The factor of the learning rate for weight and bias."""
    init: float | None = None
    """Weights are drawn uniformly from +-init; None is the draw for sigmoid units (Glorot, Bengio 2010)."""

    norm_axes: ClassVar[tuple[int, ...]] = (0,)
    """The axes of the weight over which the norm of a unit is taken."""


@dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer: activation(x @ weight + bias), weight of shape (inputs, units)."""

    units: int
    activation: Literal["linear", "sigmoid"] = "linear"


@dataclass(frozen=True)
class Maxout(Layer):
    """A fully connected layer whose units are each the largest of linear pieces (Goodfellow et al. 2013).

    The pieces of a unit are consecutive columns of x @ weight + bias, weight of shape (inputs, units *
    pieces). The gradient goes to the first of the largest.
    """

    units: int
    pieces: int


@dataclass(frozen=True)
class ConvMaxout(Layer):
    """A convolution whose channels are each the largest of some pieces, then max pooling.

    The convolution is a cross-correlation of stride 1 with zero padding, weight of shape (channels *
    pieces, channels of the input, kernel, kernel), the pieces of a channel one after another; the bias
    is one number a piece, or untied, one a piece and position. Pooling takes the largest of pool x pool
    positions every `stride`, which is at most `pool`, and windows that reach over the end count (ceil
    mode). Gradients of both maxima go to the first of the largest, in row-major order.
    """

    channels: int
    pieces: int
    kernel: int
    padding: int = 0
    pool: int = 1
    stride: int = 1
    tied_bias: bool = True

    norm_axes: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def detector(self, length: int) -> int:
        """Return how many positions the kernel takes along an axis of this length."""
        return length + 2 * self.padding - self.kernel + 1

    def pooled(self, length: int) -> int:
        """Return how many positions are left after pooling."""
        return math.ceil((self.detector(length) - self.pool) / self.stride) + 1


@dataclass(frozen=True)
class Network:
    """Layers from the inputs to the logits, one logit a class."""

    inputs: int
    layers: tuple[Layer, ...]
    image: tuple[int, int, int] | None = None
    """The inputs as (channels, height, width), for a convolution; examples come flattened."""

    @property
    def classes(self) -> int:
        """The number of logits."""
        last = self.layers[-1]
        if not isinstance(last, Dense):
            raise ValueError(f"the last layer must be Dense, one unit a class; got {type(last).__name__}")
        return last.units


def to_json(network: Network) -> dict[str, Any]:
    """Return a network of this module's layers as a JSON value."""
    layers = [{"kind": type(layer).__name__} | asdict(layer) for layer in network.layers]
    return {"inputs": network.inputs, "layers": layers, "image": network.image}


def from_json(values: dict[str, Any]) -> Network:
    """Return the network that `to_json` made a value of."""
    kinds = {kind.__name__: kind for kind in (Dense, Maxout, ConvMaxout)}
    layers = tuple(
        kinds[layer["kind"]](
            **{name: value for name, value in layer.items() if name not in ("kind", "dropout")},
            dropout=Dropout(**layer["dropout"]) if layer["dropout"] else None,
        )
        for layer in values["layers"]
    )
    return Network(values["inputs"], layers, tuple(values["image"]) if values["image"] else None)


def shapes(network: Network) -> tuple[Shape, ...]:
    """Return the shape of an example as it enters each layer, and last that of the logits.

    A dense layer flattens an image, channels first.
    """
    entering: list[Shape] = []
    shape: Shape = network.image or (network.inputs,)
    if math.prod(shape) != network.inputs:
        raise ValueError(f"an image of shape {shape} does not have {network.inputs} entries")
    for index, layer in enumerate(network.layers):
        if isinstance(layer, ConvMaxout):
            if len(shape) != 3:
                raise ValueError(f"layer {index} is a convolution and needs an image; got shape {shape}")
            entering.append(shape)
            sides = [layer.pooled(length) for length in shape[1:]]
            if min(*sides, *(layer.detector(length) - layer.pool + 1 for length in shape[1:])) < 1:
                raise ValueError(f"layer {index} is larger than its input of shape {shape}")
            if layer.stride > layer.pool:  # the last window could begin beyond the end
                raise ValueError(
                    f"layer {index} has --stride {layer.stride} and --pool {layer.pool}, so that windows are "
                    f"apart; give a stride of {layer.pool} or less"
                )
            shape = (layer.channels, *sides)
        else:
            entering.append((math.prod(shape),))
            shape = (layer.units,)  # type: ignore[attr-defined]
    return (*entering, shape)


def parameter_shapes(network: Network) -> dict[str, Shape]:
    """Return the name and shape of every parameter, in order."""
    found: dict[str, Shape] = {}
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight: Shape
        bias: Shape
        if isinstance(layer, ConvMaxout):
            filters = layer.channels * layer.pieces
            weight = (filters, entering[0], layer.kernel, layer.kernel)
            positions = () if layer.tied_bias else tuple(layer.detector(length) for length in entering[1:])
            bias = (filters, *positions)
        elif isinstance(layer, Maxout):
            weight, bias = (*entering, layer.units * layer.pieces), (layer.units * layer.pieces,)
        else:
            weight, bias = (*entering, layer.units), (layer.units,)  # type: ignore[attr-defined]
        found[f"layers.{index}.weight"], found[f"layers.{index}.bias"] = weight, bias
    return found


def layer_of(network: Network, name: str) -> Layer:
    """Return the layer that a parameter belongs to, by its name."""
    return network.layers[int(name.split(".")[1])]


def state_shapes(network: Network) -> dict[str, Shape]:
    """Return the name and shape of every array in a trainer's state: parameters, then velocities."""
    shapes = parameter_shapes(network)
    return shapes | {f"velocity.{name}": shape for name, shape in shapes.items()}


def initial_state(network: Network, seed: int, dtype: str) -> State:
    """Return the state before the first step: drawn weights, biases and velocities of zero.

    Weights are uniform, in +-4 sqrt(6 / (inputs + units)) where a layer names no other range, scaled down
    to the norm constraint where they exceed it; drawn in float64, so that a seed means the same network
    in every dtype and backend.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in state_shapes(network).items():
        if name.startswith("velocity.") or name.endswith("bias"):
            state[name] = np.zeros(shape, dtype)
            continue
        layer = layer_of(network, name)
        fan = sum(shape[:2]) * math.prod(shape[2:])
        bound = 4 * math.sqrt(6 / fan) if layer.init is None else layer.init
        weight = rng.uniform(-bound, bound, shape)
        if layer.max_norm is not None:
            norms = np.sqrt(np.sum(weight**2, axis=layer.norm_axes, keepdims=True))
            too_long = norms > layer.max_norm
            weight *= np.divide(layer.max_norm, norms, out=np.ones_like(norms), where=too_long)
        state[name] = weight.astype(dtype)
    return state
