"""Error against the radius of the ball, by one step, by many and by noise, and what it gives away.

One step is no measure of robustness by itself: a network can learn to mislead it, above all the step that
it is trained with. Many steps find what one has missed, and `findings` says where the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpfamily.ascent import ascend
from lpfamily.classification import error_log_odds
from lpfamily.margins import flip_distance
from lpfamily.step import epsilon
from lpfamily.training.backends import Trainer
from lpfamily.training.evaluation import NOISE_DRAWS, ONE_STEP, error, in_parts, noisy_error
from lpfamily.training.files import Json
from lpfamily.training.networks import Floats, Ints
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import Recipe, matched_radius

Mask = NDArray[np.bool_]

MULTIPLES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""The radii that are tested, in units of the one whose strength matches the recipe's."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
HALVINGS = 3
"""How often the interval between two radii is halved, in search of the smallest that fools an example."""
GAP = 0.2
"""How much lower one step's error must be than that of many for `findings` to say so."""
SURE = 3.0
"""Standard errors from which on a difference is no accident."""


def measure(
    trainer: Trainer,
    x: Floats,
    labels: Ints,
    recipe: Recipe,
    ps: Iterable[float] = ONE_STEP,
    multiples: Iterable[float] = MULTIPLES,
    steps: int = 20,
    seed: int = 0,
    tick: Tick = silent,
) -> Json:
    """Return errors by p and radius, as fractions, and the smallest radii that change predictions.

    `balls` has for each p lists over the radii `sigma`:

    - `one_step`: the error at x + eps, eps eq. 3's at the gradient of the error log-odds; `repaired` is
      the fraction that is wrong at x and right there.
    - `multi_step`: the error that the ball is known to hold. An example counts if it is wrong at x, after
      one step to this radius or any smaller one (each tested radius, and `lpfamily.margins.flip_distance`
      along the direction), or at an iterate of `lpfamily.ascend` in a ball up to this one. So the error
      never falls as sigma grows, and is never below `one_step`.
    - `noise`: under unclipped Gaussian noise of norm sigma (`noise_std`), mean and standard error over
      `NOISE_DRAWS` draws, which are the same for all p and sigma.

    and `smallest`: quantiles of the smallest radius over the examples that are right at x, by the
    direction of one step and by all that `multi_step` does, the latter found by halving and like the
    former an upper bound. None is a quantile among those that nothing within the largest radius changes;
    `never` is their fraction. Beside `balls`, `no_direction` is the fraction of all examples whose
    gradient is zero or not finite.

    Parameters
    ----------
    trainer
        The network.
    x, labels
        Inputs, (n, inputs), and right classes.
    recipe
        Of the network: it has the dtype, the p and objective that it was trained with, and by
        `matched_radius` the radius, in units of x, that `multiples` are multiples of.
    ps
        Exponents of balls, in [1, inf].
    multiples
        Of radii, of which 0 is always one and another must be above it.
    steps
        How many gradients the ascent takes, at least 1.
    seed
        Of the noise.
    tick
        Is told how much of the whole is done.

    Raises
    ------
    ValueError
        No radius is above 0; p or steps out of range.
    """
    multiples = sorted({0.0, *multiples})
    if not multiples[-1] * recipe.sigma > 0:
        raise ValueError(
            f"a radius must be above 0; got multiples up to {multiples[-1]:g} of sigma = {recipe.sigma:g}"
        )
    x, ps = x.astype(recipe.dtype), list(ps)
    gradients = _finite(in_parts(trainer.input_gradients, x, labels))
    parts = len(multiples) + HALVINGS + 1
    balls = {}
    for index, p in enumerate(ps):

        def advance(done: int, what: str, before: int = index * parts, p: float = p) -> None:
            tick(before + done, len(ps) * parts, f"p = {p:g}, {what}")

        matched = matched_radius(recipe, p, x.shape[1])
        sigmas = [multiple * matched for multiple in multiples]
        ball = _Ball(trainer, x, labels, p, steps)
        advance(0, "one step")
        along = ball.along(epsilon(gradients, p, 1.0), sigmas[-1])
        stepped = [ball.wrong(epsilon(gradients, p, sigma)) for sigma in sigmas]
        fooled, smallest = _climb(ball, sigmas, stepped, along, advance)
        advance(parts - 1, "noise")
        right, stds = ~stepped[0], [noise_std(p, sigma, x.shape[1]) for sigma in sigmas]
        balls[f"{p:g}"] = {
            "matched": matched,
            "sigma": sigmas,
            "one_step": [float(np.mean(mask)) for mask in stepped],
            "repaired": [float(np.mean(~right & ~mask)) for mask in stepped],
            "multi_step": [float(np.mean(mask)) for mask in fooled],
            "noise": [noisy_error(trainer, x, labels, std, seed) for std in stds],
            "noise_std": stds,
            "smallest": {"one_step": _quantiles(along[right]), "multi_step": _quantiles(smallest[right])},
        }
    tick(1, 1, "")
    return {
        "objective": recipe.objective,
        "p": f"{recipe.p:g}",
        "examples": len(x),
        "clean": error(trainer, x, labels),
        "no_direction": float(np.mean(~gradients.any(axis=1))),
        "steps": steps,
        "seed": seed,
        "noise_draws": NOISE_DRAWS,
        "multiples": multiples,
        "balls": balls,
    }


