"""The torch backend, on CPU and CUDA, and `regularized_loss` for custom models and training loops."""

from lpfamily._packages import needs, same_version

with same_version(__file__), needs('pip install "lpfamily[torch]"', "torch"):
    from lpfamily_torch.regularized import ascend, perturb, regularized_loss
    from lpfamily_torch.robust import robustness
    from lpfamily_torch.trainer import backend
    from lpfamily_torch.weights import perturbed_weights

__all__ = ["ascend", "backend", "perturb", "perturbed_weights", "regularized_loss", "robustness"]
