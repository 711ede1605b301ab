"""Where in the protocol a run is, as its checkpoint says it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lpfamily import __version__
from lpfamily.training.files import Json
from lpfamily.training.networks import Network, Shape, State, parameter_shapes, state_shapes
from lpfamily.training.recipes import Recipe

BEST = "best."
"""What precedes the names of the parameters that early stopping keeps."""


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


def expected_arrays(values: Json, recipe: Recipe, network: Network) -> dict[str, Shape]:
    """Return the names and shapes of a checkpoint's arrays by its position; raise if no run is there."""
    if unknown := values.keys() - {field.name for field in fields(Position)}:
        raise ValueError(f"{min(unknown)!r} is not known to lpfamily {__version__}")
    if "epoch" not in values:
        raise ValueError("no epoch")
    position = Position(**values)
    first = position.first if position.first is not None else position.epoch
    if any(type(epoch) is not int for epoch in (position.epoch, position.best, first)) or not (
        0 <= position.best <= first <= recipe.epochs and 0 <= position.epoch - first <= recipe.second_epochs
    ):
        raise ValueError(f"epoch {position.epoch!r}, of {recipe.epochs} at most in the first stage")
    keeps = recipe.patience > 0 and first > 0
    due = {"best_error": keeps, "target": position.first is not None, "held_out_loss": position.epoch > first}
    for name, is_due in due.items():
        value = getattr(position, name)
        if not (type(value) is float and math.isfinite(value) if is_due else value is None):
            raise ValueError(f"{name} {value!r} after epoch {position.epoch}")
    if (position.best > 0) != keeps:
        raise ValueError(f"best epoch {position.best} after epoch {position.epoch}")
    if not isinstance(position.metrics, str | None):
        raise ValueError(f"metrics {position.metrics!r}")
    if position.first is not None and recipe.second_stage == "none":
        raise ValueError("a second stage that its recipe does not have")
    expected = state_shapes(network, recipe.ema > 0)
    if position.best and position.first is None:
        expected |= {BEST + name: shape for name, shape in parameter_shapes(network).items()}
    return expected


def parted(arrays: State) -> tuple[State, State]:
    """Return a checkpoint's state, and the parameters that early stopping keeps, if there are any."""
    best = {name.removeprefix(BEST): array for name, array in arrays.items() if name.startswith(BEST)}
    return {name: array for name, array in arrays.items() if not name.startswith(BEST)}, best
