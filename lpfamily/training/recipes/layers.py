"""The network and the task of a recipe."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from lpfamily.training.choices import extract, flag
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import (
    Array,
    ConvMaxout,
    Dense,
    Dropout,
    Floats,
    Layer,
    Maxout,
    Network,
    Rectifier,
    shapes,
)
from lpfamily.training.recipes.recipe import Recipe
from lpfamily.training.tasks import Machine, Objective, Optimiser, Task

_UNITS: dict[str, Callable[..., Layer]] = {
    "sigmoid": functools.partial(Dense, activation="sigmoid"),
    "relu": Rectifier,
}


def network_of(recipe: Recipe, image: tuple[int, ...], classes: int) -> Network:
    """Return the recipe's network for inputs of shape `image`, channels first.

    Raise `BadInput` if the layers do not fit the inputs or each other.
    """
    try:
        network = Network(math.prod(image), _layers(recipe, classes), image)  # type: ignore[arg-type]
        shapes(network)
    except ValueError as cause:
        raise BadInput(f"--model {recipe.model} on {recipe.data}: {cause}") from cause
    return network


def task_of(recipe: Recipe, network: Network, x: Floats, labels: Array, machine: Machine) -> Task:
    """Return the task that trains `network` by the recipe on inputs `x` and their `labels`."""
    objective, optimiser = extract(recipe, Objective), extract(recipe, Optimiser)
    return Task(network, objective, x, labels, recipe.batch_size, recipe.dtype, optimiser, machine)


def _layers(recipe: Recipe, classes: int) -> tuple[Layer, ...]:
    hidden, convolutions = len(recipe.units), len(recipe.kernel)
    if convolutions > hidden or (convolutions and not recipe.pieces):
        raise ValueError(
            f"--kernel for {convolutions} convolutions needs as many layers in --units, and --pieces"
        )
    per_layer = [_per_layer(recipe, name, hidden + 1) for name in ("max_norm", "lr_scale")]
    per_layer.append(_dropout(recipe, hidden + 1))
    per_layer.append(
        _per_layer(recipe, "layer_noise", hidden + 1) if recipe.layer_noise else (0,) * (hidden + 1)
    )
    common: list[dict[str, Any]] = [
        {
            "max_norm": max_norm or None,
            "lr_scale": lr_scale,
            "dropout": dropout,
            "noise": noise or None,
            "init": recipe.init or None,
        }
        for max_norm, lr_scale, dropout, noise in zip(*per_layer, strict=True)
    ]
    pieces = _per_layer(recipe, "pieces", hidden) if recipe.pieces else ()
    sizes = (_per_layer(recipe, name, convolutions) for name in ("padding", "pool", "stride"))
    convolved = list(zip(recipe.kernel, *sizes, strict=True))
    layers: list[Layer] = []
    for index, count in enumerate(recipe.units):
        if index < convolutions:
            shape = (count, pieces[index], *convolved[index], recipe.bias == "tied")
            layers.append(ConvMaxout(*shape, **common[index]))
        elif pieces:
            layers.append(Maxout(count, pieces[index], **common[index]))
        else:
            layers.append(_UNITS[recipe.activation](count, **common[index]))
    return (*layers, Dense(classes, **common[hidden]))


def _dropout(recipe: Recipe, layers: int) -> tuple[Dropout | None, ...]:
    if not recipe.dropout:
        return (None,) * layers
    include = _per_layer(recipe, "dropout", layers)
    scale = (1.0, *(1 / keep for keep in include[1:]))
    if recipe.dropout_scale:
        scale = _per_layer(recipe, "dropout_scale", layers)
    return tuple(Dropout(*pair) for pair in zip(include, scale, strict=True))


def _per_layer(recipe: Recipe, name: str, layers: int) -> tuple[Any, ...]:
    """Return an option's numbers, one per layer; a single number is repeated."""
    values: tuple[Any, ...] = getattr(recipe, name)
    if len(values) not in (1, layers):
        raise ValueError(f"{flag(name)} must have one number or {layers}; got {len(values)}")
    return values * layers if len(values) == 1 else values
