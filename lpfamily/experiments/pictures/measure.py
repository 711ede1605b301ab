"""Measure section III: perturbations, what they consist of, and how far they transfer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import of_kinds, open_networks
from lpfamily.step import epsilon
from lpfamily.training.backends import Trainer
from lpfamily.training.data.mnist import MNIST
from lpfamily.training.draws import evaluation_noise
from lpfamily.training.evaluation import error, in_chunks
from lpfamily.training.networks import Floats, Ints
from lpfamily.training.progress import Tick

SIGMAS = (1.0, 10.0)
"""The radii of Figures 2 and 4, at p = 2, in units of the pixels, which are in [0, 1]."""
EXPONENTS = (1.0, 1.5, 2.0, 4.0, math.inf)
PICTURED = ("sigmoid-p2", "sigmoid-plain")
CONFUSED = (2, 3, 6)
"""The digits of III-A, for which the paper names the classes that they turn into."""
SHOWN = 3
"""Number of classes that the decomposition shows one by one."""
TRANSFER = of_kinds("softmax", "sigmoid", "maxout")


def predicted(trainer: Trainer, x: Floats) -> Json:
    """Return the predicted `label` of each example, and its `probability`."""
    labels = trainer.logits(x).argmax(axis=1)
    return {"label": labels.tolist(), "probability": _rounded(np.exp(-trainer.losses(x, labels)), 6)}


def perturbed_digits(trainer: Trainer, x: Floats, labels: Ints) -> Json:
    """Return the steps of eq. 12 at sigma 1, and the predictions by sigma, at 0 and `SIGMAS`."""
    eps = epsilon(trainer.input_gradients(x, labels), 2.0, 1.0)
    return {
        "x": _rounded(x),
        "labels": labels.tolist(),
        "eps": _rounded(eps),
        "predicted": {f"{sigma:g}": predicted(trainer, x + sigma * eps) for sigma in (0.0, *SIGMAS)},
        "runner_up": _runner_up(trainer, x, labels).tolist(),
    }


def led_to(trainer: Trainer, x: Floats, labels: Ints) -> Json:
    """Return the predictions after the steps of eq. 12, as fractions of all examples, by sigma.

    `right` is the fraction predicted right, `runner_up` the fraction predicted as the wrong class that was
    most probable before the step (III-B), and `other` the rest.
    """
    eps = epsilon(in_chunks(trainer.input_gradients, x, labels), 2.0, 1.0)
    confused = in_chunks(lambda *each: _runner_up(trainer, *each), x, labels)
    result = {}
    for sigma in SIGMAS:
        now = in_chunks(trainer.logits, x + sigma * eps).argmax(axis=1)
        right, led = float(np.mean(now == labels)), float(np.mean(now == confused))
        result[f"{sigma:g}"] = {"right": right, "runner_up": led, "other": 1 - right - led}
    return result


def matched_steps(trainer: Trainer, x: Floats, labels: Ints, p: float) -> tuple[Floats, Floats]:
    """Return the radii at which eq. 3's step of p raises the loss as much as p = 2, sigma 1, and the steps.

    A search by doubling, then halving, finds the least such radius on the measured loss; NaN if no radius up
    to 2^10 is enough.
    """
    gradients = trainer.input_gradients(x, labels)
    goal = trainer.losses(x + epsilon(gradients, 2.0, 1.0), labels)
    direction = epsilon(gradients, p, 1.0)

    def enough(sigma: Floats) -> NDArray[np.bool_]:
        stepped = x + sigma[:, None].astype(x.dtype) * direction
        return np.asarray(trainer.losses(stepped, labels) >= goal)

    low, high = np.zeros(len(x)), np.full(len(x), 2.0**-10)
    for _ in range(20):
        short = ~enough(high)
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    high = np.where(enough(high), high, math.nan)
    for _ in range(20):
        middle = (low + high) / 2
        reached = enough(middle)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high, np.nan_to_num(high)[:, None] * direction


def contributions(trainer: Trainer, x: Floats, labels: Ints, classes: int) -> tuple[Floats, Floats]:
    """Return the decomposition of eq. 25: the coefficients (y - t)_j, and (y - t)_j J_j of each class.

    J_j is the input gradient of logit j. As the coefficients sum to 0, eq. 25 depends only on differences of
    the J_j, and the model itself fixes no more than these; here the J_j are shifted to have mean 0 over the
    classes. They follow exactly from the gradients g_j of the error log-odds with class j as the label:
    J_j - sum_k y_k J_k = -(1 - y_j) g_j, minus the gradient of the cross-entropy of j.

    Parameters
    ----------
    trainer
        The trainer of the network.
    x, labels
        Inputs (n, inputs) and their right classes, (n,).
    classes
        Number of classes.

    Returns
    -------
    tuple[Array, Array]
        The coefficients, (n, classes), and the contributions, (n, classes, inputs). The contributions sum
        over the classes to the gradient of the cross-entropy.
    """
    every = [np.full(len(x), j) for j in range(classes)]
    wrong = np.stack([-np.expm1(-trainer.losses(x, j)) for j in every], axis=1)
    rows = -wrong[:, :, None] * np.stack([trainer.input_gradients(x, j) for j in every], axis=1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    right = np.arange(classes) == labels[:, None]
    # y - 1 of the right class is -wrong: computed from the probability, which rounds to 1, it would be 0
    probability = np.exp(-np.stack([trainer.losses(x, j) for j in every], axis=1))
    coefficients = np.where(right, -wrong, probability)
    return coefficients, coefficients[:, :, None] * rows


def class_parts(trainer: Trainer, x: Floats, labels: Ints, classes: int = MNIST.classes) -> list[Json]:
    """Return for each example eq. 12's step at sigma 1 as a sum of contributions of classes (eq. 25).

    `shares` are shares of the step's length, <part, eps> / <eps, eps>, and sum to 1. The first part is that
    of the right class; then come the classes of the largest coefficients; the last part is the sum over all
    other classes, and its class is None.
    """
    coefficients, parts = contributions(trainer, x, labels, classes)
    digits = []
    for image, label, coefficient, part in zip(x, labels.tolist(), coefficients, parts, strict=True):
        length = float(np.linalg.norm(part.sum(axis=0)))
        part = part / (length or 1.0)
        order = np.argsort(-coefficient)
        shown = [label, *(int(j) for j in order if j != label)][:SHOWN]
        rest = [j for j in range(classes) if j not in shown]
        steps = np.stack([*part[shown], part[rest].sum(axis=0)])
        eps = steps.sum(axis=0)
        digits.append(
            {
                "x": _rounded(image),
                "label": label,
                "eps": _rounded(eps),
                "classes": [*shown, None],
                "coefficients": [*coefficient[shown].tolist(), float(coefficient[rest].sum())],
                "parts": [_rounded(step) for step in steps],
                "shares": _rounded(steps @ eps, 4),
            }
        )
    return digits


def transfer(trainers: dict[str, Trainer], x: Floats, labels: Ints, tick: Tick) -> Json:
    """Return the errors of each network: `clean`, under `noise`, and `perturbed` by the source network.

    The noise is Gaussian, scaled for each example to L2 norm 1, the norm of eq. 12's steps at sigma 1.
    """
    noise = evaluation_noise(0, 0, x.shape, str(x.dtype))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)

    def errors(x: Floats) -> dict[str, float]:
        return {name: error(trainer, x, labels) for name, trainer in trainers.items()}

    result: Json = {"clean": errors(x), "noise": errors(x + noise), "perturbed": {}}
    for done, (source, trainer) in enumerate(trainers.items()):
        tick(done, len(trainers), f"perturbations of {source}")
        steps = epsilon(in_chunks(trainer.input_gradients, x, labels), 2.0, 1.0)
        result["perturbed"][source] = errors(x + steps)
    return result


def neighbours_agree(perturbations: Iterable[ArrayLike]) -> float:
    """Return the mean correlation, about 0, of neighbouring pixels; images are square, (n, pixels)."""
    images = np.stack([square(each) for each in perturbations])
    across, down = images[:, :, 1:] * images[:, :, :-1], images[:, 1:] * images[:, :-1]
    return float(np.mean([across.mean(), down.mean()]) / np.mean(images**2))


def _runner_up(trainer: Trainer, x: Floats, labels: Ints) -> Ints:
    """Return the most probable wrong class of each example."""
    logits = trainer.logits(x)
    right = np.arange(logits.shape[1]) == labels[:, None]
    return np.asarray(np.where(right, -np.inf, logits).argmax(axis=1))


def _rounded(values: Floats, digits: int = 5) -> object:
    """Return nested lists of rounded numbers, for JSON."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def square(values: ArrayLike) -> Floats:
    """Return a square image as a matrix of pixels."""
    image = np.asarray(values, float)
    return image.reshape(math.isqrt(image.size), -1)


