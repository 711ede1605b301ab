"""What networks are trained with: losses of outputs and targets, one value per example.

Each is outer(inner(outputs, targets)), so that its gradient is the slope of outer times that of inner: the
same direction, which does not vanish where the slope does. Perturbations take theirs from inner. These
definitions take the arrays of any library; a backend may have faster ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from lpfamily._arrays import namespace_of
from lpfamily.classification import cross_entropy, error_log_odds, softplus
from lpfamily.libraries import constant

LossName = Literal["cross-entropy", "squared-error"]


class Loss(NamedTuple):
    """A loss, as functions of the arrays of some library."""

    inner: Callable[..., Any]
    """Of outputs and targets."""
    outer: Callable[..., Any]
    """Of inner."""
    slope: Callable[..., Any]
    """The derivative of outer, of inner."""
    value: Callable[..., Any]
    """The loss, of outputs and targets; its second derivatives are right too where inner has none."""
    error: Callable[..., Any]
    """What a trainer reports beside the loss, of outputs and targets."""


def distance(outputs: Any, targets: Any) -> Any:
    """Return the root mean square of outputs - targets over the last axis; at 0 its derivative is 0."""
    xp, residual = namespace_of(outputs), outputs - targets
    # not lpfamily.norm: torch.compile differentiates that once, and the penalty twice
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
"""By the names that `lpfamily.training.networks.Network.loss` has."""
