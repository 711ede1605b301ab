"""The regularised loss of any JAX function: at a perturbed input, or with the penalty of its gradient."""

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
from lpfamily.divergences import check_beta, differs, divergence_between, divergence_of_moved
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
    """Return a regularised loss: a function with the arguments of `loss`, to train with.

    x is the argument `argnum` of `loss`, L(x) is what `loss` returns for each example, and eps is eq. 3 at
    the gradient of L. The training loop takes the mean of the result and its derivative, as it does for the
    plain loss::

        robust = regularize(loss, p=2, sigma=0.5)
        jax.grad(lambda params: robust(params, x, labels).mean())(params)

    - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), with eps held constant. The pass that
      computes eps computes only the input gradient. No second derivative is needed.
    - "penalty": L(x) + <grad L(x), eps>, with eps held constant. By Hölder's equality this is
      L(x) + sigma * ||grad L(x)||_{p*} (eq. 4), and by Danskin's theorem it has the same derivative, also
      with a mask and in a box. By "difference" it is L(x) + (L(x + h eps) - L(x)) / h, which needs no second
      derivative.

    With `outputs` the result is the loss of TRADES, L(x) + beta KL(f(x) || f(x + eps)). Without a loss it is
    that of virtual adversarial training, beta KL(f(x) || f(x + eps)) with f(x) held constant. eps then raises
    KL.

    The result is pure where `loss` is. Modules that change in place (Flax NNX) change as in one call of the
    loss, if they are among its arguments: all other passes use copies of them, and see the same dropout.

    Parameters
    ----------
    loss
        Returns one value per example, of shape `x.shape[:1]`, or a scalar for `batch_ndim` 0; with `has_aux`
        a pair of these values and anything.
    p
        A number in [1, inf]: inf takes the signs of the gradient, 2 its direction, 1 its largest entry.
    sigma
        The radius, in units of x, as in `lpfamily.epsilon`; or a function of the loss's arguments that
        returns it, for a schedule.
    argnum
        The position of x among the arguments of `loss`, from 0; a tuple of positions makes x of several
        arguments. x is a floating array or a pytree of them, as in `lpfamily.epsilon`.
    joint
        True has one ball per example, over all leaves of x. False has one ball for each leaf: all of them
        move at once, each by a step of norm sigma, and the penalties add up. sigma may then be a tree of
        radii, like x.
    objective
        "perturb" or "penalty", as above.
    clean_weight
        The weight of L(x) in "perturb", in [0, 1].
    bounds
        (low, high), as in `lpfamily.epsilon`: eps is the maximiser for which x + eps stays in the box. x must
        lie in the box, up to rounding; the loss of an example further outside is NaN.
    mask
        Boolean, broadcastable to x, or a tree like it, True where x may move; or a function of the loss's
        arguments, for padding.
    scale
        As in `lpfamily.epsilon`: the ball is ||eps / scale||_p <= sigma. Or a function of the loss's
        arguments.
    batch_ndim
        The number of leading axes of x that index balls. With 1 each example has a ball, with 2 each token of
        an example, and their penalties add up. With 0 x is one example, as under `jax.vmap`.
    direction
        A function of the loss's arguments whose gradient gives eps, in place of the gradient of the loss. It
        returns what `loss` returns, but without aux. For the cross-entropy of hard labels take
        `lpfamily.error_log_odds`, for sigmoid outputs `lpfamily.binary_error_log_odds`: their gradient has
        the direction of the loss's gradient, but does not round to zero. (Where an input also changes the
        outputs of other examples, as with batch statistics, eps raises the sum of the log-odds, in which all
        examples have equal weight, and differs from that of the loss.) Their `ignore_index` leaves labels
        out, as the loss should; any other label that is not a class gives NaN. The penalty assumes that the
        loss is a multiple of softplus(direction): weights and a mean over labels are possible, smoothing is
        not. The passes that compute eps have the dropout and the batch statistics that this function applies;
        without it, those that the loss applies.
    outputs
        A function of the loss's arguments that returns logits, (n, ..., classes). eps raises their divergence
        from those at x, KL(f(x) || f(x + eps)), summed over the positions of an example. Its gradient at x is
        zero, so it needs a `start`, a function that returns keys. An example whose logits move by no more
        than their rounding stays where it is: compute them in float32.
    beta
        The weight of the divergence in the loss, required with `outputs`: 6 in TRADES, 1 in virtual
        adversarial training.
    steps
        The number of steps of `lpfamily.ascent.frank_wolfe` in "perturb", at least 1, with one gradient each.
    start
        Where the steps of "perturb" start, as in `lpfamily.ascend`. None is x. An array, or a tree, like x is
        a perturbation, which is projected into the ball and the box. A key draws one, the same at every call.
        For a new one at each call give a function of the loss's arguments that returns a key, or a
        perturbation.
    penalty_by
        "gradient" or "difference", as above.
    difference_step
        h, in units of eps. None is 2^-10, too small a step for half precision and TF32, and an error if x or
        the values are in half precision. Half precision or TF32 inside the model cannot be detected: for such
        a model pass h, for example 0.25.
    has_aux
        Whether `loss` returns (values, aux); then so does the result. The aux is that of L(x + eps) for
        "perturb", of L(x) for "penalty" and with `outputs`.

    Returns
    -------
    Callable
        A function of the loss's arguments that returns what `loss` returns.

    Raises
    ------
    TypeError, ValueError
        For an unknown or impossible choice. When called: for an x that is not of floating arrays, for a loss
        without one value per example, for half precision without a `difference_step`, and as in
        `lpfamily.epsilon`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-4; Zhang
    et al.: Theoretically Principled Trade-off between Robustness and Accuracy, 2019 (TRADES); Miyato et al.:
    Virtual Adversarial Training, 2018.
    """
    check_p(p)
    check_choices(objective, clean_weight, steps, start, penalty_by, difference_step)
    positions = argnum if isinstance(argnum, tuple) else (argnum,)
    if not positions or not all(isinstance(position, int) and position >= 0 for position in positions):
        raise ValueError(
            f"argnum must be the position of x, from 0, among the arguments of the loss, or a tuple of "
            f"several; got {argnum!r}"
        )
    if direction is not None and not callable(direction):
        raise ValueError(
            "direction must be a function of the loss's arguments, such as lambda params, x, labels: "
            f"error_log_odds(logits(params, x), labels); got {direction!r}"
        )
    check_beta(beta, outputs is not None, objective, clean_weight)
    if outputs is None and loss is None:
        raise TypeError(
            "loss must be a function of x and other arguments; None is for batches without labels, with "
            "outputs"
        )
    if outputs is not None and start is None:
        raise ValueError(
            "outputs need a start, as their divergence has no gradient at x: give a function of the loss's "
            "arguments that returns a key"
        )
    if outputs is not None and (direction is not None or (loss is None and has_aux)):
        raise ValueError("outputs and direction exclude each other, and has_aux needs a loss")
    by_difference = penalty_by == "difference"
    eps_objective: Any = next(each for each in (direction, outputs, loss) if each is not None)

    @functools.wraps(eps_objective if loss is None else loss)
    def regularized(*args: Any, **kwargs: Any) -> Any:
        x = _input(args, argnum)
        radius, movable, units, first = (
            choice(*args, **kwargs) if callable(choice) else choice for choice in (sigma, mask, scale, start)
        )
        ball = Ball(p, radius, bounds, movable, batch_ndim, units, joint)
        shape = jax.tree.leaves(x)[0].shape[: min(batch_ndim, 1)]

        def evaluate(function: Any, at: Any, copy: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
            # mapping `copy` over the leaves makes new trees: modules in the arguments do not change in place
            arguments, keywords = (args, kwargs) if copy is None else jax.tree.map(copy, (args, kwargs))
            replaced = list(arguments)
            for position, value in zip(positions, at if isinstance(argnum, tuple) else (at,), strict=True):
                replaced[position] = value
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
            at: Any, copy: Callable[[Any], Any], clean_logits: Array | None = None
        ) -> tuple[Array, Any]:
            # copies are made inside of the differentiated function, so that modules may change them
            def values_at(at: Any) -> Any:
                values, _ = evaluate(eps_objective, at, copy)
                if clean_logits is None:
                    return values
                is_moved, rounding = differs(x, at, len(shape)), float(finfo(jnp, values.dtype).eps)
                return divergence_of_moved(clean_logits, _wide(values), is_moved, len(shape), rounding)

            values, vjp = jax.vjp(values_at, at)
            return values, vjp(jnp.ones_like(values))[0]

        def ascend(gradient: Callable[[Any], Any]) -> Any:
            constant_x = jax.lax.stop_gradient(x)
            begin = None if first is None else ball.begin(constant_x, first)
            return jax.lax.stop_gradient(ball.ascended(gradient, constant_x, steps, begin))

        # The pass that changes modules in place comes last: every pass then sees the same dropout.
        if outputs is not None:
            clean_logits = _wide(jax.lax.stop_gradient(evaluate(outputs, x, _constant)[0]))
            eps = ascend(lambda at: differentiate(at, _constant, clean_logits)[1])
            perturbed, _ = evaluate(outputs, mapped(operator.add, x, eps), _unchanged)
            clean, _ = evaluate(outputs, x, None if loss is None else _unchanged)
            clean = jax.lax.stop_gradient(clean) if loss is None else clean
            values, aux = (0.0, None) if loss is None else evaluate(loss, x)
            values = values + beta * divergence_between(_wide(clean), _wide(perturbed), len(shape))
        elif objective == "perturb":
            eps = ascend(lambda at: differentiate(at, _constant)[1])
            clean = evaluate(loss, x, _unchanged)[0] if clean_weight else 0.0
            values, aux = evaluate(loss, mapped(operator.add, x, eps))
            values = clean_weight * clean + (1 - clean_weight) * values
        elif by_difference:
            eps = ascend(lambda at: differentiate(at, _constant)[1])
            h = DIFFERENCE_STEP if difference_step is None else difference_step
            perturbed, _ = evaluate(loss, mapped(lambda x, eps: x + h * eps, x, eps), _unchanged)
            if difference_step is None:
                _check_precision(*jax.tree.leaves(x), perturbed)
            values, aux = evaluate(loss, x)
            values = values + (perturbed - values) / h
        else:
            eps_values, grad = differentiate(x, _unchanged)
            products = mapped(functools.partial(_products, batch_ndim), grad, ascend(lambda _: grad))
            gain = functools.reduce(operator.add, jax.tree.leaves(products))
            values, aux = evaluate(loss, x)  # without a direction, jit removes all of it but the aux
            if direction is None:
                values = eps_values  # the same numbers, with one backward pass for both terms
            else:
                gain = values * relative_slope(_wide(eps_values)) * gain
            values = values + gain.astype(values.dtype)
        return (values, aux) if has_aux else values

    return regularized


