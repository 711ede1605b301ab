"""A run from its first epoch to its result, for any backend.

The paper's protocol has two stages. The first trains without the held-out examples until their error has
not improved for some epochs, and records the loss that the best parameters have on what they were trained
on. The second trains on all examples, until those that were held out have that loss too.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from lpfamily import __version__
from lpfamily.steepest import epsilon
from lpfamily.training import backends, evaluation, robustness, runs
from lpfamily.training.choices import part
from lpfamily.training.data import Dataset, Split
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import (
    Network,
    State,
    initial_state,
    parameter_shapes,
    state_shapes,
)
from lpfamily.training.progress import Progress, Report
from lpfamily.training.recipes import Recipe, continued_rates, network_of, rates
from lpfamily.training.runs import Json, Run, Shapes
from lpfamily.training.tasks import Machine, Objective, Optimiser, Rates, Task

CHECKED = 50
"""After an epoch, one example in so many is looked at for unused budget: a percent of the work."""

MONITORED = 200
"""So many held-out examples are perturbed by many steps after every epoch."""

BEST = "best."
"""What precedes the names of the parameters that early stopping keeps."""


class NotFinite(ArithmeticError):
    """A loss or a parameter is no longer a finite number; the last finite checkpoint is kept."""


@dataclass(frozen=True)
class Position:
    """Where in the protocol a run is; a checkpoint holds it with the arrays."""

    epoch: int = 0
    """Epochs that are done, of both stages."""
    best: int = 0
    """The first epoch of stage one with the least validation error; 0 if none is kept."""
    best_error: float | None = None
    first: int | None = None
    """Epochs of the first stage, once the second has begun."""
    target: float | None = None
    """The loss to reach in the second stage."""
    held_out_loss: float | None = None
    """The loss that was reached there."""
    metrics: str | None = None
    """The checksum of all metrics so far; None where an earlier version wrote none."""

    @property
    def is_reached(self) -> bool:
        """Whether the second stage has come to its end before its last epoch."""
        if self.target is None or self.held_out_loss is None:
            return False
        return self.held_out_loss <= self.target


def hold_out(dataset: Dataset, validation: int) -> tuple[Split, Split]:
    """Split the last `validation` examples off the training set."""
    x, labels = dataset.train.x, dataset.train.labels
    if not validation < len(x):
        raise BadInput(
            f"--validation {validation}: {dataset.name} has {len(x)} training examples; hold out fewer"
        )
    kept = len(x) - validation
    return Split(x[:kept], labels[:kept]), Split(x[kept:], labels[kept:])


def check(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the recipe's network; raise `BadInput` if recipe and data do not go together."""
    hold_out(dataset.first(recipe.examples, recipe.test_examples), recipe.validation)
    if not recipe.validation and (recipe.patience or recipe.second_stage != "none"):
        raise BadInput(
            "--patience and --second-stage go by held-out examples, and --validation 0 leaves none; "
            "hold some out, or give --patience 0 --second-stage none"
        )
    if recipe.second_stage != "none" and not recipe.patience:
        raise BadInput(
            f"--second-stage {recipe.second_stage} starts from what --patience keeps, and --patience 0 keeps "
            "nothing; give --patience 1 or more, or --second-stage none"
        )
    return network_of(recipe, dataset.shape, dataset.classes)


def train(
    run: Run,
    recipe: Recipe,
    dataset: Dataset,
    backend: backends.Backend,
    machine: Machine,
    *,
    progress: Progress,
    resume: bool = False,
    test: bool = True,
) -> dict[str, Any]:
    """Train by the recipe, test, and return the result; `run.finish` ends the run with it.

    Every epoch ends with a line of metrics and a checkpoint, from which `resume` goes on. Without `test`
    the test set stays unseen, as nothing may be chosen by it.
    """
    training = _Training(run, recipe, dataset, backend, machine, progress, resume=resume)
    if training.position.first is None:
        training.first_stage()
        if recipe.second_stage != "none":
            training.begin_second_stage()
    if training.position.first is not None:
        training.second_stage()
    return (training.tested() if test else {}) | training.ended()


