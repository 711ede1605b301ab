"""Cross-entropy, and the error log-odds, whose direction does not round away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lpfamily._arrays import (
    Array,
    admit,
    carried,
    compute_dtype,
    device_of,
    is_dtype,
    known_shape,
    namespace_of,
    of_library,
)
from lpfamily.kernels import constant, library_of


def error_log_odds(logits: Array, labels: Array) -> Array:
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

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype; NaN for a label that is out of range
        and could not be seen without waiting for a device.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating, fewer than two classes, labels that are not integers, of
        the wrong shape, or (in a NumPy array) out of range.
    """
    xp, logits = admit(logits, "logits")
    odds = _odds(*check_logits(xp, logits, labels))
    return xp.astype(odds, logits.dtype, copy=False)


def binary_error_log_odds(logits: Array, labels: Array) -> Array:
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

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype; NaN where a label is neither 0 nor 1.

    Raises
    ------
    TypeError, ValueError
        For logits that are not floating or have no output, and labels of another shape.
    """
    xp, logits = admit(logits, "logits")
    dtype = compute_dtype(logits, "logits")
    shape = known_shape(logits, "logits")
    if not shape or not shape[-1]:
        raise ValueError(f"logits must hold at least one output in their last axis; got shape {shape}")
    if hasattr(labels, "dtype"):
        _, labels = admit(labels, "labels")
    labels = xp.asarray(carried(labels), device=device_of(logits))
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels must have the shape of the logits, {shape}; got {tuple(labels.shape)}")
    z, sign = xp.astype(logits, dtype, copy=False), 1 - 2 * xp.astype(labels, dtype)
    odds = library_of(z).by_examples(
        joint_odds, "(c)->()", dtype, xp.where(xp.abs(sign) == 1, sign * z, math.nan)
    )
    return xp.astype(odds, logits.dtype, copy=False)


def joint_odds(odds: Array) -> Array:
    """Return the log-odds that any of the last axis is wrong, joining them two by two."""
    xp = namespace_of(odds)
    while (count := odds.shape[-1]) > 1:
        half = count // 2
        a, b = odds[..., :half], odds[..., half : 2 * half]
        low, high = xp.minimum(a, b), xp.maximum(a, b)  # in this order -inf and inf make no NaN
        joined = _logaddexp(xp, low, high + _logaddexp(xp, low, xp.zeros_like(low)))
        odds = xp.concat([joined, odds[..., 2 * half :]], axis=-1)
    return odds[..., 0]


def _logaddexp(xp: Any, a: Array, b: Array) -> Array:
    """Return log(exp(a) + exp(b)); the second derivative of torch's own is NaN where they differ by much."""
    low, high = xp.minimum(a, b), xp.maximum(a, b)
    alike = (low == high) & xp.isinf(low)
    return high + xp.log1p(xp.exp(xp.where(alike, 0.0, low - high)))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log p_y for each example, exact also where p_y rounds to 1.

    For integer labels it is softplus(error_log_odds). Soft labels, floating and of the logits'
    shape, give -sum_j t_j log p_j.

    Parameters
    ----------
    logits
        Of shape (..., classes), at least two classes.
    labels
        Integers of shape `logits.shape[:-1]`, or probabilities of the logits' shape.

    Returns
    -------
    Array
        Of shape `logits.shape[:-1]` and of the logits' dtype, in nats.

    Raises
    ------
    TypeError, ValueError
        As in `error_log_odds`.
    """
    xp, logits = admit(logits, "logits")
    z, targets, right = with_targets(logits, labels, "logits")
    if right is None:
        loss = library_of(z).by_examples(_soft_loss, "(c),(c)->()", z.dtype, z, targets)
    else:
        odds = _odds(z, right)
        loss = xp.maximum(odds, xp.zeros_like(odds)) + xp.log1p(xp.exp(-xp.abs(odds)))
    return xp.astype(loss, logits.dtype, copy=False)


def _check_classes(logits: Array, name: str = "logits") -> None:
    shape = known_shape(logits, name)
    if not shape or shape[-1] < 2:
        raise ValueError(
            f"{name} must hold at least two classes in their last axis; got shape {shape}: "
            f"for one logit z of a binary problem pass stack([0, z])"
        )


def _in_library(labels: Array, logits: Array) -> Array:
    """Return labels as an array of the logits' library; look at those that NumPy can see."""
    if not isinstance(labels, int | np.ndarray | np.generic):
        return of_library(logits, labels, "labels")
    seen = np.asarray(labels)
    least, most = (seen.min(), seen.max()) if seen.size else (0, 0)
    if seen.dtype.kind in "iu" and (least < 0 or most >= logits.shape[-1]):
        raise ValueError(f"labels must lie in 0..{logits.shape[-1] - 1}; got values from {least} to {most}")
    return of_library(logits, seen, "labels")


def check_logits(xp: Any, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the logits in the dtype to compute in, and where the right class is."""
    dtype = compute_dtype(logits, "logits")
    _check_classes(logits)
    labels = _in_library(labels, logits)
    if not is_dtype(xp, labels.dtype, "integral"):
        raise TypeError(f"labels must be integers; got {labels.dtype}")
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}")
    classes = xp.arange(logits.shape[-1], device=device_of(logits))
    labels = xp.astype(labels, classes.dtype, copy=False)  # which may hold fewer numbers than classes
    return xp.astype(logits, dtype, copy=False), labels[..., None] == classes


def _soft_loss(z: Array, t: Array) -> Array:
    xp = namespace_of(z)
    log = z - _logsumexp(xp, z)[..., None]
    return -xp.sum(xp.where((t == 0) & (log == -math.inf), 0.0, t * log), axis=-1)


def _odds(logits: Array, right: Array) -> Array:
    return library_of(logits).by_examples(_odds_of, "(c),(c)->()", logits.dtype, logits, right)


def _odds_of(logits: Array, right: Array) -> Array:
    xp = namespace_of(logits)
    wrong = _logsumexp(xp, xp.where(right, -math.inf, logits))
    known = xp.any(right, axis=-1)
    return xp.where(known, wrong - xp.sum(xp.where(right, logits, 0.0), axis=-1), math.nan)


def _logsumexp(xp: Any, z: Array) -> Array:
    top = constant(xp.max(z, axis=-1, keepdims=True))
    top = xp.where(xp.isfinite(top), top, 0.0)
    total = xp.sum(xp.exp(z - top), axis=-1)
    # where all are -inf, a log of 0 would have no derivative
    return xp.where(total == 0, -math.inf, xp.log(xp.where(total == 0, 1.0, total)) + top[..., 0])


def with_targets(x: Array, labels: Array, name: str) -> tuple[Array, Array, Array | None]:
    """Return x and the targets in the dtype to compute in, and for integers where the right class is."""
    xp, x = admit(x, name)
    dtype = compute_dtype(x, name)
    _check_classes(x, name)
    labels = _in_library(labels, x)
    if is_dtype(xp, labels.dtype, "real floating") and labels.ndim == x.ndim:
        if tuple(labels.shape) != tuple(x.shape):
            raise ValueError(
                f"labels that are probabilities must have the shape of {name}, {tuple(x.shape)}; got "
                f"{tuple(labels.shape)}"
            )
        return xp.astype(x, dtype, copy=False), xp.astype(labels, dtype, copy=False), None
    x, right = check_logits(xp, x, labels)
    return x, xp.where(xp.any(right, axis=-1, keepdims=True), xp.astype(right, dtype), math.nan), right