def noise_std(p: float, sigma: float, inputs: int) -> float:
    """Return the standard deviation of Gaussian noise n whose Lp norm is sigma on average.

    The average is that of order p, (E ||n||_p^p)^(1/p) = sigma: E ||n||_1 = sigma at p = 1, and
    std = sigma / sqrt(d) at p = 2. It grows without limit with p, so p = inf has E max |n_i| = sigma. With
    N standard normal, d inputs::

        E ||N||_p^p = d 2^(p/2) Gamma((p + 1) / 2) / sqrt(pi)
        E max |N_i| = integral over t > 0 of 1 - erf(t / sqrt(2))^d

    the latter by quadrature.
    """
    from scipy.integrate import quad
    from scipy.special import erf, gammaln

    if p == math.inf:
        norm = quad(lambda t: 1 - erf(t / math.sqrt(2)) ** inputs, 0, math.inf)[0]
    else:
        log = math.log(inputs) + p / 2 * math.log(2) + gammaln((p + 1) / 2) - math.log(math.pi) / 2
        norm = math.exp(log / p)
    return sigma / float(norm)


def findings(result: Json) -> list[str]:
    """Return what is wrong with the network or with one step as a measure of it, as sentences.

    Of what `measure` has returned; where several radii show the same, the one that shows it most is named:

    - catastrophic overfitting, at the p that it was trained with and up to the radius: the error of many
      steps is above that of one, and the clean one, by more than `GAP` and by more than `SURE` standard
      errors. At another p, or in a network that was not trained on such steps, the same says that one step
      is too weak.
    - label leaking: the error after one step is lower than the clean one by more than `SURE` standard
      errors of the difference, which only the examples that change make.
    - masked gradients: noise of the same norm does more harm than all steps, by more than `SURE` standard
      errors; or a gradient has no direction.
    """
    found, n = [], result["examples"]
    for p, ball in result["balls"].items():
        inside = [k for k, multiple in enumerate(result["multiples"]) if multiple <= 1]
        worst = max(inside, key=lambda k: ball["multi_step"][k] - max(ball["one_step"][k], result["clean"]))
        one, many = ball["one_step"][worst], ball["multi_step"][worst]
        if _misses(max(one, result["clean"]), many, n):
            where = f"p = {p}, sigma = {ball['sigma'][worst]:.4g}"
            numbers = f"the error is {one:.2%} after one step and {many:.2%} after up to {result['steps']}"
            if result["objective"] in ("perturb", "penalty") and p == result["p"]:
                found.append(
                    f"catastrophic overfitting at {where}: {numbers}; the network resists the step that it "
                    "was trained with, not the ball"
                )
            else:
                found.append(f"one step is too weak at {where}: {numbers}")
        leak = max(range(len(ball["sigma"])), key=lambda k: result["clean"] - ball["one_step"][k])
        one, repaired = ball["one_step"][leak], ball["repaired"][leak]
        gain = result["clean"] - one
        if gain > SURE * _deviation(2 * repaired - gain, gain, n):
            found.append(
                f"label leaking at p = {p}, sigma = {ball['sigma'][leak]:.4g}: the error is {one:.2%} after "
                f"one step and {result['clean']:.2%} before; the step gives the label away"
            )
        noise = [each["mean"] for each in ball["noise"]]
        loud = max(range(len(noise)), key=lambda k: noise[k] - ball["multi_step"][k])
        many, spread = ball["multi_step"][loud], ball["noise"][loud]["standard_error"]
        if noise[loud] - many > SURE * math.hypot(spread, _deviation(many, many, n)):
            found.append(
                f"masked gradients at p = {p}, sigma = {ball['sigma'][loud]:.4g}: the error is "
                f"{noise[loud]:.2%} under noise of that norm and {many:.2%} after up to {result['steps']} "
                "steps; the gradients do not show the way"
            )
    if result["no_direction"]:
        found.append(
            f"masked gradients: {round(result['no_direction'] * n)} of {n} examples have a gradient that is "
            "zero or not finite, so no step changes them; that is no robustness"
        )
    return found


