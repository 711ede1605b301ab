"""Recipes as data: what is trained, on what, and by which schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from lpfamily.training.backends import Objective, ObjectiveName, Rates
from lpfamily.training.networks import Network, sigmoid_mlp, softmax_regression

MODELS: dict[str, Callable[[int, int], Network]] = {
    "softmax": softmax_regression,
    "sigmoid-mlp": sigmoid_mlp,
}


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes."""

    what: str
    accepts: Callable[[float], bool]
    kind: type[int] | type[float] = float


POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Range("a finite number, 0 or more", lambda v: 0 <= v < math.inf)
FRACTION = Range("a number from 0 to 1", lambda v: 0 <= v <= 1)
EXPONENT = Range("a number of at least 1, or inf: below 1 the ball is not convex", lambda v: v >= 1)
COUNT = Range("a whole number from 1 to 10^9", lambda v: 0 < v <= 10**9, int)
COUNT_OR_NONE = Range("a whole number from 0 to 10^9", lambda v: 0 <= v <= 10**9, int)

RANGES = {
    "p": EXPONENT,
    "sigma": NOT_NEGATIVE,
    "steps": COUNT,
    "clean_weight": FRACTION,
    "sigma_ramp": COUNT_OR_NONE,
    "epochs": COUNT,
    "batch_size": COUNT,
    "lr": POSITIVE,
    "lr_factor": POSITIVE,
    "lr_floor": NOT_NEGATIVE,
    "lr_final": FRACTION,
    "lr_epochs": COUNT,
    "momentum": FRACTION,
    "momentum_final": FRACTION,
    "momentum_epochs": COUNT,
    "weight_decay": NOT_NEGATIVE,
    "validation": COUNT_OR_NONE,
    "seed": COUNT_OR_NONE,
}
"""What each number of a recipe may be."""


@dataclass(frozen=True)
class Recipe:
    """A training run without its backend: every choice, each with its unit.

    The defaults are those of the sigmoid MLP (section IV-A). The paper states its layers, norm
    constraint, p and sigma, and neither learning rate, batch size nor momentum: batch 100 and lr 1
    are the defaults of the toolbox that it acknowledges for sigmoid networks, the decay and momentum
    ramp those of the maxout networks beside it.
    """

    data: str = "digits"
    model: str = "sigmoid-mlp"
    objective: ObjectiveName = "perturb"
    p: float = 2.0
    sigma: float = 1.0
    """The radius of the Lp ball, or for `noise` a standard deviation: units of the input."""
    steps: int = 1
    random_start: bool = False
    clean_weight: float = 0.0
    penalty_by: Literal["gradient", "difference"] = "gradient"
    sigma_ramp: int = 0
    """Epochs over which sigma rises linearly to its value; 0 has it from the start."""
    epochs: int = 100
    batch_size: int = 100
    lr: float = 1.0
    lr_decay: Literal["exponential", "linear", "none"] = "exponential"
    lr_factor: float = 1.000004
    """Exponential decay: what the learning rate is divided by after every step."""
    lr_floor: float = 1e-6
    """Exponential decay: the least learning rate."""
    lr_final: float = 0.01
    """Linear decay: the learning rate at its end, as a fraction of the first."""
    lr_epochs: int = 250
    """Linear decay: the epoch from which on the learning rate is constant."""
    momentum: float = 0.5
    momentum_final: float = 0.7
    momentum_epochs: int = 250
    """The epoch at which momentum, rising linearly from the first, reaches its final value."""
    weight_decay: float = 0.0
    validation: int = 10_000
    """How many of the last training examples are held out."""
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, range_ in RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, int if range_.kind is int else int | float)
            if not number or isinstance(value, bool) or not range_.accepts(value):
                raise ValueError(f"{name} must be {range_.what}; got {value!r}")


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(Recipe).items() if get_origin(hint) is Literal
} | {"model": tuple(MODELS)}
"""What each name in a recipe may be."""


def default(model: str, data: str, objective: ObjectiveName, p: float, inputs: int) -> Recipe:
    """Return the recipe of a model on a data set whose inputs have `inputs` coordinates.

    sigma follows the paper's rule (IV-B): 1 at p = 2 on MNIST, in proportion to the square root of
    the number of coordinates, and at other p the radius of matched strength, so d^(1/p) / 28; for
    noise the deviation of the same expected norm, 1/28.
    """
    recipe = Recipe(data=data, model=model, p=p)
    exponent = 0.0 if objective == "noise" else 1 / p
    recipe = replace(recipe, objective=objective, sigma=inputs**exponent / 28)
    if data == "digits":
        recipe = replace(recipe, validation=197)
    if model == "softmax":
        recipe = replace(recipe, lr=0.1)
    return recipe


def objective_of(recipe: Recipe) -> Objective:
    """Return what a backend needs to know of the recipe's objective."""
    return Objective(
        name=recipe.objective,
        p=recipe.p,
        steps=recipe.steps,
        clean_weight=recipe.clean_weight,
        random_start=recipe.random_start,
        penalty_by=recipe.penalty_by,
    )


def rates(recipe: Recipe, epoch: int, steps: int) -> Rates:
    """Return the rates of each step of an epoch, counted from 0.

    Exponential decay is by the step, lr_t = max(lr / factor^t, floor); linear decay, momentum and
    the ramp of sigma are by the epoch.
    """
    count = np.arange(epoch * steps, (epoch + 1) * steps, dtype=np.float64)
    if recipe.lr_decay == "exponential":
        lr = np.maximum(recipe.lr * np.exp(-count * math.log(recipe.lr_factor)), recipe.lr_floor)
    else:
        done = min(epoch / recipe.lr_epochs, 1) if recipe.lr_decay == "linear" else 0
        lr = np.full(steps, recipe.lr * (1 - (1 - recipe.lr_final) * done))
    ramp = min(epoch / max(recipe.momentum_epochs - 1, 1), 1)
    momentum = recipe.momentum + (recipe.momentum_final - recipe.momentum) * ramp
    sigma = recipe.sigma * min((epoch + 1) / recipe.sigma_ramp, 1) if recipe.sigma_ramp else recipe.sigma
    return Rates(lr, np.full(steps, momentum), np.full(steps, sigma))


def matched_radius(recipe: Recipe, p: float, inputs: int) -> float:
    """Return the radius at p of the strength that the recipe trains with: sigma * d^(1/p - 1/p_train)."""
    trained = 0.0 if recipe.objective == "noise" else 1 / recipe.p
    return recipe.sigma * math.pow(inputs, 1 / p - trained)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values; an infinite p is the string "inf"."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return values | {"p": "inf" if recipe.p == math.inf else recipe.p}


def from_json(values: dict[str, Any]) -> Recipe:
    """Return the recipe that `to_json` wrote."""
    if missing := {field.name for field in fields(Recipe)} - values.keys():
        raise ValueError(f"the recipe lacks {min(missing)}")
    return Recipe(**values | {"p": float(values["p"])})
