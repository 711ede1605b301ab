"""Laws of a projection onto an Lp ball and of samples from one, and the cases to check them with."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import stats

from helpers.laws import FEW, cases, norms


@st.composite
def points(draw, lib, **options):
    few = st.sampled_from(FEW) if lib.compiles else None
    case = draw(cases(lib, p=few, **options))
    size = np.minimum(norms(case.rows, case.p), case.floats.largest).astype(float)
    share = np.array([draw(st.sampled_from([1.0, 0.5, 1 - 1e-4, 0.01, 2.0, 0.0])) for _ in size])
    with np.errstate(over="ignore"):
        near = share * size if draw(st.booleans()) else case.radii
    compute = lib.floats[case.floats.compute]
    # no law holds for a ball whose points overflow the dtype, or that v leaves only by rounding
    return replace(case, sigma=compute.round(np.where(near < case.floats.largest / 2, near, 1.0)))


def stays_in_the_ball(project, case):
    y = case.step_rows(project)
    assert np.all(norms(y, case.p) <= case.radii * (1 + case.tolerance) + case.underflow), case
    assert np.all((y == 0) | (np.sign(y) == np.sign(case.rows))), case


def keeps_nan_in_its_row(project, case):
    hit = case.rng.random(len(case.grad)) < 0.5
    grad = case.grad.copy()
    grad.reshape(case.rows.shape)[hit, 0] = math.nan
    nan = np.isnan(replace(case, grad=grad).step_rows(project))
    assert_array_equal(nan[:, 0], hit)
    assert not nan[~hit].any()


def generator(lib, seed):
    if lib.name == "torch":
        import torch

        return torch.Generator(lib.from_numpy(0.0, "float32").device).manual_seed(seed)
    if lib.name == "jax":
        import jax

        return jax.random.key(seed)
    return np.random.default_rng(seed)


def assert_uniform_in_the_ball(sample, lib, p, d):
    """Compare with the exact distributions of the norm and of one coordinate."""
    x = lib.to_numpy(sample((4000, d), p, 2.0, generator(lib, 11))) / 2
    size = norms(x, p).astype(float)
    assert size.max() <= 1 + 1e-5
    assert stats.kstest(size**d, "uniform").pvalue > 1e-4
    assert abs(np.mean(x[:, 0] > 0) - 0.5) < 4 * 0.5 / 4000**0.5
    for coordinate in 0, d - 1:
        size = np.abs(x[:, coordinate])
        if p == math.inf:
            assert stats.kstest(size, "uniform").pvalue > 1e-4
        else:
            assert stats.kstest(size**p, stats.beta(1 / p, (d - 1) / p + 1).cdf).pvalue > 1e-4
