"""A training run without its backend: every choice, declared once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lpfamily.training import choices
from lpfamily.training.choices import (
    COUNT,
    COUNT_OR_NONE,
    FRACTION,
    INCLUDE,
    NOT_NEGATIVE,
    POSITIVE,
    TEXT,
    Names,
    Numbers,
    option,
)
from lpfamily.training.data import SOURCES
from lpfamily.training.data.datasets import published_radius
from lpfamily.training.recipes.published import PUBLISHED
from lpfamily.training.tasks import Objective, ObjectiveName, Optimiser

CONVOLUTIONS, UNITS = {"kernel": ()}, {"units": (), "pieces": ((),)}
_RADII = ", ".join(
    f"{published_radius(each.radius, each.inputs):.4g} on {name}" for name, each in SOURCES.items()
)
RELU_LR = 0.1
"""At 1, which sigmoid units take, rectifiers do not learn."""
EXPONENTIAL, LINEAR = {"lr_decay": "exponential"}, {"lr_decay": "linear"}


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimiser, Objective):
    """A training run without its backend: every choice, with its unit. `default` has the published ones."""

    model: str = option("sigmoid-mlp", Names(tuple(PUBLISHED)), "the network", group="data")
    data: str = option(next(iter(SOURCES)), TEXT, f"the data set: {', '.join(SOURCES)}", group="data")
    examples: int = option(0, COUNT_OR_NONE, "use the first N training examples; 0 is all", group="data")
    test_examples: int = option(0, COUNT_OR_NONE, "use the first N test examples; 0 is all", group="data")
    validation: int = option(10_000, COUNT_OR_NONE, "hold out the last N training examples", group="data")
    seed: int = option(0, COUNT_OR_NONE, "of weights, order and noise", group="data")

    units: tuple[int, ...] = option(
        (600, 600),
        Numbers(COUNT),
        "of the hidden layers: units, or channels of convolutions",
        group="network",
    )
    pieces: tuple[int, ...] = option(
        (), Numbers(COUNT), "of their maxout units; none makes them units of one piece", group="network"
    )
    activation: Literal["sigmoid", "relu"] = option(
        "sigmoid", None, "of the hidden units, where they are no maxout units", group="network", needs=UNITS
    )
    kernel: tuple[int, ...] = option(
        (), Numbers(COUNT), "of convolutions, as many as the first layers", group="network"
    )
    padding: tuple[int, ...] = option(
        (0,), Numbers(COUNT_OR_NONE), "of convolutions", group="network", needs=CONVOLUTIONS
    )
    pool: tuple[int, ...] = option(
        (1,), Numbers(COUNT), "side of the windows of max pooling", group="network", needs=CONVOLUTIONS
    )
    stride: tuple[int, ...] = option(
        (1,), Numbers(COUNT), "of max pooling", group="network", needs=CONVOLUTIONS
    )
    bias: Literal["tied", "untied"] = option(
        "tied",
        None,
        "of convolutions: one number per piece, or per piece and position",
        group="network",
        needs=CONVOLUTIONS,
    )
    dropout: tuple[float, ...] = option(
        (), Numbers(INCLUDE), "keep probability of each layer's inputs, last layer included", group="network"
    )
    dropout_scale: tuple[float, ...] = option(
        (),
        Numbers(POSITIVE),
        "what the kept inputs are multiplied by",
        group="network",
        needs={"dropout": ()},
        default_text="1 in the first layer, 1 / probability in others",
    )
    max_norm: tuple[float, ...] = option(
        (math.sqrt(15),),
        Numbers(NOT_NEGATIVE),
        "the limit on the norm of the weights into a unit or piece; 0 is none",
        group="network",
    )
    lr_scale: tuple[float, ...] = option(
        (1.0,), Numbers(NOT_NEGATIVE), "factors of the learning rate", group="network"
    )
    init: float = option(
        0.0, NOT_NEGATIVE, "the range of the first weights; 0 is that of the activation", group="network"
    )

    objective: ObjectiveName = option(
        "perturb", None, choices.options(Objective)["objective"].help, group="objective"
    )
    sigma: float = option(
        1.0,
        NOT_NEGATIVE,
        "the radius, or the noise's standard deviation, in units of the input",
        group="objective",
        default_text=f"at p = 2 {_RADII}; times d^(1/p - 1/2) at other p, d coordinates, and times d^(-1/2) "
        "for noise",
    )
    sigma_ramp: int = option(
        0,
        COUNT_OR_NONE,
        "epochs over which sigma rises to its value",
        group="objective",
        needs={"objective": ("noise", "perturb", "penalty")},
    )

    epochs: int = option(1000, COUNT, "how often to go through the training set, at most", group="optimiser")
    batch_size: int = option(100, COUNT, "examples per step", group="optimiser")
    lr: float = option(
        1.0, POSITIVE, f"the learning rate; with --activation relu {RELU_LR} by default", group="optimiser"
    )
    lr_decay: Literal["exponential", "linear", "none"] = option(
        "exponential", None, "by the step, by the epoch, or not", group="optimiser"
    )
    lr_factor: float = option(
        1.000004,
        POSITIVE,
        "exponential: what lr is divided by after every step",
        group="optimiser",
        needs=EXPONENTIAL,
    )
    lr_floor: float = option(
        1e-6, NOT_NEGATIVE, "exponential: the least lr", group="optimiser", needs=EXPONENTIAL
    )
    lr_final: float = option(
        0.01, FRACTION, "linear: the last lr, as a fraction of the first", group="optimiser", needs=LINEAR
    )
    lr_epochs: int = option(250, COUNT, "linear: the epoch that reaches it", group="optimiser", needs=LINEAR)
    momentum: float = option(0.5, FRACTION, "at first", group="optimiser")
    momentum_final: float = option(0.7, FRACTION, "at last", group="optimiser")
    momentum_epochs: int = option(250, COUNT, "the epoch that reaches it, rising linearly", group="optimiser")

    patience: int = option(
        100,
        COUNT_OR_NONE,
        "stop after so many epochs without a new least validation error, and keep its epoch; 0 never",
        group="stages",
    )
    second_stage: Literal["none", "continue", "scratch"] = option(
        "continue",
        None,
        "then train on all examples, until the held-out ones have the loss that the others had",
        group="stages",
    )
    second_lr: Literal["decay", "constant"] = option(
        "decay",
        None,
        "how the learning rate goes on, if it continues",
        group="stages",
        needs={"second_stage": "continue"},
    )
    second_epochs: int = option(
        400,
        COUNT,
        "how long, at most; no more than --epochs, if that is given",
        group="stages",
        needs={"second_stage": ("continue", "scratch")},
    )

    dtype: Literal["float32", "float64"] = option("float32", None, "of weights and data", group="machine")

    def __post_init__(self) -> None:
        choices.check(self)


def default(model: str, data: str, objective: ObjectiveName, p: float, inputs: int) -> Recipe:
    """Return the recipe of a model on a data set whose inputs have `inputs` coordinates.

    sigma follows the paper: at p = 2 the data set's own radius, or as 1 on MNIST in proportion to the
    square root of the number d of coordinates (IV-B); at other p the radius of matched strength,
    d^(1/p - 1/2) times as much; for noise the deviation of the same expected norm.
    """
    source = SOURCES.get(data)
    radius = published_radius(source.radius if source else None, inputs)
    exponent = (0.0 if objective == "noise" else 1 / p) - 1 / 2
    numbers = PUBLISHED[model] | dict(source.recipe if source else {})
    return Recipe(
        data=data, model=model, objective=objective, p=p, sigma=radius * inputs**exponent, **numbers
    )


def matched_radius(recipe: Recipe, p: float, inputs: int) -> float:
    """Return the radius at p of the strength that the recipe trains with: sigma * d^(1/p - 1/p_train)."""
    trained = 0.0 if recipe.objective == "noise" else 1 / recipe.p
    return recipe.sigma * math.pow(inputs, 1 / p - trained)
