"""Networks as data, and their initial weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.files import Json
from lpfamily.training.losses import LossName

Floats = NDArray[np.floating]

Ints = NDArray[np.integer]

Array = NDArray[np.generic]
"""An array of any dtype."""

State = dict[str, Floats]
"""Arrays by name: the parameters, their velocities as `velocity.NAME`, and any averages as `average.NAME`."""

AVERAGE = "average."
"""The prefix in the names of the averages."""

Shape = tuple[int, ...]

Named = TypeVar("Named")


@dataclass(frozen=True)
class Dropout:
    """Dropout of a layer's inputs in training: each is multiplied by `scale`, or set to 0.

    Each input is kept with probability `include`, independently of the others. Outside of training nothing
    happens. So with include 0.5 and scale 2 the layer sees the same mean in training and testing, and with
    scale 1 a larger one in testing.
    """

    include: float
    scale: float


_KINDS: dict[str, type[Layer]] = {}
"""The layer types by their names, which stand for them in JSON."""


@dataclass(frozen=True, kw_only=True)
class Layer(ABC):
    """A weight, a bias and how they are trained; each type also defines its shapes and initial weights.

    A layer that takes the largest of several numbers passes the gradient to it; at a tie, to the first.
    """

    max_norm: float | None = None
    """The limit on the Euclidean norm of the weights into one unit or piece, enforced after every step."""
    dropout: Dropout | None = None
    noise: float | None = None
    """The standard deviation of the Gaussian noise that training adds to the input of the activation.

    It is in units of that input, which is x @ weight + bias, in a convolution before its pooling. Outside of
    training nothing is added.
    """
    lr_scale: float = 1.0
    """The factor on the learning rate of weight and bias."""
    init: float | None = None
    """Initial weights are uniform in [-init, init]; None uses the layer's `default_init`."""

    norm_axes: ClassVar[tuple[int, ...]] = (0,)
    """The axes of the weight over which `max_norm` takes the norm of a unit."""

    def __init_subclass__(cls) -> None:
        known = _KINDS.setdefault(cls.__name__, cls)
        if known.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__module__} has a layer {cls.__name__}, and so has {known.__module__}; networks are "
                f"read from JSON by these names, so give it another one"
            )
        _KINDS[cls.__name__] = cls

    @abstractmethod
    def entering(self, shape: Shape) -> Shape:
        """Return the input shape into which the layer reshapes an example, or raise ValueError."""

    @abstractmethod
    def output_shape(self, entering: Shape) -> Shape:
        """Return the shape of the layer's output for one example, or raise ValueError."""

    @abstractmethod
    def parameter_shapes(self, entering: Shape) -> dict[str, Shape]:
        """Return the shapes of `weight` and `bias`, in this order."""

    def positions(self, entering: Shape) -> Shape:
        """Return the shape of the positions at which the weight is applied to an example; () means one."""
        return ()

    def default_init(self, weight: Shape) -> float:
        """Return the default `init` for a weight of this shape, here that of sigmoid units.

        It is 4 sqrt(6 / (fan in + fan out)) (Glorot, Bengio 2010).
        """
        return 4 * math.sqrt(6 / (sum(weight[:2]) * math.prod(weight[2:])))


@dataclass(frozen=True)
class FullyConnected(Layer):
    """A layer whose units each see the whole input, flattened; an image is flattened channels first.

    Its outputs are a function of x @ weight + bias, with weight of shape (inputs, columns).
    """

    units: int

    @property
    def columns(self) -> int:
        """The number of columns of the weight: one per unit, unless a subclass overrides it."""
        return self.units

    def entering(self, shape: Shape) -> Shape:
        """Return the flattened shape."""
        return (math.prod(shape),)

    def output_shape(self, entering: Shape) -> Shape:
        """Return (units,)."""
        return (self.units,)

    def parameter_shapes(self, entering: Shape) -> dict[str, Shape]:
        """Return the shapes of `weight` and `bias`."""
        return {"weight": (*entering, self.columns), "bias": (self.columns,)}


