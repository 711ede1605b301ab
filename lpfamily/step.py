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

    p = inf is sigma * sign(grad), the fast gradient sign method (eq. 8); p = 2 is sigma * grad /
    ||grad||_2 (eq. 12); p = 1 puts the budget on the largest |grad|, shared equally by ties (eq. 11,
    corrected), which is the limit of eq. 3.

    The step depends on the direction of grad alone, from subnormal to the largest finite entries.
    sign(0) = 0, so that a zero entry, and a zero example, stays zero. Infinite entries share the
    budget of their example for p < inf. A NaN makes its example NaN; at p = inf, where coordinates
    do not depend on each other, its entry. Derivatives are those of eq. 3 where it has them, and 0
    where it has none (p = 1 and inf; zero examples; zero entries for p > 2).

    With `x` and `bounds` it is the maximiser subject to low <= x + eps <= high as well, to one unit
    in the last place of these: for some t, every entry is the smaller of t * |grad| ** (1 / (p - 1))
    and the way to its wall (p = 1: the largest |grad| go to their walls until the budget is spent;
    p = inf: eq. 8 and clipping). Budget that the walls save goes to other entries, so this gains more
    than clipping eq. 3 afterwards; without finite bounds it is eq. 3.

    With `scale` the ball is ||eps / scale||_p <= sigma, and the maximiser scale * epsilon(scale * grad).

    Parameters
    ----------
    grad
        The gradient of the loss with respect to the input, a floating array of any library; its
        first `batch_ndim` axes index examples, each of which has its own ball. Or a tree of such arrays, of
        one library and of the same examples: a dict, list or tuple, nested as one likes, or what is
        registered with JAX. The entries of all its leaves are one point of one ball per example.
    p
        A number in [1, inf].
    sigma
        The radius, in units of the input: a number >= 0, or an array that broadcasts to
        `grad.shape[:batch_ndim]`.
    batch_ndim
        None means 1, or 0 for a 1-D array; 0 takes the whole array as one example, as under vmap; 2
        treats each token of a sequence as an example. It is the same for all leaves of a tree, where None
        is 0 if all are 1-D; 0 has one ball over everything.
    mask
        Boolean, broadcastable to grad: where it is False, eps is zero and spends no budget, and x may
        be anything. With a tree mask, scale, x, low and high are each a tree like it, or one value for all
        leaves.
    scale
        What an entry's share of the budget is measured in, at least 0, a number or an array that broadcasts
        to grad's shape: an entry of twice the scale may move twice as far for it, one of scale 0 stays, as
        where the mask is False. None is 1 everywhere. 1 / std is the ball of inputs before they were divided
        by std.
    x
        The input itself, in units of eps: a number, or an array that broadcasts to grad's shape.
    bounds
        (low, high), the box that x + eps stays in: each a number, infinity included, or an array that
        broadcasts to grad's shape. They round to grad's dtype, and so does x. Where x is outside by
        rounding, at most 4 eps (the largest `finfo(...).eps` of grad, x and bounds) times the larger
        finite |bound|, it stands at its wall: it moves inwards only, and nothing is spent to bring it back,
        so that x + eps is outside by no more than x was. Clip x + eps where that is too much.

    Returns
    -------
    Array
        eps, in grad's namespace, shape, dtype and device, or a tree like it of such leaves: they are computed
        together, in a dtype that holds all, and each returns to its own. Half precision is computed in
        float32, in NumPy also the bfloat16 of ml_dtypes. How a NumPy array lies in memory changes nothing:
        whatever the byte order and strides of the arguments, eps is that of native arrays, and native as
        NumPy's results are.

    Raises
    ------
    TypeError
        If grad is not a real floating array, p not a number, mask not boolean, x or a bound not real, one of
        the arrays not dense (sparse, nested or quantised), or leaves are of several libraries.
    ValueError
        If p < 1 or NaN, a shape does not fit, a tree has no leaves, leaves of different examples or another
        structure than grad, x comes without bounds or they without x, or if sigma is visibly outside
        [0, inf), scale visibly below 0 or not finite, or x visibly outside its bounds by more than rounding:
        numbers, NumPy arrays and, for x and bounds, eager torch tensors of the CPU are seen. What else there
        is (JAX, devices, traces) is not looked at, and a bad value makes its example NaN.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    eq. 2-12 and Appendix A.
    """
    p = check_p(p)
    if is_tree(grad):
        within = "grad", grad, sigma, batch_ndim, mask, scale, box_of(x, bounds)
        made: A = over_leaves(
            lambda rows, sigma, **ball: epsilon(rows, p, sigma, **ball),
            *within,
            by_leaves=partial(_by_leaves, p),
        )
        return made

    def step(grad: A, sigma: Numbers, mask: Array | None, scale: Numbers | None, *box: Numbers) -> A:
        given = examples(grad, "grad", batch_ndim, mask)
        radius = given.radius(sigma)
        if scale is not None:
            ball = given.values, *weighted.weights(given, radius, scale)
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
    """Return the step of each leaf by itself where that is exact, or None; its entries need not be joined."""
    parts = joint.parts
    if joint.box or joint.is_scaled or not joint.is_even or len(parts) == 1:
        return None
    rows, radius = [part.values for part in parts], parts[0].radius(sigma)
    steps = library_of(rows[0]).steps_of_leaves(p, rows, radius)
    if steps is None and p == math.inf:
        steps = [steepest(p, each, radius) for each in rows]
    return steps and [part.shaped(step) for part, step in zip(parts, steps, strict=True)]
