"""The network as a function, and as a pytree that is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from lpfamily.training.backends import check_inputs
from lpfamily.training.draws import Random
from lpfamily.training.networks import ConvMaxout, Dense, Layer, Maxout, Network, Rectifier, shapes

Arrays = dict[str, Array]
Randoms = Sequence[Random]
"""What is random in each layer."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parameters"], meta_fields=["network"])
@dataclass(frozen=True, eq=False)
class JaxModel:
    """A network that maps inputs (n, inputs) to logits (n, classes): model(x), a pure function.

    It is a pytree whose leaves are the parameters, so `jax.grad` of a function of the model is a model of
    gradients, and `jax.tree.map` changes it. It never drops anything. Products are of full precision,
    as in training without --tf32, unless `jax_default_matmul_precision` says otherwise.
    """

    network: Network
    parameters: Arrays

    def __call__(self, x: Array) -> Array:
        """Return the logits."""
        check_inputs(self.network, x.shape)
        precision = jax.config.jax_default_matmul_precision or "highest"  # type: ignore[attr-defined]
        with jax.default_matmul_precision(precision):
            logits: Array = forward(self.network, self.parameters, x)
        return logits


@functools.partial(jax.jit, static_argnums=0)
def forward(network: Network, state: Mapping[str, Array], x: Array, random: Randoms | None = None) -> Array:
    """Return the logits of inputs (n, inputs), with what is random in each layer."""
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(len(x), *entering)
        mask, noise = Random() if random is None else random[index]
        if mask is not None and layer.dropout is not None:
            x = jnp.where(mask, layer.dropout.scale * x, 0)
        if noise is not None:  # it enters the activation as a bias of each example's own
            places = noise.ndim - 1 - bias.ndim
            bias = bias.reshape(*bias.shape, *[1] * places) + noise.astype(bias.dtype)
        x = LAYERS[type(layer)](layer, x, weight, bias)
    return x


def _dense(layer: Dense, x: Array, weight: Array, bias: Array) -> Array:
    z = x @ weight + bias
    return jax.nn.sigmoid(z) if layer.activation == "sigmoid" else z


def _conv_maxout(layer: ConvMaxout, x: Array, weight: Array, bias: Array) -> Array:
    z = _correlated(x, weight, layer.padding)
    z = z + (bias[:, None, None] if bias.ndim == 1 else bias)
    return _pooled(_largest(z, layer.channels, layer.pieces), layer)


LAYERS: dict[type[Layer], Callable[[Any, Array, Array, Array], Array]] = {
    Dense: _dense,
    Rectifier: lambda layer, x, weight, bias: jax.nn.relu(x @ weight + bias),
    Maxout: lambda layer, x, weight, bias: _largest(x @ weight + bias, layer.units, layer.pieces),
    ConvMaxout: _conv_maxout,
}
"""By layer type, its outputs as a function of the layer, its inputs, weight and bias.

The bias is that of a state, or has the first axis of the inputs and the shape of what enters the activation.
"""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _correlated(x: Array, weight: Array, padding: int) -> Array:
    """Return the cross-correlation of images (n, channels, height, width) with kernels, zeros around them.

    On a CPU, XLA takes up to a hundred times as long for a convolution whose kernel is larger than the
    image, zeros not counted. Where such a kernel is ours, the zeros are put there first; where it is the
    output, as in the kernels' gradient, that is told to be a product of matrices for each position. So is
    the gradient in images of one channel, which XLA takes five times as long for.
    """
    if min(x.shape[2:]) < weight.shape[2]:
        x, padding = _padded(x, padding), 0
    return jax.lax.conv_general_dilated(x, weight, (1, 1), [(padding, padding)] * 2)


@functools.partial(_correlated.defjvp, symbolic_zeros=True)
def _correlated_jvp(padding: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, weight), (dx, dweight) = primals, tangents
    z = _correlated(x, weight, padding)
    tangent = jnp.zeros_like(z)
    if not isinstance(dx, SymbolicZero):
        other = _correlated_by_column if x.shape[1] == 1 else None
        tangent = _correlated_on_cpu(other, dx, weight, padding)
    if not isinstance(dweight, SymbolicZero):
        other = _correlated_by_position if max(z.shape[2:]) > min(x.shape[2:]) else None
        tangent = tangent + _correlated_on_cpu(other, x, dweight, padding)
    return z, tangent


def _correlated_on_cpu(other: Callable[..., Array] | None, x: Array, weight: Array, padding: int) -> Array:
    """Return the same, on a CPU by the other function if there is one."""
    if other is None:  # a convolution inside of a branch is as slow as inside of a loop
        return _correlated(x, weight, padding)
    on_cpu, at_once = (functools.partial(f, padding=padding) for f in (other, _correlated))
    result: Array = jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=at_once)
    return result


def _correlated_by_column(x: Array, weight: Array, padding: int) -> Array:
    """Return the same as one product of matrices: each position in the kernel is a column."""
    columns = jnp.stack(_shifted(x, weight, padding), axis=2)
    return jnp.einsum("nckhw,ock->nohw", columns, weight.reshape(*weight.shape[:2], -1))


def _correlated_by_position(x: Array, weight: Array, padding: int) -> Array:
    """Return the same as a sum over the positions in the kernel."""
    kernels = jnp.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)
    shifted = _shifted(x, weight, padding)
    return sum(jnp.einsum("nchw,oc->nohw", *pair) for pair in zip(shifted, kernels, strict=True))  # type: ignore[return-value]


def _shifted(x: Array, weight: Array, padding: int) -> list[Array]:
    """Return what each position in the kernel sees."""
    x, kernel = _padded(x, padding), weight.shape[2:]
    height, width = (side - size + 1 for side, size in zip(x.shape[2:], kernel, strict=True))
    return [x[:, :, i : i + height, j : j + width] for i in range(kernel[0]) for j in range(kernel[1])]


def _padded(x: Array, padding: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * 2])


def _largest(z: Array, units: int, pieces: int) -> Array:
    """Return the largest of every unit's pieces along axis 1; the gradient goes to the first of them."""
    z = z.reshape(len(z), units, pieces, *z.shape[2:])
    return functools.reduce(_first_larger, (z[:, :, piece] for piece in range(pieces)))


def _pooled(x: Array, layer: ConvMaxout) -> Array:
    """Return the largest of each window; those that reach over the end are filled up with -inf.

    The gradient goes to the first, row by row. Along rows, then columns, it takes a CPU a third of the time
    of XLA's own.
    """
    for axis in (3, 2):
        windows = -(-(x.shape[axis] - layer.pool) // layer.stride) + 1
        reach = (windows - 1) * layer.stride
        ends = [(0, reach + layer.pool - x.shape[axis] if axis == other else 0) for other in range(4)]
        filled = jnp.pad(x, ends, constant_values=-jnp.inf)
        x = functools.reduce(
            _first_larger,
            (
                jax.lax.slice_in_dim(filled, place, place + reach + 1, layer.stride, axis)
                for place in range(layer.pool)
            ),
        )
    return x


def _first_larger(first: Array, second: Array) -> Array:
    return jnp.where((second > first) | jnp.isnan(second), second, first)
