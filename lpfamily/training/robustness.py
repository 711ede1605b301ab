"""The error as a function of the radius, after one step, after many and under noise, and findings from it.

One step alone does not measure robustness: a network can learn to mislead it, above all the step that it is
trained with. Many steps find what one step misses, and `findings` reports where the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from lpfamily import ensemble
from lpfamily.classification import error_log_odds
from lpfamily.ensemble import Batch, Classifier, Plan
from lpfamily.margins import flip_distance
from lpfamily.measured import SURE, Ball, deviation, is_gap, quantiles_of
from lpfamily.step import epsilon
from lpfamily.training.backends import Trainer, logits_and_gradients
from lpfamily.training.evaluation import (
    AT_ONCE,
    NOISE_DRAWS,
    ONE_STEP,
    chunks,
    error,
    in_chunks,
    noisy_error,
)
from lpfamily.training.files import Json
from lpfamily.training.networks import Floats, Ints
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import Recipe, matched_radius

MULTIPLES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""The tested radii, as multiples of the radius that matches the recipe's strength."""
MONITOR_STEPS = 5
MONITOR_PASSES = 4 * (1 + MONITOR_STEPS) + 1
"""Forward passes per example in `monitor`: logits and a gradient (three) at x and after each step, and the
logits after one step."""


def matched_radii(
    recipe: Recipe, ps: Iterable[float], multiples: Iterable[float], inputs: int
) -> dict[float, tuple[float, ...]]:
    """Return by p the radii in units of x: 0, and `multiples` of that of the recipe's strength."""
    return {p: tuple(k * matched_radius(recipe, p, inputs) for k in sorted({0.0, *multiples})) for p in ps}


