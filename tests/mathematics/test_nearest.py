"""The nearest point of a ball and a box."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.boxes import (
    Box,
    attains_the_most,
    boxes,
    keeps_nan_in_its_row,
    maximiser,
    moves_nothing_further_outside,
    spends_nothing_outside_the_mask,
    stays_in_ball_and_box,
)
from helpers.laws import Case, norms
from helpers.libraries import numpy_readonly
from helpers.libraries_under_test import NAMES
from helpers.mutants import check as check_law
from lpfamily import epsilon, project
from lpfamily.box import step_in_box
from lpfamily.libraries import multipliers
from lpfamily.libraries import rows as rows_of_numpy
from lpfamily.nearest import nearest

needs_jax = pytest.mark.skipif("jax" not in NAMES, reason="JAX is not under test")


@st.composite
def boxed_points(draw, lib):
    """Draw a box and the point that is projected: far from the ball, or near it."""
    box = draw(boxes(lib))
    size = np.minimum(norms(box.case.rows, box.case.p), box.case.floats.largest / 4).astype(float)
    share = np.array([draw(st.sampled_from([0.5, 1 - 1e-4, 0.01, 2.0])) for _ in size])
    near = lib.floats[box.case.floats.compute].round(share * size)
    return replace(box, case=replace(box.case, sigma=near)) if draw(st.booleans()) else box


def nothing_in_ball_and_box_is_nearer(project, box):
    """<v - y, z - y> <= 0 for every z of ball and box; the most of <v - y, z> is known."""
    case, y = box.case, box.step(project).astype(np.longdouble)
    rest = case.rows - y
    rows = zip(rest.astype(float), case.radii, box.room, strict=True)
    if case.p == math.inf:
        best = np.sign(rest) * np.minimum(case.radii[:, None], box.room)
    else:
        best = np.stack([maximiser(row, case.p, radius, room) for row, radius, room in rows])
    unit = np.maximum(np.abs(case.rows).max(axis=1, keepdims=True), case.floats.least)
    gap = np.sum(rest / unit * (best - y), axis=1)
    parts = (np.abs(rest) + np.abs(case.rows)) / unit * (np.abs(y) + np.abs(best))
    bad = ~(gap <= 16 * case.tolerance * np.sum(parts, axis=1) + box.slack)
    assert not bad.any(), f"nearer by {gap[bad]} of {np.sum(parts, axis=1)[bad]}\n{box}"


PROJECT_LAWS = [
    stays_in_ball_and_box,
    moves_nothing_further_outside,
    nothing_in_ball_and_box_is_nearer,
    spends_nothing_outside_the_mask,
    keeps_nan_in_its_row,
]


@pytest.mark.parametrize("law", PROJECT_LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_project_in_a_box(data, lib, law):
    law(project, data.draw(boxed_points(lib)))


@pytest.mark.parametrize("p", [1, 1.05, 1.5, 2, 2.7, 5, 20, math.inf])
def test_bounds_as_far_as_the_radius_obey_the_laws(lib, p):
    rng, floats = np.random.default_rng(4), lib.floats["float32"]
    grad = floats.round(rng.standard_normal((200, 6)))
    room = rng.choice([0, 0.25, 0.5, 1, 2], grad.shape)
    box = Box(Case(lib, floats, grad, p, 1.0, 0), np.zeros_like(room), -room, room)
    attains_the_most(epsilon, box)
    stays_in_ball_and_box(project, box)
    nothing_in_ball_and_box_is_nearer(project, box)


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_projecting_leaves_zero_entries_at_zero(lib, p):
    """A zero entry stays zero, also if its room underflows in units of sigma."""
    v, high = (lib.from_numpy(np.asarray([row], "f4")) for row in ([3e24, 0, 1e24], [1e30, 1e-37, 1e30]))
    assert lib.to_numpy(project(v, p, 3e9, x=0.0, bounds=(-1e30, high)))[0, 1] == 0


@pytest.mark.parametrize("walled", [False, True])
@given(data=st.data(), per_block=st.integers(1, 4))
def test_numpy_blocks_project_as_the_definition_does(data, per_block, walled):
    box = data.draw(boxed_points(numpy_readonly()))
    case, compute = box.case, box.case.floats.compute
    operands = [case.rows.astype(compute), case.radii.astype(compute)[:, None], box.room.astype(compute)]
    operands = operands if walled else operands[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of_numpy, "CACHE_BYTES", per_block * operands[0][0].nbytes)
        blocks = nearest(case.p, *operands).astype(np.longdouble)
    with np.errstate(all="ignore"):
        definition = nearest.value(case.p, *operands).astype(np.longdouble)
    size, underflow = norms(definition, 2), 4 * case.underflow
    assert np.all(norms(blocks - definition, 2) <= 64 * case.tolerance * size + underflow), box
    longest = norms(definition, case.p) * (1 + case.tolerance) + underflow
    assert np.all(norms(blocks, case.p) <= np.maximum(longest, case.radii)), box


def hard_rows(p, d):
    """Return operands with zeros, twelve decades, ties, and room that is often 0 or 1."""
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((60, d))
    grad[::4] *= rng.random((15, d)) < 0.23
    grad[1::4] *= 10 ** rng.uniform(-12, 0, (15, d))
    grad[2::4] = np.round(grad[2::4])
    room = np.clip(rng.normal(0.3, 0.5, grad.shape), 0, 1)
    return [a.astype(np.float32) for a in (grad, np.full((60, 1), d ** (1 / p) / 32), room)]


@pytest.mark.parametrize(
    ("p", "d"),
    [(1, 7), *((p, 600) for p in (1, 1.05, 1.3, 1.5, 2, 2.7, 3, 4, 6, 10, 20, math.inf))],
)
def test_numpy_blocks_leave_only_rare_rows_to_the_definition(p, d, monkeypatch):
    operands, left = hard_rows(p, d), []
    fill_blocks = multipliers.fill_blocks

    def counted(primitive, fill, p, *operands):
        def counting(*arguments):
            valid = fill(*arguments)
            left.append(np.count_nonzero(~valid))
            return valid

        return fill_blocks(primitive, counting, p, *operands)

    monkeypatch.setattr(multipliers, "fill_blocks", counted)
    for primitive, few in (step_in_box, operands), (nearest, operands[:2]), (nearest, operands):
        left.clear()
        primitive(p, *few)
        assert sum(left) <= (20 if p < 1.1 else 0), primitive.name


@pytest.mark.jax
@needs_jax
@pytest.mark.parametrize("exponent", [1, 1.3, 2, 4])
def test_jax_leaves_no_row_to_the_definition(exponent, monkeypatch):
    from lpfamily_jax import multipliers as kernels

    def checked(primitive, kernel, p, *operands):
        size, valid = kernel(*operands)
        assert valid.all(), primitive.name
        with np.errstate(all="ignore"):
            definition = primitive.value(p, *(a.astype(float) for a in operands))
        error = norms(np.copysign(size, operands[0]) - definition, p)
        assert np.all(error <= 64 * (16 + d**0.5) * np.finfo("f4").eps * operands[1][:, 0])

    monkeypatch.setattr(kernels, "_if_exact", checked)
    for d in 7, 600:
        v, *rest = hard_rows(exponent, d)
        if exponent == 1.3 and d == 7:  # some of whose rows have one entry of any size, which is at its bound
            v[1::4] = v[3::4]
        kernels.step_in_box_rows(exponent, v, *rest)
        kernels.nearest_rows(exponent, v, *rest)
        if exponent != 2:
            kernels.nearest_rows(exponent, v, rest[0])


def projection_scaled_and_clipped(v, p, sigma, *, x, bounds, mask=None):
    rows = v.reshape(len(v), -1)
    size = np.maximum(norms(rows, p), 1e-300)
    factor = np.minimum(1, np.broadcast_to(sigma, len(v)) / size).reshape(-1, *[1] * (v.ndim - 1))
    return np.clip((v * factor).astype(v.dtype), bounds[0] - x, bounds[1] - x)


def projection_without_bounds(v, p, sigma, *, x, bounds, mask=None):
    return project(v, p, sigma, mask=mask)


def projection_short_of_the_ball(v, p, sigma, *, x, bounds, mask=None):
    return project(v, p, 0.9 * np.asarray(sigma), x=x, bounds=bounds, mask=mask)


PROJECTION_MUTANTS = [
    (projection_scaled_and_clipped, nothing_in_ball_and_box_is_nearer),
    (projection_without_bounds, stays_in_ball_and_box),
    (projection_short_of_the_ball, nothing_in_ball_and_box_is_nearer),
]


@pytest.mark.parametrize(("mutant", "law"), PROJECTION_MUTANTS, ids=lambda function: function.__name__)
def test_a_mistake_in_projecting_breaks_its_law(mutant, law):
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        check_law(law, mutant, boxed_points(numpy_readonly()))
