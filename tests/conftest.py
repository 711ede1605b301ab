import os

import pytest
from hypothesis import HealthCheck, settings
from libraries import LIBRARIES, TestLibrary

NAMES = os.environ.get("LPFAMILY_TEST_LIBRARIES", "numpy,array-api-strict").split(",")
UNDER_TEST = [LIBRARIES[name]() for name in NAMES]  # one that cannot be imported stops the run
DIFFERENTIABLE = [library for library in UNDER_TEST if library.derivative is not None]

settings.register_profile(
    "laws",
    max_examples=10 if any(library.slow for library in UNDER_TEST) else 200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("laws")


@pytest.fixture(scope="session", params=UNDER_TEST, ids=str)
def lib(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param


@pytest.fixture(scope="session", params=DIFFERENTIABLE, ids=str)
def autodiff(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param
