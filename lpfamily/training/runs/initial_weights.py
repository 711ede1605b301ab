"""Initial weights of a run that come from another run."""

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
"""The fields of a layer that matter in training alone: dropout, noise, limits, rates, initial weights."""


def from_run(config: Config, folder: Path, dataset: Dataset, option: str) -> Config:
    """Return the config, with the initial weights those of the run in a folder; errors begin with `option`.

    Raises
    ------
    BadInput
        The folder holds no run, or one of another network; its weights are not finite in this run's dtype;
        the recipe starts its second stage from new weights.
    """
    trained = of_run(runs.find(folder, option))
    for recipe in (config.recipe, *config.grid.values()):
        if recipe.second_stage == "scratch":
            raise BadInput(
                f"{option}{folder}: --second-stage scratch begins with new weights; give continue or none"
            )
        network = network_of(recipe, dataset.shape, dataset.classes)
        if problem := next(differences(trained.network, network), ""):
            raise BadInput(f"{option}{folder}: is a run of another network: {problem}; give the same one")
        largest = float(np.finfo(recipe.dtype).max)
        if any(float(np.abs(array).max()) > largest for array in trained.parameters.values()):
            raise BadInput(f"{option}{folder}: has weights beyond {recipe.dtype}; give --dtype float64")
    return replace(config, init_from=folder, init_sha256=trained.checkpoint)


def load(config: Config) -> State:
    """Return the initial parameters of a run that come from another run; none if all are random.

    Raises
    ------
    BadInput
        The other run is no longer there, or is at another epoch.
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
    """Yield in words the differences between two networks that make them different functions."""
    its, this = shapes(one)[0], shapes(other)[0]
    if its != this:
        yield f"it takes inputs of shape {its}, this one {this}"
    if len(one.layers) != len(other.layers):
        yield f"it has {len(one.layers)} layers, this one {len(other.layers)}"
    for index, (layer, new) in enumerate(zip(one.layers, other.layers, strict=False)):
        if type(layer) is not type(new):
            yield f"its layer {index} is {type(layer).__name__}, this one's {type(new).__name__}"
            continue
        for name in (each.name for each in fields(layer) if each.name not in _OF_TRAINING):
            if getattr(layer, name) != getattr(new, name):
                yield f"its layer {index} has {name} {getattr(layer, name)}, this one's {getattr(new, name)}"
