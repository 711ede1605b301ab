"""The network as a function, and as a pytree that is one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from lpfamily.training.backends import check_inputs
from lpfamily.training.networks import ConvMaxout, Dense, Maxout, Network, shapes

Arrays = dict[str, Array]


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
def forward(network: Network, state: Mapping[str, Array], x: Array, masks: Any = None) -> Array:
    """Return the logits of inputs (n, inputs); `masks` say which inputs of each layer are kept."""
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(-1, *entering)
        if masks is not None and masks[index] is not None and layer.dropout is not None:
            x = jnp.where(masks[index], layer.dropout.scale * x, 0)
        if isinstance(layer, ConvMaxout):
            z = _correlated(x, weight, layer.padding)
            z = z + (bias[:, None, None] if layer.tied_bias else bias)
            x = _pooled(_largest(z, layer.channels, layer.pieces), layer)
            continue
        x = x @ weight + bias
        if isinstance(layer, Maxout):
            x = _largest(x, layer.units, layer.pieces)
        elif isinstance(layer, Dense) and layer.activation == "sigmoid":
            x = jax.nn.sigmoid(x)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _correlated(x: Array, weight: Array, padding: int) -> Array:
    """Return the cross-correlation of images (n, channels, height, width) with kernels, zeros around them.

    On a CPU, XLA takes ten times as long for the kernels' gradient as for the rest where images are small
    or have few channels; so it is told to be a product of matrices for each position in the kernel.
    """
    return jax.lax.conv_general_dilated(x, weight, (1, 1), [(padding, padding)] * 2)


@functools.partial(_correlated.defjvp, symbolic_zeros=True)
def _correlated_jvp(padding: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, weight), (dx, dweight) = primals, tangents
    z = _correlated(x, weight, padding)
    tangent = jnp.zeros_like(z)
    if not isinstance(dx, SymbolicZero):
        tangent = _correlated(dx, weight, padding)
    if not isinstance(dweight, SymbolicZero):
        at_once = functools.partial(_correlated, padding=padding)
        by_position = functools.partial(_correlated_by_position, padding=padding)
        tangent = tangent + jax.lax.platform_dependent(x, dweight, cpu=by_position, default=at_once)
    return z, tangent


def _correlated_by_position(x: Array, weight: Array, padding: int) -> Array:
    """Return the same as a sum over the positions in the kernel."""
    x = jnp.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * 2])
    height, width = (side - kernel + 1 for side, kernel in zip(x.shape[2:], weight.shape[2:], strict=True))
    return sum(
        jnp.einsum("nchw,oc->nohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )  # type: ignore[return-value]


def _largest(z: Array, units: int, pieces: int) -> Array:
    """Return the largest of every unit's pieces along axis 1; the gradient goes to the first of them."""
    z = z.reshape(len(z), units, pieces, *z.shape[2:])
    largest = z[:, :, 0]
    for piece in range(1, pieces):
        new = z[:, :, piece]
        largest = jnp.where((new > largest) | jnp.isnan(new), new, largest)
    return largest


def _pooled(x: Array, layer: ConvMaxout) -> Array:
    """Return the largest of each window, those that reach over the end filled up with -inf."""
    pool, stride = layer.pool, layer.stride
    ends = [(0, -(-(side - pool) // stride) * stride + pool - side) for side in x.shape[2:]]
    window, strides = (1, 1, pool, pool), (1, 1, stride, stride)
    largest: Array = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, [(0, 0), (0, 0), *ends])
    return largest
