"""Laws of a steepest step: functions of the step that raise AssertionError where it breaks them.

The Hypothesis tests give them `lpfamily.epsilon`, the mutants something broken. Nothing here knows
the code under test: norms and the closed form are computed in NumPy's longest float, on rows divided
by their largest entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from helpers.libraries import Floats, P, TestLibrary

Epsilon = Callable[..., Any]
FEW = (1, 1.1, 2, 2.7, math.inf)
KINDS = ("normal", "wide", "tied", "near", "sparse", "zero", "least", "huge")


@dataclass(frozen=True)
class Case:
    """One call: `grad` in float64 holds numbers of the dtype; its first axis indexes examples."""

    lib: TestLibrary
    floats: Floats
    grad: np.ndarray
    p: float
    sigma: Any
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def rows(self) -> np.ndarray:
        return self.floats.seen(self.grad).reshape(len(self.grad), -1)

    @property
    def radii(self) -> np.ndarray:
        return np.broadcast_to(self.sigma, len(self.grad))

    @property
    def tolerance(self) -> float:
        """The relative error of a row, measured in its p-norm.

        A power, a root, a sum and three products are some 16 roundings; summing d terms adds about
        sqrt(d); half precision, computed in float32, adds the rounding of the result.
        """
        compute = Floats.of(self.floats.compute).eps
        rounding = self.floats.eps if self.floats.name != self.floats.compute else 0
        return (16 + math.sqrt(self.rows.shape[1])) * compute + rounding

    @property
    def underflow(self) -> float:
        """The absolute error of a row in its p-norm: each entry, and their common factor, may round
        or be flushed at the end of the dtype's range, and ||(1, ..., 1)||_p = d^(1/p)."""
        return 2 * self.floats.least * self.rows.shape[1] ** (1 / self.p)

    def step(self, epsilon: Epsilon, **options: Any) -> np.ndarray:
        """Return epsilon(grad, p, sigma) as float64; raise unless it has grad's library, shape and dtype."""
        with self.lib.scope():
            grad = self.lib.from_numpy(self.grad, self.floats.name)
            result = epsilon(grad, self.p, self.sigma, **options)
        assert type(result) is type(grad)
        assert result.dtype == grad.dtype
        assert tuple(result.shape) == tuple(grad.shape)
        return self.lib.to_numpy(result)

    def step_rows(self, epsilon: Epsilon, **options: Any) -> np.ndarray:
        return self.step(epsilon, **options).reshape(self.rows.shape)


@st.composite
def cases(draw: Any, lib: TestLibrary, *, kinds: tuple[str, ...] = KINDS, p: Any = None) -> Case:
    """Draw dtype, shape, p, sigma, and the kind and scale of each row; a seed determines the rest."""
    floats = lib.floats[draw(st.sampled_from(lib.dtypes))]
    if lib.compiles:  # every p, shape and dtype is a compilation
        single = floats.name == "float32"
        shape = draw(st.sampled_from([(3, 1), (4, 5, 8)])) if single else (4, 5, 8)
        p = draw(st.sampled_from(P if single else FEW) if p is None else p)
    else:
        shape = (
            draw(st.integers(1, 5)),
            *draw(st.sampled_from([(1,), (2,), (3,), (7,), (2, 3), (33,), (300,)])),
        )
        p = draw(exponents if p is None else p)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    lowest, highest = math.log2(floats.tiny), math.log2(floats.largest)
    scales = st.one_of(st.floats(-20, 4), st.floats(lowest, highest - 1))
    rows = [_row(draw(st.sampled_from(kinds)), draw(scales), shape[1:], floats, rng) for _ in range(shape[0])]
    radii = st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(lowest, highest - 1).map(lambda k: 2.0**k))
    sigma = draw(radii)
    if draw(st.booleans()):
        sigma = np.array([draw(radii) for _ in rows])
    sigma = lib.floats[floats.compute].round(sigma)  # so that the rounding of sigma is no error
    return Case(lib, floats, np.stack(rows), p, sigma if sigma.ndim else float(sigma), seed)


