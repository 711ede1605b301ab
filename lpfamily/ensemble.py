"""The robustness of any classifier in Lp balls, by an ensemble of attacks built from eq. 3."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lpfamily._arrays import Array, Bounds, Numbers, check_p, device_of, finfo, namespace_of, reshape
from lpfamily.ascent import ascend
from lpfamily.ascent.search import of_examples
from lpfamily.balls import project, sample
from lpfamily.box import box_of
from lpfamily.classification import error_log_odds, odds_gradient
from lpfamily.measured import PARTS, Ball, Robustness
from lpfamily.norms import norm, penalty
from lpfamily.step import epsilon
from lpfamily.trees import Joint, is_tree, mapped, named_leaves
from lpfamily.units import Units

Effort: TypeAlias = Literal["quick", "standard", "thorough"]
Sigmas: TypeAlias = float | Sequence[float] | Mapping[float, float | Sequence[float]]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How many gradients each part of the ensemble takes of an example that is left."""

    steps: int
    """On the log-odds, from the example and from every restart."""
    targets: int
    """How many classes are aimed at."""
    target_steps: int
    restarts: int
    walk: int
    """In search of the smallest perturbation, of every example that something has fooled."""
    noise: int = 5
    """How many random points are tried in each ball, of the examples that nothing else fools."""


WIDER = (3, 2)
"""Where margins and restarts begin, in units of the radius: larger balls lead around what stops a step."""
SHARE = 0.3
"""Of their steps in each of these balls."""


class Way(NamedTuple):
    """A search for the smallest perturbation: where it begins, what it climbs, and how far."""

    aimed: bool
    """Whether it raises the margin of the likeliest wrong class in the place of the log-odds."""
    begin: int
    """0 is at the example, 1 at the smallest perturbation so far."""
    share: float
    """Of the steps."""
    length: tuple[float, float]
    """Of the first and the last step, in units of the smallest norm so far, at first of the radius."""


WAYS = (
    # log-odds find whichever class is nearest, but once no class is likely they leave that one for all others
    Way(aimed=False, begin=0, share=0.35, length=(1, 0.01)),
    Way(aimed=True, begin=0, share=0.35, length=(1, 0.01)),
    Way(aimed=True, begin=1, share=0.3, length=(0.2, 0.01)),
)
GAMMA = 0.1, 0.001
"""By what share the ball of a way grows and shrinks, at first and at last."""
FLOOR = 0.01
"""Its least radius before anything fools, in units of the norm of what is known to."""

NEARER = 6
"""How often the last tenth of the way from an example to a perturbation is halved."""

EFFORTS: dict[str, Plan] = {
    "quick": Plan(steps=30, targets=3, target_steps=15, restarts=0, walk=24),
    "standard": Plan(steps=100, targets=9, target_steps=60, restarts=2, walk=80),
    "thorough": Plan(steps=200, targets=20, target_steps=100, restarts=10, walk=400),
}


@dataclass(frozen=True)
class Passes:
    """Passes through a classifier, on arrays of one library.

    `evaluate(x, y, targets)` returns logits, values and gradients of examples, like x: the value is the error
    log-odds of y or, where `targets` names a class, its logit less that of y. `logits(x)` returns the logits.
    """

    evaluate: Callable[[Array, Array, Array | None], tuple[Array, Array, Array]]
    logits: Callable[[Array], Array]
    host: Callable[[Array], NDArray[Any]] = np.asarray
    """Returns an array as NumPy's."""
    admit: Callable[[Any], Array] = np.asarray
    """Returns what is given, x or y, as the model takes it."""
    rank: int = 0
    """Which of `size` processes this is: it takes one of every `size` batches."""
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda made: [made]
    """Returns what all processes have made, in all of them."""


