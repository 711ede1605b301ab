"""Norms, dual exponents and the penalty of eq. 4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lpfamily import weighted
from lpfamily._arrays import A, Array, Numbers, check_p, examples
from lpfamily.steepest import dual_exponent, dual_norm
from lpfamily.trees import is_tree, over_leaves


def norm(x: A, p: float, *, batch_ndim: int | None = None, scale: Numbers | None = None) -> A:
    """Return the Lp norm of each example: max|x| for p = inf, sum|x| for p = 1; with a scale, of x / scale.

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
    scale
        As in `lpfamily.epsilon`: the radius of the smallest weighted ball that x is in. An entry of scale 0
        that is not 0 makes it infinite.

    Returns
    -------
    Array
        Of shape `x.shape[:batch_ndim]` and of x's dtype, or one that holds all leaves' numbers; NaN for an
        example that holds a NaN.

    Raises
    ------
    TypeError, ValueError
        For a p below 1, an x that is not a real floating array, an impossible `batch_ndim`, and for a scale
        as in `lpfamily.epsilon`.
    """
    # The primitive is keyed by the ball's exponent, in which it is exact for p near 1; the norm's
    # own exponent is the dual of that.
    of = weighted.dual_norm_of_quotient
    return _of_examples(x, dual_exponent(p), 1.0, batch_ndim, scale, "x", of)


def penalty(
    grad: A, p: float, sigma: Numbers, *, batch_ndim: int | None = None, scale: Numbers | None = None
) -> A:
    """Return sigma * ||grad||_{p*} for each example, the second term of eq. 4; with a scale, of scale * grad.

    It is what the linearised loss gains from `epsilon(grad, p, sigma)`, and by Hölder's equality
    its derivative with respect to grad is that epsilon; 0 at a zero gradient.

    Parameters
    ----------
    grad, p, sigma, batch_ndim, scale
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
    of = weighted.dual_norm_of_product
    return _of_examples(grad, check_p(p), sigma, batch_ndim, scale, "grad", of)


def _of_examples(
    x: A,
    p: float,
    sigma: Numbers,
    batch_ndim: int | None,
    scale: Numbers | None,
    name: str,
    of: Callable[..., Array],
) -> A:
    if is_tree(x):
        made: A = over_leaves(
            lambda rows, sigma, batch_ndim, mask, scale: _of_examples(
                rows, p, sigma, batch_ndim, scale, name, of
            ),
            name,
            x,
            sigma,
            batch_ndim,
            scale=scale,
            reduces=True,
        )
        return made
    given = examples(x, name, batch_ndim)
    radius = given.radius(sigma)
    if scale is not None:
        ball = weighted.weights(given, radius, scale)
        return given.back(weighted.per_row(partial(of, p), given.values, *ball, reduces=True))
    return given.back(dual_norm(p, given.values, radius))
