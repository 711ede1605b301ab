"""The JAX backend, on CPU and GPU, and `regularize` for custom models and training loops."""

from lpfamily._packages import needs, same_version

with same_version(__file__), needs('pip install "lpfamily[jax]"', "jax"):
    from lpfamily_jax.regularized import regularize
    from lpfamily_jax.robust import robustness
    from lpfamily_jax.trainer import backend
    from lpfamily_jax.weights import perturb_weights

__all__ = ["backend", "perturb_weights", "regularize", "robustness"]
