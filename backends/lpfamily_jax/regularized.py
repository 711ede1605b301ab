"""Training of any JAX function: a loss becomes its maximum in an Lp ball, or its penalty."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from lpfamily._arrays import Bounds, check_p, finfo
from lpfamily.classification import relative_slope
from lpfamily.divergences import check_beta, divergence_between, divergence_of_moved, is_off
from lpfamily.loops import Ball
from lpfamily.training.backends import DIFFERENCE_STEP, check_choices
from lpfamily.trees import mapped, named_leaves, rebuilt

Loss = Callable[..., Any]


def regularize(
    loss: Loss | None,
    p: float = 2.0,
    *,
    sigma: Any,
    argnum: int | tuple[int, ...] = 1,
    joint: bool = True,
    objective: Literal["perturb", "penalty"] = "perturb",
    clean_weight: float = 0.0,
    bounds: Bounds | None = None,
    mask: Any = None,
    scale: Any = None,
    batch_ndim: int = 1,
    direction: Loss | None = None,
    outputs: Loss | None = None,
    beta: float | None = None,
    steps: int = 1,
    start: Any = None,
    penalty_by: Literal["gradient", "difference"] = "gradient",
    difference_step: float | None = None,
    has_aux: bool = False,
) -> Loss:
    """Return the loss to train with: a function like `loss`, at the steepest step or with the penalty.

    x is the argument `argnum` of `loss`, L(x) what it returns for each example, and eps the step of eq.
    3 at the gradient of L. Of the result a training loop takes the mean and the derivative, as it did of
    the loss::

        robust = regularize(loss, p=2, sigma=0.5)
        jax.grad(lambda params: robust(params, x, labels).mean())(params)

    - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), eps held constant. The pass that
      finds eps computes the input gradient and no other, and no second derivative is asked for.
    - "penalty": L(x) + <grad L(x), eps>, eps held constant, which is L(x) + sigma * ||grad L(x)||_{p*}
      (eq. 4) by Hölder's equality, and has its derivative by Danskin's theorem; so too with a mask and
      in a box. By "difference" L(x) + (L(x + h eps) - L(x)) / h, which needs no second derivative.

    With `outputs` it is the loss of TRADES, L(x) + beta KL(f(x) || f(x + eps)); without a loss beta KL with
    f(x) held constant, that of virtual adversarial training. eps then raises KL.

    The result is pure where `loss` is. Modules that change in place (Flax NNX) change as in one call of
    the loss, if they are among its arguments: all other passes are of copies, and see the same dropout.

    Parameters
    ----------
    loss
        Returns one value per example, of shape `x.shape[:1]`, or a scalar for `batch_ndim` 0; with
        `has_aux` a pair of that and anything.
    p
        A number in [1, inf]: inf takes the sign of the gradient, 2 its direction, 1 its largest entry.
    sigma
        The radius, in units of x, as in `lpfamily.epsilon`; or a function of the loss's arguments that
        returns it, for a schedule.
    argnum
        Which positional argument of `loss` is x, a floating array or a pytree of them, as in
        `lpfamily.epsilon`; or several in a tuple, which are x together.
    joint
        True has one ball over all leaves of x, for each example. False has one for each: a step of norm sigma
        in all of them at once, where the penalties add up; sigma may then be a tree of radii, like x.
    objective
        "perturb" or "penalty", as above.
    clean_weight
        In [0, 1], the share of L(x) in "perturb".
    bounds
        (low, high), as in `lpfamily.epsilon`: eps is the maximiser with x + eps in the box. x must lie in
        it, to rounding: an example further outside has a loss of NaN.
    mask
        Boolean, broadcastable to x, or a tree like it, True where x may move; or a function of the loss's
        arguments, for padding.
    scale
        As in `lpfamily.epsilon`, the ball being ||eps / scale||_p <= sigma; or a function of the loss's
        arguments.
    batch_ndim
        How many leading axes of x index balls: 1, an example has one; 0, x is one example, as under
        `jax.vmap`; 2, every token of an example has its own, and their penalties add up.
    direction
        A function of the loss's arguments whose gradient, instead of the loss's, gives eps; like `loss`,
        but without aux. For the cross-entropy of hard labels that is `lpfamily.error_log_odds`, of sigmoid
        outputs `lpfamily.binary_error_log_odds`, whose direction does not round away; their `ignore_index`
        leaves labels out, as the loss should, and any other label that is none is NaN. The penalty takes
        the loss for a multiple of softplus(direction), so it may be weighted, or a mean over labels, but
        not smoothed. The dropout and batch statistics of the passes that find eps are those of the loss,
        or what this function makes of its arguments.
    outputs
        A function of the loss's arguments that returns logits, (n, ..., classes). eps raises how far they go
        from those at x, KL(f(x) || f(x + eps)), summed over the positions of an example. That has no gradient
        at x, so it needs a `start`, a function that returns keys. An example whose logits have not moved by
        more than their rounding stays where it is: compute them in float32.
    beta
        The weight of the divergence in the loss, with `outputs`: 6 in TRADES, 1 in virtual adversarial
        training.
    steps
        The gradients that "perturb" takes for eps, at least 1, by `lpfamily.ascent.frank_wolfe`.
    start
        Where "perturb" takes the first of them, as in `lpfamily.ascend`: None is x; an array, or a tree, like
        x is a perturbation, projected into ball and box; a key draws one, the same at every call, so give a
        function of the loss's arguments that returns one of them.
    penalty_by
        "gradient" or "difference", as above.
    difference_step
        h, in units of eps; None is 2^-10, and an error where x or the values are in half precision, in
        which that rounds away. A model that computes in it inside, or in TF32, cannot be seen: give 0.25,
        say.
    has_aux
        Whether `loss` returns (values, aux), as its outputs; then so does the result. The aux is that of
        L(x + eps) for "perturb", of L(x) for "penalty" and with `outputs`.

    Returns
    -------
    Callable
        A function of the loss's arguments, which returns what it does.

    Raises
    ------
    TypeError, ValueError
        For an unknown or impossible choice. When called: for an x that is not of floating arrays, values
        that are not one an example, half precision without a `difference_step`, and as in
        `lpfamily.epsilon`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-4; Zhang
    et al.: Theoretically Principled Trade-off between Robustness and Accuracy, 2019 (TRADES); Miyato et al.:
    Virtual Adversarial Training, 2018.
    """
    check_p(p)
    check_choices(objective, clean_weight, steps, start, penalty_by, difference_step)
    places = argnum if isinstance(argnum, tuple) else (argnum,)
    if not places or not all(isinstance(place, int) and place >= 0 for place in places):
        raise ValueError(
            f"argnum must be the place of x, from 0, among the arguments of the loss, or a tuple of several; "
            f"got {argnum!r}"
        )
    if direction is not None and not callable(direction):
        raise ValueError(
            "direction must be a function of the loss's arguments, such as lambda params, x, labels: "
            f"error_log_odds(logits(params, x), labels); got {direction!r}"
        )
    check_beta(beta, outputs is not None, objective, clean_weight)
    if outputs is None and loss is None:
        raise TypeError(
            "loss must be a function of arguments and x; None is for batches without labels, with outputs"
        )
    if outputs is not None and start is None:
        raise ValueError(
            "outputs need a start, as their divergence has no gradient at x: a function of the loss's "
            "arguments that returns a key"
        )
    if outputs is not None and (direction is not None or (loss is None and has_aux)):
        raise ValueError("with outputs eps takes no direction, and there is no aux without a loss")
    by_difference = penalty_by == "difference"
    followed: Any = next(each for each in (direction, outputs, loss) if each is not None)

    @functools.wraps(followed if loss is None else loss)
    def regularized(*args: Any, **kwargs: Any) -> Any:
        x = _input(args, argnum)
        radius, kept, units, begin = (
            choice(*args, **kwargs) if callable(choice) else choice for choice in (sigma, mask, scale, start)
        )
        ball = Ball(p, radius, bounds, kept, batch_ndim, units, joint)
        shape = jax.tree.leaves(x)[0].shape[: min(batch_ndim, 1)]

        def evaluate(function: Any, at: Any, each: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
            given, keywords = (args, kwargs) if each is None else jax.tree.map(each, (args, kwargs))
            replaced = list(given)
            for place, value in zip(places, at if isinstance(argnum, tuple) else (at,), strict=True):
                replaced[place] = value
            result = function(*replaced, **keywords)
            if function is outputs:
                _check_logits(result, shape)
                return result, None
            with_aux = has_aux and function is loss
            if with_aux and not (isinstance(result, tuple) and len(result) == 2):
                raise ValueError(
                    f"with has_aux=True the loss must return (values, aux); got {type(result).__name__}"
                )
            values, aux = result if with_aux else (result, None)
            _check_values(values, shape)
            return values, aux

        def differentiate(
            at: Any, each: Callable[[Any], Any], clean: Array | None = None
        ) -> tuple[Array, Any]:
            # what is copied here is younger than the differentiation, so that modules may change it
            def values_at(at: Any) -> Any:
                values, _ = evaluate(followed, at, each)
                if clean is None:
                    return values
                moved, rounding = is_off(x, at, len(shape)), float(finfo(jnp, values.dtype).eps)
                return divergence_of_moved(clean, _wide(values), moved, len(shape), rounding)

            values, back = jax.vjp(values_at, at)
            return values, back(jnp.ones_like(values))[0]

        def step(gradient: Callable[[Any], Any]) -> Any:
            fixed = jax.lax.stop_gradient(x)
            first = None if begin is None else ball.begin(fixed, begin)
            return jax.lax.stop_gradient(ball.ascended(gradient, fixed, steps, first))

        # What changes modules in place comes last: every pass then sees the same dropout.
        if outputs is not None:
            fixed = _wide(jax.lax.stop_gradient(evaluate(outputs, x, _constant)[0]))
            eps = step(lambda at: differentiate(at, _constant, fixed)[1])
            ahead, _ = evaluate(outputs, mapped(operator.add, x, eps), _rebuilt)
            clean, _ = evaluate(outputs, x, None if loss is None else _rebuilt)
            clean = jax.lax.stop_gradient(clean) if loss is None else clean
            values, aux = (0.0, None) if loss is None else evaluate(loss, x)
            values = values + beta * divergence_between(_wide(clean), _wide(ahead), len(shape))
        elif objective == "perturb":
            eps = step(lambda at: differentiate(at, _constant)[1])
            clean = evaluate(loss, x, _rebuilt)[0] if clean_weight else 0.0
            values, aux = evaluate(loss, mapped(operator.add, x, eps))
            values = clean_weight * clean + (1 - clean_weight) * values
        elif by_difference:
            eps = step(lambda at: differentiate(at, _constant)[1])
            h = DIFFERENCE_STEP if difference_step is None else difference_step
            ahead, _ = evaluate(loss, mapped(lambda x, eps: x + h * eps, x, eps), _rebuilt)
            if difference_step is None:
                _check_precision(*jax.tree.leaves(x), ahead)
            values, aux = evaluate(loss, x)
            values = values + (ahead - values) / h
        else:
            rising, grad = differentiate(x, _rebuilt)
            products = mapped(functools.partial(_products, batch_ndim), grad, step(lambda _: grad))
            gain = functools.reduce(operator.add, jax.tree.leaves(products))
            values, aux = evaluate(loss, x)  # under jit, without a direction, no more than the aux is left
            if direction is None:
                values = rising  # the same numbers, with one way back to the weights for both terms
            else:
                gain = values * relative_slope(_wide(rising)) * gain
            values = values + gain.astype(values.dtype)
        return (values, aux) if has_aux else values

    return regularized


def _input(args: tuple[Any, ...], argnum: int | tuple[int, ...]) -> Any:
    """Return what is perturbed, an array or a tree."""
    if isinstance(argnum, tuple):
        return tuple(_input(args, place) for place in argnum)
    if argnum >= len(args):
        raise TypeError(
            f"argument {argnum} of the loss, what is perturbed, must be given by position; got {len(args)} "
            "positional arguments"
        )
    leaves = list(named_leaves(args[argnum], ""))
    if not leaves:
        raise TypeError(f"argument {argnum} of the loss, what is perturbed, holds no array")
    return rebuilt(args[argnum], (_floating(argnum, path, leaf) for path, leaf in leaves))


def _floating(argnum: int, path: str, x: Any) -> Array:
    name = f"argument {argnum} of the loss{path and ', ' + path}, what is perturbed,"
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise TypeError(
            f"{name} must be an array or a pytree of arrays; got {type(x).__name__}: give the loss what is "
            "to move as an argument of its own"
        )
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating; got {array.dtype}: convert pixels first; embed tokens first, and give "
            "the loss their embeddings"
        )
    return array


def _check_logits(logits: Any, shape: tuple[int, ...]) -> None:
    found = getattr(logits, "shape", type(logits).__name__)
    if isinstance(found, str) or len(found) <= len(shape) or found[: len(shape)] != shape:
        raise ValueError(f"outputs must return logits of shape {(*shape, '...', 'classes')}; got {found}")


def _check_values(values: object, shape: tuple[int, ...]) -> None:
    found = getattr(values, "shape", type(values).__name__)
    if found != shape:
        raise ValueError(
            f"the loss, and the direction, must return one value per example, of shape {shape}; got {found}: "
            "take the mean of what `regularize` returns, as the penalty of a mean shrinks with the batch; "
            "(values, aux) needs has_aux=True"
        )


def _check_precision(*arrays: Array) -> None:
    for array in arrays:
        if array.dtype.itemsize < 4:
            raise ValueError(
                f"a difference of {DIFFERENCE_STEP} eps rounds away in {array.dtype}: give a larger "
                "difference_step, or take the penalty by 'gradient'"
            )


def _rebuilt(leaf: Any) -> Any:
    return leaf  # the tree around it is new, and so are the modules in it


def _constant(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, Array) else leaf


def _products(batch_ndim: int, grad: Array, eps: Array) -> Array:
    """Return <grad, eps> of each example, at least in float32."""
    # where the mask is, grad may be anything
    products = jnp.where(eps == 0, 0.0, _wide(grad) * _wide(eps))
    return products.sum(axis=tuple(range(min(batch_ndim, 1), products.ndim)))


def _wide(values: Array) -> Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
