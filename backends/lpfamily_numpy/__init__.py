"""The embedded backend: dense networks in NumPy, gradients by hand."""

from lpfamily_numpy.trainer import backend

__all__ = ["backend"]
