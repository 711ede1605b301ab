"""Cases of a ball and a box, the step that gains most there, and laws that several functions obey."""

import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from helpers.laws import FEW, Case, cases, closed_form, dual, norms, scaled
from helpers.libraries import Floats

ROOMS = ("pixels", "close", "far", "wide", "tied", "none", "half open", "rounded")


@dataclass(frozen=True)
class Box:
    """A case and its box, in float64 numbers of the dtype."""

    case: Case
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def step(self, epsilon, **options) -> np.ndarray:
        floats, lib = self.case.floats, self.case.lib
        with lib.scope():
            x, low, high = (lib.from_numpy(a, floats.name) for a in (self.x, self.low, self.high))
        return self.case.step_rows(epsilon, x=x, bounds=(low, high), **options)

    @property
    def room(self) -> np.ndarray:
        """How far each entry may go, as the library sees it."""
        compute = Floats.of(self.case.floats.compute)
        seen = self.case.floats.seen
        up, down = (compute.seen(a) for a in (seen(self.high) - seen(self.x), seen(self.x) - seen(self.low)))
        # an x that is outside by rounding counts as at its bound
        return np.maximum(np.where(self.case.grad < 0, down, up), 0).reshape(self.case.rows.shape)

    @property
    def ulp(self) -> np.ndarray:
        """The unit in the last place of the larger finite bound, or up to twice as much."""
        sizes = (np.where(np.isinf(bound), 0, np.abs(bound)) for bound in (self.low, self.high))
        return self.case.floats.eps * np.maximum(np.maximum(*sizes), self.case.floats.tiny)

    def gain(self, step: np.ndarray) -> np.ndarray:
        """<grad, step>, in units of the largest entry."""
        r, _ = scaled(self.case.rows)
        return np.sum(r * np.sign(self.case.rows) * step.astype(np.longdouble), axis=1)

    @property
    def slack(self) -> np.ndarray:
        """The most gain that rounding to multiples of the dtype's least number can lose, by Hölder."""
        return norms(scaled(self.case.rows)[0], dual(self.case.p)) * 4 * self.case.underflow


@st.composite
def boxes(draw, lib, **options):
    few = st.sampled_from([1 + 1e-12, *FEW]) if lib.compiles else None
    case = draw(cases(lib, p=few, **options))
    kinds = [draw(st.sampled_from(ROOMS)) for _ in case.grad]
    rng = np.random.default_rng(case.seed + 1)
    rows = [
        _box(kind, radius, case.grad.shape[1:], case.floats, rng)
        for kind, radius in zip(kinds, case.radii, strict=True)
    ]
    return Box(case, *(np.stack(part) for part in zip(*rows, strict=True)))


def _box(kind, radius, shape, floats, rng):
    """Return x, low and high; x is zero except for "pixels" and "rounded": bounds may have any scale."""
    zero = np.zeros(shape)
    if kind == "rounded":
        return _rounded(radius, shape, floats, rng)
    with np.errstate(over="ignore", under="ignore"):
        if kind == "pixels":
            pixels = floats.round(
                np.where(rng.random(shape) < 0.6, rng.integers(0, 2, shape), rng.random(shape))
            )
            return pixels, zero, zero + 1
        if kind == "none":
            return zero, zero - math.inf, zero + math.inf
        sides = [
            {
                "close": lambda: radius * np.exp2(rng.uniform(-12, 0, shape)),
                "far": lambda: radius * np.exp2(rng.uniform(-2, 4, shape)),
                "half open": lambda: np.where(rng.random(shape) < 0.5, math.inf, radius * rng.random(shape)),
                "tied": lambda: radius * rng.choice([0, 1, 2, 3, 16], shape) / 16,
                "wide": lambda: np.exp2(
                    rng.uniform(math.log2(floats.tiny), math.log2(floats.largest) - 1, shape)
                ),
            }[kind]()
            for _ in range(2)
        ]
        low, high = (np.where(np.isinf(side), side, floats.round(side)) for side in sides)
        return zero, -low, high


