"""What only dask has: chunks, and graphs that are computed later."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.libraries import P
from helpers.libraries_under_test import UNDER_TEST
from lpfamily import certify, cross_entropy, epsilon, norm, penalty
from lpfamily.linear import worst_residual
from lpfamily.margins import boundary_distance

LIB = next((library for library in UNDER_TEST if library.name == "dask"), None)
if LIB is None:
    pytest.skip("dask is not under test", allow_module_level=True)

dask, cloudpickle = pytest.importorskip("dask"), pytest.importorskip("cloudpickle")
da = pytest.importorskip("dask.array")

pytestmark = pytest.mark.dask

ROWS = np.random.default_rng(0).standard_normal((6, 3, 8))


def test_the_test_library_forbids_early_computing():
    with pytest.raises(AssertionError, match="dask was asked to compute"):
        epsilon(da.ones((2, 2)), 2, 1.0).compute()
    with pytest.raises(AssertionError, match="dask was asked to compute"):
        bool(norm(da.ones((2, 2)), 2)[0] > 0)


@pytest.mark.parametrize("p", P)
def test_chunks_of_whole_examples_stay(p):
    grad = da.from_array(ROWS, chunks=(2, 3, 8))
    for step in epsilon(grad, p, 1.0), epsilon(grad, p, 1.0, x=0.0, bounds=(-0.5, 0.5)):
        assert step.chunks == grad.chunks
    assert penalty(grad, p, 1.0).chunks == grad.chunks[:1]


@pytest.mark.parametrize("p", P)
def test_an_example_larger_than_the_chunk_size_stays_in_several_chunks(p):
    grad = da.from_array(ROWS.reshape(6, 24), chunks=(2, 8))
    with dask.config.set({"array.chunk-size": "64 B"}):
        step, size = epsilon(grad, p, 0.5), penalty(grad, p, 0.5)
    assert step.chunks == grad.chunks
    with np.errstate(all="ignore"):
        assert_allclose(LIB.to_numpy(step), epsilon(ROWS.reshape(6, 24), p, 0.5), rtol=1e-10, atol=1e-15)
        assert_allclose(LIB.to_numpy(size), penalty(ROWS.reshape(6, 24), p, 0.5), rtol=1e-12)


def test_chunks_need_not_agree():
    grad, sigma = da.from_array(ROWS, chunks=(4, 2, 3)), da.from_array(np.arange(6.0), chunks=5)
    x, mask = da.from_array(0.1 * ROWS, chunks=3), da.from_array(ROWS[0] > 0, chunks=2)
    step = epsilon(grad, 1.5, sigma, mask=mask, x=x, bounds=(-1.0, np.ones(8)))
    expected = epsilon(
        ROWS, 1.5, np.arange(6.0), mask=ROWS[0] > 0, x=np.clip(0.1 * ROWS, -1, 1), bounds=(-1.0, np.ones(8))
    )
    assert_allclose(LIB.to_numpy(step), expected, rtol=1e-12)


def test_a_weight_that_is_not_finite_makes_all_examples_nan_without_an_error():
    theta = da.from_array(np.array([[1.0, np.nan], [0.0, 1.0]]))
    for p in 1, 2, np.inf:
        assert np.isnan(LIB.to_numpy(worst_residual(theta, da.ones((3, 2)), p, 1.0))).all()


def test_an_unknown_shape_is_an_error_that_says_what_to_do():
    rows = da.from_array(ROWS[:, 0], chunks=2)
    some = rows[rows[:, 0] > 0]
    for call in (
        lambda: epsilon(some, 2, 1.0),
        lambda: norm(some, 2),
        lambda: certify(some, some, 2, 1.0),
        lambda: cross_entropy(some, some),
        lambda: worst_residual(da.ones((8, 2)), some, 2, 1.0),
        lambda: boundary_distance(da.ones((8, 3)), da.ones(3), some, some, 2),
    ):
        with pytest.raises(ValueError, match=r"known shape; got \(nan, 8\).*compute_chunk_sizes"):
            call()


def test_another_process_can_compute_the_graph():
    """A scheduler sends graphs to other processes."""
    step = epsilon(da.from_array(ROWS, chunks=(2, 3, 8)), 1.5, 1.0, x=0.0, bounds=(-0.5, 0.5))
    code = "import sys, pickle; print(*pickle.load(sys.stdin.buffer).compute(scheduler='sync').shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(step), capture_output=True, check=True
    )
    assert done.stdout.split() == [b"6", b"3", b"8"]