def robustness(
    model: Callable[[Array], tuple[Array, Callable[[Array], Array]]],
    x: Any,
    y: Array | None = None,
    *,
    p: float | Sequence[float] = (1, 2, math.inf),
    sigma: Sigmas,
    bounds: Bounds | None = None,
    scale: Numbers | None = None,
    effort: Effort = "standard",
    batch_size: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Robustness:
    """Return how many examples a classifier gets wrong in Lp balls, and how small a ball is enough for each.

    Every example is attacked in the ball ||eps||_p <= sigma, and in the box of `bounds`, until one attack has
    found an eps with argmax logits(x + eps) != y; each attack takes those that are left:

    - "one step": eq. 3 at the gradient of the error log-odds.
    - "log-odds": `lpfamily.ascend` of the error log-odds, adaptive.
    - "margins": the same of z_t - z_y, for the classes t in the order of their logits, first in balls of
      three and two times the radius, and from there in this one.
    - "restarts": of the log-odds again, likewise, from random points.
    - "noise": points drawn uniformly from the ball. Where this fools what the others do not, the gradients
      do not show the way.

    What is fooled in a ball is fooled in every larger one, so the error never falls as sigma grows. It is a
    lower bound of the error in the ball: no attack proves that there is no eps. "standard" takes at most
    the gradients per example of AutoAttack's white-box part, 1,000 in each ball, "quick" a tenth, and
    "thorough" some 4,600. Of every example that something has fooled the smallest sigma is then searched on
    ways along the decision boundary, in a ball that shrinks where it fools and grows where it does not.

    Parameters
    ----------
    model
        A function of NumPy arrays: `model(x)` returns logits, of shape (n, classes), and a function that maps
        weights like them to the gradient of sum(weights * logits) with respect to x.
        `lpfamily_torch.robustness` and `lpfamily_jax.robustness` take models of these libraries.
    x, y
        The inputs, a floating array whose first axis indexes examples, or a tree of them as in
        `lpfamily.epsilon`, which the model is then given; and their classes, integers of shape (n,). Without
        y, x is an iterable of such pairs, as a data loader is, so that not all of them need fit into memory.
    p
        Exponents of balls, in [1, inf]: 1 moves few entries far, 2 takes the Euclidean norm, inf moves all by
        sigma at most.
    sigma
        The radius or radii, in units of x, for every p or as a mapping from p to its own.
    bounds
        (low, high), as in `lpfamily.epsilon`: numbers, or arrays that broadcast to one example, or trees of
        them.
    scale
        As in `lpfamily.epsilon`, likewise: the balls are ||eps / scale||_p <= sigma.
    effort
        "quick", "standard" or "thorough".
    batch_size
        How many examples are attacked together, where y is given.
    seed
        Of the random points.
    progress
        Whether standard error shows how far it is.

    Returns
    -------
    Robustness
        Errors by p and sigma, what fooled which example, the smallest radii, and findings.

    Raises
    ------
    TypeError, ValueError
        For labels and logits that do not have their shape, no example, no radius, an unknown effort, and as
        in `lpfamily.epsilon`.

    References
    ----------
    Croce and Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020; Croce and Hein: Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers,
    2021 (larger balls first); Pintor, Roli, Brendel, Biggio: Fast Minimum-norm Adversarial Attacks through
    Adaptive Norm Constraints, 2021 (balls that follow the boundary); Lyu, Huang, Liang: A Unified Gradient
    Regularization Family for Adversarial Examples, 2015, eq. 1 and 3.
    """

    def evaluate(x: Array, y: Array, targets: Array | None) -> tuple[Array, Array, Array]:
        logits, pullback = model(x)
        if targets is None:
            return logits, error_log_odds(logits, y), pullback(odds_gradient(logits, y))
        rows, direction = np.arange(len(y)), np.zeros(logits.shape, logits.dtype)
        direction[rows, targets] = 1
        direction[rows, y] -= 1
        return logits, logits[rows, targets] - logits[rows, y], pullback(direction)

    passes = Passes(evaluate, lambda x: model(x)[0])
    return measure(passes, batches(x, y, batch_size), p, sigma, bounds, scale, effort, seed, progress)


def batches(x: Any, y: Any, batch_size: int) -> Iterable[tuple[Any, Any]]:
    """Return pairs of inputs and labels, of so many examples each, or those that are given."""
    if y is None:
        pairs: Iterable[tuple[Any, Any]] = x
        return pairs
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for path, leaf in named_leaves(x, "x"):
        if (n := (*np.shape(leaf), 0)[0]) != len(y):
            raise ValueError(f"{path} and y must be as long; got {n} inputs and {len(y)} labels")

    def some(leaf: Any, begin: int) -> Any:
        return leaf[begin : begin + batch_size]

    return [(mapped(partial(some, begin=i), x), some(y, i)) for i in range(0, len(y), batch_size)]


def measure(
    passes: Passes,
    data: Iterable[tuple[Array, Array]],
    p: float | Sequence[float],
    sigma: Sigmas,
    bounds: Bounds | None,
    scale: Numbers | None,
    effort: str,
    seed: int,
    progress: bool,
) -> Robustness:
    """Return what `robustness` does, of passes through a model of any library."""
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(map(repr, EFFORTS))}; got {effort!r}")
    radii, made = _radii(p, sigma), {}
    for number, (x, y) in enumerate(data):
        if number % passes.size != passes.rank:
            continue
        rng = np.random.default_rng((seed, number))
        x, y = mapped(passes.admit, x), passes.admit(y)
        attacked, box, units = passes, bounds, scale
        if is_tree(x):
            attacked, x, box, units = _joined(passes, x, bounds, scale)
        z = _checked(passes.host(attacked.logits(x)), passes.host(y), len(x))
        batch = Batch(attacked, x, y, box, EFFORTS[effort], rng, units)
        balls = {}
        for each, sigmas in radii.items():
            if progress:
                of = f" of {len(data)}" if isinstance(data, Sized) else ""
                sys.stderr.write(f"\rrobustness: batch {number + 1}{of}, p = {each:g}    ")
                sys.stderr.flush()
            balls[each] = batch.ball(each, sigmas)
        made[number] = Robustness(
            labels=batch.labels,
            predicted=batch.predicted,
            classes=batch.z.shape[1],
            no_gradient=batch.still,
            random=not np.array_equal(z, batch.z, equal_nan=True),
            effort=effort,
            seed=seed,
            balls=balls,
        )
    if progress:
        sys.stderr.write("\n")
    numbered = {number: each for some in passes.gather(made) for number, each in some.items()}
    if not sum(map(len, numbered.values())):
        raise ValueError("there is no example: x is empty, or an iterable that gives nothing")
    return Robustness.joined([numbered[number] for number in sorted(numbered)])


