"""Norms, dual exponents and the penalty of eq. 4."""

from __future__ import annotations

import math

from lpfamily._arrays import A, Numbers, check_p, examples
from lpfamily.steepest import dual_norm
from lpfamily.trees import is_tree, over_leaves


def dual_exponent(p: float) -> float:
    """Return p* with 1/p + 1/p* = 1 (below eq. 3): inf for p = 1, 2 for 2, 1 for inf.

    Parameters
    ----------
    p
        A number in [1, inf].

    Raises
    ------
    TypeError, ValueError
        If p is not a number, or lies below 1 or is NaN.
    """
    p = check_p(p)
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def norm(x: A, p: float, *, batch_ndim: int | None = None) -> A:
    """Return the Lp norm of each example: max|x| for p = inf, sum|x| for p = 1.

    The largest entry is divided out first, so that no power overflows or underflows; the derivative
    is the unit vector that attains the norm, and 0 at x = 0.

    Parameters
    ----------
    x
        A floating array, or a tree of them as in `lpfamily.epsilon`; the first `batch_ndim` axes index
        examples.
    p
        A number in [1, inf].
    batch_ndim
        None means 1, or 0 for a 1-D array; 0 takes the whole array, or tree, as one example.

    Returns
    -------
    Array
        Of shape `x.shape[:batch_ndim]` and of x's dtype, or one that holds all leaves' numbers; NaN for an
        example that holds a NaN.

    Raises
    ------
    TypeError, ValueError
        For a p below 1, an x that is not a real floating array, or an impossible `batch_ndim`.
    """
    # The primitive is keyed by the ball's exponent, in which it is exact for p near 1; the norm's
    # own exponent is the dual of that.
    return _of_examples(x, dual_exponent(p), 1.0, batch_ndim, "x")


def penalty(grad: A, p: float, sigma: Numbers, *, batch_ndim: int | None = None) -> A:
    """Return sigma * ||grad||_{p*} for each example, the second term of eq. 4.

    It is what the linearised loss gains from `epsilon(grad, p, sigma)`, and by Hölder's equality
    its derivative with respect to grad is that epsilon; 0 at a zero gradient.

    Parameters
    ----------
    grad, p, sigma, batch_ndim
        As in `lpfamily.epsilon`.

    Returns
    -------
    Array
        Of shape `grad.shape[:batch_ndim]` and of grad's dtype, or one that holds all leaves' numbers, in
        units of the loss.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`.
    """
    return _of_examples(grad, check_p(p), sigma, batch_ndim, "grad")


def _of_examples(x: A, p: float, sigma: Numbers, batch_ndim: int | None, name: str) -> A:
    if is_tree(x):
        made: A = over_leaves(
            lambda rows, sigma, **ball: _of_examples(rows, p, sigma, ball["batch_ndim"], name),
            name,
            x,
            sigma,
            batch_ndim,
            reduces=True,
        )
        return made
    given = examples(x, name, batch_ndim)
    return given.back(dual_norm(p, given.values, given.radius(sigma)))
