"""The JAX backend: CPU and GPU; and `regularize`, for models and training loops of one's own."""

from lpfamily_jax.regularized import regularize
from lpfamily_jax.robust import robustness
from lpfamily_jax.trainer import backend

__all__ = ["backend", "regularize", "robustness"]