def _input(args: tuple[Any, ...], argnum: int | tuple[int, ...]) -> Any:
    """Return what is perturbed, an array or a tree."""
    if isinstance(argnum, tuple):
        return tuple(_input(args, position) for position in argnum)
    if argnum >= len(args):
        raise TypeError(
            f"argument {argnum} of the loss, which is perturbed, must be given by position; got {len(args)} "
            "positional arguments"
        )
    leaves = list(named_leaves(args[argnum], ""))
    if not leaves:
        raise TypeError(f"argument {argnum} of the loss, which is perturbed, holds no array")
    return rebuilt(args[argnum], (_floating(argnum, path, leaf) for path, leaf in leaves))


def _floating(argnum: int, path: str, x: Any) -> Array:
    name = f"argument {argnum} of the loss{path and ', ' + path}, which is perturbed,"
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise TypeError(
            f"{name} must be an array or a pytree of arrays; got {type(x).__name__}: make what "
            "is to move a separate argument of the loss"
        )
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating; got {array.dtype}: convert pixels first; embed tokens first, and give "
            "the loss their embeddings"
        )
    return array


def _check_logits(logits: Any, shape: tuple[int, ...]) -> None:
    given = getattr(logits, "shape", type(logits).__name__)
    if isinstance(given, str) or len(given) <= len(shape) or given[: len(shape)] != shape:
        raise ValueError(f"outputs must return logits of shape {(*shape, '...', 'classes')}; got {given}")


