"""The test of a network: errors on clean, noisy and perturbed inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lpfamily.certificate import certify
from lpfamily.measured import unlearnt
from lpfamily.step import epsilon
from lpfamily.training.backends import Trainer
from lpfamily.training.data import Split
from lpfamily.training.draws import evaluation_noise
from lpfamily.training.files import Json
from lpfamily.training.networks import Array, Floats, Ints
from lpfamily.training.recipes import Recipe, matched_radius

Scalar = TypeVar("Scalar", bound=np.generic)

NOISE = (0.1, 0.3)
"""The standard deviations of the paper's noise tests (Tables IV and V)."""
NOISE_DRAWS = 10
ONE_STEP = (1.0, 2.0, math.inf)


ENOUGH = 100
"""On fewer examples, a network that guesses cannot be told from one that has begun to learn."""

AT_ONCE = 1000
"""The largest number of examples given to a trainer at once; convolutions take some megabytes for each."""


def chunks(examples: int) -> list[slice]:
    """Return slices of at most `AT_ONCE` examples; one empty slice if there are none."""
    return [slice(begin, begin + AT_ONCE) for begin in range(0, max(1, examples), AT_ONCE)]


def in_chunks(function: Callable[..., NDArray[Scalar]], *arrays: Array) -> NDArray[Scalar]:
    """Return function(*arrays), computed in chunks of `AT_ONCE` examples."""
    return np.concatenate([function(*(array[rows] for array in arrays)) for rows in chunks(len(arrays[0]))])


def error(trainer: Trainer, x: Floats, labels: Ints) -> float:
    """Return the fraction of misclassified examples; a tie counts for the first class."""
    return float(np.mean(in_chunks(trainer.logits, x).argmax(axis=1) != labels))


def noisy_error(trainer: Trainer, x: Floats, labels: Ints, std: float, seed: int) -> dict[str, float]:
    """Return `mean` and `standard_error` of the error under `NOISE_DRAWS` draws of Gaussian noise."""
    errors = [
        error(trainer, x + x.dtype.type(std) * evaluation_noise(seed, draw, x.shape, x.dtype.name), labels)
        for draw in range(NOISE_DRAWS)
    ]
    spread = float(np.std(errors, ddof=1)) / math.sqrt(NOISE_DRAWS)
    return {"mean": float(np.mean(errors)), "standard_error": spread}


def loss(trainer: Trainer, x: Floats, labels: Ints) -> float:
    """Return the mean cross-entropy."""
    return float(np.mean(in_chunks(trainer.losses, x, labels), dtype=np.float64))


def unused(gradients: Floats, eps: Floats, p: float, sigma: float) -> int:
    """Return the number of examples whose perturbation leaves budget unused.

    This happens where the gradient is zero, for example behind saturated units, or not finite. Then there is
    no direction, so the network is tested or trained on the clean example.
    """
    certificate = certify(gradients, eps, p, sigma)
    is_zero = certificate.zero & (sigma > 0)
    return int(np.count_nonzero(certificate.underused | certificate.nonfinite | is_zero))


def unused_warning(where: str, counts: dict[str, int], examples: int) -> str:
    """Return a warning about unused budget, from the counts of `unused` by p."""
    clauses = [f"{count} of {examples} examples at p = {p}" for p, count in counts.items() if count]
    return (
        f"{where} leaves budget unused for {', '.join(clauses)}: a gradient that is zero or not finite has "
        f"no direction, so they count as clean"
    )


def measure(trainer: Trainer, split: Split, recipe: Recipe) -> Json:
    """Return the test results of a run: `test_error`, `one_step_unused` and `unlearnt`.

    `test_error` has three entries, all fractions. `clean` is the error on the examples themselves. `noise`
    has, for each standard deviation, the error under unclipped Gaussian noise, as mean and standard error
    over `NOISE_DRAWS` draws. `one_step` has, for each p, the error under the perturbation of eq. 3, at the
    radius that matches the recipe's strength.

    `one_step_unused` has, for each p, the fraction of examples that leave budget unused in `one_step`. Those
    with a zero or NaN gradient stay clean there, so their low error is no sign of robustness. `unlearnt` is a
    phrase that shows that the network has learnt nothing. It is empty if the network may have learnt, or if
    there are fewer than `ENOUGH` examples.
    """
    x, labels = split.x.astype(recipe.dtype), split.labels
    gradients = in_chunks(trainer.input_gradients, x, labels)
    one_step, one_step_unused = {}, {}
    for p in ONE_STEP:
        sigma = matched_radius(recipe, p, x.shape[1])
        eps = epsilon(gradients, p, sigma)
        one_step[f"{p:g}"] = error(trainer, x + np.nan_to_num(eps), labels)
        one_step_unused[f"{p:g}"] = unused(gradients, eps, p, sigma) / len(x)
    noise = {f"{std:g}": noisy_error(trainer, x, labels, std, recipe.seed) for std in NOISE}
    logits = in_chunks(trainer.logits, x)
    predicted = logits.argmax(axis=1)
    errors = {"clean": float(np.mean(predicted != labels)), "noise": noise, "one_step": one_step}
    phrase = unlearnt(predicted, labels, logits.shape[1]) if len(labels) >= ENOUGH else ""
    return {"test_error": errors, "one_step_unused": one_step_unused, "unlearnt": phrase}
