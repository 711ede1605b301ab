"""A run from Python: `lpfamily.train` as a function of a recipe and a data set."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lpfamily.training import backends, commands, data, evaluation, recipes, runs
from lpfamily.training.backends import Backend
from lpfamily.training.choices import extract
from lpfamily.training.data import Dataset, Split
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import state_shapes
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import extension, stages
from lpfamily.training.protocol.stages import Callback
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import Run, configs, initial_weights
from lpfamily.training.runs.configs import Config
from lpfamily.training.runs.trained import Trained, of_run
from lpfamily.training.tasks import Machine, Objective


def fit(
    recipe: Recipe,
    dataset: Dataset,
    backend: str = "torch",
    *,
    out: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    machine: Machine | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Trained:
    """Train a network by a recipe on a data set, test it, save the run, and return the network.

    This is `lpfamily train` as a function: the same recipe on the same data writes the same run folder,
    except for `curves.png`, which `lpfamily train --resume OUT` adds.

    Parameters
    ----------
    recipe
        The network and its training. `lpfamily.training.recipes.default` returns the published recipes, and
        `dataclasses.replace` changes their values. sigma is in units of the inputs.
    dataset
        The examples: a result of `lpfamily.training.data.load`, or any `Dataset` with floating x of shape
        (n, inputs) and int64 labels in [0, classes), for training and for testing. Its name must be
        `recipe.data`.
    backend
        "numpy", "torch", "jax", or another installed backend.
    out
        The run folder, empty or new; by default a folder in `runs/`, named by model, data, objective and
        time.
    callbacks
        Functions that are called as callback(metrics) after each epoch. `metrics` is a dictionary of numbers,
        a line of `metrics.jsonl`: `epoch`, counted from 1 over both stages, `stage`, `loss`, `error` (a
        fraction), `lr`, `seconds`, in stage one `validation_error`, in stage two `held_out_loss`, and others.
        The line and the checkpoint are on disk by then. An exception of a callback ends the training and is
        raised by this function; the run can be continued after that epoch. So callbacks see an epoch at most
        once, and those of a resumed run see only the epochs to come.
    machine
        A `lpfamily.training.backends.Machine`: device, TensorFloat-32, bfloat16, compilation. None is the
        CPU, or for a resumed run the machine that it began with.
    init_from
        The folder of another run of the same network. Training starts from its weights, those that `load`
        returns, with velocities of zero.
    resume
        If `out` contains a run, continue it, so that a program that was stopped can be started again without
        changes; a finished run is returned. Recipe and data must be those that the run began with, except
        that the recipe may have more epochs, as with `lpfamily train --resume OUT --epochs N`.
    progress
        Show progress on stderr, as the command does; warnings are always shown.

    Returns
    -------
    Trained
        As `lpfamily.training.load` returns it for the folder: the network, its parameters, its `result`.

    Raises
    ------
    BadInput
        Recipe, data, backend and machine do not go together; the folder is not empty or, with `resume`,
        contains another run; a launcher has started several processes, which only the command supports.
    TypeError
        A callback cannot be called.
    NotFinite
        The loss or a parameter is not finite any more; the run keeps the checkpoint before.
    OSError
        The folder cannot be written.
    """
    chosen, folder, called = backends.find(backend), None if out is None else Path(out), tuple(callbacks)
    if not all(map(callable, called)):
        raise TypeError(f"callbacks must be functions of an epoch's metrics; got {called!r}")
    if resume and folder is None:
        raise BadInput("resume=True needs out, the folder of the run")
    dataset, shown = _checked(dataset, recipe), Progress(quiet=not progress)
    begun = runs.find(folder, "") if resume and folder and (folder / runs.CONFIG).exists() else None
    dataset = _scaled(dataset, recipe, begun)
    used = machine or (configs.read(begun).machine if begun else Machine())
    _check_alone(chosen, used.device)
    check(recipe, dataset, backend, chosen, used)
    run = begun or _created(recipe, dataset, backend, used, folder, init_from)
    with run.locked():
        config = configs.read(run)
        if begun:
            if init_from and not config.init_from:
                raise BadInput(f"{run.folder}: began with random weights, not with those of {init_from}")
            config = _continued(run, config, recipe, dataset)
        if run.result is None:
            if changes := changes_since_begun(config, backend, used, processes=1):
                shown.warn(f"the run began with {' and '.join(changes)}; the results may differ by rounding")
            result = stages.train(
                run,
                config.recipe,
                dataset,
                chosen,
                compiled_if_possible(used, chosen, shown),
                progress=shown,
                callbacks=called,
                initial=functools.partial(initial_weights.load, config),
            )
            run.finish(result)
        return of_run(run)


def _check_alone(backend: Backend, device: str) -> None:
    """Raise `BadInput` if the device is not available, or if a launcher has started other processes."""
    team = backend.join(device)
    try:
        backend.check_device(device)
        if team.size > 1:
            raise BadInput("fit trains in one process; let the launcher start python -m lpfamily.train")
    finally:
        team.leave()


def _created(
    recipe: Recipe,
    dataset: Dataset,
    backend: str,
    machine: Machine,
    folder: Path | None,
    init_from: str | Path | None,
) -> Run:
    """Create and return a new run; raise `BadInput` if its folder or `init_from` cannot be used."""
    data_dir = data.folder(dataset.name) if dataset.name in data.SOURCES else None
    facts = configs.facts(dataset)
    config = Config(recipe, backend, machine, data_dir, versions=commands.versions(), **facts)
    if init_from is not None:
        config = initial_weights.from_run(config, Path(init_from), dataset, "init_from ")
    folder = folder or new_folder(run_name(recipe))
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: not empty; choose another folder, or go on with its run by resume=True")
    return runs.create(folder, configs.to_json(config))


def check(recipe: Recipe, dataset: Dataset, name: str, backend: Backend, machine: Machine) -> None:
    """Raise `BadInput` for everything that can be found wrong before a folder is made."""
    network = stages.check(recipe, dataset)
    inputs, largest = dataset.train.x.shape[1], float(np.finfo(recipe.dtype).max)
    if max(recipes.matched_radius(recipe, p, inputs) for p in evaluation.ONE_STEP) > largest:
        raise BadInput(
            f"--sigma {recipe.sigma:g}: the test radii are too large for {recipe.dtype}; give less"
        )
    if recipe.init > largest / 2:
        raise BadInput(f"--init {recipe.init:g}: too large for {recipe.dtype}; give less")
    if sum(map(math.prod, state_shapes(network, recipe.ema > 0).values())) > sys.maxsize // 8:
        raise BadInput(f"--model {recipe.model}: more parameters than memory has addresses; give fewer units")
    backends.check_layers(name, backend, network)
    backends.check_loss(name, backend, network)
    backends.check_options(name, backend, recipe)
    backends.check_options(name, backend, machine)
    backends.check_direction(name, backend, extract(recipe, Objective))


def run_name(recipe: Recipe) -> str:
    """Return the name of a folder that describes the recipe: model, data, objective, p and sigma."""
    words = [recipe.model, recipe.short_data, recipe.objective]
    if recipe.objective in ("perturb", "penalty", "trades"):
        words.append(f"p{recipe.p:g}")
    if recipe.objective != "plain":
        words.append(f"sigma{recipe.sigma:.4g}")
    return "-".join(words)


def new_folder(name: str) -> Path:
    """Return the path of a folder in `runs/` that does not exist yet, made from a name and the time."""
    folder = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('+')[0]}+{number}")
    return folder


def compiled_if_possible(machine: Machine, backend: Backend, progress: Progress) -> Machine:
    """Return the machine; if the backend cannot compile on it, warn and return it without compilation."""
    if machine.compile and (problem := backend.compile_problem(machine.device)):
        progress.warn(f"--compile has no effect: {problem}")
        return replace(machine, compile=False)
    return machine


def changes_since_begun(config: Config, name: str, machine: Machine, processes: int) -> list[str]:
    """Return in words the differences between how a run began and how it is continued."""
    began = config.machine
    same = {"backend": name == config.backend, "device": machine.device == began.device}
    changes = [f"another {each}" for each in same if not same[each]]
    if config.versions != commands.versions(processes):
        changes.append("other versions")
    flags = [each for each in ("tf32", "bf16", "compile") if getattr(machine, each)]
    return changes + [f"no --{each}" for each in flags if not getattr(began, each)]


def _continued(run: Run, config: Config, recipe: Recipe, dataset: Dataset) -> Config:
    """Return the config of a run that a recipe continues, possibly with more epochs."""
    extension.check_alike(recipe, config)
    if replace(config, **configs.facts(dataset)) != config:
        raise BadInput(f"{run.folder}: the run began on other {recipe.data} data; give the same")
    recipe = extension.extended(run, config, recipe, dataset)
    extension.extend(run, config.recipe, recipe)
    return replace(config, recipe=recipe)


def _checked(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Return a data set with the dtypes and shapes of `Dataset`, or raise `BadInput`."""
    _check_name(dataset)
    if dataset.name != recipe.data:
        raise BadInput(f"the recipe is for the data set {recipe.data!r}, and this is {dataset.name!r}")

    def checked(name: str, split: Split) -> Split:
        x, labels, inputs = np.asarray(split.x), np.asarray(split.labels), math.prod(dataset.shape)
        if x.dtype.kind != "f" or x.ndim != 2 or not len(x) or x.shape[1] != inputs:
            raise BadInput(
                f"{dataset.name}: x of {name} must be floating, of shape (n, {inputs}) for examples of shape "
                f"{dataset.shape}; got {x.dtype} of shape {x.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != x.shape[:1]:
            raise BadInput(
                f"{dataset.name}: labels of {name} must be integers of shape ({len(x)},); got {labels.dtype} "
                f"of shape {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= dataset.classes:
            raise BadInput(
                f"{dataset.name}: labels of {name} go from {labels.min()} to {labels.max()}, and those of "
                f"{dataset.classes} classes from 0 to {dataset.classes - 1}"
            )
        if bad := np.count_nonzero(~np.isfinite(x).all(axis=1)):
            raise BadInput(f"{dataset.name}: x of {name} is not finite in {bad} of {len(x)} examples")
        x = x if x.dtype == np.float32 else x.astype(recipe.dtype)
        return Split(np.ascontiguousarray(x), np.ascontiguousarray(labels, np.int64))

    return replace(dataset, train=checked("train", dataset.train), test=checked("test", dataset.test))


def _scaled(dataset: Dataset, recipe: Recipe, begun: Run | None) -> Dataset:
    """Return the data set scaled by the recipe, or by the scaling of the run that has begun."""
    if dataset.scaling is None:
        return dataset.scaled(configs.read(begun).scaling if begun else recipe.scale)
    if recipe.scale == "none":
        raise BadInput(
            f"{dataset.name}: is scaled, and the recipe has scale = none; give the recipe that scale"
        )
    return dataset


def _check_name(dataset: Dataset) -> None:
    """Raise `BadInput` if the data set has the name of another one."""
    source = data.SOURCES.get(dataset.name)
    if source and (source.shape, source.classes) != (dataset.shape, dataset.classes):
        raise BadInput(
            f"{dataset.name!r} names a data set of shape {source.shape} and {source.classes} classes, and "
            f"this one has shape {dataset.shape} and {dataset.classes}; give it another name"
        )
