"""A training run without its backend: every choice, declared once."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lpfamily.training import choices
from lpfamily.training import data as data_sets
from lpfamily.training.choices import (
    COUNT,
    COUNT_OR_NONE,
    FRACTION,
    INCLUDE,
    NOT_NEGATIVE,
    POSITIVE,
    RADIUS,
    TEXT,
    Names,
    Numbers,
    option,
)
from lpfamily.training.data import SOURCES
from lpfamily.training.data.datasets import Dataset, published_radius
from lpfamily.training.errors import BadInput
from lpfamily.training.recipes.published import (
    BEST,
    BEST_RADIUS,
    MOST_QUICK_EPOCHS,
    PUBLISHED,
    QUICK,
    QUICK_EXAMPLES,
    RecipeName,
)
from lpfamily.training.tasks import Objective, ObjectiveName, Optimiser, of_objective, of_optimiser

UNITS = {"units": (), "pieces": ((),)}
_RADII = ", ".join(
    f"{published_radius(each.radius, each.inputs):.4g} on {name}" for name, each in SOURCES.items()
)
RELU_LR = 0.1
"""At 1, which sigmoid units take, rectifiers do not learn."""

of_data, of_network, of_stages = (
    functools.partial(option, group=group) for group in ("data", "network", "stages")
)
of_convolutions = functools.partial(of_network, needs={"kernel": ()})
of_exponential, of_linear = (
    functools.partial(of_optimiser, needs={"lr_decay": decay}) for decay in ("exponential", "linear")
)


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimiser, Objective):
    """A training run without its backend: every choice, with its unit. `default` has the published ones."""

    model: str = of_data("sigmoid-mlp", Names(tuple(PUBLISHED)), "the network")
    recipe: Literal["paper", "quick", "best"] = of_data(
        "paper",
        None,
        "the numbers that are not given: paper has the published ones, quick trains in minutes, best has the "
        f"least validation error known on MNIST ({', '.join(BEST)})",
    )
    data: str = of_data(
        next(iter(SOURCES)),
        TEXT,
        f"the data set: {', '.join(data_sets.names())}, an .npz file with x, y, x_test and y_test, or a "
        "folder of images by class, or of IDX files as MNIST's",
    )
    size: tuple[int, ...] = of_data(
        (), Numbers(COUNT), "height,width that the images of a folder are resized to, or one number for both"
    )
    scale: Literal["none", "unit", "standard"] = of_data(
        "none",
        None,
        "scale the inputs, each number or channel by its values in the training set: unit to 0..1, standard "
        "to mean 0 and deviation 1; sigma is in units after it",
    )
    examples: int = of_data(0, COUNT_OR_NONE, "use the first N training examples; 0 is all")
    test_examples: int = of_data(0, COUNT_OR_NONE, "use the first N test examples; 0 is all")
    validation: int = of_data(10_000, COUNT_OR_NONE, "hold out the last N training examples")
    seed: int = of_data(0, COUNT_OR_NONE, "of weights, order and noise")

    units: tuple[int, ...] = of_network(
        (600, 600), Numbers(COUNT), "of the hidden layers: units, or channels of convolutions"
    )
    pieces: tuple[int, ...] = of_network(
        (), Numbers(COUNT), "of their maxout units; none makes them units of one piece"
    )
    activation: Literal["sigmoid", "relu"] = of_network(
        "sigmoid", None, "of the hidden units, where they are no maxout units", needs=UNITS
    )
    kernel: tuple[int, ...] = of_network((), Numbers(COUNT), "of convolutions, as many as the first layers")
    padding: tuple[int, ...] = of_convolutions((0,), Numbers(COUNT_OR_NONE), "of convolutions")
    pool: tuple[int, ...] = of_convolutions((1,), Numbers(COUNT), "side of the windows of max pooling")
    stride: tuple[int, ...] = of_convolutions((1,), Numbers(COUNT), "of max pooling")
    bias: Literal["tied", "untied"] = of_convolutions(
        "tied", None, "of convolutions: one number per piece, or per piece and position"
    )
    dropout: tuple[float, ...] = of_network(
        (), Numbers(INCLUDE), "keep probability of each layer's inputs, last layer included"
    )
    dropout_scale: tuple[float, ...] = of_network(
        (),
        Numbers(POSITIVE),
        "what the kept inputs are multiplied by",
        needs={"dropout": ()},
        default_text="1 in the first layer, 1 / probability in others",
    )
    layer_noise: tuple[float, ...] = of_network(
        (),
        Numbers(NOT_NEGATIVE),
        "deviation of the Gaussian noise that training adds to what enters each layer's activation, last "
        "layer included; 0 is none",
    )
    max_norm: tuple[float, ...] = of_network(
        (math.sqrt(15),),
        Numbers(NOT_NEGATIVE),
        "the limit on the norm of the weights into a unit or piece; 0 is none",
    )
    lr_scale: tuple[float, ...] = of_network((1.0,), Numbers(NOT_NEGATIVE), "factors of the learning rate")
    init: float = of_network(0.0, NOT_NEGATIVE, "the range of the first weights; 0 is that of the activation")

    objective: ObjectiveName = of_objective("perturb", None, choices.options(Objective)["objective"].help)
    sigma: float = of_objective(
        1.0,
        RADIUS,
        "the radius, or the noise's standard deviation, in units of the input; fractions too, as 8/255",
        default_text=f"at p = 2 {_RADII}; times d^(1/p - 1/2) at other p, d coordinates, and times d^(-1/2) "
        "for noise",
    )
    sigma_ramp: int = of_objective(
        0,
        COUNT_OR_NONE,
        "epochs over which sigma rises to its value",
        needs={"objective": ("noise", "perturb", "penalty", "trades")},
    )

    monitor: int = of_objective(
        0,
        COUNT_OR_NONE,
        "look for catastrophic overfitting every so many epochs; 0: for a twentieth of the passes",
        needs={"objective": ("perturb", "penalty", "trades")},
    )

    epochs: int = of_optimiser(1000, COUNT, "how often to go through the training set, at most")
    batch_size: int = of_optimiser(100, COUNT, "examples per step")
    lr: float = of_optimiser(1.0, POSITIVE, f"the learning rate; with --activation relu {RELU_LR} by default")
    lr_decay: Literal["exponential", "linear", "none"] = of_optimiser(
        "exponential", None, "by the step, by the epoch, or not"
    )
    lr_factor: float = of_exponential(
        1.000004, POSITIVE, "exponential: what lr is divided by after every step"
    )
    lr_floor: float = of_exponential(1e-6, NOT_NEGATIVE, "exponential: the least lr")
    lr_final: float = of_linear(0.01, FRACTION, "linear: the last lr, as a fraction of the first")
    lr_epochs: int = of_linear(250, COUNT, "linear: the epoch that reaches it")
    momentum: float = of_optimiser(0.5, FRACTION, "at first")
    momentum_final: float = of_optimiser(0.7, FRACTION, "at last")
    momentum_epochs: int = of_optimiser(250, COUNT, "the epoch that reaches it, rising linearly")

    patience: int = of_stages(
        100,
        COUNT_OR_NONE,
        "stop after so many epochs without a new least validation error, and keep its epoch; 0 never",
    )
    second_stage: Literal["none", "continue", "scratch"] = of_stages(
        "continue",
        None,
        "then train on all examples, until the held-out ones have the loss that the others had",
    )
    second_lr: Literal["decay", "constant"] = of_stages(
        "decay", None, "how the learning rate goes on, if it continues", needs={"second_stage": "continue"}
    )
    second_epochs: int = of_stages(
        400,
        COUNT,
        "how long, at most; no more than --epochs, if that is given",
        needs={"second_stage": ("continue", "scratch")},
    )

    dtype: Literal["float32", "float64"] = option("float32", None, "of weights and data", group="machine")

    def __post_init__(self) -> None:
        choices.check(self)

    @property
    def short_data(self) -> str:
        """What a title has of the data's name, which may be that of any file or folder."""
        return self.data.removesuffix("/")[:40]

    @property
    def inputs(self) -> str:
        """The name of the data, and what is done to them where sigma is in units after it."""
        return (
            self.data if self.scale == "none" else f"{self.data} scaled to {self.scale}, sigma in these units"
        )


