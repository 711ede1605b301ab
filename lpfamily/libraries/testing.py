"""Conformance tests for the `Library` of any array library, as a pytest class to subclass.

The whole conformance test of a library is::

    import mylibrary
    from lpfamily.libraries.testing import LibraryTests

    class TestMine(LibraryTests):
        from_numpy = staticmethod(mylibrary.asarray)

Results are compared with eq. 3 in NumPy's longest float and with the optimality conditions of the maximiser
in a box and of the nearest point; derivatives are compared with central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

import lpfamily
from lpfamily._arrays import namespace_of
from lpfamily.libraries import Library, library_of

Floats = NDArray[Any]

P = (1.0, 1.1, 4 / 3, 1.5, 2.0, 2.7, 3.0, 9.0, math.inf)
SMOOTH = (1.5, 2.0, 2.7)
RADII = np.array([0.5, 1.0, 2.0, 0.0])


def rows() -> Floats:
    """Return examples whose entries differ in sign and size, with ties and zeros."""
    grad = np.random.default_rng(0).standard_normal((4, 12))
    grad[:, 0], grad[1, :4] = 0.0, 3.0
    return grad


def steepest(grad: Floats, p: float, radii: Floats) -> Floats:
    """Return eq. 3 and its limits for rows with ordinary entries."""
    size = np.abs(grad).astype(np.longdouble)
    r = size / size.max(axis=1, keepdims=True)
    u = (r == 1) * np.longdouble(1) if p == 1 else (r > 0) * r ** (0 if p == math.inf else 1 / (p - 1))
    unit = u if p == math.inf else u / np.sum(u**p, axis=1, keepdims=True) ** (1 / np.longdouble(p))
    result: Floats = np.sign(grad) * radii[:, None] * unit
    return result


class LibraryTests:
    """The tests. Set `from_numpy`, and override `to_numpy` if numpy.asarray cannot read the arrays.

    Attributes
    ----------
    from_numpy
        A static method that returns a NumPy array as an array of the library.
    gradient
        gradient(f)(x) returns the derivative of a scalar f; None if the library does not differentiate.
    rounding
        The largest relative error of results in the library's float64.
    """

    from_numpy: ClassVar[Callable[[Floats], Any]]
    gradient: ClassVar[Any] = None
    rounding: ClassVar[float] = 1e-12

    @staticmethod
    def to_numpy(x: Any) -> Floats:
        """Return an array of the library as a NumPy array."""
        return np.asarray(x)

    def given(self, x: Any) -> Any:
        """Return a copy of x as an array of the library."""
        return type(self).from_numpy(np.array(x))

    def taken(self, x: Any, like: Any) -> Floats:
        """Return a result as a NumPy array; it must have the type of `like`."""
        assert type(x) is type(like)
        return np.asarray(type(self).to_numpy(x))

    @pytest.mark.parametrize("p", P)
    def test_the_step_is_the_closed_form(self, p: float) -> None:
        grad = self.given(rows())
        step = self.taken(lpfamily.epsilon(grad, p, self.given(RADII)), grad)
        assert_allclose(step, steepest(rows(), p, RADII), rtol=self.rounding, atol=1e-300)

    @pytest.mark.parametrize("p", P)
    @pytest.mark.parametrize("scale", [1e-290, 1e290])
    def test_the_step_depends_on_the_direction_alone(self, p: float, scale: float) -> None:
        grad = self.given(rows() * scale)
        step = self.taken(lpfamily.epsilon(grad, p, self.given(RADII)), grad)
        assert_allclose(step, steepest(rows(), p, RADII), rtol=100 * self.rounding, atol=1e-300)

    @pytest.mark.parametrize("p", P)
    def test_zero_nan_and_infinity_keep_to_their_examples(self, p: float) -> None:
        grad = rows()
        grad[0], grad[1, 2], grad[2, 3] = 0.0, math.nan, -math.inf
        step = self.taken(lpfamily.epsilon(self.given(grad), p, 1.0), self.given(grad))
        assert_allclose(step[0], 0.0, atol=0)
        assert np.isnan(step[1, 2 if p == math.inf else slice(None)]).all()
        assert_allclose(step[2, 3], -1.0, rtol=self.rounding)
        assert_allclose(step[3:], steepest(grad[3:], p, np.ones(1)), rtol=self.rounding, atol=1e-300)

    @pytest.mark.parametrize("p", P)
    def test_the_penalty_is_the_gain_of_the_step(self, p: float) -> None:
        grad = self.given(rows())
        penalty = self.taken(lpfamily.penalty(grad, p, self.given(RADII)), grad)
        gain = np.sum(rows() * steepest(rows(), p, RADII), axis=1)
        assert_allclose(penalty, gain.astype(float), rtol=self.rounding)

    @pytest.mark.parametrize("p", P)
    def test_the_step_in_a_box_is_the_maximiser(self, p: float) -> None:
        """The free entries follow eq. 3, the others are at their bounds, and the budget is spent."""
        grad, x, radius = rows(), np.full((4, 12), 0.4), 0.7
        grad[1] += 0.01 * np.arange(12)  # at p = 1 ties have several maximisers
        given = self.given(grad)
        step = self.taken(lpfamily.epsilon(given, p, radius, x=self.given(x), bounds=(0.1, 0.8)), given)
        room = np.where(grad < 0, 0.3, 0.4)
        low, high = np.zeros((4, 1)), np.full((4, 1), 1.0)
        if p == math.inf:
            expected = np.where(grad == 0, 0.0, np.minimum(room, radius))
        elif p == 1:
            order = np.argsort(-np.abs(grad), axis=1)
            rooms = np.take_along_axis(np.where(grad == 0, 0.0, room), order, axis=1)
            before = np.cumsum(rooms, axis=1) - rooms
            expected = np.zeros_like(grad)
            np.put_along_axis(expected, order, np.clip(radius - before, 0, rooms), axis=1)
        else:
            u = (np.abs(grad) / np.abs(grad).max(axis=1, keepdims=True)) ** (1 / (p - 1))
            high = high * (radius + 1) / u[u > 0].min()
            for _ in range(2000):
                middle = (low + high) / 2
                over = np.sum(np.minimum(middle * u, room) ** p, axis=1, keepdims=True) > radius**p
                low, high = np.where(over, low, middle), np.where(over, middle, high)
            expected = np.minimum(low * u, room)
        assert_allclose(step, np.sign(grad) * expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
    def test_the_projection_is_the_nearest_point(self, p: float) -> None:
        """<v - y, z - y> <= 0 for every z of the ball: the largest <v - y, z> is a dual norm."""
        v = self.given(rows())
        y = self.taken(lpfamily.project(v, p, 0.5), v)
        normal = rows() - y
        best = np.sum(normal * steepest(normal, p, np.full(4, 0.5)), axis=1)
        assert_allclose(np.sum(normal * y, axis=1), best.astype(float), rtol=1e-9)

    @pytest.mark.parametrize("p", SMOOTH)
    def test_derivatives_are_those_of_the_closed_form(self, p: float) -> None:
        if self.gradient is None:
            return
        grad = rows()[:, 1:]
        weights = np.random.default_rng(1).standard_normal(grad.shape)
        w = self.given(weights)

        def total(g: Any) -> Any:
            return (w * lpfamily.epsilon(g, p, 0.5)).sum()

        derivative = np.asarray(type(self).to_numpy(type(self).gradient(total)(self.given(grad))))
        expected = np.empty_like(grad)
        for index in np.ndindex(grad.shape):
            change = np.zeros_like(grad)
            change[index] = 1e-5
            up, down = (steepest(grad + s * change, p, np.full(4, 0.5)) for s in (1, -1))
            expected[index] = np.sum(weights * (up - down)) / 2e-5
        assert_allclose(derivative, expected, rtol=1e-5, atol=1e-6)

    def test_a_zero_gradient_has_no_derivative_but_zero(self) -> None:
        if self.gradient is None:
            return
        zero = self.given(np.zeros((2, 3)))
        derivative = type(self).gradient(lambda g: lpfamily.epsilon(g, 2, 1.0).sum())(zero)
        assert_allclose(np.asarray(type(self).to_numpy(derivative)), 0.0, atol=0)

    def test_it_is_a_library(self) -> None:
        library = library_of(self.given(rows()))
        assert isinstance(library, Library)
        x = self.given(np.array([[0.5, 3.0, -40.0]]))
        tail = self.taken(library.normal_tail(x), x)
        expected = [[math.erfc(v * 0.5**0.5) / 2 for v in (0.5, 3.0, -40.0)]]
        assert_allclose(tail, expected, rtol=self.rounding)
        halved = library.repeat(lambda a: (a / 2,), (self.given(np.ones((1, 2))),), 5)[0]
        assert_allclose(self.taken(halved, x), 2.0**-5)
        assert_allclose(self.taken(library.constant(x), x), [[0.5, 3.0, -40.0]])

    def test_iterate_branch_and_places_match_python(self) -> None:
        x = self.given(np.ones((1, 3)))
        library = library_of(x)
        total, product = library.iterate(lambda at, by: (at[0] + by, at[1] * by), (x, x), [2.0, 4.0])
        assert_allclose(self.taken(total, x), 7.0)
        assert_allclose(self.taken(product, x), 8.0)
        for condition, expected in (True, 3.0), (False, 1.0):
            after = library.branch(self.given(np.array(condition)), lambda at: 3 * at, x)
            assert_allclose(self.taken(after, x), expected)
        places = library.places(self.given(np.array([True, False, True])))
        if places is not None:  # its shapes depend on values
            assert np.asarray(type(self).to_numpy(places)).tolist() == [0, 2]

    @pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
    def test_the_adaptive_ascent_finds_the_top(self, p: float) -> None:
        """The maximum of -||x + eps - top||^2 in a ball is at the ball's nearest point to top."""
        x, top = self.given(np.zeros((4, 12))), self.given(rows())
        xp = namespace_of(x)

        def value_and_grad(at: Any) -> tuple[Any, Any]:
            return -xp.sum((at - top) ** 2, axis=-1), 2 * (top - at)

        radii = self.given(RADII)
        eps = self.taken(lpfamily.ascend(value_and_grad, x, p, radii, 60, method="adaptive"), x)
        nearest = self.taken(lpfamily.project(top, p, radii), x)
        distance, least = (np.linalg.norm(rows() - point, axis=1) for point in (eps, nearest))
        assert_allclose(distance, least, rtol=1e-3, atol=0.05)
