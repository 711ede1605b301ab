"""This project's own backends, under the laws for any."""

from backends_under_test import NAMES

from lpfamily.training.testing import BackendTests

if "numpy" in NAMES:

    class TestNumpy(BackendTests):
        backend = "numpy"


if "torch" in NAMES:
    import torch

    class TestTorch(BackendTests):
        backend = "torch"

        def called(self, model, x):
            return model(torch.tensor(x)).detach().numpy()


if "jax" in NAMES:

    class TestJax(BackendTests):
        backend = "jax"
