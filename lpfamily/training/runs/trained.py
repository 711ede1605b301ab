"""The trained network of a run, for other programs: NumPy arrays, a torch module, a JAX function."""

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
from lpfamily.training.runs.positions import split_best
from lpfamily.training.tasks import Machine


# Compared by identity: an array compared with an array has no single truth value.
@dataclass(frozen=True, eq=False)
class Trained:
    """The network of a run.

    Attributes
    ----------
    network, recipe
        The network and its recipe, as data.
    parameters
        NumPy arrays of the recipe's dtype, by the names `layers.0.weight`, `layers.0.bias` and so on. They
        are those kept by early stopping, if there are any and no second stage has begun, else those of the
        last checkpoint; with `ema`, its averages. `lpfamily.training.networks` describes their layout.
    epoch
        The epoch of the parameters, counted from 1 over both stages; 0 is before the first.
    result
        The content of `result.json`, such as `result["test_error"]["clean"]`; None until the run is finished.
    scaling
        The scaling that the run's `--scale` computed from its training set; None without one.
    checkpoint
        The SHA-256 of the parameters' checkpoint, as the run's files record it; None without a run.
    """

    network: Network
    recipe: Recipe
    parameters: State
    epoch: int
    result: Json | None
    scaling: data.Scaling | None = None
    checkpoint: str | None = None

    def inputs(self, x: ArrayLike) -> Floats:
        """Return examples as inputs of the network: flattened, scaled like the run's data, in its dtype.

        Parameters
        ----------
        x
            Examples, (n, ...), in the form of the data set: the x of an .npz file, images as bytes, or those
            of `lpfamily.training.data.load(recipe.data)`. Bytes are divided by 255.

        Raises
        ------
        ValueError
            x is not numeric, or an example does not have as many numbers as the network has inputs; or the
            scaled examples are beyond the range of float32, far from the training examples.
        """
        floats = data.as_floats(np.asarray(x))
        backends.check_inputs(self.network, floats.shape)
        return (self.scaling(floats) if self.scaling else floats).astype(self.recipe.dtype, copy=False)

    def model(self, backend: str) -> Callable[[Any], Any]:
        """Return the network in a backend's library: a function from inputs to logits, without dropout.

        Inputs have shape (n, inputs) and the recipe's dtype. They are preprocessed as by
        `lpfamily.training.data.load(recipe.data)`, flattened (images channels first), and scaled by the run's
        `--scale`. `inputs` does the last two. Logits have shape (n, classes). If `network.loss` is the
        squared error, they are predictions of the targets. The model holds copies of the parameters.

        Parameters
        ----------
        backend
            It need not be the one that trained the run:

            - "numpy": a function, for dense networks.
            - "torch": a `torch.nn.Module` on the CPU, whose `state_dict` has the names of `parameters`.
              `train` and `eval` change nothing.
            - "jax": a pure function that is also a pytree with the dictionary `parameters` in it, so that
              `jax.jit(model)`, `jax.grad` with respect to x, and `jax.grad` of a function of the model
              all work. A run in float64 needs JAX in its 64-bit mode.
            - another installed backend: see its documentation.

        Raises
        ------
        BadInput
            There is no such backend; its library cannot be imported or does not have the run's dtype; the
            backend does not support a layer of the network.
        """
        return backends.find_for(backend, self.network).model(self.network, self.parameters)

    def trainer(self, backend: str, device: str = "cpu") -> backends.Trainer:
        """Return a trainer with the network's parameters, to compute logits, losses and derivatives.

        Parameters
        ----------
        backend
            As in `model`.
        device
            A device of the backend, as for `lpfamily.train --device`.

        Raises
        ------
        BadInput
            As in `model`, and for a device that is not available.
        """
        chosen = backends.find_for(backend, self.network)
        chosen.check_device(device)
        network, dtype = self.network, self.recipe.dtype
        x, labels = np.zeros((1, network.inputs), dtype), np.zeros(1, np.int64)
        targets = np.zeros((1, network.classes), dtype) if network.loss == "squared-error" else labels
        recipe = replace(self.recipe, ema=0.0)  # the parameters are the averages already
        task = recipes.task_of(recipe, network, x, targets, Machine(device))
        return chosen.trainer(task, at_rest(self.parameters))


def load(folder: str | Path) -> Trained:
    """Return the network of the run in a folder, finished or not; the data set is not needed.

    Raises
    ------
    BadInput
        The folder holds no run; one of its files is missing, damaged, or from another run or epoch.
    """
    return of_run(runs.find(Path(folder), option=""))


def of_run(run: Run) -> Trained:
    """Return the network of a run, as `load` does."""
    config = configs.read(run)
    recipe = config.recipe
    try:
        facts = data.shape_and_classes(recipe.data, config.shape, config.classes)
        network = recipes.network_of(recipe, *facts)
    except BadInput as cause:
        path = run.folder / runs.CONFIG
        raise BadInput(f"{path}: not the config of a run ({cause!r}); {REMEDY}") from cause
    checkpoint = run.load(recipe, network)
    position, (state, best) = checkpoint.position, split_best(checkpoint.arrays)
    kept = best or evaluated(network, state)
    parameters = {name: kept[name] for name in parameter_shapes(network)}
    epoch = position.best if best else position.epoch
    if position.first == position.epoch:  # stage two has begun, but none of its epochs is done
        epoch = 0 if recipe.second_stage == "scratch" else position.best
    return Trained(network, recipe, parameters, epoch, run.result, config.scaling, checkpoint.sha256)
