"""A run from its first epoch to its result, for any backend.

The paper's protocol has two stages. Stage one trains without the held-out examples until their error has not
improved for some epochs, and records the training loss of the best parameters. Stage two trains on all
examples until the loss of the held-out ones is as low.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from lpfamily.step import epsilon
from lpfamily.training import backends, evaluation, robustness, runs
from lpfamily.training.data import Dataset, Split
from lpfamily.training.errors import BadInput
from lpfamily.training.files import Json
from lpfamily.training.networks import Network, State, at_rest, evaluated, initial_state
from lpfamily.training.progress import Metrics, Progress
from lpfamily.training.protocol import epochs
from lpfamily.training.protocol.epochs import NotFinite
from lpfamily.training.recipes import Recipe, continued_rates, network_of, rates, task_of
from lpfamily.training.runs import Run
from lpfamily.training.runs.positions import BEST, Position, split_best
from lpfamily.training.tasks import Machine, Rates

CHECKED = 50
"""After each epoch one example in `CHECKED` is checked for unused budget, for a percent of the work."""

MONITORED = 200
"""The number of held-out examples that a check for catastrophic overfitting perturbs with many steps."""

SHARE = 0.05
"""The default cost of checks for catastrophic overfitting, as a fraction of training's forward passes."""

Callback = Callable[[Metrics], object]
"""callback(metrics) gets each epoch's line of `metrics.jsonl`, after that and the checkpoint are written."""

MONITOR = "monitor_"
"""The prefix of the metrics of a check for catastrophic overfitting."""


def epochs_per_check(recipe: Recipe, examples: int, epochs: int) -> int:
    """Return the number of epochs between checks for catastrophic overfitting, for recipes with checks."""
    if recipe.monitor:
        return recipe.monitor
    cost = min(MONITORED, recipe.validation) * robustness.MONITOR_PASSES
    return min(epochs, math.ceil(cost / (SHARE * examples * recipe.passes)))


def check_interval(recipe: Recipe, examples: int, epochs: int) -> int:
    """Return the number of epochs between checks in a stage of `epochs` epochs; 0 means no checks."""
    is_monitored = recipe.objective in ("perturb", "penalty", "trades") and recipe.validation
    return epochs_per_check(recipe, examples, epochs) if is_monitored else 0


def _is_healthy(line: Json) -> bool | None:
    """Return the outcome of the check after an epoch from its metrics; None if there was no check."""
    monitored = {
        name.removeprefix(MONITOR): value for name, value in line.items() if name.startswith(MONITOR)
    }
    return robustness.is_healthy(monitored) if monitored else None


def hold_out(dataset: Dataset, validation: int) -> tuple[Split, Split]:
    """Split the training set into the training examples and the last `validation`, the held-out ones."""
    examples = len(dataset.train.x)
    if not validation < examples:
        raise BadInput(
            f"--validation {validation}: {dataset.name} has {examples} training examples; hold out fewer"
        )
    first = examples - validation
    return dataset.train.rows(slice(first)), dataset.train.rows(slice(first, None))