exponents = st.one_of(
    st.sampled_from([1, 2, math.inf]),
    st.sampled_from(P),
    st.floats(1, 4),
    st.floats(-15.5, 0).map(lambda k: 1 + 10**k),
    st.floats(0, 300).map(lambda k: 10**k),
)


def _row(
    kind: str, scale: float, shape: tuple[int, ...], floats: Floats, rng: np.random.Generator
) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        normal = rng.standard_normal(shape)
        sign = np.copysign(1, normal)
        row = {
            "normal": lambda: normal * 2.0**scale,
            "wide": lambda: (
                sign * np.exp2(rng.uniform(math.log2(floats.least), math.log2(floats.largest), shape))
            ),
            "tied": lambda: rng.integers(-2, 3, shape) * 2.0**scale,
            "near": lambda: sign * 2.0**scale * (1 - rng.integers(0, 5, shape) * floats.eps),
            "sparse": lambda: np.where(rng.random(shape) < 0.2, normal, 0) * 2.0**scale,
            "zero": lambda: np.zeros(shape),
            "least": lambda: rng.integers(-3, 4, shape) * floats.least,
            "huge": lambda: sign * floats.largest * rng.uniform(0.25, 1, shape),
        }[kind]()
        return floats.round(row)


# The mathematics again, without the code under test.


