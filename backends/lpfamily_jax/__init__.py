"""The JAX backend: CPU and GPU."""

from lpfamily_jax.trainer import backend

__all__ = ["backend"]
