"""The loop over epochs, without files: `lpfamily.train` and the scikit-learn estimator share it."""

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
    """A loss or a parameter is no longer a finite number; the last finite checkpoint is kept."""


@dataclass(frozen=True)
class Standing:
    """How far training has come."""

    epoch: int = 0
    """Epochs that are done."""
    best: int = 0
    """The first epoch with the least judged metric; 0 if none is judged."""
    least: float | None = None
    """That metric."""

    def to_come(self, last: int, patience: int) -> tuple[int, int]:
        """Return how many epochs there will be, at least and at most, until a last one or patience ends."""
        most = last - self.epoch
        return (min(most, patience - (self.epoch - self.best)) if patience else most), most


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that has just ended."""

    standing: Standing
    metrics: Metrics
    """What the trainer returned, `lr` of the last step, `seconds` of training, and what was measured."""
    state: State

    @property
    def is_best(self) -> bool:
        """Whether no epoch before had as small a judged metric."""
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
    """Train epoch by epoch, and yield each when it has ended.

    Parameters
    ----------
    trainer
        What trains.
    visits
        How many examples an epoch visits: all of the trainer's, once each, if there are no weights.
    recipe
        Its batch size, seed and patience.
    rates
        rates(epoch, batches): those of the epoch that so many precede.
    measure
        measure(rates): metrics of the epoch that has just been trained; they join the trainer's.
    last
        The number of the last epoch, the first being 1.
    start
        How far training has come before.
    weights
        The weight of each example, by which `Draws.order` visits it.
    judged
        The measured metric by which patience ends the training, if the recipe has any: after `patience`
        epochs in a row without a new least value.
    until
        Asked before each epoch, after the caller has taken the one before: whether to end.
    tick
        Told how far an epoch is, if the trainer can say it.
    remedy
        What the message of `NotFinite` ends with.

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
    """Return a number; raise `NotFinite`, which says what it is, if it is not finite."""
    if not math.isfinite(value):
        raise NotFinite(f"{what} is {value}; {remedy}")
    return value
