"""The array libraries under test: those that LPFAMILY_TEST_LIBRARIES names."""

import os

from helpers.libraries import LIBRARIES

NAMES = os.environ.get("LPFAMILY_TEST_LIBRARIES", "numpy,array-api-strict").split(",")


UNDER_TEST = [LIBRARIES[name]() for name in NAMES]  # one that cannot be imported stops the run


KERAS = next((name for name in ("torch", "jax") if name in NAMES), None)  # it has one backend per process


DIFFERENTIABLE = [library for library in UNDER_TEST if library.derivative is not None]