def _joined(
    passes: Passes, x: Any, bounds: Bounds | None, scale: Numbers | None
) -> tuple[Passes, Array, Bounds | None, Numbers | None]:
    """Return passes of the rows of a tree, these rows, their bounds and their scale."""
    joint = Joint.of("x", x, 1, scale=scale, box=() if bounds is None else box_of(x, bounds))

    def evaluate(rows: Array, y: Array, targets: Array | None) -> tuple[Array, Array, Array]:
        logits, value, grad = passes.evaluate(joint.tree_of(rows), y, targets)
        return logits, value, joint.like("grad", grad, tuple(rows.shape[:1])).rows

    of_rows = replace(passes, evaluate=evaluate, logits=lambda rows: passes.logits(joint.tree_of(rows)))
    _, low, high = joint.box_of_rows or (None, None, None)
    return of_rows, joint.rows, None if bounds is None else (low, high), joint.scale


def _checked(z: NDArray[Any], labels: Ints, n: int) -> NDArray[Any]:
    """Return the logits of n examples if they and the labels are what they must be."""
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"y must be integers, one class per example, of shape ({n},); got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if z.ndim != 2 or len(z) != n:
        raise ValueError(f"the model must return logits of shape ({n}, classes); got {z.shape}")
    if n and not 0 <= labels.min() <= labels.max() < z.shape[1]:
        raise ValueError(
            f"y must be classes of the {z.shape[1]} that have logits, from 0; got {labels.min()} to "
            f"{labels.max()}"
        )
    return z