@dataclass(frozen=True)
class Dense(FullyConnected):
    """A fully connected layer: activation(x @ weight + bias), weight of shape (inputs, units)."""

    activation: Literal["linear", "sigmoid"] = "linear"


@dataclass(frozen=True)
class Rectifier(FullyConnected):
    """A fully connected layer: max(0, x @ weight + bias), weight of shape (inputs, units).

    Its derivative at 0 is 0.
    """

    def default_init(self, weight: Shape) -> float:
        """Return sqrt(6 / inputs), which gives weights of variance 2 / inputs.

        A layer of rectifiers then keeps the mean square of its inputs (He et al. 2015).
        """
        return math.sqrt(6 / weight[0])


@dataclass(frozen=True)
class Maxout(FullyConnected):
    """A fully connected layer whose units each take the largest of some pieces (Goodfellow et al. 2013).

    A piece is a column of x @ weight + bias, with weight of shape (inputs, units * pieces). The pieces of a
    unit are consecutive. The gradient goes to the largest; at a tie, to the first.
    """

    pieces: int

    @property
    def columns(self) -> int:
        """The number of columns of the weight: one per piece of each unit."""
        return self.units * self.pieces


@dataclass(frozen=True)
class ConvMaxout(Layer):
    """A convolution whose channels each take the largest of some pieces, then max pooling.

    The convolution is a cross-correlation of stride 1 with zero padding. Its weight has shape (channels *
    pieces, channels of the input, kernel, kernel), with the pieces of a channel consecutive. The bias has one
    value per piece or, if untied, per piece and position. Pooling takes the largest of pool x pool positions
    every `stride` positions, at most `pool`; windows that extend past the edge are included (ceil mode).
    The gradient of each maximum goes to the largest; at a tie, to the first in row-major order.
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
        """Return the number of positions of the kernel along an axis of this length."""
        return length + 2 * self.padding - self.kernel + 1

    def pooled(self, length: int) -> int:
        """Return the number of positions after pooling along an axis of this length."""
        return math.ceil((self.detector(length) - self.pool) / self.stride) + 1

    def entering(self, shape: Shape) -> Shape:
        """Return the shape itself, that of an image: (channels, height, width)."""
        if len(shape) != 3:
            raise ValueError(f"is a convolution and needs an image; got shape {shape}")
        return shape

    def output_shape(self, entering: Shape) -> Shape:
        """Return (channels, height, width) after pooling."""
        height, width = map(self.pooled, entering[1:])
        if min(height, width) < 1 or min(self.positions(entering)) < self.pool:
            raise ValueError(f"is larger than its input of shape {entering}")
        if self.stride > self.pool:  # the last window could begin past the edge
            raise ValueError(
                f"has --stride {self.stride} and --pool {self.pool}, so that there are gaps between windows; "
                f"give a stride of {self.pool} or less"
            )
        return (self.channels, height, width)

    def parameter_shapes(self, entering: Shape) -> dict[str, Shape]:
        """Return the shapes of `weight` and `bias`."""
        filters = self.channels * self.pieces
        places = () if self.tied_bias else self.positions(entering)
        return {"weight": (filters, entering[0], self.kernel, self.kernel), "bias": (filters, *places)}

    def positions(self, entering: Shape) -> Shape:
        """Return the height and width of the convolution's output, before pooling."""
        return tuple(map(self.detector, entering[1:]))


@dataclass(frozen=True)
class Network:
    """Layers from the inputs to the outputs: one logit per class or, for squared errors, predictions."""

    inputs: int
    layers: tuple[Layer, ...]
    image: tuple[int, int, int] | None = None
    """The shape (channels, height, width) of an input, for convolutions; examples come flattened."""
    loss: LossName = "cross-entropy"
    """The loss of its training, which defines the meaning of its outputs."""

    @property
    def classes(self) -> int:
        """The number of outputs."""
        last = self.layers[-1]
        if not isinstance(last, Dense):
            raise ValueError(f"the last layer must be Dense, one unit per class; got {type(last).__name__}")
        return last.units


