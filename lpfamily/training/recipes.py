"""Recipes as data: what is trained, on what, and by which schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.backends import Objective, ObjectiveName, Rates
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import ConvMaxout, Dense, Dropout, Layer, Maxout, Network, shapes

MODELS = ("softmax", "sigmoid-mlp", "maxout", "conv-maxout", "cifar-maxout-small")


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes; NaN is never one of them."""

    what: str
    accepts: Callable[[float], bool]
    kind: type[int] | type[float] = float


INCLUDE = Range("a probability, above 0 and at most 1", lambda v: 0 < v <= 1)
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
    "init": NOT_NEGATIVE,
    "epochs": COUNT,
    "patience": COUNT_OR_NONE,
    "second_epochs": COUNT,
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
    "examples": COUNT_OR_NONE,
    "test_examples": COUNT_OR_NONE,
    "validation": COUNT_OR_NONE,
    "seed": COUNT_OR_NONE,
}
"""What each number of a recipe may be."""

LISTS = {
    "units": COUNT,
    "pieces": COUNT,
    "kernel": COUNT,
    "padding": COUNT_OR_NONE,
    "pool": COUNT,
    "stride": COUNT,
    "dropout": INCLUDE,
    "dropout_scale": POSITIVE,
    "max_norm": NOT_NEGATIVE,
    "lr_scale": NOT_NEGATIVE,
}
"""What each number of a list may be: one a layer, or one for all."""


@dataclass(frozen=True)
class Recipe:
    """A training run without its backend: every choice, with its unit. `default` has the published ones."""

    data: str = "digits"
    model: str = "sigmoid-mlp"
    units: tuple[int, ...] = (600, 600)
    """Of the hidden layers: units, or channels of convolutions."""
    pieces: tuple[int, ...] = ()
    """Of the hidden layers' maxout units; none makes them sigmoid units."""
    kernel: tuple[int, ...] = ()
    """As many of the first layers are convolutions, of square kernels."""
    padding: tuple[int, ...] = (0,)
    pool: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    """Of pooling; convolutions have stride 1."""
    bias: Literal["tied", "untied"] = "tied"
    """Of convolutions: one a piece, or one a piece and position."""
    dropout: tuple[float, ...] = ()
    """With which probability an input of a layer stays, the last layer's included; () is no dropout."""
    dropout_scale: tuple[float, ...] = ()
    """What those that stay are multiplied by; () is 1 in the first layer, 1 / probability in the others."""
    max_norm: tuple[float, ...] = (math.sqrt(15),)
    """The limit on the norm of incoming weights, a unit or piece; 0 is none."""
    lr_scale: tuple[float, ...] = (1.0,)
    init: float = 0.0
    """Initial weights lie in +-init; 0 is the range for sigmoid units."""
    objective: ObjectiveName = "perturb"
    p: float = 2.0
    sigma: float = 1.0
    """The radius of the Lp ball, or for `noise` a standard deviation: units of the input."""
    steps: int = 1
    random_start: bool = False
    clean_weight: float = 0.0
    direction_dropout: Literal["none", "same", "independent"] = "none"
    direction_dtype: Literal["same", "bfloat16"] = "same"
    penalty_by: Literal["gradient", "difference"] = "gradient"
    sigma_ramp: int = 0
    """Epochs over which sigma rises linearly to its value; 0 has it from the start."""
    epochs: int = 1000
    """The most epochs, of the first stage where there are two."""
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
    examples: int = 0
    test_examples: int = 0
    """How many of the first training and test examples are used; 0 is all."""
    validation: int = 10_000
    """How many of the last training examples are held out."""
    patience: int = 100
    """Stop after so many epochs without a new least validation error, and keep its epoch; 0 never."""
    second_stage: Literal["none", "continue", "scratch"] = "continue"
    """Then train on all examples until the held-out ones have the loss that the others had."""
    second_lr: Literal["decay", "constant"] = "decay"
    """How the learning rate goes on in a second stage that continues."""
    second_epochs: int = 400
    """The most epochs of the second stage."""
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, range_ in (RANGES | LISTS).items():
            value = getattr(self, name)
            for entry in value if name in LISTS else (value,):
                number = isinstance(entry, int if range_.kind is int else int | float)
                if not number or isinstance(entry, bool) or not range_.accepts(entry):
                    raise ValueError(f"{name} must be {range_.what}; got {value!r}")


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(Recipe).items() if get_origin(hint) is Literal
} | {"model": MODELS}
"""What each name in a recipe may be."""