def _radii(p: float | Sequence[float], sigma: Sigmas) -> dict[float, tuple[float, ...]]:
    ps: list[Any] = [p] if np.ndim(p) == 0 else list(p)  # type: ignore[arg-type]
    if not ps:
        raise ValueError("p must name at least one exponent, such as 2; got none")
    result = {}
    for each in ps:
        if isinstance(sigma, Mapping) and each not in sigma:
            raise ValueError(f"sigma has no radius for p = {each:g}; it has some for {list(sigma)}")
        given: Any = sigma[each] if isinstance(sigma, Mapping) else sigma
        radii = np.unique(np.atleast_1d(np.asarray(given, float)))
        if not len(radii) or not np.all((radii >= 0) & (radii < math.inf)) or not radii[-1] > 0:
            raise ValueError(
                f"sigma must be one or more radii in units of x, the largest above 0; got {given}"
            )
        result[check_p(each)] = tuple(float(radius) for radius in radii if radius > 0)
    return result


def _directed(grad: Array) -> tuple[Array, Array]:
    """Return gradients, 0 for those of examples that are not finite, and which have no direction."""
    xp = namespace_of(grad)
    size = xp.max(xp.abs(reshape(grad, (grad.shape[0], -1))), axis=1)
    finite = xp.isfinite(size)
    if not bool(xp.all(finite)):
        grad = xp.where(reshape(finite, (-1, *[1] * (grad.ndim - 1))), grad, xp.zeros_like(grad))
    return grad, ~finite | (size == 0)


