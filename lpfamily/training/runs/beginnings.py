"""The weights of a run as those that another begins with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from lpfamily.training import runs
from lpfamily.training.data import Dataset
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Layer, Network, State, shapes
from lpfamily.training.recipes import network_of
from lpfamily.training.runs.configs import Config
from lpfamily.training.runs.trained import of_run

_OF_TRAINING = {each.name for each in fields(Layer)}
"""What a layer has that matters in training alone: dropout, noise, limits, rates, first weights."""


def begin_from(config: Config, folder: Path, dataset: Dataset, option: str) -> Config:
    """Return the config of a run that begins with the weights of the one in a folder, named by an option.

    Raises
    ------
    BadInput
        It holds no run, or one of another network; its weights are not finite in this run's dtype; the
        recipe begins its second stage with fresh ones.
    """
    trained = of_run(runs.find(folder, option))
    for recipe in (config.recipe, *config.grid.values()):
        if recipe.second_stage == "scratch":
            raise BadInput(
                f"{option}{folder}: --second-stage scratch begins with fresh weights; give another of "
                "continue and none"
            )
        network = network_of(recipe, dataset.shape, dataset.classes)
        if problem := next(differences(trained.network, network), ""):
            raise BadInput(f"{option}{folder}: is a run of another network: {problem}; give the same one")
        largest = float(np.finfo(recipe.dtype).max)
        if any(float(np.abs(array).max()) > largest for array in trained.parameters.values()):
            raise BadInput(f"{option}{folder}: has weights beyond {recipe.dtype}; give --dtype float64")
    return replace(config, init_from=folder, init_sha256=trained.checkpoint)


def first_parameters(config: Config) -> State:
    """Return the parameters that a run begins with in the place of drawn ones; none if it draws all.

    Raises
    ------
    BadInput
        The run that they are from is not there any more, or is at another epoch.
    """
    if config.init_from is None:
        return {}
    trained = of_run(runs.find(config.init_from, "the run to begin from, "))
    if trained.checkpoint != config.init_sha256:
        raise BadInput(
            f"{config.init_from}: has another checkpoint than when this run was started; start a new one"
        )
    return trained.parameters


def differences(one: Network, other: Network) -> Iterator[str]:
    """Yield in words what makes a function of one network another than that of the other."""
    entering, here = shapes(one)[0], shapes(other)[0]
    if entering != here:
        yield f"it takes inputs of shape {entering}, this one {here}"
    if len(one.layers) != len(other.layers):
        yield f"it has {len(one.layers)} layers, this one {len(other.layers)}"
    for index, (layer, new) in enumerate(zip(one.layers, other.layers, strict=False)):
        if type(layer) is not type(new):
            yield f"its layer {index} is {type(layer).__name__}, this one's {type(new).__name__}"
            continue
        for name in (each.name for each in fields(layer) if each.name not in _OF_TRAINING):
            if getattr(layer, name) != getattr(new, name):
                yield f"its layer {index} has {name} {getattr(layer, name)}, this one's {getattr(new, name)}"
