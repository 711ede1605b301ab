"""A network of the project as a function of JAX arrays, and as a pytree that can be called."""

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
"""The random draws of each layer."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parameters"], meta_fields=["network"])
@dataclass(frozen=True, eq=False)
class JaxModel:
    """A network that maps inputs (n, inputs) to logits (n, classes): model(x), a pure function.

    It is a pytree whose leaves are the parameters, so `jax.grad` of a function of the model is a model of
    gradients, and `jax.tree.map` changes it. It has no dropout. Products have full precision, as in training
    without --tf32, unless `jax_default_matmul_precision` is set.
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
    """Return the logits of inputs (n, inputs), with the random draws of each layer."""
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(len(x), *entering)
        mask, noise = Random() if random is None else random[index]
        if mask is not None and layer.dropout is not None:
            x = jnp.where(mask, layer.dropout.scale * x, 0)
        if noise is not None:  # added to the bias, which then differs between examples
            image_axes = noise.ndim - 1 - bias.ndim
            bias = bias.reshape(*bias.shape, *[1] * image_axes) + noise.astype(bias.dtype)
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
"""For each layer type, its outputs as a function of the layer, its inputs, weight and bias.

The bias is that of a state, or has an axis of examples and the shape of the activation's inputs.
"""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _correlated(x: Array, weight: Array, padding: int) -> Array:
    """Return the cross-correlation of zero-padded images (n, channels, height, width) with kernels.

    On a CPU, XLA takes up to a hundred times as long for a convolution whose kernel is larger than the image
    without its padding. For such a kernel the image is padded beforehand. In the gradient of the kernels, the
    output of the layer is such a kernel; there a product of matrices for each position replaces the
    convolution. The gradient in images of one channel would take XLA five times as long as one product of
    matrices, which replaces it.
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
        on_cpu = _correlated_by_column if x.shape[1] == 1 else None
        tangent = _correlated_on_cpu(on_cpu, dx, weight, padding)
    if not isinstance(dweight, SymbolicZero):
        on_cpu = _correlated_by_position if max(z.shape[2:]) > min(x.shape[2:]) else None
        tangent = tangent + _correlated_on_cpu(on_cpu, x, dweight, padding)
    return z, tangent


def _correlated_on_cpu(on_cpu: Callable[..., Array] | None, x: Array, weight: Array, padding: int) -> Array:
    """Return the same, computed on a CPU by the function `on_cpu` if there is one."""
    if on_cpu is None:  # no branch, as a convolution inside of one is as slow as inside of a loop
        return _correlated(x, weight, padding)
    cpu, default = (functools.partial(f, padding=padding) for f in (on_cpu, _correlated))
    result: Array = jax.lax.platform_dependent(x, weight, cpu=cpu, default=default)
    return result


def _correlated_by_column(x: Array, weight: Array, padding: int) -> Array:
    """Return the same as one product of matrices, with one column per position in the kernel."""
    columns = jnp.stack(_shifted(x, weight, padding), axis=2)
    return jnp.einsum("nckhw,ock->nohw", columns, weight.reshape(*weight.shape[:2], -1))


def _correlated_by_position(x: Array, weight: Array, padding: int) -> Array:
    """Return the same as a sum of products over the positions in the kernel."""
    kernels = jnp.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)
    shifted = _shifted(x, weight, padding)
    return sum(jnp.einsum("nchw,oc->nohw", *pair) for pair in zip(shifted, kernels, strict=True))  # type: ignore[return-value]


def _shifted(x: Array, weight: Array, padding: int) -> list[Array]:
    """Return the pixels that each position in the kernel is multiplied with."""
    x, kernel = _padded(x, padding), weight.shape[2:]
    height, width = (side - size + 1 for side, size in zip(x.shape[2:], kernel, strict=True))
    return [x[:, :, i : i + height, j : j + width] for i in range(kernel[0]) for j in range(kernel[1])]


def _padded(x: Array, padding: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * 2])


def _largest(z: Array, units: int, pieces: int) -> Array:
    """Return the maximum of each unit's pieces along axis 1; the gradient goes to the first maximum."""
    z = z.reshape(len(z), units, pieces, *z.shape[2:])
    return functools.reduce(_first_larger, (z[:, :, piece] for piece in range(pieces)))


def _pooled(x: Array, layer: ConvMaxout) -> Array:
    """Return the maximum of each window; windows that reach over the end are padded with -inf.

    The gradient goes to the first maximum, row by row. Pooling along rows, then columns, takes a CPU a third
    of the time of XLA's pooling.
    """
    for axis in (3, 2):
        windows = -(-(x.shape[axis] - layer.pool) // layer.stride) + 1
        last = (windows - 1) * layer.stride  # where the last window begins
        ends = [(0, last + layer.pool - x.shape[axis] if axis == other else 0) for other in range(4)]
        padded = jnp.pad(x, ends, constant_values=-jnp.inf)
        x = functools.reduce(
            _first_larger,
            (
                jax.lax.slice_in_dim(padded, offset, offset + last + 1, layer.stride, axis)
                for offset in range(layer.pool)
            ),
        )
    return x


def _first_larger(first: Array, second: Array) -> Array:
    return jnp.where((second > first) | jnp.isnan(second), second, first)
