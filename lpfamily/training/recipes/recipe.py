"""The recipe of a training run: every choice except the backend, declared once."""

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
    COUNT_OR_ZERO,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
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
    BEST_RADII,
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
"""Default learning rate of rectifiers, which do not learn at the 1 of sigmoid units."""

of_data, of_network, of_stages = (
    functools.partial(option, group=group) for group in ("data", "network", "stages")
)
of_convolutions = functools.partial(of_network, needs={"kernel": ()})
of_exponential, of_linear = (
    functools.partial(of_optimiser, needs={"lr_decay": decay}) for decay in ("exponential", "linear")
)


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimiser, Objective):
    """Every choice of a training run except the backend. `default` returns the published recipes.

    Every field is an option of `lpfamily train` under the same name; `lpfamily train --help` describes them.
    A value out of its range raises ValueError.
    """

    model: str = of_data("sigmoid-mlp", Names(tuple(PUBLISHED)), "the network to train")
    recipe: Literal["paper", "quick", "best"] = of_data(
        "paper",
        None,
        "values of the options that are not given: as published (paper), for training in minutes (quick), or "
        "for the lowest error on MNIST that training in minutes has reached (best, only for "
        f"{', '.join(BEST)})",
    )
    data: str = of_data(
        next(iter(SOURCES)),
        TEXT,
        f"the data set: {', '.join(data_sets.names())}, or the path of an .npz file with x, y, x_test and "
        "y_test, of a folder with one subfolder of images per class, or of a folder with IDX files like "
        "MNIST's",
    )
    size: tuple[int, ...] = of_data(
        (),
        Numbers(COUNT),
        "for a folder of images: resize them to height,width in pixels, or to one number for both",
    )
    scale: Literal["none", "unit", "standard"] = of_data(
        "none",
        None,
        "scale each input, or each channel of images, by its values in the training set: unit to 0..1, "
        "standard to mean 0 and standard deviation 1; --sigma is then in scaled units",
    )
    examples: int = of_data(0, COUNT_OR_ZERO, "train on the first N training examples only; 0: on all")
    test_examples: int = of_data(0, COUNT_OR_ZERO, "test on the first N test examples only; 0: on all")
    validation: int = of_data(
        10_000, COUNT_OR_ZERO, "hold out the last N training examples for validation; 0: none"
    )
    seed: int = of_data(0, COUNT_OR_ZERO, "seed of the initial weights, the order of examples and all noise")

    units: tuple[int, ...] = of_network(
        (600, 600), Numbers(COUNT), "units of each hidden layer, or channels of a convolution"
    )
    pieces: tuple[int, ...] = of_network(
        (),
        Numbers(COUNT),
        "linear pieces of each maxout unit, per hidden layer; none: no maxout units",
    )
    activation: Literal["sigmoid", "relu"] = of_network(
        "sigmoid", None, "activation of the hidden units, unless they are maxout units", needs=UNITS
    )
    kernel: tuple[int, ...] = of_network(
        (),
        Numbers(COUNT),
        "side of the square kernel of each convolution, in pixels; with k numbers the first k layers are "
        "convolutions",
    )
    padding: tuple[int, ...] = of_convolutions(
        (0,), Numbers(COUNT_OR_ZERO), "zero padding on each side of a convolution's input, in pixels"
    )
    pool: tuple[int, ...] = of_convolutions(
        (1,), Numbers(COUNT), "side of a convolution's max-pooling windows, in pixels; 1: no pooling"
    )
    stride: tuple[int, ...] = of_convolutions(
        (1,), Numbers(COUNT), "stride of a convolution's max pooling, in pixels; at most --pool"
    )
    bias: Literal["tied", "untied"] = of_convolutions(
        "tied",
        None,
        "biases of a convolution, tied: one per piece, or untied: one per piece and position",
    )
    dropout: tuple[float, ...] = of_network(
        (),
        Numbers(PROBABILITY),
        "keep probability of each layer's inputs, last layer included, above 0 and at most 1; none: no "
        "dropout",
    )
    dropout_scale: tuple[float, ...] = of_network(
        (),
        Numbers(POSITIVE),
        "factor on the inputs that --dropout keeps",
        needs={"dropout": ()},
        default_text="1 in the first layer, 1 / keep probability in others",
    )
    layer_noise: tuple[float, ...] = of_network(
        (),
        Numbers(NOT_NEGATIVE),
        "standard deviation of the Gaussian noise that training adds before each layer's activation, last "
        "layer included; 0: no noise",
    )
    max_norm: tuple[float, ...] = of_network(
        (math.sqrt(15),),
        Numbers(NOT_NEGATIVE),
        "largest Euclidean norm of the weights into a unit or maxout piece, enforced after every step; 0: no "
        "limit",
    )
    lr_scale: tuple[float, ...] = of_network(
        (1.0,), Numbers(NOT_NEGATIVE), "factor on the learning rate of each layer"
    )
    init: float = of_network(
        0.0,
        NOT_NEGATIVE,
        "draw the initial weights uniformly from -X to X; 0: an X that suits the activation",
    )

    objective: ObjectiveName = of_objective("perturb", None, choices.options(Objective)["objective"].help)
    sigma: float = of_objective(
        1.0,
        RADIUS,
        "radius of the ball, factor of the penalty, or standard deviation of the noise, in units of the "
        "input; a number or a fraction such as 8/255",
        default_text=f"at p = 2 {_RADII}; at other p times d^(1/p - 1/2), for d inputs; for noise times "
        "d^(-1/2)",
    )
    sigma_ramp: int = of_objective(
        0,
        COUNT_OR_ZERO,
        "raise sigma linearly to its value over the first N epochs; 0: full from the start",
        needs={"objective": ("noise", "perturb", "penalty", "trades")},
    )

    monitor: int = of_objective(
        0,
        COUNT_OR_ZERO,
        "check for catastrophic overfitting every N epochs; 0: so often that the checks cost a twentieth of "
        "the training",
        needs={"objective": ("perturb", "penalty", "trades")},
    )

    epochs: int = of_optimiser(
        1000, COUNT, "largest number of epochs of stage one; an epoch visits every training example once"
    )
    batch_size: int = of_optimiser(100, COUNT, "examples per step")
    lr: float = of_optimiser(
        1.0, POSITIVE, f"initial learning rate; --activation relu makes {RELU_LR} the default"
    )
    lr_decay: Literal["exponential", "linear", "none"] = of_optimiser(
        "exponential",
        None,
        "decay of the learning rate: exponential step by step, linear epoch by epoch",
    )
    lr_factor: float = of_exponential(
        1.000004, POSITIVE, "exponential decay: divide the learning rate by X after each step"
    )
    lr_floor: float = of_exponential(1e-6, NOT_NEGATIVE, "exponential decay: lowest learning rate")
    lr_final: float = of_linear(
        0.01, FRACTION, "linear decay: final learning rate as a fraction of --lr, from 0 to 1"
    )
    lr_epochs: int = of_linear(250, COUNT, "linear decay: epoch that reaches --lr-final")
    momentum: float = of_optimiser(0.5, FRACTION, "initial momentum m, from 0 to 1")
    momentum_final: float = of_optimiser(0.7, FRACTION, "final momentum, from 0 to 1")
    momentum_epochs: int = of_optimiser(
        250, COUNT, "epoch that reaches --momentum-final; momentum changes linearly until then"
    )

    patience: int = of_stages(
        100,
        COUNT_OR_ZERO,
        "end stage one after N epochs without a new lowest validation error, and keep the epoch with the "
        "lowest; 0: train all epochs and keep the last",
    )
    second_stage: Literal["none", "continue", "scratch"] = of_stages(
        "continue",
        None,
        "stage two: train on all examples until the held-out ones reach stage one's training loss, starting "
        "from the kept epoch (continue) or from new weights (scratch)",
    )
    second_lr: Literal["decay", "constant"] = of_stages(
        "decay",
        None,
        "learning rate of a stage two that continues: go on decaying, or stay constant",
        needs={"second_stage": "continue"},
    )
    second_epochs: int = of_stages(
        400,
        COUNT,
        "largest number of epochs of stage two; the default is at most --epochs",
        needs={"second_stage": ("continue", "scratch")},
    )

    dtype: Literal["float32", "float64"] = option(
        "float32", None, "dtype of weights and data", group="machine"
    )

    def __post_init__(self) -> None:
        choices.check(self)

    @property
    def short_data(self) -> str:
        """The name of the data set, cut to 40 characters: it may be that of any file or folder."""
        return self.data.removesuffix("/")[:40]

    @property
    def inputs(self) -> str:
        """The data set and its scaling in words, for titles and messages; sigma is in the scaled units."""
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
    """Return the published recipe of a model on a data set; change its values with `dataclasses.replace`.

    sigma follows the paper. At p = 2 it is the published radius of the data set or, without one, that of
    MNIST (1) scaled with the square root of the number d of inputs (IV-B). At other p it is the radius of
    matched strength, d^(1/p - 1/2) times as much. For noise it is the standard deviation of the same expected
    norm.

    Parameters
    ----------
    model
        A name in `PUBLISHED`, such as "sigmoid-mlp".
    data
        A `Dataset`, or the name of a data set, which needs `inputs`.
    objective
        "plain", "noise", "perturb", "penalty" or "trades", as in `lpfamily.training.tasks.Objective`.
    p
        The exponent of the ball, in [1, inf].
    inputs
        The number d of inputs of the network. None takes that of the `Dataset`.
    recipe
        "paper" has the published values. "quick" has those of `QUICK`, with epochs of 50,000 examples; a
        smaller `Dataset` has proportionally more epochs, at most 100. "best" has those of `BEST`, and
        `BEST_RADII` times the radius.

    Returns
    -------
    Recipe
        sigma is in units of the inputs of the data set.

    Raises
    ------
    TypeError
        For the name of a data set without `inputs`.
    KeyError
        For a model that is not in `PUBLISHED`.
    ValueError
        For an objective, p or recipe other than above.
    BadInput
        For a model without a recipe "best", and for a data set with a recipe that is not valid.
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
    sigma = radius * inputs**exponent * (BEST_RADII[model] if recipe == "best" else 1.0)
    result = Recipe(
        recipe=recipe, data=name, model=model, objective=objective, p=p, sigma=sigma, **PUBLISHED[model]
    )
    if source:
        result = of_dataset(result, {**source.recipe, **source.of_models.get(model, {})})
    if loaded:
        result = of_dataset(result, loaded.recipe)
    if recipe == "quick":
        more = max(1.0, QUICK_EXAMPLES / len(loaded.train.x)) if loaded else 1.0
        epochs = min(math.ceil(QUICK[model]["epochs"] * more), MOST_QUICK_EPOCHS)
        result = replace(result, **QUICK[model] | {"epochs": epochs, "lr_epochs": epochs})
    if recipe == "best":
        result = replace(result, **BEST[model], lr_epochs=BEST[model]["epochs"])
    return result


def of_dataset(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with the values that its data set sets; raise `BadInput` if they are not valid."""
    try:
        return replace(recipe, **values)
    except (TypeError, ValueError) as cause:
        raise BadInput(
            f"data set {recipe.data!r} sets values that are not valid in a recipe ({cause}); tell its authors"
        ) from cause


def matched_radius(recipe: Recipe, p: float, inputs: int) -> float:
    """Return the radius at p that matches the strength of the recipe's: sigma * d^(1/p - 1/p_train).

    d is the number of `inputs`, and p_train the recipe's p, or infinity if it trains with noise. p is not
    checked.
    """
    trained = 0.0 if recipe.objective == "noise" else 1 / recipe.p
    return recipe.sigma * math.pow(inputs, 1 / p - trained)
