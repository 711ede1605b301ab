"""The losses that networks are trained with: functions of outputs and targets, one value per example.

Each is outer(inner(outputs, targets)), so its gradient is the slope of outer times the gradient of inner.
Both gradients have the same direction, but the gradient of inner does not vanish where the slope does, so
perturbations use inner. These definitions take the arrays of any library; a backend may have faster ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from lpfamily._arrays import namespace_of
from lpfamily.classification import cross_entropy, error_log_odds, softplus
from lpfamily.libraries import constant

LossName = Literal["cross-entropy", "squared-error"]


class Loss(NamedTuple):
    """A loss, as functions of the arrays of any library."""

    inner: Callable[..., Any]
    """inner(outputs, targets)."""
    outer: Callable[..., Any]
    """outer(values of inner)."""
    slope: Callable[..., Any]
    """slope(values of inner), the derivative of outer."""
    value: Callable[..., Any]
    """value(outputs, targets), the loss. It has second derivatives even where inner has no derivative."""
    error: Callable[..., Any]
    """error(outputs, targets), which trainers report beside the loss."""


def distance(outputs: Any, targets: Any) -> Any:
    """Return the root mean square of outputs - targets over the last axis; at 0 its derivative is 0."""
    xp, residual = namespace_of(outputs), outputs - targets
    # not lpfamily.norm, which torch.compile can differentiate only once; the penalty differentiates twice
    top = constant(xp.max(xp.abs(residual), axis=-1, keepdims=True))
    is_exact = top == 0
    top = xp.where(is_exact, 1.0, top)
    mean = xp.mean((residual / top) ** 2, axis=-1, keepdims=True)
    return xp.where(is_exact, 0.0, top * xp.sqrt(xp.where(is_exact, 1.0, mean)))[..., 0]


def squared_error(outputs: Any, targets: Any) -> Any:
    """Return half the mean square of outputs - targets over the last axis."""
    return namespace_of(outputs).mean((outputs - targets) ** 2, axis=-1) / 2


def _is_misclassified(outputs: Any, targets: Any) -> Any:
    return namespace_of(outputs).argmax(outputs, axis=-1) != targets


def _sigmoid(odds: Any) -> Any:
    return namespace_of(odds).exp(-softplus(-odds))


LOSSES: dict[LossName, Loss] = {
    "cross-entropy": Loss(error_log_odds, softplus, _sigmoid, cross_entropy, _is_misclassified),
    "squared-error": Loss(distance, lambda r: r * r / 2, lambda r: r, squared_error, distance),
}
"""The losses by name, as `lpfamily.training.networks.Network.loss` gives it."""