_LIMIT = math.sqrt(15) / 2  # for inputs that dropout with probability 1/2 doubles

# Sources. IV: the paper's section IV. pylearn2: the scripts of Goodfellow et al., Maxout Networks, 2013
# (mnist_pi.yaml, mnist.yaml, cifar10_old_small.yaml), which the paper builds on.
_SOFTMAX = {
    # Section V. Neither optimiser nor penalty is stated: lr 0.1 is a choice, for plain descent.
    "units": (),
    "max_norm": (0.0,),
    "lr": 0.1,
    "epochs": 100,
    "patience": 0,
    "second_stage": "none",
}
_SIGMOID_MLP: dict[str, Any] = {
    # IV-A: 600-600, incoming norms of at most sqrt(15). The rest is not stated: batch 100, lr 1 and the
    # range of the first weights are the defaults for sigmoid units of the toolbox that the paper
    # acknowledges (DeepLearnToolbox); decay, momentum and patience those of the maxout networks beside it.
}
_MAXOUT = {
    # pylearn2, mnist_pi.yaml: 240 units of 5 pieces, twice; inputs stay with 0.8, hidden units with 0.5.
    "units": (240, 240),
    "pieces": (5,),
    "dropout": (0.8, 0.5, 0.5),
    "max_norm": (_LIMIT,),
    "init": 0.005,
    "lr": 0.1,
}
_CONV_MAXOUT = {
    # pylearn2, mnist.yaml; its second stage holds the learning rate.
    "units": (48, 48, 24),
    "pieces": (2, 2, 4),
    "kernel": (8, 8, 5),
    "padding": (0, 3, 3),
    "pool": (4, 4, 2),
    "stride": (2,),
    "bias": "untied",
    "dropout": (0.8, 0.5, 0.5, 0.5),
    "max_norm": (0.9, _LIMIT, _LIMIT, _LIMIT),
    "init": 0.005,
    "batch_size": 128,
    "lr": 0.05,
    "lr_factor": 1.00004,
    "second_lr": "constant",
}
_CIFAR_MAXOUT_SMALL = {
    # pylearn2, cifar10_old_small.yaml. It trains the second stage from scratch, on the same schedule,
    # as the rate is too small by then to go on with.
    "units": (48, 128, 128, 240),
    "pieces": (2, 2, 2, 5),
    "kernel": (8, 8, 5),
    "padding": (4, 3, 3),
    "pool": (4, 4, 2),
    "stride": (2,),
    "dropout": (0.8, 0.5, 0.5, 0.5, 0.5),
    "max_norm": (0.9, _LIMIT, _LIMIT, 1.9, _LIMIT),
    "lr_scale": (0.05, 0.05, 0.05, 1.0, 1.0),
    "init": 0.005,
    "batch_size": 128,
    "lr": 0.1,
    "lr_decay": "linear",
    "momentum_final": 0.6,
    "second_stage": "scratch",
    "second_epochs": 1000,
}
PUBLISHED: dict[str, dict[str, Any]] = dict(
    zip(MODELS, (_SOFTMAX, _SIGMOID_MLP, _MAXOUT, _CONV_MAXOUT, _CIFAR_MAXOUT_SMALL), strict=True)
)
"""By model, what differs from the defaults of `Recipe`."""

