"""The embedded backend: dense networks in NumPy, with gradients written by hand."""

from lpfamily._packages import needs, same_version

with same_version(__file__), needs('pip install "lpfamily[train]"', "threadpoolctl"):
    from lpfamily_numpy.trainer import backend

__all__ = ["backend"]
