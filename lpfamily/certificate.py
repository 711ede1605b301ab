"""How close each example's perturbation comes to the optimum."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import ModuleType

from lpfamily._arrays import Array, Bounds, Numbers, beside, check_p, examples, finfo, floating, namespace_of
from lpfamily.box import box_of, entries, room_to_move
from lpfamily.libraries import constant, library_of
from lpfamily.norms import norm, penalty
from lpfamily.steepest import dual_exponent
from lpfamily.trees import Joint, is_tree
from lpfamily.weighted import divided, joined, radius_and_scale, scaled_direction

HALVINGS = 64
"""The number of bisections of an interval of logarithms; after these its ends are the same number."""


@dataclass(frozen=True)
class Certificate:
    """The result of `certify`, with one entry per example.

    Attributes
    ----------
    norm_used
        ||eps||_p / sigma. Above 1, eps is outside the ball. 1 where both are 0.
    gain
        <grad, eps> divided by an upper bound for feasible perturbations. 1 is optimal. Above 1, eps is
        outside the ball or the box. Below 0, the linearised loss falls. 1 where the bound and <grad, eps> are
        both 0.
    zero
        Whether eps is zero. The steepest step is zero for a zero gradient; `underused` is then False.
    nonfinite
        Whether eps or grad holds a NaN or an infinity, so that norm_used and gain mean nothing.
    underused
        Whether some of the budget is unused although an entry with a nonzero gradient could still move.
    """

    norm_used: Array
    gain: Array
    zero: Array
    nonfinite: Array
    underused: Array

    def summary(self) -> str:
        """Return one line: the extremes over finite examples, and the number of examples with each flaw.

        It reads the values, so dask computes here, and a traced function cannot call it.
        """
        fields = (self.norm_used, self.gain, self.zero, self.nonfinite, self.underused)
        norm_used, gain, *flags = library_of(self.gain).read(*fields)
        xp, finite = namespace_of(gain), ~flags[1]

        def extremes(values: Array) -> str:
            least = float(xp.min(xp.where(finite, values, math.inf)))
            most = float(xp.max(xp.where(finite, values, -math.inf)))
            return f"{least:.6g} to {most:.6g}"

        examples = math.prod(gain.shape)
        flaws = zip(("zero", "nonfinite", "underused"), flags, strict=True)
        counts = ", ".join(f"{int(xp.sum(xp.astype(flag, xp.int32)))} {name}" for name, flag in flaws)
        if not examples or not bool(xp.any(finite)):
            return f"{examples} examples: {counts}"
        return (
            f"{examples} examples: norm {extremes(norm_used)} of sigma, "
            f"gain {extremes(gain)} of its bound; {counts}"
        )


def certify(
    grad: Array,
    eps: Array,
    p: float,
    sigma: Numbers,
    x: Numbers | None = None,
    bounds: Bounds | None = None,
    *,
    batch_ndim: int | None = None,
    scale: Numbers | None = None,
) -> Certificate:
    """Return how much of the ball's radius and of the best linear gain `eps` attains.

    The gain is bounded by Hölder's inequality, <grad, eps> <= sigma * ||grad||_{p*}, for every p in
    [1, inf]. In a box, where entry i can move at most b_i along the sign of grad, every split
    |grad| = h + (|grad| - h) with 0 <= h <= |grad| gives a bound (weak duality)::

        <grad, eps> <= sigma * ||h||_{p*} + sum_i (|grad_i| - h_i) * b_i

    The split used is h_i = min(|grad_i|, mu * b_i ** (p - 1)), and bisection finds mu. The bound holds for
    every mu, and does not depend on how eps was computed. With `scale` all of this applies to scale * grad,
    eps / scale and b / scale.

    Parameters
    ----------
    grad
        The gradient of the loss with respect to the input, or a tree as in `lpfamily.epsilon`. If a mask
        kept entries of eps at zero, set these entries of grad to zero.
    eps
        The perturbation to check, of grad's shape, structure and library; not x + eps.
    p, sigma, x, bounds, batch_ndim, scale
        As in `lpfamily.epsilon`.

    Returns
    -------
    Certificate
        Arrays of shape `grad.shape[:batch_ndim]`: `norm_used` and `gain`, in which 1 is the full radius and
        the best gain; and the flags `zero`, `nonfinite` and `underused`. `Certificate` defines each, and its
        `summary()` is one readable line. The arrays are constants under differentiation, as the bound comes
        from a search.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`, and for an eps whose shape is not grad's.
    """
    p, (sigma, scale) = check_p(p), joined(sigma, scale)
    box, coarsest = box_of(x, bounds), 0.0
    if is_tree(grad):
        joint = Joint.of("grad", grad, batch_ndim, scale=scale, box=box)
        steps = joint.like("eps", eps, joint.leaves[0].batch)
        grad, eps, batch_ndim, box = joint.rows, steps.rows, joint.batch_ndim, joint.box_of_rows
        scale = joint.scale
        coarsest = max(joint.rounding, steps.rounding)
    given, step = examples(grad, "grad", batch_ndim), floating(eps, "eps")
    xp, rows, dtype = given.xp, given.values, given.values.dtype
    # eps may be rounded to half precision, although this computes in float32
    rounding = max(coarsest, *(float(finfo(each.xp, each.array.dtype).eps) for each in (given, step)))
    eps = beside(rows, step.values, "eps")
    if tuple(eps.shape) != tuple(grad.shape):
        raise ValueError(f"eps must have the shape of grad, {tuple(grad.shape)}; got {tuple(eps.shape)}")
    eps = given.rows(xp.astype(eps, dtype, copy=False))
    radius, more = given.radius(sigma), []
    if box:
        more += [room_to_move(given, *box), given.rows(entries(given, "x", box[0]))]
    if scale is not None:
        radius, scale = radius_and_scale(given, radius, scale)
        more.append(xp.broadcast_to(scale, rows.shape))
    judged = library_of(rows).per_example(
        functools.partial(_judge, p, rounding, bool(box)),
        f"(n),(n),(k){',(n)' * len(more)}->(),(),(),(),()",
        (dtype, dtype, xp.bool, xp.bool, xp.bool),
        *(constant(each) for each in (rows, eps, radius, *more)),
    )
    return Certificate(*judged)


def _judge(
    p: float, rounding: float, in_box: bool, grad: Array, eps: Array, sigma: Array, *more: Array
) -> tuple[Array, ...]:
    """Return the fields of a `Certificate` for examples as rows.

    `rounding` is the largest eps of the given dtypes. `more` has the room and the inputs, if there is a box,
    and the scale, if there is one.
    """
    xp = namespace_of(grad)
    rows = len(grad.shape) - 1
    room, magnitude = xp.full_like(grad, math.inf), 0.0
    if in_box:
        (room, x), more = more[:2], more[2:]
        # x + eps, rounded, may be at a bound that eps itself misses by the rounding of x
        magnitude = xp.abs(x) + xp.where(room < math.inf, room, 0.0)
    could_move = xp.where(grad < 0, -eps, eps) < room - 4 * rounding * magnitude
    finite = xp.all(xp.isfinite(grad) & xp.isfinite(eps), axis=-1)
    for scale in more:
        grad, eps, room = scaled_direction(grad, scale), divided(eps, scale), divided(room, scale)
    could_move = xp.any(could_move & (grad != 0), axis=-1)
    size = norm(eps, p, batch_ndim=rows)
    radius = sigma[..., 0]
    positive = radius > 0
    # at radius 0, a norm of 0 uses all of it, and a larger norm infinitely much
    norm_used = xp.where(positive | (size > 0), size / radius, 1.0)

    # in units of the largest gradient and of the radius, so that nothing here overflows
    top = norm(grad, math.inf, batch_ndim=rows)[..., None]
    r = grad / xp.where(top > 0, top, 1.0)
    unit = xp.where(sigma > 0, sigma, 1.0)
    attained = xp.sum(xp.where(r == 0, 0.0, r * (eps / unit)), axis=-1)
    if in_box:
        most = _bound(xp, p, xp.abs(r), xp.where(sigma > 0, room / unit, 0.0))
    else:
        most = xp.where(positive, penalty(r, p, 1.0, batch_ndim=rows), 0.0)
    gain = xp.where((most > 0) | (attained != 0), attained / most, 1.0)
    gain = xp.where(xp.any(room != room, axis=-1), math.nan, gain)

    # eps was computed in this dtype and then rounded once, to its own
    slack = 4 * (rounding + float(xp.finfo(grad.dtype).eps) * (16 + math.sqrt(grad.shape[-1])))
    underused = finite & positive & could_move & (norm_used < 1 - slack)
    zero = xp.all(eps == 0, axis=-1)
    return norm_used, gain, zero, ~finite, underused


def _bound(xp: ModuleType, p: float, size: Array, room: Array) -> Array:
    """Return the least bound that weak duality finds, for a radius of 1."""
    rows = len(size.shape) - 1

    def bound(h: Array) -> Array:
        in_box = xp.where(size > h, (size - h) * xp.where(size > h, room, 0.0), 0.0)
        return penalty(h, p, 1.0, batch_ndim=rows) + xp.sum(in_box, axis=-1)

    if p == math.inf:
        return xp.sum(size * xp.clip(room, 0.0, 1.0), axis=-1)
    best = xp.minimum(bound(size), bound(xp.zeros_like(size)))
    steep = xp.where(room > 0, room ** (p - 1), 0.0)
    cost, dual = xp.where(room > 0, room**p, 0.0), dual_exponent(p)
    # The best mu spends the budget: entries with |grad| above mu * b^(p-1) spend what takes them to their
    # bounds, the others (|grad| / mu)^p*. It may be small, so its logarithm is bisected.
    low = xp.full_like(best, math.log(float(xp.finfo(size.dtype).smallest_normal)))[..., None]
    high = xp.log(penalty(size, p, 1.0, batch_ndim=rows))[..., None]

    def halve(best: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
        middle = (low + high) / 2
        mu = xp.exp(middle)
        h = xp.minimum(size, mu * steep)
        spent = xp.sum(xp.where(size > h, cost, (size / mu) ** dual), axis=-1, keepdims=True)
        low, high = xp.where(spent > 1, middle, low), xp.where(spent > 1, high, middle)
        return xp.minimum(best, bound(h)), low, high

    return library_of(size).repeat(halve, (best, low, high), HALVINGS)[0]