class _Training:
    """A run in memory: its trainer, where it stands, the parameters that it keeps, and its metrics."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        dataset: Dataset,
        backend: backends.Backend,
        machine: Machine,
        progress: Progress,
        *,
        resume: bool,
    ) -> None:
        self.run, self.recipe, self.progress = run, recipe, progress
        self.dataset = dataset = dataset.first(recipe.examples, recipe.test_examples)
        self.backend, self.machine = backend, machine
        self.network = check(recipe, dataset)
        self.held_in, self.held_out = hold_out(dataset, recipe.validation)
        self.position = Position()
        self.best: State = {}
        self.metrics: list[Json] = []
        self.decisive = run.decisive
        if resume and run.has_begun:
            found = run.load(lambda values: read_position(values, recipe, self.network), recipe.dtype)
            self.position, self.checkpoint = found.position, found.sha256
            state, self.best = parted(found.arrays)
            self.metrics = run.cut_metrics(
                self.position.epoch, self.position.metrics, ("stage", "loss", "error", "seconds")
            )
            self.digest = runs.metrics_digest(self.metrics)
        else:
            self.digest = runs.metrics_digest(())
            state = initial_state(self.network, recipe.seed, recipe.dtype)
            self._save(state)
        progress.note(f"run folder: {run.folder}")
        split = self.held_in if self.position.first is None else dataset.train
        self.trainer = self._trainer_on(split, state)

    def first_stage(self) -> None:
        """Train on what is not held out, until the patience or the epochs end."""
        recipe = self.recipe
        with self.progress.epochs(recipe.epochs, self.position.epoch) as report:
            while self.position.epoch < recipe.epochs and not self._is_out_of_patience:
                epoch = self.position.epoch
                line = self._epoch(self.held_in, functools.partial(rates, recipe, epoch))
                position = replace(self.position, epoch=epoch + 1)
                if recipe.validation:
                    error = evaluation.error(self.trainer, self._x(self.held_out), self.held_out.labels)
                    line["validation_error"] = error
                    if recipe.patience and (position.best_error is None or error < position.best_error):
                        position = replace(position, best=epoch + 1, best_error=error)
                        self.best = self._parameters(self.trainer.state())
                self._end_epoch(line, position, report, len(self.held_in.x))

    def begin_second_stage(self) -> None:
        """Record the loss to reach, and begin with the best parameters, or with fresh ones."""
        recipe, fresh = self.recipe, initial_state(self.network, self.recipe.seed, self.recipe.dtype)
        self.trainer.load(fresh | self.best)
        target = evaluation.loss(self.trainer, self._x(self.held_in), self.held_in.labels)
        self._check_finite(target, "the loss that the second stage is to reach")
        state = fresh if recipe.second_stage == "scratch" else fresh | self.best  # at rest, either way
        self.position = replace(self.position, first=self.position.epoch, target=target)
        self.best = {}
        self._save(state)
        self.trainer = self._trainer_on(self.dataset.train, state)

    def second_stage(self) -> None:
        """Train on all examples until the held-out ones have the recorded loss, or the epochs end."""
        recipe, position, train = self.recipe, self.position, self.dataset.train
        first = position.first or 0
        before = math.ceil(len(self.held_in.x) / recipe.batch_size)
        self.progress.note(
            f"second stage, on all {len(train.x)} examples, until the loss of the held-out ones is at most "
            f"{position.target:.4g}; it begins {self._beginning}"
        )
        with self.progress.epochs(recipe.second_epochs, position.epoch - first, "stage 2") as report:
            while self.position.epoch - first < recipe.second_epochs and not self.position.is_reached:
                done = self.position.epoch - first
                scheduled = (
                    functools.partial(rates, recipe, done)
                    if recipe.second_stage == "scratch"
                    else functools.partial(continued_rates, recipe, position.best, before, done)
                )
                line = self._epoch(train, scheduled)
                loss = evaluation.loss(self.trainer, self._x(self.held_out), self.held_out.labels)
                self._check_finite(loss, "the held-out loss")
                line["held_out_loss"] = loss
                reached = replace(self.position, epoch=self.position.epoch + 1, held_out_loss=loss)
                self._end_epoch(line, reached, report, len(train.x))

    def tested(self) -> Json:
        """Test the parameters that the protocol ends with, and return what that gives."""
        if self.best:
            self.trainer.load(self.trainer.state() | self.best)
        examples = len(self.dataset.test.x)
        self.progress.note(f"testing on {examples} examples: clean, noisy and perturbed")
        tested = evaluation.measure(self.trainer, self.dataset.test, self.recipe)
        counts = {p: round(part * examples) for p, part in tested["one_step_unused"].items()}
        if any(counts.values()):
            self.progress.warn(evaluation.unused_warning("the one-step test", counts, examples))
        return tested | {"tested_on": f"{self.dataset.name}, {examples} test examples"}

    def ended(self) -> Json:
        """Return where the protocol has come to its end."""
        return {
            "parameters": self._which,
            "seconds_per_epoch": statistics.median([line["seconds"] for line in self.metrics] or [0.0]),
            "epochs": self.position.epoch,
            "checkpoint": self.checkpoint,
        }

    @property
    def _is_out_of_patience(self) -> bool:
        patience = self.recipe.patience
        return bool(patience) and self.position.epoch - self.position.best >= patience

    @property
    def _beginning(self) -> str:
        if self.recipe.second_stage == "scratch":
            return "with fresh weights"
        return f"with the parameters of epoch {self.position.best}"

    @property
    def _which(self) -> str:
        position = self.position
        if position.first is None:
            if position.best:
                return f"of epoch {position.best} of {position.epoch}, which had the least validation error"
            return f"after the last epoch, {position.epoch}"
        second = position.epoch - position.first
        epochs = f"{second} epoch" if second == 1 else f"{second} epochs"
        reached = "reached" if position.is_reached else "did not reach"
        return (
            f"after {epochs} on all examples, begun {self._beginning}; the held-out loss {reached} "
            f"the {position.target:.4g} that stage one had on its own"
        )

    def _trainer_on(self, split: Split, state: State) -> backends.Trainer:
        recipe = self.recipe
        task = Task(
            self.network,
            part(recipe, Objective),
            self._x(split),
            split.labels,
            recipe.batch_size,
            recipe.dtype,
            part(recipe, Optimiser),
            self.machine,
        )
        return self.backend.trainer(task, state)

    def _x(self, split: Split) -> Any:
        return split.x.astype(self.recipe.dtype, copy=False)

    def _epoch(self, split: Split, scheduled: Callable[[int], Rates]) -> Json:
        """Train for an epoch and return its metrics; what is not finite ends the run."""
        recipe, epoch = self.recipe, self.position.epoch
        draws = Draws(recipe.seed, epoch)
        schedule = scheduled(math.ceil(len(split.x) / recipe.batch_size))
        largest = float(np.max(schedule.lr)) * max(recipe.lr_scale) * max(1.0, recipe.weight_decay)
        if not largest <= float(np.finfo(recipe.dtype).max):
            raise NotFinite(
                f"epoch {epoch + 1} has a learning rate, with --lr-scale and --weight-decay, beyond "
                f"{recipe.dtype}; {self._kept}"
            )
        begin = time.perf_counter()
        line: Json = {"epoch": epoch + 1, "stage": 1 if self.position.first is None else 2}
        line |= self.trainer.epoch(draws.order(len(split.x)), schedule, draws)
        line |= {"lr": float(schedule.lr[-1]), "seconds": time.perf_counter() - begin}
        arrays = self.trainer.state().values()
        if not (math.isfinite(line["loss"]) and all(np.isfinite(array).all() for array in arrays)):
            raise NotFinite(
                f"epoch {epoch + 1} ended with loss {line['loss']} and is not finite; {self._kept}"
            )
        if recipe.objective in ("perturb", "penalty"):
            count, of = self._unused(split, float(schedule.sigma[-1]))
            line["unused"] = count / of
            if count and not any(before.get("unused") for before in self.metrics):
                self.progress.warn(evaluation.unused_warning("training", {f"{recipe.p:g}": count}, of))
            if recipe.validation:
                line |= self._monitored()
        return line

    def _monitored(self) -> Json:
        """Return errors in the ball on a few held-out examples; the last healthy checkpoint is kept."""
        first, recipe = slice(MONITORED), self.recipe
        x, labels = self._x(self.held_out)[first], self.held_out.labels[first]
        found = robustness.monitor(self.trainer, x, labels, recipe.p, recipe.sigma)
        was_healthy = all(
            robustness.is_healthy({name: line[f"monitor_{name}"] for name in found})
            for line in self.metrics[-1:]
            if all(f"monitor_{name}" in line for name in found)
        )
        if was_healthy and not robustness.is_healthy(found):
            self.run.keep_healthy()
            self.progress.warn(
                f"catastrophic overfitting: on {len(x)} held-out examples the error is "
                f"{found['one_step']:.0%} after one step and {found['multi_step']:.0%} after five; "
                f"{self.run.folder / runs.HEALTHY} is the checkpoint before"
            )
        return {f"monitor_{name}": value for name, value in found.items()}

    def _check_finite(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            raise NotFinite(f"{what} is {loss}; {self._kept}")

    @property
    def _kept(self) -> str:
        folder, epoch = self.run.folder, self.position.epoch
        return f"{folder} keeps the checkpoint after epoch {epoch}; try a smaller --lr or --sigma"

    def _unused(self, split: Split, sigma: float) -> tuple[int, int]:
        """Return how many examples leave the budget of one step unused, of how many of the first ones."""
        first = slice(max(20, len(split.x) // CHECKED))
        x, labels, p = self._x(split)[first], split.labels[first], self.recipe.p
        gradients = evaluation.in_parts(self.trainer.input_gradients, x, labels)
        return evaluation.unused(gradients, epsilon(gradients, p, sigma), p, sigma), len(gradients)

    def _end_epoch(self, line: Json, position: Position, report: Report, examples: int) -> None:
        self.run.log(line)
        runs.add_metrics(self.digest, line)
        self.position = replace(position, metrics=self.digest.hexdigest())
        self._save(self.trainer.state())
        self.metrics.append(line)
        report(line, examples)

    def _save(self, state: State) -> None:
        best = {BEST + name: array for name, array in self.best.items()}
        self.checkpoint = self.run.save(state | best, asdict(self.position), self.decisive)

    def _parameters(self, state: State) -> State:
        return {name: state[name] for name in parameter_shapes(self.network)}


def read_position(values: Json, recipe: Recipe, network: Network) -> tuple[Position, Shapes]:
    """Return the position of a checkpoint and the arrays that it must hold; raise if no run is there."""
    if unknown := values.keys() - {field.name for field in fields(Position)}:
        raise ValueError(f"{min(unknown)!r} is not known to lpfamily {__version__}")
    if "epoch" not in values:
        raise ValueError("no epoch")
    position = Position(**values)
    begun, stopping = position.first is not None, recipe.patience > 0
    first = position.first if position.first is not None else position.epoch
    if any(type(epoch) is not int for epoch in (position.epoch, position.best, first)) or not (
        0 <= position.best <= first <= recipe.epochs and 0 <= position.epoch - first <= recipe.second_epochs
    ):
        raise ValueError(f"epoch {position.epoch!r}, of {recipe.epochs} at most in the first stage")
    there = {  # what there must be, and else must not
        "best": position.best > 0 or None,
        "best_error": position.best_error,
        "target": position.target,
        "held_out_loss": position.held_out_loss,
    }
    due = dict.fromkeys(("best", "best_error"), stopping and first > 0)
    due |= {"target": begun, "held_out_loss": position.epoch > first}
    for name, value in there.items():
        if (value is not None) != due[name] or not (name == "best" or value is None or _is_finite(value)):
            raise ValueError(f"{name} {value!r} after epoch {position.epoch}")
    if not isinstance(position.metrics, str | None):
        raise ValueError(f"metrics {position.metrics!r}")
    if begun and recipe.second_stage == "none":
        raise ValueError("a second stage that its recipe does not have")
    expected = state_shapes(network)
    if position.best and position.first is None:
        expected |= {BEST + name: shape for name, shape in parameter_shapes(network).items()}
    return position, expected


def parted(arrays: State) -> tuple[State, State]:
    """Return a checkpoint's state, and the parameters that early stopping keeps, if there are any."""
    best = {name.removeprefix(BEST): array for name, array in arrays.items() if name.startswith(BEST)}
    return {name: array for name, array in arrays.items() if not name.startswith(BEST)}, best


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)