def measure(
    trainer: Trainer,
    x: Floats,
    labels: Ints,
    recipe: Recipe,
    radii: Mapping[float, Iterable[float]] | None = None,
    steps: int = 20,
    seed: int = 0,
    tick: Tick = silent,
) -> Json:
    """Return errors by p and radius, as fractions, and the smallest radii that change predictions.

    For each p, `balls` has `matched`, the radius that matches the strength of the recipe's training, and
    lists over the radii `sigma`:

    - `one_step`: the error at x + eps, with eps from eq. 3 at the gradient of the error log-odds. `repaired`
      is the fraction of examples that are wrong at x and right there.
    - `multi_step`: a lower bound of the error in the ball. An example counts if it is wrong at x, after one
      step to this radius or any smaller one (each tested radius, and `lpfamily.margins.flip_distance` along
      the direction), or after the ensemble of `lpfamily.robustness` in a ball up to this one: `steps` on the
      log-odds, half as many towards each of the three classes with the largest logits. So the error never
      falls as sigma grows, and is never below `one_step`.
    - `noise`: the error under unclipped Gaussian noise of norm sigma (`noise_std`), as mean and standard
      error over `NOISE_DRAWS` draws, which are the same for all p and sigma.

    It also has `smallest`: quantiles, over the examples that are right at x, of the smallest radius that
    changes the prediction. `one_step` searches along the direction of one step, `multi_step` in all the ways
    above. Both are upper bounds. A quantile is None if it falls among the examples that nothing within the
    largest radius changes; `never` is their fraction. Beside
    `balls`, `no_direction` is the fraction of all examples whose gradient is zero or not finite.

    Parameters
    ----------
    trainer
        The network.
    x, labels
        Inputs, (n, inputs), and their true classes.
    recipe
        The recipe of the network: its dtype, p, sigma and objective are used.
    radii
        The radii of balls in units of x, by their exponent in [1, inf]. 0 is always added, and one radius
        must be above 0. None means `MULTIPLES` of the matched radius, at p = 1, 2 and inf.
    steps
        The number of gradients of the ascent, at least 1.
    seed
        The seed of the noise.
    tick
        Called with the progress of the whole measurement.

    Raises
    ------
    ValueError
        No radius is above 0; p or steps out of range.
    """
    if radii is None:
        radii = matched_radii(recipe, ONE_STEP, MULTIPLES, x.shape[1])
    tested = {p: sorted({0.0, *each}) for p, each in radii.items()}
    for p, sigmas in tested.items():
        if not sigmas[-1] > 0:
            raise ValueError(f"a radius must be above 0; got none for p = {p:g}")
    x = x.astype(recipe.dtype)
    plan = Plan(steps, 3, -(-steps // 2), 0, walk=2 * steps, noise=0)
    # in batches, as an ascent needs several arrays like x
    batches = [_batch_of(trainer, *examples, plan) for examples in ensemble.batches(x, labels, AT_ONCE)]
    gradients, predicted = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("grad", "predicted")
    )
    begun, whole = 0, sum(len(sigmas) + 2 for sigmas in tested.values())
    balls: Json = {}
    for p, sigmas in tested.items():

        def advance(done: int, what: str, before: int = begun, p: float = p) -> None:
            tick(before + 1 + done, whole, f"p = {p:g}, {what}")

        advance(-1, "one step")
        along = _along(trainer, x, labels, epsilon(gradients, p, 1.0), sigmas[-1])
        ball = Ball.joined([batch.ball(p, sigmas[1:], advance) for batch in batches])
        wrong = predicted != labels
        stepped = [wrong, *ball.one_step]
        fooled = [
            wrong,
            *(within | (along <= sigma) for within, sigma in zip(ball.fooled, sigmas[1:], strict=True)),
        ]
        smallest = np.minimum(ball.smallest, np.where(along > 0, along, math.inf))
        advance(len(sigmas), "noise")
        begun += len(sigmas) + 2
        right, stds = ~stepped[0], [noise_std(p, sigma, x.shape[1]) for sigma in sigmas]
        balls[f"{p:g}"] = {
            "matched": matched_radius(recipe, p, x.shape[1]),
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
    """Return sentences about problems of the network, or of one step as a measure, in a result of `measure`.

    If several radii show the same problem, the sentence names the clearest.

    - Catastrophic overfitting, at the p of the training and up to its radius: the error after many steps is
      above that after one step, and above the clean error, by more than `GAP` and by more than `SURE`
      standard errors. At another p, or in a network that was not trained on such steps, the same difference
      means that one step is too weak.
    - Label leaking: the error after one step is below the clean error by more than `SURE` standard errors of
      the difference, to which only the examples that change contribute.
    - Masked gradients: noise of the same norm does more harm than all steps, by more than `SURE` standard
      errors; or a gradient has no direction.
    """
    sentences, n = [], result["examples"]
    for p, ball in result["balls"].items():
        within = ball["matched"] * (1 + 1e-9)  # the matched radius is rounded
        inside = [k for k, sigma in enumerate(ball["sigma"]) if sigma <= within]
        worst = max(inside, key=lambda k: ball["multi_step"][k] - max(ball["one_step"][k], result["clean"]))
        one, many = ball["one_step"][worst], ball["multi_step"][worst]
        if is_gap(many - max(one, result["clean"]), n):
            where = f"p = {p}, sigma = {ball['sigma'][worst]:.4g}"
            numbers = f"the error is {one:.2%} after one step and {many:.2%} after up to {result['steps']}"
            if result["objective"] in ("perturb", "penalty", "trades") and p == result["p"]:
                sentences.append(
                    f"catastrophic overfitting at {where}: {numbers}; the network resists the step that it "
                    "was trained with, not the ball"
                )
            else:
                sentences.append(f"one step is too weak at {where}: {numbers}")
        leak = max(range(len(ball["sigma"])), key=lambda k: result["clean"] - ball["one_step"][k])
        one, repaired = ball["one_step"][leak], ball["repaired"][leak]
        gain = result["clean"] - one
        if gain > SURE * deviation(2 * repaired - gain, gain, n):
            sentences.append(
                f"label leaking at p = {p}, sigma = {ball['sigma'][leak]:.4g}: the error is {one:.2%} after "
                f"one step and {result['clean']:.2%} before; the step gives the label away"
            )
        noise = [each["mean"] for each in ball["noise"]]
        loud = max(range(len(noise)), key=lambda k: noise[k] - ball["multi_step"][k])
        many, spread = ball["multi_step"][loud], ball["noise"][loud]["standard_error"]
        if noise[loud] - many > SURE * math.hypot(spread, deviation(many, many, n)):
            sentences.append(
                f"masked gradients at p = {p}, sigma = {ball['sigma'][loud]:.4g}: the error is "
                f"{noise[loud]:.2%} under noise of that norm and {many:.2%} after up to {result['steps']} "
                "steps; the gradients do not show the way"
            )
    if result["no_direction"]:
        sentences.append(
            f"masked gradients: {round(result['no_direction'] * n)} of {n} examples have a gradient that is "
            "zero or not finite, so no step changes them; that is no robustness"
        )
    return sentences


def monitor(
    trainer: Trainer, x: Floats, labels: Ints, p: float, sigma: float, steps: int = MONITOR_STEPS
) -> Json:
    """Return errors of a few examples within one ball: `clean`, `one_step`, `multi_step`.

    The last is that of `measure` without the search along the direction. Call this every few epochs, on the
    same examples in the trainer's dtype; `is_healthy` judges the result.
    """
    batch = _batch_of(trainer, x, labels, Plan(steps, 0, 0, 0, walk=0, noise=0))
    ball = batch.ball(p, [sigma])
    errors = {
        "clean": batch.predicted != labels,
        "one_step": ball.one_step[0],
        "multi_step": ball.fooled[0],
    }
    return {"examples": len(x)} | {name: float(np.mean(mask)) for name, mask in errors.items()}


def is_healthy(monitored: Json) -> bool:
    """Return whether `monitor` shows no catastrophic overfitting, by the criterion of `findings`."""
    one = max(monitored["one_step"], monitored["clean"])
    return not is_gap(monitored["multi_step"] - one, monitored["examples"])


def _batch_of(trainer: Trainer, x: Floats, labels: Ints, plan: Plan) -> Batch:
    """Return the examples and the network as a batch that the ensemble can attack."""
    return Batch(classifier_of(trainer), x, labels, None, plan, np.random.default_rng(0))


def classifier_of(trainer: Trainer) -> Classifier:
    """Return a trainer's network as a classifier; it aims at a class by the log-odds of that class."""

    def evaluate(x: Floats, y: Ints, targets: Ints | None) -> tuple[Floats, Floats, Floats]:
        classes = y if targets is None else targets
        both = [logits_and_gradients(trainer, x[rows], classes[rows]) for rows in chunks(len(x))]
        logits, grad = map(np.concatenate, zip(*both, strict=True))
        values = error_log_odds(logits, classes)
        return (logits, values, grad) if targets is None else (logits, -values, -grad)

    return Classifier(evaluate, partial(in_chunks, trainer.logits))


def _along(trainer: Trainer, x: Floats, labels: Ints, direction: Floats, most: float) -> Floats:
    """Return the distance along a direction of norm 1 at which each prediction changes; inf beyond `most`."""
    search = partial(flip_distance, trainer.logits, most=most)
    distances = in_chunks(search, x, direction, labels)
    return np.where(np.isnan(distances), math.inf, distances)


def _quantiles(smallest: Floats) -> Json:
    quantiles = {
        str(q): radius if radius < math.inf else None for q, radius in quantiles_of(smallest).items()
    }
    return {"quantiles": quantiles, "never": float(np.mean(smallest == math.inf)) if len(smallest) else None}
