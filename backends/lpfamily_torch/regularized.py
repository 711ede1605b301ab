"""The family inside a loop of one's own: a regularised loss, and perturbations, of any torch model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lpfamily import ascent
from lpfamily._arrays import Bounds, Numbers
from lpfamily._docstrings import documented_by
from lpfamily.divergences import check_beta, is_off
from lpfamily.libraries import library_of
from lpfamily.loops import Ball
from lpfamily.training.backends import DIFFERENCE_STEP, check_choices
from lpfamily.trees import mapped
from lpfamily_torch.evaluator import Direction, EpsOptions, Evaluator, Loss, flat, inputs_of, leaves_of
from lpfamily_torch.reachable import Model
from lpfamily_torch.side_effects import DirectionDropout, Statistics, is_compiled, takes_gradients_per_example


def regularized_loss(
    model: Model,
    loss: Loss | None,
    x: Any,
    y: Any,
    *,
    p: float = 2.0,
    sigma: Numbers,
    objective: Literal["perturb", "penalty"] = "perturb",
    clean_weight: float = 0.0,
    bounds: Bounds | None = None,
    mask: Any = None,
    scale: Any = None,
    batch_ndim: int = 1,
    leaf: Hashable | list[Hashable] | None = None,
    joint: bool = True,
    direction: Direction = "loss",
    ignore_index: float | None = -100,
    steps: int = 1,
    start: Any = None,
    direction_dropout: DirectionDropout = "none",
    direction_dtype: Literal["same", "bfloat16"] = "same",
    batch_norm: Statistics = "batch",
    penalty_by: Literal["gradient", "difference"] = "gradient",
    difference_step: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    beta: float | None = None,
    return_outputs: bool = False,
) -> Any:
    """Return the mean regularised loss of a batch, to call backward on in place of the plain one.

    x is moved, or its gradient measured, in an Lp ball: p = inf by the gradient's signs, p = 2 along it,
    p = 1 where it is largest.

    - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), eps held constant: eq. 3 at the
      input gradient, or several steps of it.
    - "penalty": L(x) + sigma * ||grad L(x)||_{p*} (eq. 4), grad with respect to the input; with a mask or
      bounds what the linearised loss can gain in them.

    The two are equal to first order in sigma. With direction="outputs" it is the loss of TRADES,
    L(x) + beta KL(f(x) || f(x + eps)); without a loss beta KL with f(x) held constant, that of virtual
    adversarial training.

    In the passes that find eps only the input gradient is computed, and they leave nothing behind:
    `param.grad` and modes are as before, parameters and buffers are the same tensors with the same bits, and
    so are the random states of torch (on the CPU and x's device), of Python, of NumPy, and of generators that
    the model has. Out of reach are other attributes of modules, and what is not copied: a parameter above
    1 MiB, or of a module of torch's own, that a pass changes in place is an error; changed through `.data`,
    as a buffer above 1 MiB, it stays changed.

    One pass that the weights are trained by is an ordinary call of the model, and leaves what such a call
    leaves: at x + eps for "perturb", at x for "penalty" and with direction="outputs". Where there is a second
    one, for `clean_weight`, a difference or a divergence, it repeats the random draws of the first, and
    leaves nothing.

    `torch.func.grad` transforms it as any loss of a functional call, and so does `torch.func.vmap`, where an
    example is a batch of one, x[None].

    Parameters
    ----------
    model
        A module, in the mode that it is trained in, or any callable. Of a function the modules are kept that
        its code names, as globals or cells, and that are defaults of its arguments; of a partial, a method or
        another object, and of what a function names, those that are its attributes. The model may be
        compiled, wrapped in DistributedDataParallel (which wraps what is compiled, not the other way) or
        Opacus' GradSampleModule, under autocast; not TorchScript, not lazily initialised without a first
        pass, not checkpointed with use_reentrant=True, and not one that changes its input in place.
    loss
        `loss(outputs, y)` returns one value per example, of shape (n,): `reduction="none"`. None with
        direction="outputs", for a batch without labels.
    x
        A floating tensor whose first axis indexes examples; a tuple, named or not, of the model's positional
        arguments or a dict of its keyword arguments, one or several of which are perturbed. These may have
        a graph, as an embedding's output: `regularized_loss` trains what made it too.
    y
        Whatever `loss` takes.
    p, sigma
        As in `lpfamily.epsilon`: an exponent in [1, inf], and a radius in units of the input, a number or
        one per example.
    objective
        "perturb" or "penalty", as above. Each refuses the options of the other: `clean_weight`, `steps`,
        `start`, `direction_dropout`, `direction_dtype` and `batch_norm` belong to "perturb", `penalty_by` and
        `difference_step` to "penalty".
    clean_weight
        In [0, 1], the share of L(x) in "perturb".
    bounds, mask
        As in `lpfamily.epsilon`: the box that the input stays in, and in which x must lie, to rounding; and
        what may move. An x further outside is an error on the CPU; on other devices and in compiled code,
        where it is not looked at, its eps is NaN, and so become its loss, the batch's and the statistics of
        a batch norm.
    scale
        As in `lpfamily.epsilon`: the ball is ||eps / scale||_p <= sigma. 1 / std for inputs that were divided
        by std, if sigma is in units of what they were before.
    batch_ndim
        As in `lpfamily.epsilon`: how many axes, at least 1, index what has a ball of its own; with 2 each
        token of a sequence.
    leaf
        Which argument to perturb: an index, or a key or the name in a named tuple. None is the only floating
        tensor. An argument may be a tree of tensors, as in `lpfamily.epsilon`. Several arguments, in a tuple
        or a list, are such a tree too: a dict of them where x is one, else a tuple. bounds, mask and start,
        and eps, are like it.
    joint
        True has one ball over all that is perturbed, for each example. False has one for each tensor: a step
        of norm sigma in all of them at once, where the penalties add up; sigma may then be a tree of radii.
    direction
        What is differentiated for eps. "loss" is the loss. "log-odds", for the cross-entropy of hard
        labels and outputs that are logits (n, classes, ...), or have them as `.logits`, is
        `lpfamily.error_log_odds`: the same direction, which does not round away, whatever the example's
        weight. Where an example has several labels it is that of any error among them, all of one weight.
        "binary-log-odds" is `lpfamily.binary_error_log_odds`, for sigmoid outputs (n, ...) and labels 0 or 1.
        A function of (outputs, y) gives such odds, one value per example. With odds the penalty of
        `regularized_loss` takes the loss for a multiple of softplus(odds), so it may be a mean over labels,
        but not smoothed.
        "outputs", of logits too, is how far they go from the clean ones, KL(f(x) || f(x + eps)), summed over
        the positions of an example, in which loss and y have no part. It has no gradient at x: without a
        `start` each call draws one from the ball, by torch's generator of the CPU. An example whose outputs
        have not moved by more than their rounding stays where it is, which eagerly on the CPU is a warning;
        autocast is off in these passes, unless x is half precision.
    ignore_index
        The label that "log-odds" and "binary-log-odds" leave out, as the loss should: a void pixel's 255, a
        missing target's -1 or NaN, or None. An example that has no other label stays where it is.
    steps, start
        Frank-Wolfe steps, one gradient each, and where in the ball they start, as in `lpfamily.ascend`: a
        perturbation or a `torch.Generator` that draws one.
    direction_dropout
        "none" has all modules but norms in evaluation mode in the passes that find eps, "same" draws for them
        what the next pass draws, "independent" draws anew. A model that returns something else in training,
        as one with auxiliary outputs does, takes one of the latter.
    direction_dtype
        "bfloat16" finds eps under autocast; it keeps its norm.
    batch_norm
        "batch" has norms that track statistics take in these passes those of the batch, as in training,
        which couples its examples; "running" the running ones.
    penalty_by
        "gradient" differentiates through the gradient, which a compiled model and one whose hooks take
        gradients per example do not allow. "difference" takes (L(x + h eps) - L(x)) / h, which needs no
        second derivatives: compiled modules, fused attention (select `torch.nn.attention.SDPBackend.MATH`),
        cuDNN's recurrent networks and FSDP have none.
    difference_step
        h. None is 2^-10, which half precision and TF32 round away: an error under autocast, where x or
        the losses are half precision, and on CUDA where TF32 is allowed, as it is for convolutions unless
        you say otherwise. A model that rounds inside cannot be seen: give 0.25, say.
    scaler
        The `GradScaler` of a loop in float16: input gradients are scaled with it, so that they do not
        underflow. The result is not scaled.
    beta
        The weight of the divergence in the loss with direction="outputs": 6 in TRADES, 1 in virtual
        adversarial training.
    return_outputs
        Whether to return the outputs of the ordinary pass too.

    Returns
    -------
    Tensor or tuple
        A scalar, in units of the loss; with `return_outputs` a pair of that and the outputs.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; for a loss without one value per example, an unknown or impossible option,
        no leaf or several to choose from, and labels that have no odds: no class, or neither 0 nor 1. Where
        those are on a device, or traced, their example is NaN instead.
    RuntimeError
        In inference mode; for a parameter that the model changes in place and that is not copied.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-5; Zhang
    et al.: Theoretically Principled Trade-off between Robustness and Accuracy, 2019 (TRADES); Miyato et al.:
    Virtual Adversarial Training, 2018.
    """
    at, call = inputs_of(x, leaf)
    options = EpsOptions(direction, ignore_index, direction_dropout, direction_dtype, batch_norm, scaler)
    evaluator = Evaluator(model, loss, call, y, options)
    ball = _ball(p, sigma, bounds, mask, batch_ndim, scale, joint)
    check_choices(objective, clean_weight, steps, start, penalty_by, difference_step)
    if objective == "penalty" and (direction_dropout, direction_dtype, batch_norm) != (
        "none",
        "same",
        "batch",
    ):
        raise ValueError("direction_dropout, direction_dtype and batch_norm belong to objective='perturb'")
    check_beta(beta, options.by_outputs, objective, clean_weight)
    if penalty_by == "difference":
        losses, outputs = _penalised_by_difference(evaluator, at, ball, difference_step)
    elif objective == "penalty":
        losses, outputs = _penalised(evaluator, at, ball)
    else:
        ahead = mapped(torch.add, at, _frank_wolfe(evaluator, at, ball, steps, start))
        if beta is not None:
            losses, outputs = evaluator.losses_and_divergence(at, ahead, beta)
        elif clean_weight:
            perturbed, clean, outputs = evaluator.losses_of_both(ahead, at)
            losses = clean_weight * clean + (1 - clean_weight) * perturbed
        else:
            losses, outputs = evaluator.losses(ahead)
    return (losses.mean(), outputs) if return_outputs else losses.mean()


@documented_by(regularized_loss)
def perturb(
    model: Model,
    loss: Loss | None,
    x: Any,
    y: Any,
    *,
    p: float = 2.0,
    sigma: Numbers,
    bounds: Bounds | None = None,
    mask: Any = None,
    scale: Any = None,
    batch_ndim: int = 1,
    leaf: Hashable | list[Hashable] | None = None,
    joint: bool = True,
    direction: Direction = "loss",
    ignore_index: float | None = -100,
    steps: int = 1,
    start: Any = None,
    direction_dropout: DirectionDropout = "none",
    direction_dtype: Literal["same", "bfloat16"] = "same",
    batch_norm: Statistics = "batch",
    scaler: torch.amp.GradScaler | None = None,
) -> Any:
    """Return eps, the perturbation that `regularized_loss` trains on; add it to x.

    One step of eq. 3 at the input gradient, or `steps` of Frank-Wolfe's method. It leaves nothing behind in
    the model; gradients are enabled for it where they are not.

    Parameters
    ----------
    model, loss, x, y, p, sigma, bounds, mask, scale, batch_ndim, leaf, joint, direction, ignore_index, \
    steps, start, direction_dropout, direction_dtype, batch_norm, scaler
        As in `regularized_loss`.

    Returns
    -------
    Tensor
        eps, like the tensor or the tree that is perturbed, without a graph.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in `regularized_loss`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-5.
    """
    at, call = inputs_of(x, leaf)
    options = EpsOptions(direction, ignore_index, direction_dropout, direction_dtype, batch_norm, scaler)
    evaluator = Evaluator(model, loss, call, y, options)
    return _frank_wolfe(evaluator, at, _ball(p, sigma, bounds, mask, batch_ndim, scale, joint), steps, start)


@documented_by(regularized_loss)
def ascend(
    model: Model,
    loss: Loss | None,
    x: Any,
    y: Any,
    *,
    p: float = 2.0,
    sigma: Numbers,
    steps: int = 10,
    step_size: Numbers | None = None,
    start: Any = None,
    bounds: Bounds | None = None,
    mask: Any = None,
    scale: Any = None,
    method: ascent.Method | None = None,
    restarts: int = 0,
    stop_above: float | None = None,
    leaf: Hashable | list[Hashable] | None = None,
    direction: Direction = "loss",
    ignore_index: float | None = -100,
    direction_dropout: DirectionDropout = "none",
    direction_dtype: Literal["same", "bfloat16"] = "same",
    batch_norm: Statistics = "batch",
    scaler: torch.amp.GradScaler | None = None,
) -> Any:
    """Return the best perturbation that `lpfamily.ascend` finds in `steps` steps; add it to x.

    The inner maximum of eq. 1: of each example the iterate with the largest loss, or the largest odds of an
    error. It leaves nothing behind in the model; gradients are enabled for it where they are not. Each
    example has one ball.

    Parameters
    ----------
    model, loss, x, y, p, sigma, bounds, mask, scale, leaf, direction, ignore_index, direction_dropout, \
    direction_dtype, batch_norm, scaler
        As in `regularized_loss`.
    steps, step_size, start, method, restarts
        As in `lpfamily.ascend`.
    stop_above
        A loss, or odds, that is enough, or None, as in `lpfamily.ascend`. An example that has reached more
        is left out of the passes: of y and the model's other arguments, in tuples, lists and dicts too,
        every tensor whose first axis is as long as x's loses its row. A model in which examples meet, as
        in a batch norm in training, then sees those that are left.

    Returns
    -------
    Tensor
        eps, like the tensor or the tree that is perturbed, without a graph.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in `regularized_loss`.
    ValueError
        As in `lpfamily.ascend`, for steps, step_size, method, restarts and stop_above.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-5.
    """
    at, call = inputs_of(x, leaf)
    options = EpsOptions(direction, ignore_index, direction_dropout, direction_dtype, batch_norm, scaler)
    evaluator, at = Evaluator(model, loss, call, y, options), mapped(Tensor.detach, at)
    first, start = leaves_of(at)[0], _start(evaluator, at, start)

    with evaluator.without_side_effects(first.device), torch.no_grad():
        whole = evaluator.from_outputs(at)

        def value_and_grad(x: Any, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Any]:
            return (whole if isinstance(rows, slice) else whole.of(rows, len(first))).value_and_grad(x)

        return ascent.ascend(
            value_and_grad,
            at,
            p,
            sigma,
            steps,
            step_size,
            start,
            bounds,
            batch_ndim=1,
            mask=mask,
            scale=scale,
            method=method,
            restarts=restarts,
            stop_above=stop_above,
        )


def _ball(
    p: float, sigma: Any, bounds: Bounds | None, mask: Any, batch_ndim: int, scale: Any, joint: bool
) -> Ball:
    if batch_ndim < 1:
        raise ValueError(
            f"batch_ndim must be at least 1, as examples are along the first axis; got {batch_ndim}"
        )
    return Ball(p, sigma, bounds, mask, batch_ndim, scale, joint)


def _may_round_to_tf32(at: Tensor) -> bool:
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return at.device.type == "cuda" and at.dtype == torch.float32 and allowed


def _start(evaluator: Evaluator, at: Any, start: Any) -> Any:
    """Return the start that is given, or a generator where the gradient at x is none to follow."""
    if not evaluator.options.by_outputs:
        return start
    if start is None:
        generator = torch.Generator(leaves_of(at)[0].device)
        return generator.manual_seed(int(torch.randint(2**63 - 1, ())))
    given = [leaf for leaf in leaves_of(start) if isinstance(leaf, Tensor)]
    if given and all(library_of(leaf).visible(leaf) and not leaf.any() for leaf in given):
        raise ValueError("a divergence has no gradient at x: start must not be 0; None draws one")
    return start


def _frank_wolfe(evaluator: Evaluator, at: Any, ball: Ball, steps: int, start: Any) -> Any:
    at = mapped(Tensor.detach, at)
    start = _start(evaluator, at, start)
    with torch.no_grad():
        if start is not None:
            start = ball.begin(at, start)
        with evaluator.without_side_effects(leaves_of(at)[0].device):
            evaluator = evaluator.from_outputs(at)
            eps = ball.ascended(lambda x: evaluator.value_and_grad(x)[1], at, steps, start)
        if evaluator.options.by_outputs:
            _warn_of_still(start, eps)
    return eps


def _warn_of_still(start: Any, eps: Any) -> None:
    """Warn of examples that do not move, where that can be seen without waiting."""
    still = _moves(start) & ~_moves(eps)
    if library_of(still).visible(still) and (count := int(still.sum())):
        warnings.warn(
            f"direction='outputs': {count} of {len(still)} examples stay where they are, as where they start "
            "their outputs differ by no more than rounding: compute in a wider dtype, or give a larger sigma",
            stacklevel=4,
        )


def _moves(eps: Any) -> Tensor:
    moves: Tensor = is_off(mapped(torch.zeros_like, eps), eps, 1)
    return moves


def _penalised(evaluator: Evaluator, at: Any, ball: Ball) -> tuple[Tensor, Any]:
    if is_compiled(evaluator.model):
        raise ValueError(
            "the penalty by gradient differentiates the model twice, and what torch.compile makes can be "
            "differentiated once: pass penalty_by='difference', or the model as it is before it is compiled"
        )
    if takes_gradients_per_example(evaluator.model):
        raise ValueError(
            "the penalty by gradient differentiates the model twice, and hooks that take gradients per "
            "example, as Opacus' do, see one: pass penalty_by='difference', or the model without them"
        )
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        losses, outputs, gradient, factor = evaluator.losses_and_gradient(at)
        gradient = mapped(lambda leaf: leaf.to(torch.promote_types(leaf.dtype, torch.float32)), gradient)
        with torch.no_grad():
            eps = ball.step(gradient, mapped(Tensor.detach, at))
        # the product is sigma ||gradient||_p* and has its derivative, as eps is where the product is largest
        products = leaves_of(mapped(lambda grad, eps: flat(grad * eps).sum(dim=1), gradient, eps))
        result: Tensor = losses + factor * functools.reduce(torch.add, products)
    return (result if differentiable else result.detach()), outputs


def _penalised_by_difference(
    evaluator: Evaluator, at: Any, ball: Ball, h: float | None
) -> tuple[Tensor, Any]:
    repeated = replace(evaluator, options=replace(evaluator.options, direction_dropout="same"))
    eps = _frank_wolfe(repeated, at, ball, 1, None)
    step = DIFFERENCE_STEP if h is None else h
    ahead = mapped(lambda at, eps: at + step * eps, at, eps)
    losses, losses_ahead, outputs = evaluator.losses_of_both(at, ahead)
    leaves = leaves_of(at)
    half = any(each.dtype in (torch.float16, torch.bfloat16) for each in (*leaves, losses))
    autocast = torch.is_autocast_enabled(leaves[0].device.type)
    if h is None and (half or autocast or any(map(_may_round_to_tf32, leaves))):
        raise ValueError(
            "in half precision, and in TF32, a difference over 2^-10 of eps rounds away: pass "
            "difference_step, for example 0.25, or compute in float32, with allow_tf32 = False in "
            "torch.backends.cudnn and torch.backends.cuda.matmul"
        )
    return losses + (losses_ahead - losses) / step, outputs
