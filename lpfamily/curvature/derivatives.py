"""Gauss-Newton (Appendix B): the cross-entropy's derivatives, J' H J, and both sides of Lemma B.1."""

from __future__ import annotations

from typing import Any

from lpfamily._arrays import Array, admit, beside, compute_dtype, device_of, namespace_of
from lpfamily.classification import with_targets
from lpfamily.kernels import library_of


def gauss_newton(jacobian: Array, hessian: Array) -> Array:
    """Return J' H J, the Gauss-Newton matrix GN(x) of Appendix B.

    J has a row for each output, as automatic differentiation gives it; the paper's J_y(x) is its
    transpose. With the logits' Hessian it is the generalised Gauss-Newton matrix, with the
    probabilities' Hessian it is eq. 14's.

    Parameters
    ----------
    jacobian
        Of the outputs with respect to the inputs, (..., outputs, inputs).
    hessian
        Of the loss with respect to the outputs, (..., outputs, outputs).

    Returns
    -------
    Array
        Of shape (..., inputs, inputs) and of the Jacobian's dtype.

    Raises
    ------
    TypeError, ValueError
        If one is not a real floating array, or the outputs do not agree.
    """
    xp, jacobian = admit(jacobian, "jacobian")
    dtype = compute_dtype(jacobian, "jacobian")
    hessian = beside(jacobian, hessian, "hessian")
    compute_dtype(hessian, "hessian")
    if jacobian.ndim < 2 or hessian.ndim < 2 or tuple(hessian.shape[-2:]) != (jacobian.shape[-2],) * 2:
        raise ValueError(
            f"jacobian must be (..., outputs, inputs) and hessian (..., outputs, outputs); got shapes "
            f"{tuple(jacobian.shape)} and {tuple(hessian.shape)}"
        )
    j, h = (xp.astype(x, dtype, copy=False) for x in (jacobian, hessian))
    return xp.astype(xp.matrix_transpose(j) @ (h @ j), jacobian.dtype, copy=False)


def probability_gradient(y: Array, labels: Array) -> Array:
    """Return -t / y, the gradient of the cross-entropy -sum_i t_i log y_i in the probabilities (eq. 45).

    The entries of y count as independent. A class without a share in t has gradient 0, also at y = 0.

    Parameters
    ----------
    y
        Probabilities, (..., classes), at least two classes.
    labels
        Integers of shape `y.shape[:-1]`, or probabilities t of y's shape.

    Returns
    -------
    Array
        Of y's shape and dtype; NaN for a label out of range that could not be seen.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    xp, y = admit(y, "y")
    z, t, _ = with_targets(y, labels, "y")
    return xp.astype(-_over(xp, t, z), y.dtype, copy=False)


def probability_hessian(y: Array, labels: Array) -> Array:
    """Return diag(t / y^2), the Hessian of the cross-entropy in the probabilities (eq. 46).

    Parameters
    ----------
    y, labels
        As in `probability_gradient`.

    Returns
    -------
    Array
        Of shape (..., classes, classes) and of y's dtype.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    xp, y = admit(y, "y")
    z, t, _ = with_targets(y, labels, "y")
    return xp.astype(_diagonal(xp, _over(xp, _over(xp, t, z), z)), y.dtype, copy=False)


def logit_gradient(logits: Array, labels: Array) -> Array:
    """Return y - t with y = softmax(logits): the gradient of the cross-entropy in the logits.

    For an integer label the entry of the right class, y_l - 1, is computed as minus the sum of the
    others, which does not round to zero when the network is confident.

    Parameters
    ----------
    logits
        Of shape (..., classes), at least two classes.
    labels
        Integers of shape `logits.shape[:-1]`, or probabilities t of the logits' shape.

    Returns
    -------
    Array
        Of the logits' shape and dtype; NaN for a label out of range that could not be seen.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    xp, logits = admit(logits, "logits")
    z, t, right = with_targets(logits, labels, "logits")
    y = _softmax(z)
    if right is None:
        return xp.astype(y - t, logits.dtype, copy=False)
    wrong = xp.where(right, 0.0, y)
    others = xp.sum(wrong, axis=-1, keepdims=True)
    return xp.astype(wrong - xp.where(t == 0, 0.0, t * others), logits.dtype, copy=False)


def logit_hessian(logits: Array) -> Array:
    """Return diag(y) - y y' with y = softmax(logits): the Hessian of the cross-entropy in the logits.

    It is the same for all labels whose probabilities sum to 1, and also the Jacobian of y. The
    diagonal, y_i (1 - y_i), is computed as sum_{j != i} y_i y_j.

    Parameters
    ----------
    logits
        Of shape (..., classes).

    Returns
    -------
    Array
        Of shape (..., classes, classes) and of the logits' dtype.

    Raises
    ------
    TypeError
        If logits is not a real floating array.
    """
    xp, logits = admit(logits, "logits")
    y = _softmax(xp.astype(logits, compute_dtype(logits, "logits"), copy=False))
    outer = y[..., :, None] * y[..., None, :]
    apart = xp.where(_eye(xp, y) == 1, 0.0, outer)
    return xp.astype(_diagonal(xp, xp.sum(apart, axis=-1)) - apart, logits.dtype, copy=False)


def lemma_b1(jacobian: Array, y: Array, labels: Array) -> tuple[Array, Array]:
    """Return both sides of Lemma B.1: grad_x L grad_x L' and J_y(x) H_L(y) J_y(x)'.

    They are equal for integer labels, which is what the lemma's hypothesis means, and for one-hot t;
    for soft labels they differ, as eq. 46 has no entry off the diagonal. Equal to each other, they
    still are not the Hessian of eq. 13: their mean over labels drawn from y is its mean.

    Parameters
    ----------
    jacobian
        Of the probabilities with respect to the inputs, (..., classes, inputs).
    y, labels
        As in `probability_gradient`.

    Returns
    -------
    tuple[Array, Array]
        Two arrays of shape (..., inputs, inputs).

    Raises
    ------
    TypeError, ValueError
        As in `gauss_newton` and `lpfamily.cross_entropy`.
    """
    xp, jacobian = admit(jacobian, "jacobian")
    j = xp.astype(jacobian, compute_dtype(jacobian, "jacobian"), copy=False)
    _, y = admit(y, "y")
    y = xp.astype(y, compute_dtype(y, "y"), copy=False)
    right = gauss_newton(j, probability_hessian(y, labels))
    grad = xp.sum(j * probability_gradient(y, labels)[..., None], axis=-2)
    left = grad[..., :, None] * grad[..., None, :]
    return xp.astype(left, jacobian.dtype, copy=False), xp.astype(right, jacobian.dtype, copy=False)


def _softmax(z: Array) -> Array:
    return library_of(z).by_examples(_softmax_of, "(c)->(c)", z.dtype, z)


def _softmax_of(z: Array) -> Array:
    xp = namespace_of(z)
    y = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return y / xp.sum(y, axis=-1, keepdims=True)


def _over(xp: Any, t: Array, y: Array) -> Array:
    """Return t / y, 0 where t is 0."""
    return xp.where(t == 0, 0.0, t / xp.where(t == 0, 1.0, y))


def _eye(xp: Any, like: Array) -> Array:
    return xp.eye(like.shape[-1], dtype=like.dtype, device=device_of(like))


def _diagonal(xp: Any, x: Array) -> Array:
    return xp.where(_eye(xp, x) == 1, x[..., None], 0.0)
