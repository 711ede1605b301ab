"""The robustness of any classifier in Lp balls, by an ensemble of attacks built from eq. 3."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lpfamily._arrays import Array, Bounds, Numbers, check_p
from lpfamily.box import box_of
from lpfamily.classification import error_log_odds, odds_gradient
from lpfamily.ensemble.batch import Batch, Plan
from lpfamily.ensemble.examples import Classifier, Ints
from lpfamily.measured import Robustness
from lpfamily.trees import Joint, is_tree, mapped, named_leaves

__all__ = ["EFFORTS", "Batch", "Classifier", "Effort", "Plan", "Sigmas", "batches", "measure", "robustness"]

Effort: TypeAlias = Literal["quick", "standard", "thorough"]
Sigmas: TypeAlias = float | Sequence[float] | Mapping[float, float | Sequence[float]]

EFFORTS: dict[str, Plan] = {
    "quick": Plan(steps=30, targets=3, target_steps=15, restarts=0, walk=24),
    "standard": Plan(steps=100, targets=9, target_steps=60, restarts=2, walk=80),
    "thorough": Plan(steps=200, targets=20, target_steps=100, restarts=10, walk=400),
}


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
    """Return the error of a classifier in Lp balls, and the smallest radius that fools each example.

    Every example is attacked in the ball ||eps||_p <= sigma, and in the box of `bounds`, until an attack
    finds an eps with argmax logits(x + eps) != y. Each attack takes the examples that the earlier ones have
    not fooled:

    - "one step": eq. 3 at the gradient of the error log-odds.
    - "log-odds": `lpfamily.ascend` of the error log-odds, adaptive.
    - "margins": the same ascent of z_t - z_y, for the classes t in the order of their logits. It begins in
      balls of three times and twice the radius, and continues from there in this one.
    - "restarts": the ascent of the log-odds from random points, through the same larger balls.
    - "noise": points drawn uniformly from the ball. If only noise fools an example, the gradients probably
      mislead the other attacks.

    An example that is fooled in a ball counts as fooled in every larger one, so the error never falls as
    sigma grows. It is a lower bound of the error in the ball: no attack proves that there is no eps.
    "standard" takes at most as many gradients per example as AutoAttack's white-box attacks, 1,000 in each
    ball, "quick" a tenth of that, and "thorough" about 4,600. For every example that an attack has fooled, a
    further search finds the smallest sigma. It follows the decision boundary in a ball that shrinks where it
    fools and grows where it does not.

    Parameters
    ----------
    model
        A function of NumPy arrays: `model(x)` returns logits, of shape (n, classes), and a function that maps
        weights like them to the gradient of sum(weights * logits) with respect to x.
        `lpfamily_torch.robustness` and `lpfamily_jax.robustness` take models of these libraries.
    x, y
        The inputs and their classes. x is a floating array whose first axis indexes examples, or a tree of
        them as in `lpfamily.epsilon`, which the model is then given; y has integers of shape (n,). Without y,
        x is an iterable of such pairs, each of them a batch, for example a data loader, so that not all
        examples need fit into memory.
    p
        Exponents of balls, in [1, inf]: 1 moves few entries far, 2 takes the Euclidean norm, inf moves all by
        sigma at most.
    sigma
        The radius or radii, in units of x: for every p, or as a mapping from each p to its radii.
    bounds
        (low, high), as in `lpfamily.epsilon`: numbers, or arrays that broadcast to one example, or trees of
        them.
    scale
        As in `lpfamily.epsilon`, a number or such an array or tree: the balls are ||eps / scale||_p <= sigma.
    effort
        "quick", "standard" or "thorough".
    batch_size
        The number of examples that are attacked together; without y each pair is attacked as it is.
    seed
        The seed of the random points.
    progress
        Whether to show the progress on standard error.

    Returns
    -------
    Robustness
        Errors by p and sigma, the attack that fooled each example, the smallest radii, and findings.

    Raises
    ------
    TypeError, ValueError
        For labels or logits of another shape, no example, no radius, an unknown effort, and as in
        `lpfamily.epsilon`.

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

    classifier = Classifier(evaluate, lambda x: model(x)[0])
    return measure(classifier, batches(x, y, batch_size), p, sigma, bounds, scale, effort, seed, progress)


def batches(x: Any, y: Any, batch_size: int) -> Iterable[tuple[Any, Any]]:
    """Return pairs of inputs and labels in batches of this size; without y, x itself is these pairs."""
    if y is None:
        pairs: Iterable[tuple[Any, Any]] = x
        return pairs
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for path, leaf in named_leaves(x, "x"):
        if (n := (*np.shape(leaf), 0)[0]) != len(y):
            raise ValueError(f"{path} and y must have the same length; got {n} inputs and {len(y)} labels")

    def batch(leaf: Any, begin: int) -> Any:
        return leaf[begin : begin + batch_size]

    return [(mapped(partial(batch, begin=i), x), batch(y, i)) for i in range(0, len(y), batch_size)]


