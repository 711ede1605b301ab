"""A run from its first epoch to its result, for any backend."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import numpy as np

from lpfamily.steepest import epsilon
from lpfamily.training import backends, evaluation
from lpfamily.training.data import Dataset, Split
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Network, initial_state, state_shapes
from lpfamily.training.progress import Progress
from lpfamily.training.recipes import MODELS, Recipe, objective_of, rates
from lpfamily.training.runs import Run

CHECKED = 50
"""After an epoch, one example in so many is looked at for unused budget: a percent of the work."""


class NotFinite(ArithmeticError):
    """A loss or a parameter is no longer a finite number; the last finite checkpoint is kept."""


def hold_out(dataset: Dataset, validation: int) -> tuple[Split, Split]:
    """Split the last `validation` examples off the training set."""
    x, labels = dataset.train.x, dataset.train.labels
    if not validation < len(x):
        raise BadInput(
            f"--validation {validation}: {dataset.name} has {len(x)} training examples; hold out fewer"
        )
    kept = len(x) - validation
    return Split(x[:kept], labels[:kept]), Split(x[kept:], labels[kept:])


def network_of(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the recipe's network for the data's inputs and classes."""
    return MODELS[recipe.model](dataset.train.x.shape[1], dataset.classes)


def train(
    run: Run,
    recipe: Recipe,
    dataset: Dataset,
    backend: backends.Backend,
    *,
    device: str,
    tf32: bool,
    progress: Progress,
    resume: bool = False,
) -> dict[str, Any]:
    """Train until the recipe's last epoch, test, and return the result; `run.finish` ends the run with it.

    Every epoch ends with a line of metrics and a checkpoint, from which `resume` goes on.
    """
    network = network_of(recipe, dataset)
    held_in, held_out = hold_out(dataset, recipe.validation)
    if resume and run.has_begun:
        state, done = run.load(state_shapes(network), recipe.dtype, recipe.epochs)
        metrics = run.cut_metrics(done)
    else:
        state, done, metrics = initial_state(network, recipe.seed, recipe.dtype), 0, []
        run.save(state, 0)
    progress.note(f"run folder: {run.folder}")
    task = backends.Task(
        network,
        objective_of(recipe),
        held_in.x.astype(recipe.dtype, copy=False),
        held_in.labels,
        recipe.batch_size,
        recipe.weight_decay,
        recipe.dtype,
        device,
        tf32,
    )
    trainer = backend.trainer(task, state)
    steps = math.ceil(len(held_in.x) / recipe.batch_size)
    with progress.epochs(recipe.epochs, done) as report:
        for epoch in range(done, recipe.epochs):
            draws = Draws(recipe.seed, epoch)
            schedule = rates(recipe, epoch, steps)
            _check_rates(schedule, recipe, run, epoch)
            begin = time.perf_counter()
            line: dict[str, Any] = {"epoch": epoch + 1}
            line |= trainer.epoch(draws.order(len(held_in.x)), schedule, draws)
            line |= {"lr": float(schedule.lr[-1]), "seconds": time.perf_counter() - begin}
            state = trainer.state()
            _check_finite(line["loss"], state, run, epoch)
            if recipe.validation:
                x = held_out.x.astype(recipe.dtype, copy=False)
                line["validation_error"] = evaluation.error(trainer, x, held_out.labels)
            if recipe.objective in ("perturb", "penalty"):
                count, of = _unused(trainer, task, float(schedule.sigma[-1]))
                line["unused"] = count / of
                if count and not any(before.get("unused") for before in metrics):
                    progress.warn(evaluation.unused_warning("training", {f"{recipe.p:g}": count}, of))
            run.log(line)
            run.save(state, epoch + 1)
            metrics.append(line)
            report(line, len(held_in.x))
    tested, examples = evaluation.measure(trainer, dataset.test, recipe), len(dataset.test.x)
    counts = {p: round(part * examples) for p, part in tested["one_step_unused"].items()}
    if any(counts.values()):
        progress.warn(evaluation.unused_warning("the one-step test", counts, examples))
    return tested | {
        "parameters": f"after the last epoch, {recipe.epochs}",
        "tested_on": f"{dataset.name}, {len(dataset.test.x)} test examples",
        "seconds_per_epoch": statistics.median([line["seconds"] for line in metrics] or [0.0]),
        "epochs": recipe.epochs,
    }


def _unused(trainer: backends.Trainer, task: backends.Task, sigma: float) -> tuple[int, int]:
    """Return how many examples leave the budget of one step unused, of how many of the first ones."""
    first = slice(max(20, len(task.x) // CHECKED))
    gradients = trainer.input_gradients(task.x[first], task.labels[first])
    p = task.objective.p
    return evaluation.unused(gradients, epsilon(gradients, p, sigma), p, sigma), len(gradients)


def _check_rates(schedule: backends.Rates, recipe: Recipe, run: Run, epoch: int) -> None:
    if np.max(schedule.lr) <= np.finfo(recipe.dtype).max:
        return
    raise NotFinite(f"epoch {epoch + 1} has a learning rate beyond {recipe.dtype}; {_kept(run, epoch)}")


def _check_finite(loss: float, state: dict[str, Any], run: Run, epoch: int) -> None:
    if math.isfinite(loss) and all(np.isfinite(array).all() for array in state.values()):
        return
    raise NotFinite(f"epoch {epoch + 1} ended with loss {loss} and is not finite; {_kept(run, epoch)}")


def _kept(run: Run, epoch: int) -> str:
    return f"{run.folder} keeps the checkpoint after epoch {epoch}; try a smaller --lr or --sigma"
