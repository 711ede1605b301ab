"""Cross-entropy, and the error log-odds, whose direction does not round away."""

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

_LEFT_OUT = ": pass the label of what is to be left out as ignore_index"
_NO_ODDS = (
    f"{_LEFT_OUT}; other targets have no error log-odds, so differentiate the loss itself, in a training "
    "loop by direction='loss'"
)


def error_log_odds(logits: A, labels: Array, *, ignore_index: int | None = None) -> A:
    """Return log((1 - p_y) / p_y) = logsumexp of the wrong logits - the right logit.

    The cross-entropy of a hard label is softplus of this, 1 - p_y is its sigmoid, and by the chain
    rule grad CE = (1 - p_y) * grad(error_log_odds): the same direction. In softmax - onehot the
    term of the right class is p_y - 1, which is rounded to a few bits or to zero when the network
    is confident; here it is -1. As `lpfamily.epsilon` sees directions alone, this is the function
    to differentiate for it.

    Parameters
    ----------
    logits
        Of shape (..., classes), at least two classes.
    labels
        Integers in 0..classes - 1, of shape `logits.shape[:-1]`.
    ignore_index
        The label of entries to leave out, any integer, or None. Nothing is wrong there: the odds are -inf,
        which joins others as no error, and their derivative is zero.

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype. The odds and their derivative are NaN for a
        label that is out of range and could not be seen.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating, fewer than two classes, labels that are not integers, of
        the wrong shape, or out of range where they can be seen: in NumPy arrays, and torch tensors on the
        CPU that are not traced.
    """
    given = floating(logits, "logits")
    return given.back(_odds(*check_logits(given, labels, ignore_index, _NO_ODDS)))