def monitor(trainer: Trainer, x: Floats, labels: Ints, p: float, sigma: float, steps: int = 5) -> Json:
    """Return errors of a few examples within one ball: `clean`, `one_step`, `multi_step`.

    The last is as in `measure`, without the search along the direction. To be taken after every epoch,
    on the same examples in the trainer's dtype; `is_healthy` judges it.
    """
    ball = _Ball(trainer, x, labels, p, steps)
    wrong = ball.wrong(np.zeros_like(x))
    stepped = ball.wrong(epsilon(_finite(in_parts(trainer.input_gradients, x, labels)), p, sigma))
    errors = {"clean": wrong, "one_step": stepped, "multi_step": ball.climb(sigma, stepped)}
    return {"examples": len(x)} | {name: float(np.mean(mask)) for name, mask in errors.items()}


def is_healthy(monitored: Json) -> bool:
    """Return whether `monitor` shows no catastrophic overfitting, by the criterion of `findings`."""
    one = max(monitored["one_step"], monitored["clean"])
    return not _misses(one, monitored["multi_step"], monitored["examples"])


def _misses(one: float, many: float, examples: int) -> bool:
    """Return whether one step's error is much lower than that of many."""
    gap = many - one  # a mean of ones and zeros, as whatever one step fools counts for many too
    return gap > GAP and gap > SURE * _deviation(gap, gap, examples)


def _deviation(square: float, mean: float, examples: int) -> float:
    """Return the standard error of a mean over examples, from the means of the squares and of the values."""
    return math.sqrt(max(square - mean**2, 0.0) / examples)


@dataclass(frozen=True, eq=False)
class _Ball:
    """What is attacked, and how."""

    trainer: Trainer
    x: Floats
    labels: Ints
    p: float
    steps: int

    def wrong(self, eps: Floats) -> Mask:
        return np.asarray(in_parts(self.trainer.logits, self.x + eps).argmax(axis=1) != self.labels)

    def along(self, direction: Floats, most: float) -> Floats:
        """Return how far each prediction holds along a direction of norm 1: inf if beyond `most`."""

        def search(x: Floats, direction: Floats, labels: Ints) -> Floats:
            return np.asarray(flip_distance(self.trainer.logits, x, direction, labels, most=most))

        found = in_parts(search, self.x, direction, self.labels)
        return np.where(np.isnan(found), math.inf, found)

    def climb(self, sigma: float | Floats, fooled: Mask) -> Mask:
        """Return `fooled` and what iterates of ascent fool of the others, sigma a number or one each."""
        left = np.flatnonzero(~fooled)
        if left.size:
            sigmas = np.broadcast_to(sigma, fooled.shape)[left].astype(self.x.dtype)
            fooled = fooled.copy()
            fooled[left] = in_parts(self._climb, self.x[left], self.labels[left], sigmas)
        return fooled

    def _climb(self, x: Floats, labels: Ints, sigmas: Floats) -> Mask:
        found = np.zeros(len(x), bool)

        # every iterate counts, not the best alone: the log-odds may rank a right one above a wrong one
        def value_and_grad(at: Floats) -> tuple[Floats, Floats]:
            logits = self.trainer.logits(at)
            np.logical_or(found, logits.argmax(axis=1) != labels, out=found)
            gradients = _finite(self.trainer.input_gradients(at, labels))
            return np.asarray(error_log_odds(logits, labels)), gradients

        ascend(value_and_grad, x, self.p, sigmas, self.steps)
        return found


def _climb(
    ball: _Ball, sigmas: list[float], stepped: list[Mask], along: Floats, advance: Callable[[int, str], None]
) -> tuple[list[Mask], Floats]:
    """Return which examples are fooled within each radius, and the smallest radius of each, about."""
    fooled, low, high = stepped[:1], np.zeros(along.shape), along
    for index, sigma in enumerate(sigmas[1:], 1):
        advance(index, f"sigma = {sigma:.4g}")
        now = ball.climb(sigma, fooled[-1] | stepped[index] | (along <= sigma))
        low = np.where(now, low, sigma)
        high = np.where(now, np.minimum(high, sigma), high)
        fooled.append(now)
    for halving in range(HALVINGS):
        advance(len(sigmas) + halving, "smallest sigma")
        middle = (low + np.where(fooled[-1], high, 0.0)) / 2
        settled = ~fooled[-1] | (low >= high)
        now = ball.climb(middle, settled)
        high = np.where(now & ~settled, middle, high)
        low = np.where(now, low, middle)
    return fooled, high


def _finite(gradients: Floats) -> Floats:
    """Return the gradients, and 0, which has no direction, for those that are not finite."""
    return np.where(np.isfinite(gradients).all(axis=1, keepdims=True), gradients, gradients.dtype.type(0))


def _quantiles(smallest: Floats) -> Json:
    quantiles: dict[str, float | None] = dict.fromkeys(map(str, QUANTILES))
    if len(smallest) == 0:
        return {"quantiles": quantiles, "never": None}
    values = np.quantile(smallest, QUANTILES, method="inverted_cdf")
    for q, value in zip(quantiles, values, strict=True):
        quantiles[q] = float(value) if value < math.inf else None
    return {"quantiles": quantiles, "never": float(np.mean(smallest == math.inf))}
