"""A batch of examples under attack: each attack takes the examples that no earlier one has fooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily._arrays import Array, Bounds, Numbers, namespace_of
from lpfamily.ascent import ascend
from lpfamily.balls import sample
from lpfamily.ensemble import boundary
from lpfamily.ensemble.examples import Classifier, Examples, Ints, finite_gradients
from lpfamily.measured import PARTS, Ball
from lpfamily.step import epsilon


@dataclass(frozen=True)
class Plan:
    """How many gradients per example each attack takes."""

    steps: int
    """Gradients of an ascent of the log-odds, from the example and from every restart."""
    targets: int
    """The number of wrong classes that are aimed at."""
    target_steps: int
    """Gradients of an ascent of the margin, for each of these classes."""
    restarts: int
    """The number of random restarts."""
    walk: int
    """Gradients of the search for the smallest perturbation, for each example that an attack has fooled."""
    noise: int = 5
    """The number of random points in each ball, for the examples that nothing else fools."""


WIDER = (3, 2)
"""The balls in which margins and restarts begin, in units of the radius: steps in a larger ball get around
obstacles that would stop them in this one."""
SHARE = 0.3
"""The share of the steps in each of these balls."""


class Batch(Examples):
    """A batch of examples under attack."""

    def __init__(
        self,
        classifier: Classifier,
        x: Array,
        y: Array,
        bounds: Bounds | None,
        plan: Plan,
        rng: np.random.Generator,
        scale: Numbers | None = None,
    ):
        super().__init__(classifier, x, y, bounds, scale)
        self.plan, self.rng = plan, rng
        self.taken = np.zeros(len(x), np.int64)
        """The number of gradients that the last climb has taken of each example."""

    def step(self, p: float, sigma: float) -> Array:
        """Return eq. 3 in ball and box, for every example."""
        return epsilon(self.grad, p, sigma, **self.box_of(np.arange(len(self.labels)), self.x))

    def climb(
        self,
        indices: Ints,
        p: float,
        sigma: Numbers,
        steps: int,
        rank: int | None = None,
        start: Any = None,
        stop: bool = True,
    ) -> Array:
        """Return perturbations by ascent of the log-odds, or of the margin of one wrong class.

        `rank` is that of the class among the wrong ones, by the logits at x. With `stop` an example ends as
        soon as it is fooled; otherwise its perturbation is the one of the largest value. `taken` has the
        number of gradients of each example.
        """
        x, y, xp = self.x[indices], self.y[indices], namespace_of(self.x)
        aims = None if rank is None else self.from_host(self.order[indices, rank], self.y)
        taken = np.zeros(len(indices), np.int64)

        def value_and_grad(at: Array, rows: Any) -> tuple[Array, Array]:
            logits, value, grad = self.classifier.evaluate(at, y[rows], None if aims is None else aims[rows])
            taken[rows if isinstance(rows, slice) else self.classifier.host(rows)] += 1
            if stop:
                value = xp.where(xp.argmax(logits, axis=-1) != y[rows], math.inf, value)
            return value, finite_gradients(grad)[0]

        options = {"start": start, "bounds": self.bounds_of(indices)} | self.ball_of(indices)
        eps = ascend(value_and_grad, x, p, sigma, steps, stop_above=self.largest, **options)
        self.taken[indices] = taken
        self.gradients += int(taken.sum())
        return eps

    def shrink(
        self, indices: Ints, p: float, sigma: float, steps: int, rank: int | None = None, start: Any = None
    ) -> Array:
        """Return perturbations of a climb that begins in larger balls and ends in this one."""
        if first := int(SHARE * steps):
            for times in WIDER:
                start = self.climb(indices, p, times * sigma, first, rank, start, stop=False)
        return self.climb(indices, p, sigma, steps - first * len(WIDER), rank, start)

    def noise(self, indices: Ints, p: float, sigma: float) -> Array:
        """Return random points of ball and box."""
        ball = self.ball_of(indices)
        if not (ball["scale"] is None or isinstance(ball["scale"], int | float | np.ndarray | np.generic)):
            ball["scale"] = self.classifier.host(ball["scale"])  # the draws are NumPy's
        drawn = self.from_host(sample(tuple(self.x[indices].shape), p, sigma, self.rng, **ball), self.x)
        return drawn if self.bounds is None else self.nearest(indices, drawn, p, sigma)

    def ball(
        self, p: float, sigmas: Sequence[float], tick: Callable[[int, str], None] = lambda *_: None
    ) -> Ball:
        """Attack every example in balls of these radii, in the given order.

        `tick(index, text)` is called before each ball, and before the search for the smallest perturbations.
        """
        n, plan, before = len(self.labels), self.plan, self.gradients
        fooled_by = np.where(self.predicted != self.labels, 0, -1)
        smallest = np.where(fooled_by == 0, 0.0, math.inf)
        best = np.zeros(tuple(self.x.shape), self.classifier.host(self.x[:0]).dtype)
        fooled, one_step, late = [], [], np.zeros(len(sigmas), np.int64)

        def note(indices: Ints, eps: Array, hit: NDArray[np.bool_], sigma: Any, name: str) -> None:
            """Note which of these examples a perturbation fools, and how small it is."""
            fooled_by[indices[hit & (fooled_by[indices] < 0)]] = PARTS.index(name)
            # rounding can put the norm above sigma
            size = np.minimum(self.norms(indices, eps, p), sigma)
            less = hit & (size < smallest[indices])
            smallest[indices[less]], best[indices[less]] = size[less], self.classifier.host(eps)[less]

        def attack(name: str, sigma: float, perturbations: Callable[[Ints], Array]) -> Ints:
            """Attack the examples that are left; return the indices of those that are fooled."""
            indices = np.flatnonzero(fooled_by < 0)
            if not len(indices):
                return indices
            eps = perturbations(indices)
            hit = self.fools(indices, eps)
            note(indices, eps, hit, sigma, name)
            return indices[hit]

        for index, sigma in enumerate(sigmas):
            tick(index, f"sigma = {sigma:.4g}")
            step = self.step(p, sigma)
            hit = self.fools(np.arange(n), step)
            one_step.append(hit)
            note(np.arange(n), step, hit, sigma, "one step")
            hits = attack("log-odds", sigma, partial(self.climb, p=p, sigma=sigma, steps=plan.steps))
            late[index] = np.count_nonzero(self.taken[hits] > 0.75 * plan.steps)
            shrink = partial(self.shrink, p=p, sigma=sigma)
            for rank in range(min(plan.targets, self.z.shape[1] - 1)):
                attack("margins", sigma, partial(shrink, steps=plan.target_steps, rank=rank))
            for _ in range(plan.restarts):
                attack("restarts", sigma, partial(shrink, steps=plan.steps, start=self.rng))
            for _ in range(plan.noise):
                attack("noise", sigma, partial(self.noise, p=p, sigma=sigma))
            fooled.append(fooled_by >= 0)
        if plan.walk and len(indices := np.flatnonzero(fooled_by > 0)):
            tick(len(sigmas), "smallest sigma")
            for way in boundary.WAYS:
                start = self.from_host(best[indices], self.x) * way.begin
                steps = round(plan.walk * way.share)
                eps, least = boundary.walk(self, indices, p, smallest[indices], way, steps, start)
                note(indices, eps, self.fools(indices, eps), least, "log-odds")
            eps = boundary.nearer(self, indices, self.from_host(best[indices], self.x))
            note(indices, eps, self.fools(indices, eps), smallest[indices], "log-odds")
        return Ball(
            p=p,
            sigmas=tuple(sigmas),
            smallest=smallest,
            part=fooled_by,
            fooled=np.array(fooled) | (smallest <= np.array(sigmas)[:, None]),
            one_step=np.array(one_step),
            late=late,
            gradients=self.gradients - before + n,
        )