class Batch:
    """Some examples under attack."""

    def __init__(
        self,
        passes: Passes,
        x: Array,
        y: Array,
        bounds: Bounds | None,
        plan: Plan,
        rng: np.random.Generator,
        scale: Numbers | None = None,
    ):
        self.passes, self.x, self.y, self.bounds, self.plan, self.rng = passes, x, y, bounds, plan, rng
        self.scale = scale
        self.labels: Ints = passes.host(y)
        logits, _, grad = passes.evaluate(x, y, None)
        self.z, self.largest = passes.host(logits), float(finfo(namespace_of(logits), logits.dtype).max)
        self.predicted = self.z.argmax(axis=1)
        right = np.arange(self.z.shape[1]) == self.labels[:, None]
        self.order = np.argsort(-np.where(right, -math.inf, self.z), axis=1, kind="stable")
        self.grad, still = _directed(grad)
        self.still = passes.host(still)
        self.gradients = 0
        self.taken = np.zeros(len(x), np.int64)

    def fools(self, rows: Ints, eps: Array) -> NDArray[np.bool_]:
        """Return which of these examples are misclassified at x + eps."""
        z = self.passes.host(self.passes.logits(self.x[rows] + eps))
        return np.asarray(z.argmax(axis=1) != self.labels[rows])

    def within(self, rows: Ints) -> Bounds | None:
        """Return the bounds of these examples."""
        if self.bounds is None:
            return None
        low, high = (of_examples(rows, self.x, bound, self.x.ndim) for bound in self.bounds)
        return low, high

    def weights(self, rows: Ints) -> dict[str, Any]:
        """Return what tells the functions of the core which balls these examples have."""
        return {"batch_ndim": 1, "scale": of_examples(rows, self.x, self.scale, self.x.ndim)}

    def here(self, values: NDArray[Any], like: Array) -> Array:
        """Return values of NumPy as an array of the model's library."""
        xp = namespace_of(like)
        return xp.asarray(values, dtype=like.dtype, device=device_of(like))

    def nearer(self, rows: Ints, eps: Array) -> Array:
        """Return shares of perturbations that fool, of 0.9 or more, that still do; it takes no gradient."""
        least, most = np.full(len(rows), 0.9), np.ones(len(rows))
        for _ in range(NEARER):
            middle = (least + most) / 2
            hit = self.fools(rows, eps * self.column(middle))
            least, most = np.where(hit, least, middle), np.where(hit, middle, most)
        return eps * self.column(most)

    def column(self, values: Floats) -> Array:
        """Return one value per example beside the entries of x."""
        return self.here(values.reshape(-1, *[1] * (self.x.ndim - 1)), self.x)

    def climb(
        self,
        rows: Ints,
        p: float,
        sigma: Numbers,
        steps: int,
        rank: int | None = None,
        start: Any = None,
        stop: bool = True,
    ) -> Array:
        """Return perturbations, each as soon as it fools; `taken` has how many gradients each has taken.

        They raise the log-odds or, of this rank among the wrong classes, the margin of the class. Those that
        do not stop there have the largest value.
        """
        x, y, xp = self.x[rows], self.y[rows], namespace_of(self.x)
        aims = None if rank is None else self.here(self.order[rows, rank], self.y)
        taken = np.zeros(len(rows), np.int64)

        def value_and_grad(at: Array, some: Any) -> tuple[Array, Array]:
            logits, value, grad = self.passes.evaluate(at, y[some], None if aims is None else aims[some])
            taken[some if isinstance(some, slice) else self.passes.host(some)] += 1
            if stop:
                value = xp.where(xp.argmax(logits, axis=-1) != y[some], math.inf, value)
            return value, _directed(grad)[0]

        options = {"start": start, "bounds": self.within(rows)} | self.weights(rows)
        eps = ascend(value_and_grad, x, p, sigma, steps, stop_above=self.largest, **options)
        self.taken[rows] = taken
        self.gradients += int(taken.sum())
        return eps

    def shrink(
        self, rows: Ints, p: float, sigma: float, steps: int, rank: int | None = None, start: Any = None
    ) -> Array:
        """Return what climbs in larger balls first, and from there in this one."""
        if first := int(SHARE * steps):
            for times in WIDER:
                start = self.climb(rows, p, times * sigma, first, rank, start, stop=False)
        return self.climb(rows, p, sigma, steps - first * len(WIDER), rank, start)

    def walk(
        self, rows: Ints, p: float, most: Floats, way: Way, steps: int, eps: Array
    ) -> tuple[Array, Floats]:
        """Return the smallest perturbations that fool, on a way along the boundary, and their norms.

        The ball follows the way: it shrinks where x + eps fools and grows where it does not; until one fools,
        its radius is what the linearised value asks for. Norms are at most those of `most`, which are known
        to fool.
        """
        x, y, xp = self.x[rows], self.y[rows], namespace_of(self.x)
        right = np.arange(self.z.shape[1]) == self.labels[rows, None]
        aims, best = self.order[rows, 0], eps
        least, radius, met = most, most, np.zeros(len(rows), bool)
        shares = 0.5 + 0.5 * np.cos(math.pi * np.arange(steps) / steps)
        for length, gamma in zip(_between(way.length, shares), _between(GAMMA, shares), strict=True):
            targets = self.here(aims, self.y) if way.aimed else None
            logits, value, grad = self.passes.evaluate(x + eps, y, targets)
            self.gradients += len(rows)
            z, size = self.passes.host(logits), self.norms(rows, eps, p)
            hit = z.argmax(axis=1) != self.labels[rows]
            aims = np.where(right, -math.inf, z).argmax(axis=1)
            less = hit & (size < least)
            best = xp.where(self.column(less) > 0, eps, best)
            least, met = np.where(less, size, least), met | hit
            grad, still = _directed(grad)
            slope = self.passes.host(penalty(grad, p, 1.0, **self.weights(rows))).astype(np.float64)
            slope = np.where(self.passes.host(still) | (slope == 0), math.inf, slope)
            ahead = np.nan_to_num(-self.passes.host(value) / slope)
            asked = np.maximum(size + ahead, np.maximum(size, FLOOR * least) * (1 + gamma))
            grown = np.minimum(np.where(met, radius * (1 + gamma), asked), least)
            radius = np.where(hit, np.minimum(radius, least) * (1 - gamma), grown)
            reach = self.here(length * np.where(met, least, radius), x)
            eps = eps + epsilon(grad, p, reach, **self.box(rows, x + eps))
            eps = self.nearest(rows, eps, p, self.here(radius, x))
        return best, least

    def nearest(self, rows: Ints, eps: Array, p: float, radius: Numbers) -> Array:
        """Return the nearest points of ball and box, in the units of the scale if there is one."""
        x, bounds = self.x[rows], self.within(rows)
        if self.scale is None:
            return project(eps, p, radius, **self.box(rows, x))
        units = Units.of(x, radius, bounds, 1, None, self.weights(rows)["scale"])
        box: dict[str, Any] = {} if bounds is None else {"x": 0.0, "bounds": units.bounds}
        return units.eps(project(units.inverse(eps), p, radius, batch_ndim=1, mask=units.mask, **box))

    def norms(self, rows: Ints, eps: Array, p: float) -> Floats:
        """Return the norms of perturbations of these examples as float64 of NumPy."""
        return self.passes.host(norm(eps, p, **self.weights(rows))).astype(np.float64)

    def step(self, p: float, sigma: float) -> Array:
        """Return eq. 3 in ball and box, for every example."""
        return epsilon(self.grad, p, sigma, **self.box(np.arange(len(self.labels)), self.x))

    def noise(self, rows: Ints, p: float, sigma: float) -> Array:
        """Return random points of ball and box."""
        ball = self.weights(rows)
        if not (ball["scale"] is None or isinstance(ball["scale"], int | float | np.ndarray | np.generic)):
            ball["scale"] = self.passes.host(ball["scale"])  # the draws are NumPy's
        drawn = self.here(sample(tuple(self.x[rows].shape), p, sigma, self.rng, **ball), self.x)
        return drawn if self.bounds is None else self.nearest(rows, drawn, p, sigma)

    def box(self, rows: Ints, x: Array) -> dict[str, Any]:
        """Return the same, and that x + eps of these examples stays in the box."""
        inside = {} if self.bounds is None else {"x": x, "bounds": self.within(rows)}
        return self.weights(rows) | inside

    def ball(
        self, p: float, sigmas: Sequence[float], tick: Callable[[int, str], None] = lambda *_: None
    ) -> Ball:
        """Attack every example in balls of these radii, in their order; `tick` is told which is next."""
        n, plan, begun = len(self.labels), self.plan, self.gradients
        part = np.where(self.predicted != self.labels, 0, -1)
        smallest = np.where(part == 0, 0.0, math.inf)
        best = np.zeros(tuple(self.x.shape), self.passes.host(self.x[:0]).dtype)
        fooled, one_step, late = [], [], np.zeros(len(sigmas), np.int64)

        def note(rows: Ints, eps: Array, hit: NDArray[np.bool_], sigma: Any, name: str) -> None:
            """Note which of these examples a perturbation fools, and how small it is."""
            part[rows[hit & (part[rows] < 0)]] = PARTS.index(name)
            # of a norm that is above sigma by rounding at most
            size = np.minimum(self.norms(rows, eps, p), sigma)
            less = hit & (size < smallest[rows])
            smallest[rows[less]], best[rows[less]] = size[less], self.passes.host(eps)[less]

        def attack(name: str, sigma: float, make: Callable[[Ints], Array]) -> Ints:
            """Return which of those that are left an attack fools."""
            rows = np.flatnonzero(part < 0)
            if not len(rows):
                return rows
            eps = make(rows)
            hit = self.fools(rows, eps)
            note(rows, eps, hit, sigma, name)
            return rows[hit]

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
            fooled.append(part >= 0)
        if plan.walk and len(rows := np.flatnonzero(part > 0)):
            tick(len(sigmas), "smallest sigma")
            for way in WAYS:
                start = self.here(best[rows], self.x) * way.begin
                eps, least = self.walk(rows, p, smallest[rows], way, round(plan.walk * way.share), start)
                note(rows, eps, self.fools(rows, eps), least, "log-odds")
            eps = self.nearer(rows, self.here(best[rows], self.x))
            note(rows, eps, self.fools(rows, eps), smallest[rows], "log-odds")
        return Ball(
            p=p,
            sigmas=tuple(sigmas),
            smallest=smallest,
            part=part,
            fooled=np.array(fooled) | (smallest <= np.array(sigmas)[:, None]),
            one_step=np.array(one_step),
            late=late,
            gradients=self.gradients - begun + n,
        )


def _between(ends: tuple[float, float], shares: Floats) -> Floats:
    """Return numbers from the first, where a share is 1, to the last, where it is 0."""
    return ends[1] + (ends[0] - ends[1]) * shares