def _rounded(radius, shape, floats, rng):
    """Return entries up to 3 units in the last place of the larger bound outside, and some inside."""
    with np.errstate(over="ignore", under="ignore"):
        low = floats.round(radius * rng.uniform(-2, 1, shape))
        high = np.maximum(low, floats.round(low + radius * rng.random(shape)))
        unit = floats.eps * np.exp2(np.floor(np.log2(np.maximum(np.maximum(-low, high), floats.tiny))))
        beyond, inside = unit * rng.integers(0, 4, shape), low + (high - low) * rng.random(shape)
        x = floats.round(np.choose(rng.integers(0, 3, shape), [low - beyond, inside, high + beyond]))
    return x, low, high


def maximiser(row, p, radius, room):
    """Solve by Newton's method in long floats: an entry whose step exceeds its room is fixed at its bound."""
    free, at_bound, left = (row != 0) & (room > 0), np.zeros(row.shape, bool), np.longdouble(radius)
    while True:
        step = np.abs(closed_form(np.where(free, row, 0)[None], p, [left])[0])
        passed = free & (step > room)
        if not passed.any():
            return np.sign(row) * np.where(at_bound, room, np.where(free, step, 0))
        free, at_bound = free & ~passed, at_bound | passed
        spent = np.sum((room[at_bound].astype(np.longdouble) / radius) ** np.longdouble(p))
        left = radius * max(1 - spent, 0) ** (1 / np.longdouble(p))


def stays_in_ball_and_box(epsilon, box):
    step, case = box.step(epsilon), box.case
    assert np.all(np.abs(step) <= box.room * (1 + case.floats.eps) + case.floats.least), box
    assert np.all(norms(step, case.p) <= case.radii * (1 + case.tolerance) + case.underflow), box
    assert np.all((step == 0) | (np.sign(step) == np.sign(case.rows))), box


def attains_the_most(epsilon, box):
    if box.case.p == math.inf:
        best = np.sign(box.case.rows) * np.minimum(box.case.radii[:, None], box.room)
    else:
        rows = zip(box.case.rows, box.case.radii, box.room, strict=True)
        best = np.stack([maximiser(row, box.case.p, radius, room) for row, radius, room in rows])
    most, got = box.gain(best), box.gain(box.step(epsilon))
    bad = ~(got >= most * (1 - box.case.tolerance) - box.slack)
    assert not bad.any(), f"gain {got[bad]} of {most[bad]}\n{box}"


def loses_nothing_to_clipping(epsilon, box):
    case = box.case
    clipped = closed_form(case.rows, case.p, case.radii)
    clipped = np.sign(clipped) * np.minimum(np.abs(clipped), box.room)
    least = box.gain(clipped) * (1 - case.tolerance) - box.slack
    assert np.all(box.gain(box.step(epsilon)) >= least), box


def moves_nothing_further_outside(epsilon, box):
    seen = box.case.floats.seen
    sides = (seen(box.x), seen(box.low), seen(box.high), box.ulp)
    x, low, high, ulp = (a.reshape(box.case.rows.shape) for a in sides)
    reached = x + box.step(epsilon)
    assert np.all(reached >= np.minimum(x, low - ulp)), box
    assert np.all(reached <= np.maximum(x, high + ulp)), box


def spends_nothing_outside_the_mask(epsilon, box):
    # masked entries may have any value, even an x outside its bounds
    mask = box.case.rng.random(box.case.grad.shape) < 0.6
    noise = box.case.rng.choice([math.nan, math.inf, 1.0], mask.shape)
    inside = replace(box, case=replace(box.case, grad=np.where(mask, box.case.grad, 0)))
    outside = replace(
        box,
        case=replace(box.case, grad=np.where(mask, box.case.grad, noise)),
        x=np.where(mask, box.x, 7),
    )
    step = outside.step(epsilon, mask=box.case.lib.from_numpy(mask))
    assert_array_equal(step, inside.step(epsilon))


def keeps_nan_in_its_row(epsilon, box):
    case = box.case
    hit = case.rng.random(len(case.grad)) < 0.5
    grad = case.grad.copy().reshape(case.rows.shape)
    grad[hit, 0] = math.nan
    step = replace(box, case=replace(case, grad=grad.reshape(case.grad.shape))).step(epsilon)
    nan = np.isnan(step)
    assert_array_equal(nan[:, 0], hit)
    if case.p < math.inf:
        assert_array_equal(nan.all(axis=1), hit)
    assert not nan[~hit].any()
