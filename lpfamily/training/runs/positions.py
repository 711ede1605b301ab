"""The position of a run in the protocol, as its checkpoint records it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lpfamily import __version__
from lpfamily.training.files import Json
from lpfamily.training.networks import Network, Shape, State, parameter_shapes, state_shapes
from lpfamily.training.recipes import Recipe

BEST = "best."
"""The prefix in the names of the parameters that early stopping keeps."""


@dataclass(frozen=True)
class Position:
    """The position of a run in the protocol. A checkpoint contains it beside the arrays."""

    epoch: int = 0
    """The number of finished epochs of both stages."""
    best: int = 0
    """The first epoch of stage one with the lowest validation error; 0 if none is kept."""
    best_error: float | None = None
    first: int | None = None
    """The number of epochs of stage one, once stage two has begun."""
    target: float | None = None
    """The held-out loss that ends stage two."""
    held_out_loss: float | None = None
    """The current held-out loss of stage two."""
    metrics: str | None = None
    """The checksum of all metrics so far; None if an earlier version wrote none."""

    @property
    def is_reached(self) -> bool:
        """Whether stage two has reached its target."""
        if self.target is None or self.held_out_loss is None:
            return False
        return self.held_out_loss <= self.target


def expected_arrays(values: Json, recipe: Recipe, network: Network) -> dict[str, Shape]:
    """Return the names and shapes of a checkpoint's arrays; raise if no run can have this position."""
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


def split_best(arrays: State) -> tuple[State, State]:
    """Split the arrays of a checkpoint into the state and any parameters that early stopping keeps."""
    best = {name.removeprefix(BEST): array for name, array in arrays.items() if name.startswith(BEST)}
    return {name: array for name, array in arrays.items() if not name.startswith(BEST)}, best
