"""This project's own backends, under the laws for any."""

import shutil

import pytest
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

        @pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
        def test_it_compiles_where_there_is_a_compiler(self):
            """Else the law of compiled steps would be skipped without a word."""
            assert self.find().compile_problem("cpu") == ""


if "jax" in NAMES:

    class TestJax(BackendTests):
        backend = "jax"
