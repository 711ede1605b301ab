"""Cross-entropy, and the error log-odds, whose gradient does not round to zero."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from lpfamily._arrays import (
    A,
    Array,
    Given,
    admit,
    device_of,
    floating,
    is_dtype,
    is_number,
    known_shape,
    namespace_of,
    of_library,
)
from lpfamily.libraries import constant, library_of

_LEFT_OUT = ": to leave examples out, pass their label as ignore_index"
_NO_ODDS = (
    f"{_LEFT_OUT}; other targets have no error log-odds: for these differentiate the loss itself, in a "
    "training loop by direction='loss'"
)


def error_log_odds(logits: A, labels: Array, *, ignore_index: int | None = None) -> A:
    """Return log((1 - p_y) / p_y), the logsumexp of the wrong logits minus the right logit.

    The cross-entropy of a hard label is the softplus of this, 1 - p_y is its sigmoid, and by the chain
    rule grad CE = (1 - p_y) * grad(error_log_odds), so both gradients have the same direction. The gradient
    of the cross-entropy is softmax - onehot; its entry of the right class, p_y - 1, keeps only a few bits or
    rounds to zero when the network is confident. Here that entry is -1. `lpfamily.epsilon` uses only the
    direction of a gradient, so this is the function to differentiate for it.

    Parameters
    ----------
    logits
        The logits, of shape (..., classes), with at least two classes.
    labels
        Integers in 0..classes - 1, of shape `logits.shape[:-1]`.
    ignore_index
        The label of entries to leave out, any integer, or None. Such an entry counts as never wrong: its
        odds are -inf, and their derivative is zero.

    Returns
    -------
    Array
        The odds, of shape `logits.shape[:-1]` and of the logits' dtype. The odds and their derivative are NaN
        for a label that is out of range where labels cannot be checked.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating, fewer than two classes, and labels that are not integers, of the
        wrong shape, or out of range. The range is checked in NumPy arrays, and in torch tensors that are on
        the CPU and not traced.
    """
    given = floating(logits, "logits")
    return given.back(_odds(*check_logits(given, labels, ignore_index, _NO_ODDS)))


def odds_gradient(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return the gradient of the error log-odds: softmax over the wrong classes, -1 at the right one.

    It takes NumPy arrays of shape (n, classes) and (n,), for models without automatic differentiation.
    """
    rows, wrong = np.arange(len(labels)), logits.copy()
    wrong[rows, labels] = -np.inf
    gradient: NDArray[np.floating] = np.exp(wrong - wrong.max(axis=1, keepdims=True))
    gradient /= gradient.sum(axis=1, keepdims=True)
    gradient[rows, labels] = -1
    return gradient


def binary_error_log_odds(logits: A, labels: Array, *, ignore_index: float | None = None) -> A:
    """Return log((1 - P) / P), where P is the probability that every sigmoid output of an example is right.

    Use it for sigmoid outputs, one or several, as `error_log_odds` for a softmax. The sum of the outputs'
    cross-entropies is -log P, the softplus of these odds. The sigmoid of the odds is 1 - P, and the gradient
    of the sum is (1 - P) * grad(binary_error_log_odds). For one output it is -z where the label is 1 and z
    where it is 0. Let q_k be the probability that output k is wrong. As 1 - P = 1 - prod (1 - q_k), the
    log-odds a and b of two outputs combine to log(e^a + e^b + e^(a+b)), where nothing rounds to zero.

    Parameters
    ----------
    logits
        The logits, of shape (..., outputs), with at least one output.
    labels
        0 or 1, of the logits' shape. They may be booleans, integers or, as for other packages' binary
        cross-entropies, floating numbers.
    ignore_index
        The label of outputs to leave out, such as -1 or NaN, or None. Such an output counts as never wrong.
        If an example has no other label, its odds are -inf and their derivative is zero.

    Returns
    -------
    Array
        The odds, of shape `logits.shape[:-1]` and of the logits' dtype. The odds and their derivative are NaN
        for a label that is neither 0 nor 1 where labels cannot be checked.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating or have no output, and labels of another shape, or that are neither 0
        nor 1. The values of labels are checked in NumPy arrays, and in torch tensors that are on the CPU and
        not traced.
    """
    given = floating(logits, "logits")
    xp, z, shape = given.xp, given.values, known_shape(given.array, "logits")
    if not shape or not shape[-1]:
        raise ValueError(f"logits must hold at least one output in their last axis; got shape {shape}")
    sign, counted = _signs(labels, shape, ignore_index)
    odds = xp.astype(xp.asarray(sign, device=device_of(z)), z.dtype, copy=False) * z
    if counted is not None:
        odds = xp.where(xp.asarray(counted, device=device_of(z)), odds, -math.inf)
    return given.back(library_of(z).per_example(joint_odds, "(c)->()", z.dtype, odds))