def measure(
    classifier: Classifier,
    data: Iterable[tuple[Array, Array]],
    p: float | Sequence[float],
    sigma: Sigmas,
    bounds: Bounds | None,
    scale: Numbers | None,
    effort: str,
    seed: int,
    progress: bool,
) -> Robustness:
    """Return the result of `robustness` for a classifier of any library."""
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(map(repr, EFFORTS))}; got {effort!r}")
    radii, results = _radii(p, sigma), {}
    for number, (x, y) in enumerate(data):
        if number % classifier.size != classifier.rank:
            continue
        rng = np.random.default_rng((seed, number))
        x, y = mapped(classifier.admit, x), classifier.admit(y)
        attacked, box, units = classifier, bounds, scale
        if is_tree(x):
            attacked, x, box, units = _joined(classifier, x, bounds, scale)
        z = _checked(classifier.host(attacked.logits(x)), classifier.host(y), len(x))
        batch = Batch(attacked, x, y, box, EFFORTS[effort], rng, units)
        balls = {}
        for each, sigmas in radii.items():
            if progress:
                of = f" of {len(data)}" if isinstance(data, Sized) else ""
                sys.stderr.write(f"\rrobustness: batch {number + 1}{of}, p = {each:g}    ")
                sys.stderr.flush()
            balls[each] = batch.ball(each, sigmas)
        results[number] = Robustness(
            labels=batch.labels,
            predicted=batch.predicted,
            classes=batch.z.shape[1],
            no_gradient=batch.no_gradient,
            random=not np.array_equal(z, batch.z, equal_nan=True),
            effort=effort,
            seed=seed,
            balls=balls,
        )
    if progress:
        sys.stderr.write("\n")
    numbered = {number: each for some in classifier.gather(results) for number, each in some.items()}
    if not sum(map(len, numbered.values())):
        raise ValueError("robustness needs at least one example; x is empty, or an iterable without pairs")
    return Robustness.joined([numbered[number] for number in sorted(numbered)])


def _joined(
    classifier: Classifier, x: Any, bounds: Bounds | None, scale: Numbers | None
) -> tuple[Classifier, Array, Bounds | None, Numbers | None]:
    """Return a classifier of the rows of a tree, these rows, their bounds and their scale."""
    joint = Joint.of("x", x, 1, scale=scale, box=() if bounds is None else box_of(x, bounds))

    def evaluate(rows: Array, y: Array, targets: Array | None) -> tuple[Array, Array, Array]:
        logits, value, grad = classifier.evaluate(joint.tree_of(rows), y, targets)
        return logits, value, joint.like("grad", grad, tuple(rows.shape[:1])).rows

    of_rows = replace(
        classifier, evaluate=evaluate, logits=lambda rows: classifier.logits(joint.tree_of(rows))
    )
    _, low, high = joint.box_of_rows or (None, None, None)
    return of_rows, joint.rows, None if bounds is None else (low, high), joint.scale


def _checked(z: NDArray[Any], labels: Ints, n: int) -> NDArray[Any]:
    """Return the logits of n examples; raise if they or the labels do not fit."""
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"y must be integers, one class per example, of shape ({n},); got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if z.ndim != 2 or len(z) != n:
        raise ValueError(f"the model must return logits of shape ({n}, classes); got {z.shape}")
    if n and not 0 <= labels.min() <= labels.max() < z.shape[1]:
        raise ValueError(
            f"y must be classes from 0 to {z.shape[1] - 1}, one per logit; got {labels.min()} to "
            f"{labels.max()}"
        )
    return z


def _radii(p: float | Sequence[float], sigma: Sigmas) -> dict[float, tuple[float, ...]]:
    """Return the radii above 0 by p, in ascending order."""
    ps: list[Any] = [p] if np.ndim(p) == 0 else list(p)  # type: ignore[arg-type]
    if not ps:
        raise ValueError("p must name at least one exponent, such as 2; got none")
    result = {}
    for each in ps:
        if isinstance(sigma, Mapping) and each not in sigma:
            raise ValueError(f"sigma has no radius for p = {each:g}; it has radii for {list(sigma)}")
        given: Any = sigma[each] if isinstance(sigma, Mapping) else sigma
        radii = np.unique(np.atleast_1d(np.asarray(given, float)))
        if not len(radii) or not np.all((radii >= 0) & (radii < math.inf)) or not radii[-1] > 0:
            raise ValueError(
                f"sigma must be one or more radii in units of x, the largest above 0; got {given}"
            )
        result[check_p(each)] = tuple(float(radius) for radius in radii if radius > 0)
    return result