# scikit-learn's digits are not in the paper: one stage, that takes seconds.
_DIGITS = {"epochs": 100, "validation": 197, "patience": 0, "second_stage": "none"}


def default(model: str, data: str, objective: ObjectiveName, p: float, inputs: int) -> Recipe:
    """Return the recipe of a model on a data set whose inputs have `inputs` coordinates.

    sigma follows the paper: 1 at p = 2 on MNIST and 2 on CIFAR-10, elsewhere as 1 on MNIST in proportion
    to the square root of the number d of coordinates (IV-B); at other p the radius of matched strength,
    d^(1/p - 1/2) times as much; for noise the deviation of the same expected norm.
    """
    radius = {"mnist": 1.0, "cifar10": 2.0}.get(data, math.sqrt(inputs) / 28)
    exponent = (0.0 if objective == "noise" else 1 / p) - 1 / 2
    numbers = PUBLISHED[model] | (_DIGITS if data == "digits" else {})
    return Recipe(
        data=data, model=model, objective=objective, p=p, sigma=radius * inputs**exponent, **numbers
    )


def network_of(recipe: Recipe, image: tuple[int, ...], classes: int) -> Network:
    """Return the recipe's network for images of a shape, channels first, or raise `BadInput`."""
    try:
        network = Network(math.prod(image), _layers(recipe, classes), image)  # type: ignore[arg-type]
        shapes(network)
    except ValueError as cause:
        raise BadInput(f"--model {recipe.model} on {recipe.data}: {cause}") from cause
    return network


def _layers(recipe: Recipe, classes: int) -> tuple[Layer, ...]:
    hidden, convolutions = len(recipe.units), len(recipe.kernel)
    if convolutions > hidden or (convolutions and not recipe.pieces):
        raise ValueError(f"{convolutions} kernels need as many layers with units and pieces")
    units = (*recipe.units, classes)
    common = {name: _of_layers(recipe, name, hidden + 1) for name in ("max_norm", "lr_scale")}
    dropout = _dropout(recipe, hidden + 1)
    pieces = _of_layers(recipe, "pieces", hidden) if recipe.pieces else ()
    square = {name: _of_layers(recipe, name, convolutions) for name in ("padding", "pool", "stride")}
    layers: list[Layer] = []
    for index, count in enumerate(units):
        trained: dict[str, Any] = {
            "max_norm": common["max_norm"][index] or None,
            "lr_scale": common["lr_scale"][index],
            "dropout": dropout[index],
            "init": recipe.init or None,
        }
        if index == hidden:
            layers.append(Dense(count, **trained))
        elif index < convolutions:
            shape = {name: values[index] for name, values in square.items()}
            tied = recipe.bias == "tied"
            layers.append(
                ConvMaxout(count, pieces[index], recipe.kernel[index], **shape, tied_bias=tied, **trained)
            )
        elif pieces:
            layers.append(Maxout(count, pieces[index], **trained))
        else:
            layers.append(Dense(count, "sigmoid", **trained))
    return tuple(layers)


def _dropout(recipe: Recipe, layers: int) -> tuple[Dropout | None, ...]:
    if not recipe.dropout:
        return (None,) * layers
    include = _of_layers(recipe, "dropout", layers)
    scale = (1.0, *(1 / share for share in include[1:]))
    if recipe.dropout_scale:
        scale = _of_layers(recipe, "dropout_scale", layers)
    return tuple(Dropout(*pair) for pair in zip(include, scale, strict=True))


def _of_layers(recipe: Recipe, name: str, layers: int) -> tuple[Any, ...]:
    """Return the numbers of a list, one a layer."""
    values: tuple[Any, ...] = getattr(recipe, name)
    if len(values) not in (1, layers):
        raise ValueError(f"--{name.replace('_', '-')} must have one number or {layers}; got {len(values)}")
    return values * layers if len(values) == 1 else values


