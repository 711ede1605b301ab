import gc
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("helpers")  # so that its assertions say what they compared

from helpers.libraries import LIBRARIES, TestLibrary  # noqa: E402 - after it is registered
from helpers.libraries_under_test import DIFFERENTIABLE, KERAS, NAMES, UNDER_TEST  # noqa: E402

# NumPy's own implementation is fast; compiled libraries have fewer cases to draw from
EXAMPLES = min(
    3 if library.slow or library.compiles else 40 if library.name == "numpy" else 15 for library in UNDER_TEST
)

FEW = any(library.compiles or library.slow for library in UNDER_TEST)
SAMPLED = ("p", "objective", *(("method", "given") if FEW else ()))

np.set_printoptions(threshold=300)  # a case is printed when it fails, and Hypothesis objects to 30 kB

settings.register_profile(
    "laws",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("more", settings.get_profile("laws"), max_examples=10 * EXAMPLES, derandomize=False)
settings.load_profile("laws")


def pytest_configure(config: pytest.Config) -> None:
    # the other test process may still be writing the entry; then this one compiles for itself
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")
    for name in LIBRARIES:
        config.addinivalue_line("markers", f"{name}: the result of the test depends on {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case",
        action="store_true",
        help="run all cases on libraries other than NumPy, and the longest tests",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the libraries among its parameters, and sample the cases of slow environments.

    Test environments select tests by these marks. NumPy runs all cases. Other libraries take three of the
    cases that differ in p or objective alone: the first, the middle and the last. Of functions that are
    made of primitives, and of slow cases, they take only the middle one. A test with "compiles" in its name
    counts as slow.
    """
    cases = defaultdict(list)
    for item in items:
        params = getattr(item, "callspec", SimpleNamespace(params={})).params
        for value in params.values():
            if (name := str(value)) in LIBRARIES:
                item.add_marker(name)
        # the laws in `LibraryTests` lack these parameters: all their cases run, except the long ones
        long = item.originalname == "test_the_adaptive_ascent_finds_the_top"
        sampled = SAMPLED if long or {"lib", "autodiff", "objective"} & params.keys() else ()
        others = [re.sub(r", [\d.]+$|, inf$", "", str(params[key])) for key in params if key not in sampled]
        # a compiled function runs the lines that other tests and other libraries run too
        takes_long = long or "compiles" in item.name or (FEW and "objective" not in params)
        all_three = not takes_long and getattr(params.get("call"), "is_primitive", True)
        cases[item.nodeid.partition("[")[0], all_three, *others].append(item)
    if "numpy" in NAMES or config.getoption("every_case"):
        return
    kept = {
        id(group[k])
        for (_, all_three, *_), group in cases.items()
        for k in ((0, (len(group) - 1) // 2, -1) if all_three else ((len(group) - 1) // 2,))
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage rarely, and freeze what exists: collecting takes a tenth of the time of JAX's tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """Clear JAX's compiled functions after each test file: those of all files take 5 GiB."""
    yield
    if "jax" in NAMES:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def keras_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep Keras from reading the user's settings, wherever a test imports it."""
    if KERAS:
        os.environ |= {"KERAS_BACKEND": KERAS, "KERAS_HOME": str(tmp_path_factory.mktemp("keras"))}


@pytest.fixture(scope="session", params=UNDER_TEST, ids=str)
def lib(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param


@pytest.fixture(scope="session", params=DIFFERENTIABLE, ids=str)
def autodiff(request: pytest.FixtureRequest) -> TestLibrary:
    return request.param
