"""The torch backend: CPU and CUDA."""

from lpfamily_torch.trainer import backend

__all__ = ["backend"]