def _signs(labels: Array, shape: tuple[int, ...], ignore_index: float | None) -> tuple[Array, Array | None]:
    """Return 1 for labels of 0, -1 for 1 and NaN for others, and a mask of the labels that count.

    The mask is None if all labels count.
    """
    xp, labels = admit(labels if hasattr(labels, "dtype") else np.asarray(labels), "labels")
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels must have the shape of the logits, {shape}; got {tuple(labels.shape)}")
    y, counted = xp.astype(labels, xp.float32, copy=False), None
    if ignore_index is not None:
        if not is_number(ignore_index):
            raise TypeError(f"ignore_index must be a number or None; got {ignore_index!r}")
        counted = y == y if math.isnan(ignore_index) else y != float(ignore_index)
        y = xp.where(counted, y, 0.0)
    known = (y == 0) | (y == 1)
    if library_of(known).visible(known) and not xp.all(known):
        label = float(xp.min(xp.where(known, math.inf, y)))
        raise ValueError(f"labels must be 0 or 1; got {label:.6g}{_NO_ODDS}")
    return xp.where(known, 1 - 2 * y, math.nan), counted


def joint_odds(odds: Array) -> Array:
    """Return the log-odds that any output of the last axis is wrong, combined pair by pair."""
    xp = namespace_of(odds)
    while (count := odds.shape[-1]) > 1:
        half = count // 2
        # in this order -inf and inf give no NaN
        low, high = _ordered(xp, odds[..., :half], odds[..., half : 2 * half])
        joined = _logaddexp(xp, low, high + _logaddexp(xp, low, xp.zeros_like(low)))
        odds = xp.concat([joined, odds[..., 2 * half :]], axis=-1)
    return odds[..., 0]


