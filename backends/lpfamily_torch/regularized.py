"""The regularised loss of any torch model, and perturbations of its inputs, for custom training loops."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lpfamily import ascent
from lpfamily._arrays import Bounds, Numbers
from lpfamily._docstrings import documented_by
from lpfamily.divergences import check_beta
from lpfamily.loops import Ball
from lpfamily.training.backends import DIFFERENCE_STEP, check_choices
from lpfamily.trees import mapped
from lpfamily_torch.arguments import inputs_of, leaves_of
from lpfamily_torch.eps import ball_of, frank_wolfe, start_of
from lpfamily_torch.evaluator import Direction, EpsOptions, Evaluator, Loss, flat
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
    """Return the mean regularised loss of a batch; call `backward` on it instead of on the plain loss.

    The input x moves in an Lp ball, or its gradient is measured there: p = inf follows the signs of the
    gradient, p = 2 the gradient itself, p = 1 only its largest entry.

    - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), with eps held constant. eps is eq. 3
      at the input gradient, or several steps of it.
    - "penalty": L(x) + sigma * ||grad L(x)||_{p*} (eq. 4), where grad is the input gradient. With a mask or
      bounds, the second term is the largest gain of the linearised loss within them.

    The two are equal to first order in sigma. With direction="outputs" the result is the loss of TRADES,
    L(x) + beta KL(f(x) || f(x + eps)). Without a loss function it is that of virtual adversarial training,
    beta KL(f(x) || f(x + eps)) with f(x) held constant.

    The passes that compute eps compute the input gradient and no other, and have no side effects:
    `param.grad` and the modes of modules are as before, and parameters and buffers are the same tensors with
    the same bits. Random states are restored: those of torch (on the CPU and on x's device), of Python, of
    NumPy, and of generators that the model has. Other attributes of modules are not restored. Nor is a
    parameter above 1 MiB, or in a module of torch's own, but a pass that changes one in place raises an
    error. A change through `.data` goes unseen: it stays in such a parameter, and in a buffer above 1 MiB.

    The weights are trained by an ordinary call of the model, with the side effects of such a call: at x + eps
    for "perturb", at x for "penalty" and for direction="outputs". `clean_weight`, a difference and a
    divergence need a second call, which repeats the random draws of the first and has no side effects.

    `torch.func.grad` transforms this function as any loss of a functional call. So does `torch.func.vmap`,
    where an example is a batch of one, x[None].

    Parameters
    ----------
    model
        A module in the mode that it is trained in, or any callable. The modules that a callable uses are
        restored as far as its code shows them: a function shows the globals and cells that its code names,
        and the defaults of its arguments; a partial, a method or another object, and an object that a
        function names, shows its attributes. The model may be compiled, wrapped in DistributedDataParallel
        (around the compiled module, not inside it) or in Opacus' GradSampleModule, and run under autocast. It
        must not be TorchScript, lazy before its first pass, or checkpointed with use_reentrant=True, and must
        not change its input in place.
    loss
        `loss(outputs, y)` returns one value per example, of shape (n,): `reduction="none"`. None is for a
        batch without labels, with direction="outputs".
    x
        A floating tensor whose first axis indexes examples; or a tuple, named or not, of the model's
        positional arguments, or a dict of its keyword arguments, of which one or several are perturbed. These
        may have a graph, as the output of an embedding: `regularized_loss` then trains the embedding too.
    y
        Whatever `loss` takes.
    p, sigma
        As in `lpfamily.epsilon`: an exponent in [1, inf], and a radius in units of the input, one number or
        one per example.
    objective
        "perturb" or "penalty", as above. Each refuses the options of the other: `clean_weight`, `steps`,
        `start`, `direction_dropout`, `direction_dtype` and `batch_norm` belong to "perturb", `penalty_by` and
        `difference_step` to "penalty".
    clean_weight
        The weight of L(x) in "perturb", in [0, 1].
    bounds, mask
        As in `lpfamily.epsilon`: the box that x + eps stays in, and the entries of x that may move. x itself
        must lie in the box, up to rounding. On the CPU an x further outside is an error. Other devices and
        compiled code do not check: the eps of that example is NaN there, and so are its loss, the loss of the
        batch and the statistics of a batch norm.
    scale
        As in `lpfamily.epsilon`: the ball is ||eps / scale||_p <= sigma. Where inputs were divided by std,
        1 / std lets sigma have the units that they had before.
    batch_ndim
        As in `lpfamily.epsilon`: the number of leading axes, at least 1, that index balls. With 2, each token
        of a sequence has its own.
    leaf
        Which argument to perturb: an index, a key, or the name in a named tuple. None takes the only floating
        tensor. The argument may be a tree of tensors, as in `lpfamily.epsilon`. A tuple or a list perturbs
        several arguments, which form such a tree: a dict where x is one, else a tuple. bounds, mask, start
        and eps have its structure.
    joint
        True has one ball per example, over all perturbed tensors. False has one ball for each tensor: all of
        them move at once, each by a step of norm sigma, and the penalties add up. sigma may then be a tree of
        radii.
    direction
        The function whose input gradient gives eps.
        "loss" is the loss.
        "log-odds" is `lpfamily.error_log_odds`, for the cross-entropy of hard labels, where the outputs are
        logits (n, classes, ...), or have them as `.logits`. Its direction is that of the loss, but does not
        round away, whatever the weight of the example. Where an example has several labels, it is the
        log-odds of an error in any of them, all with equal weight.
        "binary-log-odds" is `lpfamily.binary_error_log_odds`, for sigmoid outputs (n, ...) and labels 0 or 1.
        A function of (outputs, y) returns such odds, one value per example. With odds, the penalty of
        `regularized_loss` assumes a loss that is a multiple of softplus(odds): a mean over labels is one, a
        smoothed loss is not.
        "outputs", also for logits, is their divergence from the clean ones, KL(f(x) || f(x + eps)), summed
        over the positions of an example; it uses neither loss nor y. Its gradient at x is zero, so without a
        `start` each call draws one from the ball, seeded by torch's generator of the CPU. An example whose
        outputs move by no more than their rounding stays where it is; eagerly on the CPU this is a warning.
        Autocast is off in these passes, unless x is in half precision.
    ignore_index
        The label that "log-odds" and "binary-log-odds" leave out, as the loss should: 255 for a void pixel,
        -1 or NaN for a missing target. None leaves out nothing. An example without any other label stays
        where it is.
    steps, start
        The number of Frank-Wolfe steps, one gradient each, and where in the ball they start, as in
        `lpfamily.ascend`: a perturbation, or a `torch.Generator` that draws one.
    direction_dropout
        Dropout in the passes that compute eps. "none" puts all modules but norms into evaluation mode, "same"
        draws what the next pass draws, "independent" draws anew. A model that returns something else in
        training than in evaluation, such as auxiliary outputs, needs "same" or "independent".
    direction_dtype
        "bfloat16" computes eps under autocast; eps keeps its norm.
    batch_norm
        The statistics that norms use in the passes that compute eps, if they track any. "batch" takes those
        of the batch, as in training, so that the eps of an example depends on the others; "running" takes the
        running ones.
    penalty_by
        "gradient" differentiates through the gradient. A compiled model does not allow that, nor one whose
        hooks take gradients per example. "difference" takes (L(x + h eps) - L(x)) / h and needs no second
        derivatives. Compiled modules, fused attention (select `torch.nn.attention.SDPBackend.MATH`), cuDNN's
        recurrent networks and FSDP have none.
    difference_step
        h. None is 2^-10, which half precision and TF32 round away. It is an error under autocast, where x or
        the losses are in half precision, and on CUDA where TF32 is allowed, as it is for convolutions by
        default. Rounding inside the model cannot be seen: give 0.25, say.
    scaler
        The `GradScaler` of a loop in float16: input gradients are scaled with it, so that they do not
        underflow. The result is not scaled.
    beta
        The weight of the divergence in the loss with direction="outputs": 6 in TRADES, 1 in virtual
        adversarial training.
    return_outputs
        Whether to return the outputs of the ordinary call too.

    Returns
    -------
    Tensor or tuple
        A scalar, in units of the loss; with `return_outputs` a pair of it and the outputs.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; for a loss without one value per example; for an unknown or impossible
        option; for no floating tensor, or several and no `leaf`; for labels without odds, which are no class,
        or neither 0 nor 1. On a device, or traced, labels are not checked: their examples are NaN instead.
    RuntimeError
        In inference mode; for a parameter that is not copied and that the model changes in place.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 1-5; Zhang
    et al.: Theoretically Principled Trade-off between Robustness and Accuracy, 2019 (TRADES); Miyato et al.:
    Virtual Adversarial Training, 2018.
    """
    at, call = inputs_of(x, leaf)
    options = EpsOptions(direction, ignore_index, direction_dropout, direction_dtype, batch_norm, scaler)
    evaluator = Evaluator(model, loss, call, y, options)
    ball = ball_of(p, sigma, bounds, mask, batch_ndim, scale, joint)
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
        perturbed = mapped(torch.add, at, frank_wolfe(evaluator, at, ball, steps, start))
        if beta is not None:
            losses, outputs = evaluator.losses_and_divergence(at, perturbed, beta)
        elif clean_weight:
            losses, clean_losses, outputs = evaluator.losses_of_both(perturbed, at)
            losses = clean_weight * clean_losses + (1 - clean_weight) * losses
        else:
            losses, outputs = evaluator.losses(perturbed)
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

    It is one step of eq. 3 at the input gradient, or `steps` of Frank-Wolfe's method. The passes have no side
    effects on the model. Gradients are enabled for them, also inside of `torch.no_grad`.

    Parameters
    ----------
    model, loss, x, y, p, sigma, bounds, mask, scale, batch_ndim, leaf, joint, direction, ignore_index, \
    steps, start, direction_dropout, direction_dtype, batch_norm, scaler
        As in `regularized_loss`.

    Returns
    -------
    Tensor
        eps, in the structure of what is perturbed, a tensor or a tree, without a graph.

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
    return frank_wolfe(evaluator, at, ball_of(p, sigma, bounds, mask, batch_ndim, scale, joint), steps, start)


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

    It approximates the inner maximum of eq. 1: for each example, the iterate with the largest loss, or with
    the largest odds of an error. Each example has one ball. The passes have no side effects on the model.
    Gradients are enabled for them, also inside of `torch.no_grad`.

    Parameters
    ----------
    model, loss, x, y, p, sigma, bounds, mask, scale, leaf, direction, ignore_index, direction_dropout, \
    direction_dtype, batch_norm, scaler
        As in `regularized_loss`.
    steps, step_size, start, method, restarts
        As in `lpfamily.ascend`.
    stop_above
        A loss, or odds, that is enough, or None, as in `lpfamily.ascend`. An example that has exceeded it is
        left out of the next passes: its row is dropped from every tensor in y and in the model's other
        arguments, also in tuples, lists and dicts, whose first axis is as long as that of x. Where examples
        interact, as in a batch norm in training, the model then sees the remaining ones.

    Returns
    -------
    Tensor
        eps, in the structure of what is perturbed, a tensor or a tree, without a graph.

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
    first, start = leaves_of(at)[0], start_of(evaluator, at, start)

    with evaluator.without_side_effects(first.device), torch.no_grad():
        whole = evaluator.with_clean_outputs(at)

        def value_and_grad(x: Any, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Any]:
            subset = whole if isinstance(rows, slice) else whole.subset(rows, len(first))
            return subset.value_and_grad(x)

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


def _penalised(evaluator: Evaluator, at: Any, ball: Ball) -> tuple[Tensor, Any]:
    """Return L(x) + sigma ||grad L(x)||_{p*} for each example, and the outputs."""
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
    grad_was_enabled = torch.is_grad_enabled()
    with torch.enable_grad():
        losses, outputs, gradient, factor = evaluator.losses_and_gradient(at)
        gradient = mapped(lambda leaf: leaf.to(torch.promote_types(leaf.dtype, torch.float32)), gradient)
        with torch.no_grad():
            eps = ball.step(gradient, mapped(Tensor.detach, at))
        # <gradient, eps> is sigma ||gradient||_p*; it has the same derivative, as eps maximises the product
        products = leaves_of(mapped(lambda grad, eps: flat(grad * eps).sum(dim=1), gradient, eps))
        result: Tensor = losses + factor * functools.reduce(torch.add, products)
    return (result if grad_was_enabled else result.detach()), outputs


def _penalised_by_difference(
    evaluator: Evaluator, at: Any, ball: Ball, difference_step: float | None
) -> tuple[Tensor, Any]:
    """Return L(x) + (L(x + h eps) - L(x)) / h for each example, and the outputs at x."""
    same_draws = replace(evaluator, options=replace(evaluator.options, direction_dropout="same"))
    eps = frank_wolfe(same_draws, at, ball, 1, None)
    h = DIFFERENCE_STEP if difference_step is None else difference_step
    perturbed = mapped(lambda at, eps: at + h * eps, at, eps)
    losses, perturbed_losses, outputs = evaluator.losses_of_both(at, perturbed)
    leaves = leaves_of(at)
    is_half = any(each.dtype in (torch.float16, torch.bfloat16) for each in (*leaves, losses))
    is_autocast = torch.is_autocast_enabled(leaves[0].device.type)
    if difference_step is None and (is_half or is_autocast or any(map(_may_round_to_tf32, leaves))):
        raise ValueError(
            "in half precision, and in TF32, a difference over 2^-10 of eps rounds away: pass "
            "difference_step, for example 0.25, or compute in float32, with allow_tf32 = False in "
            "torch.backends.cudnn and torch.backends.cuda.matmul"
        )
    return losses + (perturbed_losses - losses) / h, outputs


def _may_round_to_tf32(at: Tensor) -> bool:
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return at.device.type == "cuda" and at.dtype == torch.float32 and allowed