def _check_values(values: object, shape: tuple[int, ...]) -> None:
    given = getattr(values, "shape", type(values).__name__)
    if given != shape:
        advice = (
            "take the mean of what `regularize` returns, as the penalty of a mean shrinks with the batch; "
            "(values, aux) needs has_aux=True"
        )
        if shape and given[: len(shape)] == shape:
            advice = "take the mean over the further axes"
        raise ValueError(
            f"the loss, and the direction, must return one value per example, of shape {shape}; got {given}: "
            f"{advice}"
        )


def _check_precision(*arrays: Array) -> None:
    for array in arrays:
        if array.dtype.itemsize < 4:
            raise ValueError(
                f"a difference of {DIFFERENCE_STEP} eps rounds away in {array.dtype}: give a larger "
                "difference_step, or take the penalty by 'gradient'"
            )


def _unchanged(leaf: Any) -> Any:
    return leaf  # the tree around it is new, and so are the modules in it


def _constant(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, Array) else leaf


def _products(batch_ndim: int, grad: Array, eps: Array) -> Array:
    """Return <grad, eps> of each example, at least in float32."""
    # where the mask keeps x fixed, grad may be anything, also inf or NaN
    products = jnp.where(eps == 0, 0.0, _wide(grad) * _wide(eps))
    return products.sum(axis=tuple(range(min(batch_ndim, 1), products.ndim)))


def _wide(values: Array) -> Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
