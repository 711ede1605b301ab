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

    The loss is taken at an x that has moved in an Lp ball, or gets a penalty on its input gradient. p = inf
    follows the signs of the gradient, p = 2 the gradient itself, p = 1 only its largest entry.

    - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), with eps held constant. eps is eq. 3
      at the input gradient, or several steps of it.
    - "penalty": L(x) + sigma * ||grad L(x)||_{p*} (eq. 4), where grad is the input gradient. With a mask or
      bounds, the second term is the largest gain of the linearised loss within them.

    The two are equal to first order in sigma. With direction="outputs" the result is the loss of TRADES,
    L(x) + beta KL(f(x) || f(x + eps)). Without a loss function it is that of virtual adversarial training,
    beta KL(f(x) || f(x + eps)) with f(x) held constant.

    The passes that compute eps compute only the input gradient, and have no side effects: `param.grad` and
    the modes of modules are as before, and parameters and buffers are the same tensors with the same bits.
    Random states are restored: those of torch (on the CPU and on x's device), of Python, of NumPy, and of
    generators that the model has. Other attributes of modules are not restored. Parameters above 1 MiB, and
    those in torch's own modules, are not copied: a pass that changes one in place raises an error. A change
    through `.data` is not detected: it stays in such a parameter, and in a buffer above 1 MiB.

    The weights are trained by an ordinary call of the model, with the side effects of such a call: at x + eps
    for "perturb", at x for "penalty" and for direction="outputs". `clean_weight`, a difference and a
    divergence need a second call, which repeats the random draws of the first and has no side effects.

    `torch.func.grad` and `torch.func.vmap` transform this function like any loss of a functional call. Under
    vmap an example is a batch of one, x[None].

    Parameters
    ----------
    model
        A module in the mode that it is trained in, or any callable. If it is not a module, the modules that
        it uses are restored if they can be found: in the globals and closure variables that a function's code
        names, in the defaults of its arguments, and in the attributes of a partial, a method or another
        object, also of an object that a function names. The model may be compiled, wrapped in
        DistributedDataParallel (around the compiled module, not inside it) or in Opacus' GradSampleModule,
        and run under autocast. It must not be TorchScript, lazy before its first pass, or checkpointed with
        use_reentrant=True, and must not change its input in place.
    loss
        `loss(outputs, y)` returns one value per example, of shape (n,): `reduction="none"`. None, for a batch
        without labels, needs direction="outputs".
    x
        A floating tensor whose first axis indexes examples. Or all arguments of the model, of which `leaf`
        selects those to perturb: positional ones in a tuple, named or not, or keyword ones in a dict. They
        may have a graph, like the output of an embedding: `regularized_loss` then trains the embedding too.
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
        As in `lpfamily.epsilon`: the ball is ||eps / scale||_p <= sigma. For inputs that were divided by std,
        1 / std gives sigma the units of the original inputs.
    batch_ndim
        As in `lpfamily.epsilon`: the number of leading axes, at least 1, that index balls. With 2, each token
        of a sequence has its own.
    leaf
        Which argument to perturb: an index, a key, or the name in a named tuple. None takes the only floating
        tensor. The argument may be a tree of tensors, as in `lpfamily.epsilon`. A tuple or a list selects
        several arguments, which form such a tree: a dict if x is one, else a tuple. bounds, mask, start and
        eps have its structure.
    joint
        True has one ball per example, over all perturbed tensors. False has one ball for each tensor: all of
        them move at once, each by a step of norm sigma, and the penalties add up. sigma may then be a tree of
        radii.
    direction
        The function whose gradient with respect to x gives eps.
        "loss" is the loss.
        "log-odds" is `lpfamily.error_log_odds`, for the cross-entropy of hard labels, where the outputs are
        logits (n, classes, ...), or have them as `.logits`. Its gradient has the direction of the loss's
        gradient, but does not round to zero, whatever the weight of the example. If an example has several
        labels, these are the log-odds of an error in any of them, all with equal weight. Where an input also
        changes the outputs of other examples (`batch_norm="batch"`), eps raises the sum of the log-odds: all
        examples have equal weight in it, whereas in the loss those that are right with confidence have
        little. So eps and the penalty differ from those of the loss there.
        "binary-log-odds" is `lpfamily.binary_error_log_odds`, for sigmoid outputs (n, ...) and labels 0 or 1.
        A function of (outputs, y) returns such odds, one value per example. With odds, the penalty of
        `regularized_loss` assumes a loss that is a multiple of softplus(odds): a mean over labels is one, a
        smoothed loss is not.
        "outputs", also for logits, is the divergence of the outputs at x + eps from those at x,
        KL(f(x) || f(x + eps)), summed over the positions of an example. It uses neither loss nor y. Its
        gradient at x is zero, so without a `start` each call draws one from the ball, seeded by torch's
        generator of the CPU. An example whose outputs move by no more than their rounding stays where it is;
        eagerly on the CPU this is a warning. Autocast is off in these passes, unless x is in half precision.
    ignore_index
        The label that "log-odds" and "binary-log-odds" leave out, as the loss should: 255 for a void pixel,
        -1 or NaN for a missing target. None leaves out nothing. An example without any other label stays
        where it is.
    steps, start
        The number of Frank-Wolfe steps, one gradient each, and where in the ball they start, as in
        `lpfamily.ascend`: a perturbation, or a `torch.Generator` that draws one.
    direction_dropout
        Dropout in the passes that compute eps. "none" puts all modules but norms into evaluation mode, "same"
        takes the dropout of the pass that trains the weights, "independent" draws anew. A model that returns
        something else in training than in evaluation, such as auxiliary outputs, needs "same" or
        "independent".
    direction_dtype
        "bfloat16" computes eps under autocast; eps keeps its norm.
    batch_norm
        The statistics that norms use in the passes that compute eps, if they track any. "batch" takes those
        of the batch, as in training, so that the eps of an example depends on the others; "running" takes the
        running ones.
    penalty_by
        "gradient" differentiates through the input gradient. "difference" takes (L(x + h eps) - L(x)) / h,
        which needs no second derivatives. Take it for models without second derivatives: compiled modules,
        cuDNN's recurrent networks, FSDP, fused attention (or select `torch.nn.attention.SDPBackend.MATH`).
        Take it also if hooks of the model take gradients per example.
    difference_step
        h, in units of eps. None is 2^-10, too small a step for half precision and TF32. So None is an error
        under autocast, if x or the losses are in half precision, and on CUDA if TF32 is allowed, which is the
        default for convolutions. Half precision inside the model cannot be detected: for such a model pass h,
        for example 0.25.
    scaler
        The `GradScaler` of a loop in float16: input gradients are scaled with it, so that they do not
        underflow. The result is not scaled.
    beta
        The weight of the divergence in the loss, required with direction="outputs": 6 in TRADES, 1 in virtual
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
        option; for no floating tensor, or several and no `leaf`; for labels that have no odds, because they
        are not a class, or neither 0 nor 1. On a device, or traced, labels are not checked: their examples
        are NaN instead.
    RuntimeError
        In inference mode; if the model changes in place a parameter that is not copied: one above 1 MiB, or
        in a module of torch's own.

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

    It approximates the inner maximum of eq. 1. For each example it keeps the iterate with the largest loss,
    or with the largest odds of an error. Each example has one ball. The passes have no side effects on the
    model. Gradients are enabled for them, also inside of `torch.no_grad`.

    Parameters
    ----------
    model, loss, x, y, p, sigma, bounds, mask, scale, leaf, direction, ignore_index, direction_dropout, \
    direction_dtype, batch_norm, scaler
        As in `regularized_loss`.
    steps, step_size, start, method, restarts
        As in `lpfamily.ascend`.
    stop_above
        A loss, or odds, that is enough, or None, as in `lpfamily.ascend`. An example that has exceeded it is
        left out of the next passes. Its row is dropped from x and from every tensor with as many rows in y
        and in the model's other arguments, also inside of tuples, lists and dicts. If examples interact, as
        in a batch norm in training, the model then sees only the remaining ones.

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
            "the penalty by gradient differentiates the model twice, and a model compiled by torch.compile "
            "can be differentiated once: pass penalty_by='difference', or the model before compiling"
        )
    if takes_gradients_per_example(evaluator.model):
        raise ValueError(
            "the penalty by gradient differentiates the model twice, and hooks that take gradients per "
            "example, as Opacus' do, support one differentiation: pass penalty_by='difference', or the model "
            "without these hooks"
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
