"""What a run has trained, for other programs: NumPy arrays, a torch module, a JAX function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lpfamily.training import backends, data, recipes, runs
from lpfamily.training.errors import BadInput
from lpfamily.training.files import REMEDY, Json
from lpfamily.training.networks import Floats, Network, State, at_rest, evaluated, parameter_shapes
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import Run, configs
from lpfamily.training.runs.positions import parted
from lpfamily.training.tasks import Machine


# Compared by identity: an array compared with an array has no single truth value.
@dataclass(frozen=True, eq=False)
class Trained:
    """The network of a run.

    Attributes
    ----------
    network, recipe
        What was trained, and how, as data.
    parameters
        NumPy arrays of the recipe's dtype by the names `layers.0.weight`, `layers.0.bias`, and so on:
        those that early stopping keeps, where it has kept some and no second stage has begun, else
        those of the last checkpoint; of a recipe with `ema`, the averages there. How they are laid out
        says `lpfamily.training.networks`.
    epoch
        The epoch that they are from, counted from 1 over both stages; 0 is before the first.
    result
        What `result.json` says of them, such as `result["test_error"]["clean"]`; None until the run is
        finished.
    scaling
        What the run's `--scale` has computed from its training set; None where it does not scale.
    checkpoint
        The SHA-256 of the checkpoint that they are in, as the run's files have it; None without a run.
    """

    network: Network
    recipe: Recipe
    parameters: State
    epoch: int
    result: Json | None
    scaling: data.Scaling | None = None
    checkpoint: str | None = None

    def inputs(self, x: ArrayLike) -> Floats:
        """Return examples as the network takes them: flattened, scaled as the run's were, of its dtype.

        Parameters
        ----------
        x
            Examples, (n, ...), as the data set has them: the x of an .npz file, an image of bytes or what
            `lpfamily.training.data.load(recipe.data)` returns. Bytes are divided by 255.

        Raises
        ------
        ValueError
            They are no numbers, or not as many as the network has inputs; or they are so far from the
            training examples that their scaled numbers are beyond the range of float32.
        """
        found = data.as_floats(np.asarray(x))
        backends.check_inputs(self.network, found.shape)
        return (self.scaling(found) if self.scaling else found).astype(self.recipe.dtype, copy=False)

    def model(self, backend: str) -> Callable[[Any], Any]:
        """Return the network in a backend's library: what maps inputs to logits, and drops nothing.

        Inputs are of shape (n, inputs) and of the recipe's dtype, preprocessed as
        `lpfamily.training.data.load(recipe.data)` does it, images flattened, channels first, and scaled
        by the run's `--scale`: what `inputs` returns. Logits have shape (n, classes); where `network.loss` is
        the squared error, they are the predictions, of targets as it was trained towards. The model holds
        copies of the parameters.

        Parameters
        ----------
        backend
            Whatever trained the run:

            - "numpy": a function, of dense networks.
            - "torch": a `torch.nn.Module` on the CPU, whose `state_dict` has the names of `parameters`.
              `train` and `eval` change nothing.
            - "jax": a pure function that is also a pytree with the dictionary `parameters` in it, so that
              `jax.jit(model)`, `jax.grad` with respect to x, and `jax.grad` of a function of the model
              all work. Where the run is of float64, JAX must be in its 64-bit mode.
            - another that is installed: what it says.

        Raises
        ------
        BadInput
            There is no such backend; its library cannot be imported, or does not have the run's dtype;
            it does not train such layers.
        """
        return backends.find_for(backend, self.network).model(self.network, self.parameters)

    def trainer(self, backend: str, device: str = "cpu") -> backends.Trainer:
        """Return a trainer of the network, at rest, for what it computes: logits, losses, derivatives.

        Parameters
        ----------
        backend
            As in `model`.
        device
            One of the backend's, as `lpfamily.train --device` takes it.

        Raises
        ------
        BadInput
            As in `model`, and for a device that is not there.
        """
        found = backends.find_for(backend, self.network)
        found.check_device(device)
        network, dtype = self.network, self.recipe.dtype
        x, labels = np.zeros((1, network.inputs), dtype), np.zeros(1, np.int64)
        targets = np.zeros((1, network.classes), dtype) if network.loss == "squared-error" else labels
        recipe = replace(self.recipe, ema=0.0)  # they are the average already
        task = recipes.task_of(recipe, network, x, targets, Machine(device))
        return found.trainer(task, at_rest(self.parameters))


def load(folder: str | Path) -> Trained:
    """Return what the run in a folder has trained, finished or not; data sets are not needed for it.

    Raises
    ------
    BadInput
        The folder holds no run; one of its files is missing, damaged, or of another run or epoch.
    """
    return of_run(runs.find(Path(folder), option=""))


def of_run(run: Run) -> Trained:
    """Return what a run has trained, as `load` does."""
    config = configs.read(run)
    recipe = config.recipe
    try:
        facts = data.shape_and_classes(recipe.data, config.shape, config.classes)
        network = recipes.network_of(recipe, *facts)
    except BadInput as cause:
        path = run.folder / runs.CONFIG
        raise BadInput(f"{path}: not the config of a run ({cause!r}); {REMEDY}") from cause
    found = run.load(recipe, network)
    position, (state, best) = found.position, parted(found.arrays)
    kept = best or evaluated(network, state)
    parameters = {name: kept[name] for name in parameter_shapes(network)}
    epoch = position.best if best else position.epoch
    if position.first == position.epoch:  # the second stage has begun, and nothing of it is done
        epoch = 0 if recipe.second_stage == "scratch" else position.best
    return Trained(network, recipe, parameters, epoch, run.result, config.scaling, found.sha256)