def to_json(network: Network) -> Json:
    """Return a network of this module's layers as a JSON value."""
    layers = [{"kind": type(layer).__name__} | asdict(layer) for layer in network.layers]
    return {"inputs": network.inputs, "layers": layers, "image": network.image, "loss": network.loss}


def from_json(values: Json) -> Network:
    """Return the network from the JSON value that `to_json` made."""
    layers = tuple(
        _KINDS[layer["kind"]](
            **{name: value for name, value in layer.items() if name not in ("kind", "dropout")},
            dropout=Dropout(**layer["dropout"]) if layer["dropout"] else None,
        )
        for layer in values["layers"]
    )
    image = tuple(values["image"]) if values["image"] else None
    return Network(values["inputs"], layers, image, values.get("loss", Network.loss))


def shapes(network: Network) -> tuple[Shape, ...]:
    """Return the input shape of each layer for one example, then the shape of the outputs."""
    entering: list[Shape] = []
    shape: Shape = network.image or (network.inputs,)
    if math.prod(shape) != network.inputs:
        raise ValueError(f"an image of shape {shape} does not have {network.inputs} entries")
    for index, layer in enumerate(network.layers):
        try:
            entering.append(layer.entering(shape))
            shape = layer.output_shape(entering[-1])
        except ValueError as cause:
            raise ValueError(f"layer {index} {cause}") from cause
    return (*entering, shape)


def parameter_shapes(network: Network) -> dict[str, Shape]:
    """Return the shape of every parameter by name, in order."""
    return {
        f"layers.{index}.{name}": shape
        for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False))
        for name, shape in layer.parameter_shapes(entering).items()
    }


def activated_shape(layer: Layer, entering: Shape) -> Shape:
    """Return the shape of the activation's input in a layer, for one example: (biases, *positions)."""
    return (layer.parameter_shapes(entering)["bias"][0], *layer.positions(entering))


def layer_of(network: Network, name: str) -> Layer:
    """Return the layer that has the parameter of this name."""
    return network.layers[int(name.split(".")[-2])]


def state_shapes(network: Network, averaged: bool = False) -> dict[str, Shape]:
    """Return the shape of every array in a trainer's state by name.

    These are the parameters, their velocities and, if `averaged`, their averages.
    """
    prefixes = ("", "velocity.", AVERAGE) if averaged else ("", "velocity.")
    return {prefix + name: shape for prefix in prefixes for name, shape in parameter_shapes(network).items()}


def evaluated(network: Network, state: Mapping[str, Named]) -> dict[str, Named]:
    """Return the parameters that are tested and saved, by name: the averages, if the state has them."""
    return {name: state.get(AVERAGE + name, state[name]) for name in parameter_shapes(network)}


def at_rest(parameters: State, averaged: bool = False) -> State:
    """Return a state with these parameters, zero velocities, and averages equal to the parameters."""
    state = parameters | {f"velocity.{name}": np.zeros_like(each) for name, each in parameters.items()}
    return state | {AVERAGE + name: each.copy() for name, each in parameters.items() if averaged}


def initial_state(network: Network, seed: int, dtype: str, averaged: bool = False) -> State:
    """Return the state before the first step: random weights, zero biases, zero velocities.

    Weights are uniform in [-init, init] with `Layer.init` or the layer's default, and are scaled down where
    they exceed the norm constraint. They are drawn in float64, so that a seed means the same network in every
    dtype and backend.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in parameter_shapes(network).items():
        if name.endswith("bias"):
            state[name] = np.zeros(shape, dtype)
            continue
        layer = layer_of(network, name)
        bound = layer.default_init(shape) if layer.init is None else layer.init
        weight = rng.uniform(-bound, bound, shape)
        if layer.max_norm is not None:
            norms = np.sqrt(np.sum(weight**2, axis=layer.norm_axes, keepdims=True))
            too_long = norms > layer.max_norm
            weight *= np.divide(layer.max_norm, norms, out=np.ones_like(norms), where=too_long)
        state[name] = weight.astype(dtype)
    return at_rest(state, averaged)
