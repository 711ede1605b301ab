import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from libraries import LIBRARIES, TestLibrary

NAMES = os.environ.get("LPFAMILY_TEST_LIBRARIES", "numpy,array-api-strict").split(",")
UNDER_TEST = [LIBRARIES[name]() for name in NAMES]  # one that cannot be imported stops the run
DIFFERENTIABLE = [library for library in UNDER_TEST if library.derivative is not None]

EXAMPLES = min(
    10 if library.slow else 100 if library.compiles else 200  # compiled ones have fewer cases to draw from
    for library in UNDER_TEST
)

np.set_printoptions(threshold=300)  # a case is printed when it fails, and Hypothesis objects to 30 kB

settings.register_profile(
    "laws",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("laws")


def pytest_configure(config: pytest.Config) -> None:
    # which the other test process is still writing; this one compiles for itself
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")
    for name in LIBRARIES:
        config.addinivalue_line("markers", f"{name}: {name} makes a difference to what is tested")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark a test with the libraries among its parameters, by which test environments choose."""
    for item in items:
        for value in getattr(item, "callspec", SimpleNamespace(params={})).params.values():
            if (name := str(value)) in LIBRARIES:
                item.add_marker(name)


@pytest.fixture(scope="session", params=UNDER_TEST, ids=str)
def lib(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param


@pytest.fixture(scope="session", params=DIFFERENTIABLE, ids=str)
def autodiff(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param
