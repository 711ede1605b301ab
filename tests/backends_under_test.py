"""The backends that this test run is for: those of LPFAMILY_TEST_LIBRARIES that are backends."""

import importlib
import os

_LIBRARIES = os.environ.get("LPFAMILY_TEST_LIBRARIES", "numpy,array-api-strict").split(",")

NAMES = [name for name in ("numpy", "torch", "jax") if name in _LIBRARIES]

for name in NAMES:
    importlib.import_module(name)  # a library that is named must be there