def odds_gradient(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return the gradient of the error log-odds: softmax over the wrong classes, -1 at the right one.

    Of NumPy's arrays (n, classes) and (n,), for what has no automatic differentiation.
    """
    rows, wrong = np.arange(len(labels)), logits.copy()
    wrong[rows, labels] = -np.inf
    gradient: NDArray[np.floating] = np.exp(wrong - wrong.max(axis=1, keepdims=True))
    gradient /= gradient.sum(axis=1, keepdims=True)
    gradient[rows, labels] = -1
    return gradient


def binary_error_log_odds(logits: A, labels: Array, *, ignore_index: float | None = None) -> A:
    """Return log((1 - P) / P), P the probability that every sigmoid output of an example is right.

    What `error_log_odds` is for a softmax, for a binary output and for several labels: the sum of the
    outputs' cross-entropies is -log P = softplus of this, 1 - P is its sigmoid, and the gradient of the
    sum is (1 - P) * grad(binary_error_log_odds). For one output it is -z where the label is 1 and z where
    it is 0. As 1 - P is 1 - prod (1 - q_k), q_k the probability that output k is wrong, the odds a and b
    of two outputs join to log(e^a + e^b + e^(a+b)), where nothing rounds away.

    Parameters
    ----------
    logits
        Of shape (..., outputs), at least one output.
    labels
        Of the logits' shape: 0 or 1, as booleans, integers or, as binary cross-entropies of other
        packages take them, floating numbers.
    ignore_index
        The label of outputs to leave out, such as -1 or NaN, or None. Nothing is wrong there; where an
        example has no other label its odds are -inf, and their derivative is zero.

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype. The odds and their derivative are NaN where a
        label is neither 0 nor 1 and could not be seen.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating or have no output, and labels of another shape, or neither 0 nor 1
        where they can be seen, as in `error_log_odds`.
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
    """Return 1 for labels of 0, -1 for 1 and NaN for others, and which labels count, None for all."""
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
    """Return the log-odds that any of the last axis is wrong, joining them two by two."""
    xp = namespace_of(odds)
    while (count := odds.shape[-1]) > 1:
        half = count // 2
        # in this order -inf and inf make no NaN
        low, high = _ordered(xp, odds[..., :half], odds[..., half : 2 * half])
        joined = _logaddexp(xp, low, high + _logaddexp(xp, low, xp.zeros_like(low)))
        odds = xp.concat([joined, odds[..., 2 * half :]], axis=-1)
    return odds[..., 0]


def _ordered(xp: ModuleType, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the smaller and the larger; at a tie each takes its derivatives, which min and max halve."""
    swapped = a > b
    return xp.where(swapped, b, a), xp.where(swapped, a, b)


def _logaddexp(xp: ModuleType, a: Array, b: Array) -> Array:
    """Return log(exp(a) + exp(b)); the second derivative of torch's own is NaN where they differ by much."""
    low, high = _ordered(xp, a, b)
    alike = (low == high) & xp.isinf(low)
    return high + xp.log1p(xp.exp(xp.where(alike, 0.0, low - xp.where(alike, 0.0, high))))


def softplus(odds: Array) -> Array:
    """Return log(1 + exp(odds)), the cross-entropy; like its derivatives it is exact where it is tiny."""
    xp = namespace_of(odds)
    positive = odds > 0
    return xp.where(positive, odds, 0.0) + xp.log1p(xp.exp(xp.where(positive, -odds, odds)))


def relative_slope(odds: Array) -> Array:
    """Return sigmoid(odds) / softplus(odds), the slope of the cross-entropy relative to its value.

    It falls from 1 at -inf, where both round to zero, to 1 / odds. It is (1 - exp(-s)) / s of s =
    softplus(odds), and near 0 the series of that: a quotient of the two would overflow in its derivatives,
    which are right here to the rounding of 1.
    """
    return library_of(odds).per_example(_relative_slope, "()->()", odds.dtype, odds)


def _relative_slope(odds: Array) -> Array:
    xp, s = namespace_of(odds), softplus(odds)
    near = s < xp.finfo(s.dtype).eps ** (1 / 3)
    low, high = xp.where(near, s, 0.0), xp.where(near, 1.0, s)
    return xp.where(near, 1 - low / 2 + low * low / 6, -xp.expm1(-high) / high)


def cross_entropy(logits: A, labels: Array, *, ignore_index: int | None = None) -> A:
    """Return -log p_y for each example, exact also where p_y rounds to 1.

    For integer labels it is softplus(error_log_odds). Soft labels, floating and of the logits'
    shape, give -sum_j t_j log p_j.

    Parameters
    ----------
    logits
        Of shape (..., classes), at least two classes.
    labels
        Integers of shape `logits.shape[:-1]`, or probabilities of the logits' shape.
    ignore_index
        The integer label of entries to leave out, or None: their loss is 0, and so is its derivative.

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype, in nats.

    Raises
    ------
    TypeError, ValueError
        As in `error_log_odds`.
    """
    given = floating(logits, "logits")
    z, targets = given.values, _probabilities(given, labels, "logits")
    if targets is None:
        odds = _odds(*check_logits(given, labels, ignore_index, _LEFT_OUT))
        return given.back(library_of(odds).per_example(softplus, "()->()", odds.dtype, odds))
    if ignore_index is not None:
        raise ValueError(f"ignore_index is for integer labels; got {ignore_index} with probabilities")
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
    """Look at labels if that takes no waiting."""
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
    """Return the logits in the dtype to compute in, where the right class is, and which labels count.

    The last is None where all do. `remedy` ends the errors about labels.
    """
    xp, logits, visible = given.xp, given.values, labels
    _check_classes(logits)
    labels = _in_library(labels, logits)
    if not is_dtype(xp, labels.dtype, "integral"):
        raise TypeError(f"labels must be integers; got {labels.dtype}{remedy}")
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}")
    classes = xp.arange(logits.shape[-1], device=device_of(logits))
    labels = xp.astype(labels, classes.dtype, copy=False)  # which may hold fewer numbers than classes
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer | None):
        raise TypeError(f"ignore_index must be an integer or None; got {ignore_index!r}")
    seen = np.asarray(visible) if isinstance(visible, int | np.ndarray | np.generic) else labels
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
    return odds * xp.where(known, xp.ones_like(odds), math.nan)  # a factor spoils the derivative too


def _logsumexp(xp: ModuleType, z: Array) -> Array:
    top = constant(xp.max(z, axis=-1, keepdims=True))
    top = xp.where(xp.isfinite(top), top, 0.0)
    total = xp.sum(xp.exp(z - top), axis=-1)
    # where all are -inf, a log of 0 would have no derivative
    return xp.where(total == 0, -math.inf, xp.log(xp.where(total == 0, 1.0, total)) + top[..., 0])


def targets(given: Given[A], labels: Array, name: str) -> tuple[Array, Array | None]:
    """Return the targets in the dtype to compute in, and for integer labels where the right class is."""
    if (soft := _probabilities(given, labels, name)) is not None:
        return soft, None
    xp, (z, right, _) = given.xp, check_logits(given, labels)
    return xp.where(xp.any(right, axis=-1, keepdims=True), xp.astype(right, z.dtype), math.nan), right


def _probabilities(given: Given[A], labels: Array, name: str) -> Array | None:
    """Return the labels in the dtype to compute in, or None where they are not probabilities."""
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
