"""A network of the project as a function of torch tensors, and as a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module, ModuleList, ParameterDict
from torch.nn.functional import conv2d, max_pool2d

from lpfamily.training.backends import check_inputs
from lpfamily.training.draws import Random
from lpfamily.training.networks import (
    ConvMaxout,
    Dense,
    Layer,
    Maxout,
    Network,
    Rectifier,
    Shape,
    State,
    layer_of,
    shapes,
)

Largest = Callable[[Tensor, int], Tensor]
"""largest(z, pieces) is the maximum of each unit's pieces along axis 1; the first one gets the gradient."""


class TorchModel(Module):
    """A network that maps inputs (n, inputs) to logits (n, classes), its parameters named as in a run.

    It has no dropout: `train` and `eval` change nothing.
    """

    def __init__(self, network: Network, parameters: State) -> None:
        super().__init__()
        self.network = network
        kinds = "weight", "bias"
        self.layers = ModuleList(
            ParameterDict([(kind, torch.tensor(parameters[f"layers.{index}.{kind}"])) for kind in kinds])
            for index in range(len(network.layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        check_inputs(self.network, x.shape)
        return logits(resolved(self.network), dict(self.named_parameters(remove_duplicate=False)), x)


class Function(NamedTuple):
    """The computation of a layer: activation(layer, product(layer, x, weight, bias), largest)."""

    product: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    activation: Callable[[Any, Tensor, Largest], Tensor]
    pieces_axis: int | None = None
    """The axis of weight and bias along which the pieces of a unit are adjacent; None without pieces."""

    @property
    def tapped(self) -> bool:
        """Whether the weight's gradient is a matrix product, whose factors a `Tap` has."""
        return self.product is _matrix_product


Resolved = tuple[tuple[Layer, Shape, Function], ...]
"""For each layer: the layer, the shape of an example at its input, and its function."""


def resolved(network: Network) -> Resolved:
    """Return the layers of a network with their input shapes and functions."""
    return tuple(
        (layer, entering, LAYERS[type(layer)])
        for layer, entering in zip(network.layers, shapes(network), strict=False)
    )


@dataclass(frozen=True)
class Tap:
    """A dense layer in a forward pass; its weight's gradient is inputs.T @ (gradient of `z`)."""

    layer: int
    inputs: Tensor
    z: Tensor
    """The input of the activation, inputs @ weight + bias."""


def logits(
    layers: Resolved,
    state: Mapping[str, Tensor],
    x: Tensor,
    random: list[Random] | None = None,
    taps: list[Tap] | None = None,
    largest: Largest | None = None,
) -> Tensor:
    """Return the logits of inputs (n, inputs); `random` has the draws of each layer, by `scaled_draws`.

    A tap of each dense layer is appended to `taps`; `largest` replaces `first_largest`.
    """
    for index, (layer, entering, function) in enumerate(layers):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(len(x), *entering)
        factor, noise = Random() if random is None else random[index]
        if factor is not None:
            x = x * factor.to(x.dtype)
        z = function.product(layer, x, weight, bias)
        if noise is not None:
            z = z + noise
        if taps is not None and function.tapped:
            taps.append(Tap(index, x.detach(), z if z.requires_grad else z.requires_grad_()))
        x = function.activation(layer, z, largest or first_largest)
    return x


def scaled_draws(layer: Layer, random: Random, dtype: torch.dtype) -> Random:
    """Return dropout's factors of a layer's inputs, and its noise in the layout `by_piece` gives the bias."""
    factor, noise = random
    if factor is not None and layer.dropout is not None:
        factor = factor.to(dtype) * layer.dropout.scale
    if noise is not None:
        noise = noise.to(dtype)
        if LAYERS[type(layer)].pieces_axis is not None:
            pieces: int = layer.pieces  # type: ignore[attr-defined]
            noise = noise.unflatten(1, (-1, pieces)).transpose(1, 2).flatten(1, 2)
    return Random(factor, noise)


def _matrix_product(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight).to(bias.dtype)  # under autocast too


def _convolution(layer: ConvMaxout, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    z = conv2d(x, weight, bias if layer.tied_bias else None, padding=layer.padding)
    if layer.tied_bias:
        return z
    bias = bias.to(z.dtype)  # autocast's dtype halves the memory up to pooling
    if z.device.type != "cpu":
        return z + bias
    # rows with channels last, as the trainer's images are: their sum over the examples is vectorised
    images = z.movedim(1, -1)
    rows = images.flatten(1) + bias.movedim(0, -1).flatten()
    return rows.reshape(images.shape).movedim(-1, 1)


def _dense(layer: Dense, z: Tensor, largest: Largest) -> Tensor:
    return torch.sigmoid(z) if layer.activation == "sigmoid" else z


def _conv_maxout(layer: ConvMaxout, z: Tensor, largest: Largest) -> Tensor:
    return max_pool2d(largest(z, layer.pieces), layer.pool, layer.stride, ceil_mode=True)


LAYERS: dict[type[Layer], Function] = {
    Dense: Function(_matrix_product, _dense),
    Rectifier: Function(_matrix_product, lambda layer, z, largest: torch.relu(z)),
    Maxout: Function(_matrix_product, lambda layer, z, largest: largest(z, layer.pieces), pieces_axis=-1),
    ConvMaxout: Function(_convolution, _conv_maxout, pieces_axis=0),
}
"""The function of each layer type."""


def first_largest(z: Tensor, pieces: int) -> Tensor:
    """Return the maximum of every `pieces` entries along axis 1, whose gradient goes to the first maximum."""
    # amax would divide the gradient among equal entries
    return z.reshape(len(z), z.shape[1] // pieces, pieces, *z.shape[2:]).max(dim=2).values


def largest_by_piece(z: Tensor, pieces: int) -> Tensor:
    """Return the same maximum for the layout with the first pieces of all units first, then the second ones.

    In this layout a CPU compares whole vectors.
    """
    z = z.reshape(len(z), pieces, z.shape[1] // pieces, *z.shape[2:])
    if torch.compiler.is_compiling():  # it becomes one loop
        return functools.reduce(lambda a, b: torch.where((b > a) | (b != b), b, a), z.unbind(dim=1))
    if z.device.type != "cpu":
        return z.max(dim=1).values
    largest: Tensor = _FirstLargest.apply(z)  # type: ignore[no-untyped-call]
    return largest


class _FirstLargest(torch.autograd.Function):
    """The maximum along axis 1, and its gradient, each in the memory layout of z.

    A CPU takes many times as long for `max`, which also returns indices, and for masks of bool.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        first, *others = z.unbind(dim=1)
        largest, is_larger = first, []  # 1 or 0, in the dtype of z
        for other in others:
            is_larger.append((other - largest).sign_().clamp_(min=0))
            largest = torch.maximum(largest, other)
        ctx.save_for_backward(*is_larger)
        ctx.layout = z.shape, z.stride()
        return largest if others else first.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        is_larger: tuple[Tensor, ...] = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated
            parts: list[Tensor] = []
            for mask in reversed(is_larger):
                parts.append(gradient * mask)
                gradient = gradient - parts[-1]
            return torch.stack([gradient, *reversed(parts)], dim=1)
        result = gradient.new_empty_strided(*ctx.layout)
        first, *others = result.unbind(dim=1)
        for mask, part in zip(reversed(is_larger), reversed(others), strict=True):
            torch.mul(gradient, mask, out=part)
            gradient = gradient - part
        first.copy_(gradient)
        return result


def by_piece(network: Network, name: str, array: NDArray[Any], *, back: bool = False) -> NDArray[Any]:
    """Return a maxout layer's array in the layout of `largest_by_piece`; other arrays stay as they are.

    With `back` the array has that layout, and the result that of a state.
    """
    layer: Any = layer_of(network, name)
    axis = LAYERS[type(layer)].pieces_axis
    if axis is None:
        return array
    axis %= array.ndim
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    units_and_pieces = (layer.pieces, -1) if back else (-1, layer.pieces)
    return array.reshape(*before, *units_and_pieces, *after).swapaxes(axis, axis + 1).reshape(array.shape)