def default(
    model: str,
    data: str | Dataset,
    objective: ObjectiveName = "perturb",
    p: float = 2.0,
    inputs: int | None = None,
    recipe: RecipeName = "paper",
) -> Recipe:
    """Return the recipe of a model on a data set: its name, with the number of its inputs, or its examples.

    sigma follows the paper: at p = 2 the data set's own radius, or as 1 on MNIST in proportion to the
    square root of the number d of coordinates (IV-B); at other p the radius of matched strength,
    d^(1/p - 1/2) times as much; for noise the deviation of the same expected norm.

    "paper" has the published numbers, "quick" those of `QUICK`, whose epochs are of 50,000 examples: a set
    whose examples are given and are fewer has as many more epochs, at most 100. "best" has those of `BEST`,
    and `BEST_RADIUS` times the radius.
    """
    if recipe == "best" and model not in BEST:
        raise BadInput(f"there is no best recipe of {model}, only of {', '.join(BEST)}; take paper or quick")
    loaded, name = (data, data.name) if isinstance(data, Dataset) else (None, data)
    if inputs is None:
        if loaded is None:
            raise TypeError("the name of a data set does not say how many inputs it has: pass inputs")
        inputs = math.prod(loaded.shape)
    source = data_sets.source(name) if data_sets.is_named(name) else None
    radius = published_radius(source.radius if source else None, inputs)
    exponent = (0.0 if objective == "noise" else 1 / p) - 1 / 2
    sigma = radius * inputs**exponent * (BEST_RADIUS if recipe == "best" else 1.0)
    found = Recipe(
        recipe=recipe, data=name, model=model, objective=objective, p=p, sigma=sigma, **PUBLISHED[model]
    )
    if source:
        found = of_dataset(found, {**source.recipe, **source.of_models.get(model, {})})
    if loaded:
        found = of_dataset(found, loaded.recipe)
    if recipe == "quick":
        more = max(1.0, QUICK_EXAMPLES / len(loaded.train.x)) if loaded else 1.0
        epochs = min(math.ceil(QUICK[model]["epochs"] * more), MOST_QUICK_EPOCHS)
        found = replace(found, **QUICK[model] | {"epochs": epochs, "lr_epochs": epochs})
    if recipe == "best":
        found = replace(found, **BEST[model], lr_epochs=BEST[model]["epochs"])
    return found


def of_dataset(recipe: Recipe, numbers: Mapping[str, Any]) -> Recipe:
    """Return a recipe with the numbers of a data set's own; raise `BadInput` if it cannot have them."""
    try:
        return replace(recipe, **numbers)
    except (TypeError, ValueError) as cause:
        raise BadInput(
            f"data set {recipe.data!r} has a recipe that cannot be ({cause}); tell those who made it"
        ) from cause


def matched_radius(recipe: Recipe, p: float, inputs: int) -> float:
    """Return the radius at p of the strength that the recipe trains with: sigma * d^(1/p - 1/p_train)."""
    trained = 0.0 if recipe.objective == "noise" else 1 / recipe.p
    return recipe.sigma * math.pow(inputs, 1 / p - trained)
