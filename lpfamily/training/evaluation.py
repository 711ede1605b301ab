"""What a network is tested for: errors on clean, noisy and perturbed inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.steepest import epsilon
from lpfamily.training.backends import Trainer
from lpfamily.training.data import Split
from lpfamily.training.draws import evaluation_noise
from lpfamily.training.recipes import Recipe, matched_radius

NOISE = (0.1, 0.3)
"""The standard deviations of the paper's noise tests (Tables IV and V)."""
NOISE_DRAWS = 10
ONE_STEP = (1.0, 2.0, math.inf)


def error(trainer: Trainer, x: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the fraction of misclassified examples; a tie counts for the first class."""
    return float(np.mean(trainer.logits(x).argmax(axis=1) != labels))


def measure(trainer: Trainer, split: Split, recipe: Recipe) -> dict[str, Any]:
    """Return the test errors that end a run, as fractions.

    `clean`; `noise`, under unclipped Gaussian noise by its standard deviation, mean and standard
    error over `NOISE_DRAWS` draws; `one_step`, under eq. 3's perturbation, by p, each at the radius
    whose strength matches the recipe's.
    """
    x, labels = split.x.astype(recipe.dtype), split.labels
    gradients = trainer.input_gradients(x, labels)
    one_step = {}
    for p in ONE_STEP:
        eps = epsilon(gradients, p, matched_radius(recipe, p, x.shape[1]))
        one_step[f"{p:g}"] = error(trainer, x + eps, labels)
    noise = {}
    for std in NOISE:
        drawn = [
            error(
                trainer,
                x + x.dtype.type(std) * evaluation_noise(recipe.seed, draw, x.shape, recipe.dtype),
                labels,
            )
            for draw in range(NOISE_DRAWS)
        ]
        spread = float(np.std(drawn, ddof=1)) / math.sqrt(NOISE_DRAWS)
        noise[f"{std:g}"] = {"mean": float(np.mean(drawn)), "standard_error": spread}
    return {"clean": error(trainer, x, labels), "noise": noise, "one_step": one_step}
