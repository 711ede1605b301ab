"""The loop over epochs, without files, that `lpfamily.train` and the scikit-learn estimators share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lpfamily.training.backends import Metrics, Trainer
from lpfamily.training.draws import Draws
from lpfamily.training.networks import Floats, State
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import Recipe
from lpfamily.training.tasks import Rates


class NotFinite(ArithmeticError):
    """A loss or a parameter is not finite any more; the last finite checkpoint is kept."""


@dataclass(frozen=True)
class Standing:
    """The progress of training."""

    epoch: int = 0
    """The number of finished epochs."""
    best: int = 0
    """The first epoch with the lowest judged metric; 0 if no metric is judged."""
    least: float | None = None
    """The judged metric of that epoch."""

    def to_come(self, last: int, patience: int) -> tuple[int, int]:
        """Return the least and the largest number of epochs until epoch `last` or patience ends training."""
        most = last - self.epoch
        return (min(most, patience - (self.epoch - self.best)) if patience else most), most


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that has just ended."""

    standing: Standing
    metrics: Metrics
    """The trainer's metrics, `lr` of the last step, `seconds` of training, and the results of `measure`."""
    state: State

    @property
    def is_best(self) -> bool:
        """Whether its judged metric is lower than in all epochs before."""
        return self.standing.best == self.standing.epoch


def train(
    trainer: Trainer,
    recipe: Recipe,
    visits: int,
    rates: Callable[[int, int], Rates],
    measure: Callable[[Rates], Metrics],
    *,
    last: int,
    start: Standing = Standing(),
    weights: Floats | None = None,
    judged: str = "",
    until: Callable[[], bool] = lambda: False,
    tick: Tick = silent,
    remedy: Callable[[], str],
) -> Iterator[Epoch]:
    """Train epoch by epoch, and yield each epoch when it has ended.

    Parameters
    ----------
    trainer
        The trainer.
    recipe
        The recipe, for its batch size, seed and patience.
    visits
        The number of examples that an epoch visits; without weights, the number of the trainer's examples.
    rates
        rates(epoch, batches) returns the rates of an epoch, counted from 0, of `batches` steps.
    measure
        measure(rates) returns metrics of the epoch that has just been trained, to add to the trainer's.
    last
        The number of the last epoch, counted from 1.
    start
        The progress so far.
    weights
        The weight of each example, for `Draws.order`.
    judged
        The measured metric that patience judges: training ends after `recipe.patience` epochs in a row
        without a new lowest value.
    until
        Called before each epoch, after the caller has handled the previous one; True ends training.
    tick
        Called with the progress of an epoch, if the trainer reports it.
    remedy
        Returns the end of the message of `NotFinite`.

    Raises
    ------
    NotFinite
        The loss or an array of the state is no longer finite.
    """
    at, batches = start, math.ceil(visits / recipe.batch_size)
    if hasattr(trainer, "tick"):
        trainer.tick = tick
    patience = recipe.patience if judged else 0
    while at.epoch < last and not until() and not (patience and at.epoch - at.best >= patience):
        draws, scheduled = Draws(recipe.seed, at.epoch), rates(at.epoch, batches)
        begin, epoch = time.perf_counter(), at.epoch + 1
        metrics = trainer.epoch(draws.order(visits, weights), scheduled, draws)
        metrics |= {"lr": float(scheduled.lr[-1]), "seconds": time.perf_counter() - begin}
        state = trainer.state()
        if not (math.isfinite(metrics["loss"]) and all(np.isfinite(array).all() for array in state.values())):
            raise NotFinite(f"epoch {epoch} ended with loss {metrics['loss']} and is not finite; {remedy()}")
        metrics |= measure(scheduled)
        if patience and (at.least is None or metrics[judged] < at.least):
            at = Standing(epoch, epoch, metrics[judged])
        else:
            at = Standing(epoch, at.best, at.least)
        yield Epoch(at, metrics, state)


def finite(value: float, what: str, remedy: str) -> float:
    """Return a number; if it is not finite, raise `NotFinite`, which names it by `what`."""
    if not math.isfinite(value):
        raise NotFinite(f"{what} is {value}; {remedy}")
    return value