def measure_digits(setting: Setting, tick: Tick) -> Json:
    """Return `perturbed_digits` of the first example of each class, and `led_to` of all, by network."""
    trainers, outcomes, test = open_networks(setting, PICTURED, tick)
    ten = test.first_of_each(range(MNIST.classes))
    return {
        "runs": outcomes,
        "examples": len(test.x),
        "digits": {name: perturbed_digits(each, ten.x, ten.labels) for name, each in trainers.items()},
        "led_to": {name: led_to(each, test.x, test.labels) for name, each in trainers.items()},
    }


def measure_exponents(setting: Setting, tick: Tick) -> Json:
    """Return by p `matched_steps` of the first example of each class; a radius not found is None."""
    trainers, outcomes, test = open_networks(setting, PICTURED[:1], tick)
    ten = test.first_of_each(range(MNIST.classes))
    steps = {}
    for done, p in enumerate(EXPONENTS):
        tick(done, len(EXPONENTS), f"p = {p:g}")
        sigma, eps = matched_steps(trainers[PICTURED[0]], ten.x, ten.labels, p)
        radii = [None if math.isnan(each) else each for each in sigma.tolist()]
        steps[f"{p:g}"] = {"sigma": radii, "eps": _rounded(eps)}
    return {"runs": outcomes, "x": _rounded(ten.x), "steps": steps}


def measure_classes(setting: Setting, tick: Tick) -> Json:
    """Return `class_parts` of the first example of each class of `CONFUSED`."""
    trainers, outcomes, test = open_networks(setting, PICTURED[:1], tick)
    some = test.first_of_each(CONFUSED)
    return {"runs": outcomes, "digits": class_parts(trainers[PICTURED[0]], some.x, some.labels)}


def measure_transfer(setting: Setting, tick: Tick) -> Json:
    """Return `transfer` on all test examples."""
    trainers, outcomes, test = open_networks(setting, TRANSFER, tick)
    return transfer(trainers, test.x, test.labels, tick) | {"runs": outcomes, "examples": len(test.x)}


DIGITS = Measurement("perturbed-digits", measure_digits, 0.2, networks=PICTURED)
EXPONENT_STEPS = Measurement("exponents", measure_exponents, 0.1, networks=PICTURED[:1])
CLASS_PARTS = Measurement("class-parts", measure_classes, 0.1, networks=PICTURED[:1])
TRANSFERRED = Measurement("transfer", measure_transfer, 0.6, networks=TRANSFER)
