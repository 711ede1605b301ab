"""Gauss-Newton (Appendix B): derivatives of the cross-entropy, J' H J, and both sides of Lemma B.1."""

from __future__ import annotations

from lpfamily._arrays import A, Array, beside, compute_dtype, device_of, floating, namespace_of
from lpfamily.classification import targets
from lpfamily.libraries import library_of


def gauss_newton(jacobian: A, hessian: Array) -> A:
    """Return J' H J, the Gauss-Newton matrix GN(x) of Appendix B.

    J has a row for each output, as automatic differentiation returns it; the paper's J_y(x) is its
    transpose. With the Hessian in the logits the result is the generalised Gauss-Newton matrix; with the
    Hessian in the probabilities it is the matrix of eq. 14.

    Parameters
    ----------
    jacobian
        The Jacobian of the outputs with respect to the inputs, (..., outputs, inputs).
    hessian
        The Hessian of the loss with respect to the outputs, (..., outputs, outputs).

    Returns
    -------
    Array
        The matrix, of shape (..., inputs, inputs) and of the Jacobian's dtype.

    Raises
    ------
    TypeError, ValueError
        If one is not a real floating array, or if they differ in the number of outputs.
    """
    given = floating(jacobian, "jacobian")
    xp, j = given.xp, given.values
    h = beside(j, hessian, "hessian")
    compute_dtype(h, "hessian")
    if j.ndim < 2 or h.ndim < 2 or tuple(h.shape[-2:]) != (j.shape[-2],) * 2:
        raise ValueError(
            f"jacobian must be (..., outputs, inputs) and hessian (..., outputs, outputs); got shapes "
            f"{tuple(j.shape)} and {tuple(h.shape)}"
        )
    return given.back(xp.matrix_transpose(j) @ (xp.astype(h, j.dtype, copy=False) @ j))


def probability_gradient(y: A, labels: Array) -> A:
    """Return -t / y, the gradient of the cross-entropy -sum_i t_i log y_i in the probabilities (eq. 45).

    The entries of y count as independent variables. A class with t_i = 0 has gradient 0, also at y_i = 0.

    Parameters
    ----------
    y
        Probabilities, (..., classes), with at least two classes.
    labels
        Integers of shape `y.shape[:-1]`, or probabilities t of y's shape.

    Returns
    -------
    Array
        The gradient, of y's shape and dtype; NaN for a label that is out of range where labels cannot be
        checked.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    given = floating(y, "y")
    t, _ = targets(given, labels, "y")
    return given.back(-_over(t, given.values))


def probability_hessian(y: A, labels: Array) -> A:
    """Return diag(t / y^2), the Hessian of the cross-entropy in the probabilities (eq. 46).

    Parameters
    ----------
    y, labels
        As in `probability_gradient`.

    Returns
    -------
    Array
        The Hessian, of shape (..., classes, classes) and of y's dtype.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    given = floating(y, "y")
    t, _ = targets(given, labels, "y")
    return given.back(_diagonal(_over(_over(t, given.values), given.values)))


def logit_gradient(logits: A, labels: Array) -> A:
    """Return y - t with y = softmax(logits): the gradient of the cross-entropy in the logits.

    For an integer label the entry of the right class, y_l - 1, is computed as minus the sum of the
    others, which does not round to zero when the network is confident.

    Parameters
    ----------
    logits
        The logits, of shape (..., classes), with at least two classes.
    labels
        Integers of shape `logits.shape[:-1]`, or probabilities t of the logits' shape.

    Returns
    -------
    Array
        The gradient, of the logits' shape and dtype; NaN for a label that is out of range where labels cannot
        be checked.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.cross_entropy`.
    """
    given = floating(logits, "logits")
    xp, (t, right) = given.xp, targets(given, labels, "logits")
    y = _softmax(given.values)
    if right is None:
        return given.back(y - t)
    wrong = xp.where(right, 0.0, y)
    others = xp.sum(wrong, axis=-1, keepdims=True)
    return given.back(wrong - xp.where(t == 0, 0.0, t * others))


def logit_hessian(logits: A) -> A:
    """Return diag(y) - y y' with y = softmax(logits): the Hessian of the cross-entropy in the logits.

    It is the same for all labels whose probabilities sum to 1, and it is also the Jacobian of y. The
    diagonal, y_i (1 - y_i), is computed as sum_{j != i} y_i y_j.

    Parameters
    ----------
    logits
        The logits, of shape (..., classes).

    Returns
    -------
    Array
        The Hessian, of shape (..., classes, classes) and of the logits' dtype.

    Raises
    ------
    TypeError
        If logits is not a real floating array.
    """
    given = floating(logits, "logits")
    xp, y = given.xp, _softmax(given.values)
    apart = xp.where(_eye(y), 0.0, _outer(y))
    return given.back(_diagonal(xp.sum(apart, axis=-1)) - apart)


def lemma_b1(jacobian: A, y: A, labels: Array) -> tuple[A, A]:
    """Return both sides of Lemma B.1: grad_x L grad_x L' and J_y(x) H_L(y) J_y(x)'.

    They are equal for integer labels, as in the lemma's hypothesis, and for one-hot t. For soft labels they
    differ, as eq. 46 has no entry off the diagonal. Even then they are not the Hessian of eq. 13, and agree
    with it only in the mean over labels drawn from y.

    Parameters
    ----------
    jacobian
        The Jacobian of the probabilities with respect to the inputs, (..., classes, inputs).
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
    given, at = floating(jacobian, "jacobian"), floating(y, "y")
    right = gauss_newton(given.values, probability_hessian(at.values, labels))
    grad = given.values * probability_gradient(at.values, labels)[..., None]
    return given.back(_outer(given.xp.sum(grad, axis=-2))), given.back(right)


def _softmax(z: Array) -> Array:
    return library_of(z).per_example(_softmax_of, "(c)->(c)", z.dtype, z)


def _softmax_of(z: Array) -> Array:
    xp = namespace_of(z)
    y = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return y / xp.sum(y, axis=-1, keepdims=True)


def _over(t: Array, y: Array) -> Array:
    """Return t / y, 0 where t is 0."""
    xp = namespace_of(t)
    return xp.where(t == 0, 0.0, t / xp.where(t == 0, 1.0, y))


def _outer(v: Array) -> Array:
    return v[..., :, None] * v[..., None, :]


def _eye(v: Array) -> Array:
    return namespace_of(v).eye(v.shape[-1], dtype=v.dtype, device=device_of(v)) == 1


def _diagonal(v: Array) -> Array:
    return namespace_of(v).where(_eye(v), v[..., None], 0.0)