def objective_of(recipe: Recipe) -> Objective:
    """Return what a backend needs to know of the recipe's objective."""
    return Objective(
        name=recipe.objective,
        p=recipe.p,
        steps=recipe.steps,
        clean_weight=recipe.clean_weight,
        random_start=recipe.random_start,
        direction_dropout=recipe.direction_dropout,
        direction_dtype=recipe.direction_dtype,
        penalty_by=recipe.penalty_by,
    )


def rates(recipe: Recipe, epoch: int, steps: int) -> Rates:
    """Return the rates of each step of an epoch, counted from 0.

    Exponential decay is by the step, lr_t = max(lr / factor^t, floor); linear decay, momentum and
    the ramp of sigma are by the epoch.
    """
    momentum = np.full(steps, _momentum(recipe, epoch))
    return Rates(_lr(recipe, epoch, epoch * steps + np.arange(steps)), momentum, _sigma(recipe, epoch, steps))


def continued_rates(recipe: Recipe, best: int, steps_before: int, epoch: int, steps: int) -> Rates:
    """Return the rates of an epoch, counted from 0, of a second stage that continues.

    Momentum stays at its value in the best epoch of the first stage, the `best`-th, of `steps_before`
    steps each; the learning rate at its value after it, or its decay goes on.
    """
    held = recipe.second_lr == "constant"
    count = best * steps_before + (np.zeros(steps) if held else epoch * steps + np.arange(steps))
    lr = _lr(recipe, best - 1 if held else best + epoch, count)
    return Rates(lr, np.full(steps, _momentum(recipe, best - 1)), _sigma(recipe, best + epoch, steps))


def _lr(recipe: Recipe, epoch: int, count: NDArray[Any]) -> NDArray[Any]:
    if recipe.lr_decay == "exponential":
        decay: NDArray[Any] = np.exp(-count * math.log(recipe.lr_factor))
        return np.maximum(recipe.lr * decay, recipe.lr_floor)
    done = min((epoch + 1) / recipe.lr_epochs, 1) if recipe.lr_decay == "linear" else 0
    return np.full(len(count), recipe.lr * (1 - (1 - recipe.lr_final) * done))


def _momentum(recipe: Recipe, epoch: int) -> float:
    ramp = min(epoch / max(recipe.momentum_epochs - 1, 1), 1)
    return recipe.momentum + (recipe.momentum_final - recipe.momentum) * ramp


def _sigma(recipe: Recipe, epoch: int, steps: int) -> NDArray[Any]:
    done = min((epoch + 1) / recipe.sigma_ramp, 1) if recipe.sigma_ramp else 1
    return np.full(steps, recipe.sigma * done)


def matched_radius(recipe: Recipe, p: float, inputs: int) -> float:
    """Return the radius at p of the strength that the recipe trains with: sigma * d^(1/p - 1/p_train)."""
    trained = 0.0 if recipe.objective == "noise" else 1 / recipe.p
    return recipe.sigma * math.pow(inputs, 1 / p - trained)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values; an infinite p is the string "inf"."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return values | {"p": "inf" if recipe.p == math.inf else recipe.p}


def from_json(values: dict[str, Any], *, complete: bool = False) -> Recipe:
    """Return the recipe that `to_json` wrote; fields that an earlier version lacks have their defaults.

    So the default of a field that is added to `Recipe` is what training did before there was that field.
    Where it must be complete, what is lacking is a `ValueError`.
    """
    kinds = {"data": str, "random_start": bool}
    missing = {field.name for field in fields(Recipe)} - values.keys()
    if missing and complete:
        raise ValueError(f"the recipe lacks {min(missing)}")
    for name in kinds.keys() & values.keys():
        if type(values[name]) is not kinds[name]:
            raise ValueError(f"{name} is {values[name]!r}")
    read: dict[str, Any] = {name: tuple(values[name]) for name in LISTS.keys() & values.keys()}
    p = values.get("p", Recipe.p)
    read["p"] = math.inf if p == "inf" else float(p) if type(p) is int else p
    return Recipe(**values | read)