def scaled(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return |rows| divided by each row's largest entry, and that entry, as long floats."""
    size = np.abs(rows.astype(np.longdouble))
    top = size.max(axis=1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # infinite only where a law is about to fail
        return size / np.where(top == 0, 1, top), top[:, 0]


def norms(rows: np.ndarray, p: float) -> np.ndarray:
    """Return the p-norm of each row."""
    r, top = scaled(rows)
    if p == math.inf:
        return top
    with np.errstate(under="ignore"):
        return top * np.sum(r ** np.longdouble(p), axis=1) ** (1 / np.longdouble(p))


def dual(p: float) -> Any:
    if p == 1:
        return math.inf
    return np.longdouble(1) if p == math.inf else np.longdouble(p) / (np.longdouble(p) - 1)


def closed_form(rows: np.ndarray, p: float, radii: Any) -> np.ndarray:
    """Return eq. 3, its limits at p = 1 and inf, and zero rows, as long floats."""
    r, top = scaled(rows)
    if p == 1:
        u = (r == 1).astype(np.longdouble)
    elif p == math.inf:
        u = (r > 0).astype(np.longdouble)
    else:
        size, e = np.abs(rows.astype(np.longdouble)), 1 / (np.longdouble(p) - 1)
        with np.errstate(divide="ignore", under="ignore", invalid="ignore"):
            # a difference of neighbours is exact, so its logarithm survives a large exponent
            log = np.where(r > 0.5, np.log1p((size - top[:, None]) / top[:, None]), np.log(r))
            u = np.where(r > 0, np.exp(e * log), 0)
    unit = norms(u, p)[:, None]
    return np.sign(rows) * np.asarray(radii)[:, None] * u / np.where(unit == 0, 1, unit)


def assert_rows_close(actual: np.ndarray, expected: np.ndarray, case: Case, *, extra: float = 0) -> None:
    """Raise unless the p-norm of each row's difference is within rounding of sigma."""
    error = norms(actual - expected, case.p)
    allowed = (case.tolerance + extra) * case.radii + case.underflow
    bad = ~(error <= allowed)
    assert not bad.any(), f"rows {np.flatnonzero(bad)}: off by {error[bad]}, allowed {allowed[bad]}\n{case}"


# The laws.


def uses_the_budget(epsilon: Epsilon, case: Case) -> None:
    size = norms(case.step_rows(epsilon), case.p)
    expected = np.where(case.rows.any(axis=1), case.radii, 0)
    error = np.abs(size - expected)
    bad = ~(error <= case.tolerance * expected + np.where(expected > 0, case.underflow, 0))
    assert not bad.any(), f"norms {size[bad]}, radii {expected[bad]}\n{case}"


def attains_the_gain(epsilon: Epsilon, case: Case) -> None:
    step = case.step_rows(epsilon).astype(np.longdouble)
    r, _ = scaled(case.rows)
    r *= np.sign(case.rows)
    best = norms(r, dual(case.p))
    error = np.abs(np.sum(r * step, axis=1) - case.radii * best)
    bad = ~(error <= best * (case.tolerance * case.radii + case.underflow))  # Hölder
    assert not bad.any(), f"gain off by {error[bad]} of {(case.radii * best)[bad]}\n{case}"


def is_the_closed_form(epsilon: Epsilon, case: Case) -> None:
    assert_rows_close(case.step_rows(epsilon), closed_form(case.rows, case.p, case.radii), case)


def is_scale_free(epsilon: Epsilon, case: Case) -> None:
    # scaling by a power of two is exact unless it loses a bit; a row that would lose one is not scaled
    lowest, highest = int(math.log2(case.floats.tiny)), int(math.log2(case.floats.largest))
    powers = case.rng.integers(lowest, highest, len(case.rows)) / case.rng.choice([1, 8])
    factors = np.exp2(np.round(powers)).reshape(-1, *[1] * (case.grad.ndim - 1))
    with np.errstate(all="ignore"):
        grad = case.floats.seen(case.floats.round(case.floats.seen(case.grad) * factors))
        exact = np.all(grad / factors == case.grad, axis=tuple(range(1, grad.ndim)), keepdims=True)
    other = replace(case, grad=np.where(exact, grad, case.grad))
    assert_rows_close(other.step_rows(epsilon), case.step_rows(epsilon), case)


def is_sign_equivariant(epsilon: Epsilon, case: Case) -> None:
    signs = case.rng.choice([-1.0, 1.0], case.grad.shape)
    other = replace(case, grad=signs * case.grad)
    assert_array_equal(other.step(epsilon), signs * case.step(epsilon), strict=True)


def is_permutation_equivariant(epsilon: Epsilon, case: Case) -> None:
    rows = case.rng.permutation(len(case.grad))
    coordinates = case.rng.permutation(case.rows.shape[1])
    moved = case.grad.reshape(len(rows), -1)[rows][:, coordinates].reshape(case.grad.shape)
    other = replace(case, grad=moved, sigma=case.radii[rows])
    assert_rows_close(other.step_rows(epsilon), case.step_rows(epsilon)[rows][:, coordinates], other)


def shares_equally_among_ties(epsilon: Epsilon, case: Case) -> None:
    for p in case.p, 1:
        step = np.abs(replace(case, p=p).step_rows(epsilon))
        for row, size in zip(step, np.abs(case.rows), strict=True):
            for value in np.unique(size):
                share = row[size == value]
                assert np.ptp(share) <= case.tolerance * share.max() + 2 * case.floats.least, case


def is_continuous_at_one(epsilon: Epsilon, case: Case) -> None:
    # the limit for rows in which each entry is either the largest or clearly smaller
    size = np.abs(case.grad)
    top = size.max(axis=tuple(range(1, size.ndim)), keepdims=True)
    gapped = replace(case, grad=np.where((size > 0.9 * top) & (size < top), 0, case.grad), p=1)
    near = replace(gapped, p=1 + 1e-12)
    # the norm of k equal shares is k^(1/p - 1) times their sum
    extra = 2e-12 * math.log(case.rows.shape[1] + 1)
    assert_rows_close(near.step_rows(epsilon), gapped.step_rows(epsilon), gapped, extra=extra)


def is_continuous_at_infinity(epsilon: Epsilon, case: Case) -> None:
    near, limit = replace(case, p=1e9), replace(case, p=math.inf)
    r, _ = scaled(case.rows)
    extra = 1e-9 * (-np.log(r[r > 0].min(initial=1)) + math.log(r.shape[1]))
    assert_rows_close(near.step_rows(epsilon), limit.step_rows(epsilon), limit, extra=float(extra))


def keeps_zeros(epsilon: Epsilon, case: Case) -> None:
    assert_array_equal(case.step_rows(epsilon)[case.rows == 0], 0.0)


def keeps_nan_in_its_row(epsilon: Epsilon, case: Case) -> None:
    rng = case.rng
    hit = rng.random(len(case.grad)) < 0.5
    where = (rng.random(case.rows.shape) < 0.3) & hit[:, None]
    where[hit, rng.integers(case.rows.shape[1])] = True
    other = replace(case, grad=np.where(where.reshape(case.grad.shape), math.nan, case.grad))
    step, expected = other.step_rows(epsilon), case.step_rows(epsilon)
    if case.p == math.inf:
        assert_array_equal(step, np.where(where, math.nan, expected))
    else:
        assert np.isnan(step[hit]).all(), case
        assert_rows_close(np.where(hit[:, None], 0, step), np.where(hit[:, None], 0, expected), case)


def gives_infinite_entries_the_limit(epsilon: Epsilon, case: Case) -> None:
    # ||grad||_{p*} is infinite: the limit of eq. 3 is that of a row with 1 where it is infinite
    infinite = case.rng.random(case.grad.shape) < 0.3
    grad = np.where(infinite, np.copysign(math.inf, case.grad), case.grad)
    flat = infinite.reshape(len(grad), -1)
    rows = np.where(flat, np.sign(grad).reshape(flat.shape), case.rows)
    if case.p < math.inf:
        rows = np.where(flat.any(axis=1, keepdims=True) & ~flat, 0, rows)
    other = replace(case, grad=grad)
    assert_rows_close(other.step_rows(epsilon), closed_form(rows, case.p, case.radii), case)


def ignores_batch_mates(epsilon: Epsilon, case: Case) -> None:
    # together the batch mates have all special values: zero, the least, the largest, NaN, inf
    trouble = np.array([0.0, case.floats.least, case.floats.largest, math.nan, math.inf])
    mates = np.broadcast_to(trouble.reshape(-1, *[1] * (case.grad.ndim - 1)), (5, *case.grad.shape[1:]))
    order = case.rng.permutation(len(case.grad) + 5)
    among = replace(
        case,
        grad=np.concatenate([case.grad, mates])[order],
        sigma=np.concatenate([case.radii, np.ones(5)])[order],
    )
    step = np.empty((len(order), case.rows.shape[1]))
    step[order] = among.step_rows(epsilon)
    alone = [
        replace(case, grad=case.grad[i : i + 1], sigma=case.radii[i : i + 1]).step_rows(epsilon)
        for i in range(len(case.grad))
    ]
    assert_rows_close(step[: len(case.grad)], np.concatenate(alone), case)


def spends_nothing_outside_the_mask(epsilon: Epsilon, case: Case) -> None:
    rng = case.rng
    axes = rng.integers(2, size=case.grad.ndim).astype(bool)  # False: the mask is broadcast along the axis
    mask = rng.random([n if along else 1 for n, along in zip(case.grad.shape, axes, strict=True)]) < 0.6
    if not axes[0]:
        mask = mask[0]
    full = np.broadcast_to(mask, case.grad.shape)
    outside = np.where(full, case.grad, rng.choice([math.nan, math.inf, 1.0, 0.0], case.grad.shape))
    step = replace(case, grad=outside).step_rows(epsilon, mask=case.lib.from_numpy(mask))
    inside = full.reshape(step.shape)
    assert_array_equal(step[~inside], 0.0)
    assert_rows_close(step, closed_form(np.where(inside, case.rows, 0), case.p, case.radii), case)


def leaves_its_inputs_alone(epsilon: Epsilon, case: Case) -> None:
    with case.lib.scope():
        grad = case.lib.from_numpy(case.grad, case.floats.name)
        sigma = case.lib.from_numpy(case.radii, case.floats.compute)
        mask = case.lib.from_numpy(np.ones(case.grad.shape, dtype=bool))
        epsilon(grad, case.p, sigma, mask=mask)
    assert_array_equal(case.lib.to_numpy(grad), case.grad)
    assert_array_equal(case.lib.to_numpy(sigma), case.radii)
    assert_array_equal(case.lib.to_numpy(mask), 1.0)


LAWS = [
    uses_the_budget,
    attains_the_gain,
    is_the_closed_form,
    is_scale_free,
    is_sign_equivariant,
    is_permutation_equivariant,
    shares_equally_among_ties,
    is_continuous_at_one,
    is_continuous_at_infinity,
    keeps_zeros,
    keeps_nan_in_its_row,
    gives_infinite_entries_the_limit,
    ignores_batch_mates,
    spends_nothing_outside_the_mask,
    leaves_its_inputs_alone,
]
