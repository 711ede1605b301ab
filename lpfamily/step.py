"""The steepest step inside a ball, and inside a box too: the public form of `steepest` and `step_in_box`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from lpfamily import weighted
from lpfamily._arrays import A, Array, Bounds, Numbers, check_p, examples
from lpfamily.box import box_of, room_to_move, step_in_box
from lpfamily.libraries import detoured, library_of
from lpfamily.steepest import steepest
from lpfamily.trees import Joint, is_tree, over_leaves


def epsilon(
    grad: A,
    p: float,
    sigma: Numbers,
    *,
    batch_ndim: int | None = None,
    mask: Array | None = None,
    scale: Numbers | None = None,
    x: Numbers | None = None,
    bounds: Bounds | None = None,
) -> A:
    """Return the step of Lp norm sigma that raises the linearised loss most.

    The maximiser of <grad, eps> subject to ||eps||_p <= sigma, for each example (eq. 2, solved in
    Appendix A)::

        eps = sigma * sign(grad) * (|grad| / ||grad||_{p*}) ** (1 / (p - 1))     (3)

    p = inf gives sigma * sign(grad), the fast gradient sign method (eq. 8); p = 2 gives sigma * grad /
    ||grad||_2 (eq. 12); p = 1 gives the whole budget to the largest |grad|, shared equally by ties
    (eq. 11, corrected), the limit of eq. 3.

    The step depends only on the direction of grad, at every scale from subnormal to the largest finite
    entries. sign(0) = 0, so zero entries and zero examples stay zero. For p < inf, infinite entries
    share the budget of their example. A NaN makes its whole example NaN; at p = inf, where coordinates
    are independent, only its entry. Derivatives are those of eq. 3 where it is differentiable, and 0
    elsewhere (p = 1 and inf; zero examples; zero entries for p > 2).

    With `x` and `bounds`, eps also satisfies low <= x + eps <= high, to one unit in the last place of the
    bounds. For some t, the size of every entry is the smaller of t * |grad| ** (1 / (p - 1)) and the distance
    to its bound (p = 1: entries move to their bounds from the largest |grad| down, until the budget is spent;
    p = inf: eq. 8, clipped). Budget that an entry at its bound cannot spend goes to the others, so this step
    gains more than eq. 3 clipped afterwards. Without finite bounds it is eq. 3.

    With `scale` the ball is ||eps / scale||_p <= sigma, and the maximiser scale * epsilon(scale * grad).

    Parameters
    ----------
    grad
        The gradient of the loss with respect to the input: a floating array of any library, whose first
        `batch_ndim` axes index examples. Each example has its own ball. Or a tree of such arrays, all of
        one library and of the same examples: dicts, lists and tuples, nested in any way, or types that are
        registered with JAX. The entries of all its leaves together are one point per example, in one ball.
    p
        A number in [1, inf].
    sigma
        The radius, in units of the input: a number >= 0, or an array that broadcasts to
        `grad.shape[:batch_ndim]`.
    batch_ndim
        None means 1, or 0 for a 1-D array. 0 takes the whole array as one example, as under vmap. 2 treats
        each token of a sequence as an example. In a tree it applies to every leaf: None means 0 if all leaves
        are 1-D and else 1, and 0 takes all leaves together as one example.
    mask
        Boolean, broadcastable to grad. Where it is False, eps is zero and spends no budget, and x may have
        any value. If grad is a tree, then mask, scale, x, low and high are each a tree like it, or one value
        for all leaves.
    scale
        The unit of each entry, at least 0: a number, or an array that broadcasts to grad's shape. At twice
        the scale an entry moves twice as far for the same share of the budget; at scale 0 it stays, as where
        the mask is False. None means 1 everywhere. For inputs that were divided by std, 1 / std gives the
        ball of the original inputs.
    x
        The input itself, in units of eps: a number, or an array that broadcasts to grad's shape.
    bounds
        (low, high), the box of x + eps: each a number, infinity included, or an array that broadcasts to
        grad's shape. Bounds and x are rounded to grad's dtype. An x that is outside the box only by rounding
        counts as at its bound. Rounding means at most 4 u times the larger finite |bound|, where u is the
        largest `finfo(...).eps` of grad, x and bounds. Such an x moves only inwards, and no budget is spent
        to bring it back, so x + eps is outside by no more than x was. Clip x + eps if that is too much.

    Returns
    -------
    Array
        eps, in grad's namespace, shape, dtype and device, or a tree of such arrays like grad. Leaves are
        computed together, in a dtype that holds them all, and each returns in its own. Half precision is
        computed in float32; for NumPy that includes the bfloat16 of ml_dtypes. The memory layout of a NumPy
        array changes nothing: eps has native byte order, and is the same for arguments of any byte order
        and strides.

    Raises
    ------
    TypeError
        If grad is not a real floating array, p not a number, mask not boolean, x or a bound not real, one of
        the arrays not dense (sparse, nested or quantised), or the leaves are from different libraries.
    ValueError
        If p < 1 or NaN, a shape does not fit, or only one of x and bounds is given; if a tree has no leaves,
        has leaves with different numbers of examples, or does not have grad's structure. Also if sigma is
        outside [0, inf), scale is below 0 or not finite, or x is outside its bounds by more than rounding,
        where these values can be seen: in numbers, NumPy arrays and, for x and bounds, eager torch tensors on
        the CPU. Other values (JAX, devices, traces) are not checked; a bad one makes its example NaN.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    eq. 2-12 and Appendix A.
    """
    p, (sigma, scale) = check_p(p), weighted.joined(sigma, scale)
    if is_tree(grad):
        arguments = "grad", grad, sigma, batch_ndim, mask, scale, box_of(x, bounds)
        result: A = over_leaves(
            lambda rows, sigma, **ball: epsilon(rows, p, sigma, **ball),
            *arguments,
            by_leaves=partial(_by_leaves, p),
        )
        return result

    def step(grad: A, sigma: Numbers, mask: Array | None, scale: Numbers | None, *box: Numbers) -> A:
        given = examples(grad, "grad", batch_ndim, mask)
        radius = given.radius(sigma)
        if scale is not None:
            ball = given.values, *weighted.radius_and_scale(given, radius, scale)
            if not box:
                return given.shaped(weighted.per_row(partial(weighted.step, p), *ball))
            return given.shaped(
                weighted.per_row(partial(weighted.step_in_box, p), *ball, room_to_move(given, *box))
            )
        if not box:
            return given.shaped(steepest(p, given.values, radius))
        return given.shaped(step_in_box(p, given.values, radius, room_to_move(given, *box)))

    return detoured(step, "grad", grad, sigma, mask, scale, *box_of(x, bounds))


def _by_leaves(p: float, joint: Joint, sigma: Numbers) -> Sequence[Array] | None:
    """Return the step of each leaf without joining the leaves, or None where that is not exact."""
    leaves = joint.leaves
    if joint.box or joint.is_scaled or not joint.has_one_dtype or len(leaves) == 1:
        return None
    rows, radius = [leaf.values for leaf in leaves], leaves[0].radius(sigma)
    steps = library_of(rows[0]).steps_of_leaves(p, rows, radius)
    if steps is None and p == math.inf:
        steps = [steepest(p, each, radius) for each in rows]
    return steps and [leaf.shaped(step) for leaf, step in zip(leaves, steps, strict=True)]