def check(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the recipe's network; raise `BadInput` if recipe and data do not go together."""
    hold_out(dataset.first(recipe.examples, recipe.test_examples), recipe.validation)
    if not recipe.validation and (recipe.patience or recipe.second_stage != "none"):
        raise BadInput(
            "--patience and --second-stage need held-out examples, and --validation 0 leaves none; "
            "hold some out, or give --patience 0 --second-stage none"
        )
    if recipe.second_stage != "none" and not recipe.patience:
        raise BadInput(
            f"--second-stage {recipe.second_stage} starts from the epoch that --patience keeps, and "
            "--patience 0 keeps none; give --patience 1 or more, or --second-stage none"
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
    test: bool = True,
    callbacks: Iterable[Callback] = (),
    initial: Callable[[], State] = State,
) -> Json:
    """Train by the recipe, test, and return the result for `run.finish`.

    Every epoch ends with a line of metrics and a checkpoint, from which a run that has begun continues. Then
    the callbacks are called; an exception of a callback ends the training. Without `test` the test set is not
    used, as it must not decide a choice. `initial()` returns the initial parameters, or an empty state for
    random ones. It is not called if the run has begun.
    """
    training = _Training(run, recipe, dataset, backend, machine, progress, tuple(callbacks), initial)
    if training.position.first is None:
        training.first_stage()
        if recipe.second_stage != "none":
            training.begin_second_stage()
    if training.position.first is not None:
        training.second_stage()
    return (training.tested() if test else {}) | training.ended()


@dataclass(eq=False)
class _Training:
    """A run in memory: its trainer, its position, the parameters that it keeps, and its metrics."""

    run: Run
    recipe: Recipe
    dataset: Dataset
    backend: backends.Backend
    machine: Machine
    progress: Progress
    callbacks: tuple[Callback, ...]
    initial: Callable[[], State]

    def __post_init__(self) -> None:
        run, recipe = self.run, self.recipe
        dataset = self.dataset.first(recipe.examples, recipe.test_examples)
        self.dataset = dataset = replace(dataset, train=dataset.train.astype(recipe.dtype))
        self.network = check(recipe, dataset)
        self.train_split, self.held_out_split = hold_out(dataset, recipe.validation)
        self.position = Position()
        self.best: State = {}
        self.metrics: list[Json] = []
        self.decisive, self.averaged = run.decisive, recipe.ema > 0
        if run.has_begun:
            checkpoint = run.load(recipe, self.network)
            self.position, self.checkpoint = checkpoint.position, checkpoint.sha256
            state, self.best = split_best(checkpoint.arrays)
            self.metrics = run.cut_metrics(
                self.position.epoch, self.position.metrics, ("stage", "loss", "error", "seconds")
            )
        else:
            state = self._fresh()
            if initial := {name: array.astype(recipe.dtype) for name, array in self.initial().items()}:
                state = at_rest(initial, self.averaged)
            self._save(state)
        self.digest = runs.metrics_digest(self.metrics)
        self.progress.note(f"run folder: {run.folder}")
        split = self.train_split if self.position.first is None else dataset.train
        self.trainer = self._trainer_on(split, state)

    def first_stage(self) -> None:
        """Train without the held-out examples, until patience or the number of epochs ends the stage."""
        self._train(self.train_split, functools.partial(rates, self.recipe), self.recipe.epochs)

    def begin_second_stage(self) -> None:
        """Record the target loss, and start from the best parameters or from new ones."""
        best = at_rest(self.best, self.averaged)
        self.trainer.load(best)
        target = self._loss(self.train_split, "the loss that the second stage is to reach")
        state = self._fresh() if self.recipe.second_stage == "scratch" else best
        self.position = replace(self.position, first=self.position.epoch, target=target)
        self.best = {}
        self._save(state)
        self.trainer = self._trainer_on(self.dataset.train, state)

    def second_stage(self) -> None:
        """Train on all examples until the held-out ones reach the target loss, or the epochs end."""
        recipe, position, train = self.recipe, self.position, self.dataset.train
        first = position.first or 0
        steps_before = math.ceil(len(self.train_split.x) / recipe.batch_size)
        self.progress.note(
            f"second stage, on all {len(train.x)} examples, until the loss of the held-out ones is at most "
            f"{position.target:.4g}; it begins {self._second_start}"
        )

        def scheduled(epoch: int, batches: int) -> Rates:
            if recipe.second_stage == "scratch":
                return rates(recipe, epoch - first, batches)
            return continued_rates(recipe, position.best, steps_before, epoch - first, batches)

        self._train(train, scheduled, recipe.second_epochs)

    def tested(self) -> Json:
        """Test the final parameters of the protocol, and return the results."""
        if self.best:
            self.trainer.load(at_rest(self.best, self.averaged))
        examples = len(self.dataset.test.x)
        self.progress.note(f"testing on {examples} examples: clean, noisy and perturbed")
        tested = evaluation.measure(self.trainer, self.dataset.test, self.recipe)
        counts = {p: round(fraction * examples) for p, fraction in tested["one_step_unused"].items()}
        if any(counts.values()):
            self.progress.warn(evaluation.unused_warning("the one-step test", counts, examples))
        if unlearnt := tested["unlearnt"]:
            self.progress.warn(
                f"the network {unlearnt}, so it has learnt nothing; train it longer, or give another --lr, a "
                "wider --init or a smaller --sigma"
            )
        on = f"{self.recipe.inputs}, {examples} test examples"
        return tested | {"tested_on": on, "test_examples": examples}

    def ended(self) -> Json:
        """Return the entries of the result about the end of training."""
        if all(_is_healthy(line) is not False for line in self.metrics):
            self.run.forget_healthy()
        return {
            "parameters": self._final_parameters,
            "seconds_per_epoch": statistics.median([line["seconds"] for line in self.metrics] or [0.0]),
            "epochs": self.position.epoch,
            "checkpoint": self.checkpoint,
        }

    @property
    def _second_start(self) -> str:
        if self.recipe.second_stage == "scratch":
            return "with new weights"
        return f"with the parameters of epoch {self.position.best}"

    @property
    def _final_parameters(self) -> str:
        position = self.position
        if position.first is None:
            if position.best:
                return f"of epoch {position.best} of {position.epoch}, which had the least validation error"
            return f"after the last epoch, {position.epoch}"
        second = position.epoch - position.first
        epochs = f"{second} epoch" if second == 1 else f"{second} epochs"
        reached = "reached" if position.is_reached else "did not reach"
        return (
            f"after {epochs} on all examples, begun {self._second_start}; the held-out loss {reached} "
            f"the {position.target:.4g} of stage one on its training examples"
        )

    def _fresh(self) -> State:
        return initial_state(self.network, self.recipe.seed, self.recipe.dtype, self.averaged)

    def _trainer_on(self, split: Split, state: State) -> backends.Trainer:
        task = task_of(self.recipe, self.network, split.x, split.labels, self.machine)
        return self.backend.trainer(task, state)

    def _train(self, split: Split, scheduled: Callable[[int, int], Rates], count: int) -> None:
        """Train a stage of at most `count` epochs, with a checkpoint after each."""
        begin, examples, recipe = self.position, len(split.x), self.recipe
        self._interval = check_interval(recipe, examples, count)
        first, is_second = begin.first or 0, begin.first is not None
        with self.progress.epochs(count, begin.epoch - first, "stage 2" if is_second else "") as shown:
            trained = epochs.train(
                self.trainer,
                recipe,
                examples,
                functools.partial(self._rates, scheduled),
                functools.partial(self._measured, split),
                last=first + count,
                start=epochs.Standing(begin.epoch, begin.best, begin.best_error),
                judged="" if is_second else "validation_error",
                until=lambda: self.position.is_reached,
                tick=shown.tick,
                remedy=self._remedy,
            )
            for epoch in trained:
                at, metrics = epoch.standing, epoch.metrics
                line = {"epoch": at.epoch, "stage": 2 if is_second else 1} | metrics
                self.run.log(line)
                runs.add_metrics(self.digest, line)
                if epoch.is_best:
                    self.best = evaluated(self.network, epoch.state)
                self.position = replace(
                    self.position,
                    epoch=at.epoch,
                    best=at.best,
                    best_error=at.least,
                    held_out_loss=metrics.get("held_out_loss"),
                    metrics=self.digest.hexdigest(),
                )
                self._keep_healthy(line)
                self._save(epoch.state)
                self.metrics.append(line)
                shown.report(line, examples, *self._to_come(at, first + count))
                for callback in self.callbacks:
                    callback(dict(line))

    def _to_come(self, at: epochs.Standing, last: int) -> tuple[float, float]:
        """Return the least and the largest number of epochs to come, in units of this stage's epochs."""
        recipe = self.recipe
        if self.position.first is not None:
            return 0, 0 if self.position.is_reached else last - at.epoch
        fewest, most = at.to_come(last, recipe.patience)
        if recipe.second_stage == "none":
            return fewest, most
        return fewest, most + recipe.second_epochs * len(self.dataset.train.x) / len(self.train_split.x)

    def _rates(self, scheduled: Callable[[int, int], Rates], epoch: int, batches: int) -> Rates:
        """Return the rates of an epoch; a learning rate beyond the dtype ends the run."""
        recipe, result = self.recipe, scheduled(epoch, batches)
        largest = float(np.max(result.lr)) * max(recipe.lr_scale) * max(1.0, recipe.weight_decay)
        if not largest <= float(np.finfo(recipe.dtype).max):
            raise NotFinite(
                f"epoch {epoch + 1} has a learning rate, with --lr-scale and --weight-decay, beyond "
                f"{recipe.dtype}; {self._remedy()}"
            )
        return result

    def _measured(self, split: Split, scheduled: Rates) -> Json:
        """Return the measured metrics of the epoch that has just been trained on a split."""
        recipe, measured = self.recipe, Json()
        if recipe.objective in ("perturb", "penalty"):
            count, of = self._unused(split, float(scheduled.sigma[-1]))
            measured["unused"] = count / of
            if count and not any(before.get("unused") for before in self.metrics):
                self.progress.warn(evaluation.unused_warning("training", {f"{recipe.p:g}": count}, of))
        if self._interval and (self.position.epoch + 1) % self._interval == 0:
            measured |= self._monitored()
        if self.position.first is not None:
            measured["held_out_loss"] = self._loss(self.held_out_split, "the held-out loss")
        elif recipe.validation:
            held_out = self.held_out_split
            measured["validation_error"] = evaluation.error(self.trainer, held_out.x, held_out.labels)
        return measured

    def _monitored(self) -> Json:
        """Check for catastrophic overfitting: return errors in the ball on a few held-out examples."""
        recipe, few = self.recipe, self.held_out_split.rows(slice(MONITORED))
        errors = robustness.monitor(self.trainer, few.x, few.labels, recipe.p, recipe.sigma)
        before = [healthy for healthy in map(_is_healthy, self.metrics) if healthy is not None]
        if all(before[-1:]) and not robustness.is_healthy(errors):
            is_kept = self.run.has(runs.HEALTHY) or all(map(_is_healthy, self.metrics[-1:]))
            healthy = f"{self.run.folder / runs.HEALTHY} is the checkpoint of the check before"
            self.progress.warn(
                f"catastrophic overfitting: on {len(few.x)} held-out examples the error is "
                f"{errors['one_step']:.0%} after one step and {errors['multi_step']:.0%} after five"
                + (f"; {healthy}" if is_kept else "")
            )
        return {MONITOR + name: value for name, value in errors.items()}

    def _keep_healthy(self, line: Json) -> None:
        """Copy the checkpoint if it is healthy and the new epoch, with metrics `line`, is not.

        The checkpoint of the new epoch is about to replace it. An epoch without a check does not count as
        healthy, but the state before the first epoch does.
        """
        if self._interval and all(map(_is_healthy, self.metrics[-1:])) and not _is_healthy(line):
            self.run.keep_healthy()

    def _loss(self, split: Split, what: str) -> float:
        loss = evaluation.loss(self.trainer, split.x, split.labels)
        return epochs.finite(loss, what, self._remedy())

    def _remedy(self) -> str:
        folder, epoch = self.run.folder, self.position.epoch
        return f"{folder} keeps the checkpoint after epoch {epoch}; try a smaller --lr or --sigma"

    def _unused(self, split: Split, sigma: float) -> tuple[int, int]:
        """Return the number of examples that leave budget unused in one step, and the number checked."""
        p, few = self.recipe.p, split.rows(slice(max(20, len(split.x) // CHECKED)))
        gradients = evaluation.in_chunks(self.trainer.input_gradients, few.x, few.labels)
        return evaluation.unused(gradients, epsilon(gradients, p, sigma), p, sigma), len(gradients)

    def _save(self, state: State) -> None:
        best = {BEST + name: array for name, array in self.best.items()}
        self.checkpoint = self.run.save(state | best, asdict(self.position), self.decisive)
