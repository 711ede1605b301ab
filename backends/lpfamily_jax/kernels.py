"""What JAX tells the core: derivatives, and that a definition is one compiled function."""

from __future__ import annotations

import functools
from typing import Any

import jax

from lpfamily.kernels import Library, Primitive


class JaxLibrary(Library):
    """JAX: eager arrays and tracers alike."""

    def apply(self, primitive: Primitive, p: float, *operands: jax.Array) -> jax.Array:
        """Evaluate as one compiled function whose derivatives are the primitive's own."""
        result: jax.Array = _function(primitive, p)(*operands)
        return result

    def constant(self, x: jax.Array) -> jax.Array:
        """Stop the gradient."""
        return jax.lax.stop_gradient(x)

    def normal_tail(self, x: jax.Array) -> jax.Array:
        """Halve XLA's own erfc."""
        return 0.5 * jax.scipy.special.erfc(x * 0.5**0.5)


library = JaxLibrary()


@functools.cache
def _function(primitive: Primitive, p: float) -> Any:
    function = jax.custom_jvp(functools.partial(primitive.value, p))
    function.defjvp(
        lambda operands, tangents: (_function(primitive, p)(*operands), primitive.jvp(p, operands, tangents))
    )
    return jax.jit(function)