def _ordered(xp: ModuleType, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the smaller and the larger; at a tie each keeps its derivative, which min and max halve."""
    swapped = a > b
    return xp.where(swapped, b, a), xp.where(swapped, a, b)


def _logaddexp(xp: ModuleType, a: Array, b: Array) -> Array:
    """Return log(exp(a) + exp(b)); the second derivative of torch.logaddexp is NaN where a is far from b."""
    low, high = _ordered(xp, a, b)
    alike = (low == high) & xp.isinf(low)
    return high + xp.log1p(xp.exp(xp.where(alike, 0.0, low - xp.where(alike, 0.0, high))))


def softplus(odds: Array) -> Array:
    """Return log(1 + exp(odds)), the cross-entropy; it and its derivatives are exact where it is tiny."""
    xp = namespace_of(odds)
    positive = odds > 0
    return xp.where(positive, odds, 0.0) + xp.log1p(xp.exp(xp.where(positive, -odds, odds)))


def relative_slope(odds: Array) -> Array:
    """Return sigmoid(odds) / softplus(odds), the slope of the cross-entropy relative to its value.

    It falls from 1 at -inf, where both round to zero, to 1 / odds. It equals (1 - exp(-s)) / s with s =
    softplus(odds); for small s its series is used. The derivatives of a quotient of the two functions would
    overflow; here they are accurate to the rounding of 1.
    """
    return library_of(odds).per_example(_relative_slope, "()->()", odds.dtype, odds)


def _relative_slope(odds: Array) -> Array:
    xp, s = namespace_of(odds), softplus(odds)
    near = s < xp.finfo(s.dtype).eps ** (1 / 3)
    low, high = xp.where(near, s, 0.0), xp.where(near, 1.0, s)
    return xp.where(near, 1 - low / 2 + low * low / 6, -xp.expm1(-high) / high)


def cross_entropy(logits: A, labels: Array, *, ignore_index: int | None = None) -> A:
    """Return -log p_y for each example, exact also where p_y rounds to 1.

    For integer labels it is softplus(error_log_odds). For soft labels t, which are floating and of the
    logits' shape, it is -sum_j t_j log p_j.

    Parameters
    ----------
    logits
        The logits, of shape (..., classes), with at least two classes.
    labels
        Integers of shape `logits.shape[:-1]`, or probabilities of the logits' shape, whose values are not
        checked.
    ignore_index
        The integer label of entries to leave out, or None: their loss is 0, and so is its derivative.

    Returns
    -------
    Array
        The loss in nats, of shape `logits.shape[:-1]` and of the logits' dtype.

    Raises
    ------
    TypeError, ValueError
        As in `error_log_odds`, and for an `ignore_index` with probabilities.
    """
    given = floating(logits, "logits")
    z, targets = given.values, _probabilities(given, labels, "logits")
    if targets is None:
        odds = _odds(*check_logits(given, labels, ignore_index, _LEFT_OUT))
        return given.back(library_of(odds).per_example(softplus, "()->()", odds.dtype, odds))
    if ignore_index is not None:
        raise ValueError(f"ignore_index needs integer labels; got {ignore_index} with probabilities")
    return given.back(library_of(z).per_example(_soft_loss, "(c),(c)->()", z.dtype, z, targets))


def _check_classes(logits: Array, name: str = "logits") -> None:
    shape = known_shape(logits, name)
    if not shape or shape[-1] < 2:
        raise ValueError(
            f"{name} must hold at least two classes in their last axis; got shape {shape}: "
            f"for one logit z of a binary problem pass stack([0, z])"
        )


def _in_library(labels: Array, logits: Array) -> Array:
    if isinstance(labels, int | np.ndarray | np.generic):
        labels = np.asarray(labels)
    return of_library(logits, labels, "labels")


def _check_range(labels: Array, classes: int, ignore_index: int | None, remedy: str) -> None:
    """Check the labels unless that means waiting for a device."""
    if 0 in labels.shape or not library_of(labels).visible(labels):
        return
    xp = namespace_of(labels)
    least, most = int(xp.min(labels)), int(xp.max(labels))
    if (least < 0 or most >= classes) and ignore_index is not None:
        labels = xp.where(labels == ignore_index, 0, labels)
        least, most = int(xp.min(labels)), int(xp.max(labels))
    if least < 0 or most >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}; got values from {least} to {most}{remedy}")


def check_logits(
    given: Given[A], labels: Array, ignore_index: int | None = None, remedy: str = ""
) -> tuple[Array, Array, Array | None]:
    """Return the logits in the dtype to compute in, a mask of the right class, and one of labels that count.

    The last is None if all labels count. `remedy` ends the errors about labels.
    """
    xp, logits, original = given.xp, given.values, labels
    _check_classes(logits)
    labels = _in_library(labels, logits)
    if not is_dtype(xp, labels.dtype, "integral"):
        raise TypeError(f"labels must be integers; got {labels.dtype}{remedy}")
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}")
    classes = xp.arange(logits.shape[-1], device=device_of(logits))
    labels = xp.astype(labels, classes.dtype, copy=False)  # the labels' dtype may hold fewer numbers
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer | None):
        raise TypeError(f"ignore_index must be an integer or None; got {ignore_index!r}")
    seen = np.asarray(original) if isinstance(original, int | np.ndarray | np.generic) else labels
    _check_range(seen, logits.shape[-1], ignore_index, remedy)
    counted = None
    if ignore_index is not None:
        counted = labels != int(ignore_index)
        labels = xp.where(counted, labels, -1)
    return logits, labels[..., None] == classes, counted


def _soft_loss(z: Array, t: Array) -> Array:
    xp = namespace_of(z)
    log = z - _logsumexp(xp, z)[..., None]
    return -xp.sum(xp.where((t == 0) & (log == -math.inf), 0.0, t * log), axis=-1)


def _odds(logits: Array, right: Array, counted: Array | None) -> Array:
    wrong = ~right if counted is None else ~right & counted[..., None]
    return library_of(logits).per_example(_odds_of, "(c),(c),(c)->()", logits.dtype, logits, right, wrong)


def _odds_of(logits: Array, right: Array, wrong: Array) -> Array:
    xp = namespace_of(logits)
    odds = _logsumexp(xp, xp.where(wrong, logits, -math.inf))
    odds = odds - xp.sum(xp.where(right, logits, 0.0), axis=-1)
    known = xp.any(right, axis=-1) | ~xp.any(wrong, axis=-1)
    return odds * xp.where(known, xp.ones_like(odds), math.nan)  # a factor makes the derivative NaN too


def _logsumexp(xp: ModuleType, z: Array) -> Array:
    top = constant(xp.max(z, axis=-1, keepdims=True))
    top = xp.where(xp.isfinite(top), top, 0.0)
    total = xp.sum(xp.exp(z - top), axis=-1)
    # if all are -inf, a log of 0 would have no derivative
    return xp.where(total == 0, -math.inf, xp.log(xp.where(total == 0, 1.0, total)) + top[..., 0])


def targets(given: Given[A], labels: Array, name: str) -> tuple[Array, Array | None]:
    """Return the targets in the dtype to compute in, and for integer labels a mask of the right class."""
    if (soft := _probabilities(given, labels, name)) is not None:
        return soft, None
    xp, (z, right, _) = given.xp, check_logits(given, labels)
    return xp.where(xp.any(right, axis=-1, keepdims=True), xp.astype(right, z.dtype), math.nan), right


def _probabilities(given: Given[A], labels: Array, name: str) -> Array | None:
    """Return the labels in the dtype to compute in, or None if they are not probabilities."""
    xp, x = given.xp, given.values
    _check_classes(x, name)
    if isinstance(labels, int):
        return None
    if not is_dtype(namespace_of(labels, "labels"), labels.dtype, "real floating") or labels.ndim != x.ndim:
        return None
    if tuple(labels.shape) != tuple(x.shape):
        raise ValueError(
            f"labels that are probabilities must have the shape of {name}, {tuple(x.shape)}; got "
            f"{tuple(labels.shape)}"
        )
    return xp.astype(_in_library(labels, x), x.dtype, copy=False)
