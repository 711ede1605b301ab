"""Norms, dual exponents and the penalty of eq. 4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lpfamily import weighted
from lpfamily._arrays import A, Array, Numbers, check_p, examples
from lpfamily.steepest import dual_exponent, dual_norm
from lpfamily.trees import is_tree, over_leaves


def norm(x: A, p: float, *, batch_ndim: int | None = None, scale: Numbers | None = None) -> A:
    """Return the Lp norm of each example: sum|x| for p = 1, max|x| for p = inf; with a scale, of x / scale.

    The largest entry is divided out first, so that no power overflows or underflows. The derivative is the
    vector d of dual norm 1 with <d, x> = ||x||_p: sign(x) for p = 1, x / ||x||_2 for p = 2, the sign of the
    largest entry, shared equally by ties, for p = inf. It is 0 at x = 0.

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
        As in `lpfamily.epsilon`. The norm is then the radius of the smallest weighted ball that contains x.
        It is infinite if an entry of x is not 0 where the scale is.

    Returns
    -------
    Array
        One value per example, of shape `x.shape[:batch_ndim]` and x's dtype, or a dtype that holds those of
        all leaves. NaN for an example that contains a NaN.

    Raises
    ------
    TypeError, ValueError
        If p is below 1, x is not a real floating array, or `batch_ndim` is impossible; for a scale as in
        `lpfamily.epsilon`.
    """
    # The primitive takes the ball's exponent, for which it is exact at p near 1. The norm's exponent is
    # the dual of that.
    weighted_norm = weighted.dual_norm_of_quotient
    return _of_examples(x, dual_exponent(p), 1.0, batch_ndim, scale, "x", weighted_norm)


def penalty(
    grad: A, p: float, sigma: Numbers, *, batch_ndim: int | None = None, scale: Numbers | None = None
) -> A:
    """Return sigma * ||grad||_{p*} for each example, the second term of eq. 4; with a scale, of scale * grad.

    It is the gain of the linearised loss from the step `epsilon(grad, p, sigma)`. By Hölder's equality its
    derivative with respect to grad is that step, which is 0 at a zero gradient. Training with eq. 4 adds the
    mean of the penalty to the mean loss.

    Parameters
    ----------
    grad, p, sigma, batch_ndim, scale
        As in `lpfamily.epsilon`.

    Returns
    -------
    Array
        One value per example, in units of the loss, of shape `grad.shape[:batch_ndim]` and grad's dtype, or
        a dtype that holds those of all leaves.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`.
    """
    weighted_norm, (sigma, scale) = weighted.dual_norm_of_product, weighted.joined(sigma, scale)
    return _of_examples(grad, check_p(p), sigma, batch_ndim, scale, "grad", weighted_norm)


def _of_examples(
    x: A,
    p: float,
    sigma: Numbers,
    batch_ndim: int | None,
    scale: Numbers | None,
    name: str,
    weighted_norm: Callable[..., Array],
) -> A:
    if is_tree(x):
        result: A = over_leaves(
            lambda rows, sigma, batch_ndim, mask, scale: _of_examples(
                rows, p, sigma, batch_ndim, scale, name, weighted_norm
            ),
            name,
            x,
            sigma,
            batch_ndim,
            scale=scale,
            reduces=True,
        )
        return result
    given = examples(x, name, batch_ndim)
    radius = given.radius(sigma)
    if scale is not None:
        ball = weighted.radius_and_scale(given, radius, scale)
        return given.back(weighted.per_row(partial(weighted_norm, p), given.values, *ball, reduces=True))
    return given.back(dual_norm(p, given.values, radius))
