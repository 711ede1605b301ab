"""Evaluations of any model at a perturbed input: its losses, the objective of eps, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from lpfamily import binary_error_log_odds, error_log_odds
from lpfamily.classification import joint_odds, relative_slope
from lpfamily.divergences import differs, divergence_between, divergence_of_moved
from lpfamily.trees import mapped, rebuilt
from lpfamily_torch.arguments import leaves_of, rows_of
from lpfamily_torch.reachable import Model
from lpfamily_torch.side_effects import (
    DirectionDropout,
    Statistics,
    from_current_state,
    restoring_state,
    without_side_effects,
    without_team,
)

Loss = Callable[[Any, Any], Tensor]
Direction = Literal["loss", "log-odds", "binary-log-odds", "outputs"] | Loss
DirectionDtype = Literal["same", "bfloat16"]
Point = TypeVar("Point")
"""A tensor that is perturbed, or a tree of them."""


@dataclass(frozen=True)
class EpsOptions:
    """How eps is computed: the function to differentiate, and the modes and dtype of the passes."""

    direction: Direction
    ignore_index: float | None
    direction_dropout: DirectionDropout
    direction_dtype: DirectionDtype
    batch_norm: Statistics
    scaler: torch.amp.GradScaler | None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if not callable(self.direction) and self.direction not in ("loss", "outputs", *_ODDS):
            raise ValueError(
                f"direction must be 'loss', {', '.join(map(repr, _ODDS))}, 'outputs' or a function of "
                f"(outputs, y); got {self.direction!r}"
            )
        if self.by_outputs and self.direction_dtype != "same":
            raise ValueError(
                "direction='outputs' differentiates a difference of outputs, which rounds away in "
                "direction_dtype='bfloat16'"
            )

    @property
    def by_outputs(self) -> bool:
        """Whether eps raises the divergence from the clean outputs."""
        return self.direction == "outputs"


@dataclass(frozen=True)
class Evaluator:
    """A model with its loss, labels and other arguments, as a function of the perturbed input alone."""

    model: Model
    loss: Loss | None
    call: Callable[..., Any]
    y: Any
    options: EpsOptions
    clean: Any = None
    """x and the model's outputs there, from which a divergence is measured."""

    def __post_init__(self) -> None:
        if self.loss is None and not self.options.by_outputs:
            raise TypeError("loss must be a function of (outputs, y); None is for direction='outputs'")

    def subset(self, rows: Tensor, examples: int) -> Evaluator:
        """Return the evaluator of a subset of the examples.

        It takes these rows of every tensor that has one row per example.
        """
        call = partial(self.call, rows=rows)
        y, clean = (rows_of(each, rows, examples) for each in (self.y, self.clean))
        return replace(self, call=call, y=y, clean=clean)

    def with_clean_outputs(self, at: Any) -> Evaluator:
        """Return an evaluator that has the outputs of the clean input, if eps needs them for a divergence."""
        if not self.options.by_outputs:
            return self
        with self._eps_scope(at), torch.no_grad():
            return replace(self, clean=(at, self.call(without_team(self.model), at)))

    def without_side_effects(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the scope in which `value_and_grad` has no side effects."""
        dropout, batch_norm = self.options.direction_dropout, self.options.batch_norm
        return without_side_effects(without_team(self.model), device, dropout, batch_norm)

    def value_and_grad(self, at: Point) -> tuple[Tensor, Point]:
        """Return the objective of eps for each example, and its input gradient or a multiple of that."""
        options, model, examples = self.options, without_team(self.model), len(leaves_of(at)[0])

        def evaluate(at: Point) -> tuple[Tensor, Any]:
            outputs = self.call(model, at)
            values = self._eps_objective(at, outputs, examples)
            invalid = torch.zeros_like(values, dtype=torch.bool)
            if options.scaler is not None and options.direction in _ODDS:
                # NaN where the outputs are finite comes from a label
                invalid = values.isnan() & flat(logits_of(outputs)).isfinite().all(dim=1)
            return self._total(values), (values, invalid)

        with self._eps_scope(at), torch.enable_grad():
            (values, invalid), gradient = with_gradient(evaluate, mapped(Tensor.detach, at))
            if options.scaler is not None:  # NaN from overflow must not reach the ordinary pass

                def without_overflow(leaf: Tensor) -> Tensor:
                    finite = leaf.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
                    return finite.masked_fill_(invalid.reshape(-1, *[1] * (leaf.ndim - 1)), math.nan)

                gradient = mapped(without_overflow, gradient)
            return values.detach(), gradient

    @contextmanager
    def _eps_scope(self, at: Any) -> Iterator[None]:
        """Set the autocast of a pass that computes eps.

        Where all passes must see the same dropout and buffers, restore the state at the end of each.
        """
        options, leaves = self.options, leaves_of(at)
        device = leaves[0].device
        with ExitStack() as scopes:
            if options.direction_dropout == "same" or options.by_outputs:
                scopes.enter_context(restoring_state(without_team(self.model), device))
            if options.direction_dtype == "bfloat16":
                scopes.enter_context(torch.autocast(device.type, torch.bfloat16))
            elif options.by_outputs and all(leaf.dtype.itemsize > 2 for leaf in leaves):
                # autocast would round differences of outputs away
                scopes.enter_context(torch.autocast(device.type, enabled=False))
            yield

    def _eps_objective(self, at: Any, outputs: Any, examples: int) -> Tensor:
        """Return the values that eps raises: those of the direction's function, or the divergence."""
        if self.clean is None:
            return self._direction(outputs, examples)
        x, clean_outputs = self.clean
        is_moved, logits = differs(x, at, 1), _classes_last(outputs)
        rounding = torch.finfo(logits_of(outputs).dtype).eps
        values: Tensor = divergence_of_moved(_classes_last(clean_outputs), logits, is_moved, 1, rounding)
        return values

    def losses_and_divergence(self, at: Any, perturbed: Any, beta: float) -> tuple[Tensor, Any]:
        """Return L(x) + beta KL(f(x) || f(x + eps)) and the outputs at x, by an ordinary pass at x.

        Without a loss, the outputs at x are constant targets.
        """
        first = leaves_of(at)[0]
        same_state, examples = from_current_state(without_team(self.model), first.device), len(first)
        with torch.no_grad() if self.loss is None else nullcontext():
            outputs = self.call(self.model, at)
        with same_state:
            perturbed_outputs = self.call(self.model, perturbed)
        divergence = divergence_between(_classes_last(outputs), _classes_last(perturbed_outputs), 1)
        losses = beta * _per_example(divergence, examples, "the divergence")
        return (losses if self.loss is None else losses + self._losses(outputs, examples)), outputs

    def losses(self, at: Any) -> tuple[Tensor, Any]:
        """Return the loss of each example and the outputs, by an ordinary pass."""
        outputs = self.call(self.model, at)
        return self._losses(outputs, len(leaves_of(at)[0])), outputs

    def losses_of_both(self, first: Any, second: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the losses of two inputs, with the same random draws, and the outputs of the first.

        The second pass starts from the state of the first, and has no side effects.
        """
        same_state = from_current_state(without_team(self.model), leaves_of(first)[0].device)
        losses, outputs = self.losses(first)
        with same_state:
            return losses, self.losses(second)[0], outputs

    def losses_and_gradient(self, at: Point) -> tuple[Tensor, Any, Point, Tensor | float]:
        """Return the losses and the outputs, by an ordinary pass, and two factors of the losses' gradient.

        The first factor is the gradient of the direction's function, the second is one number per example.
        With odds, L is a multiple of softplus(odds), so grad L = L sigmoid(odds) / softplus(odds) grad odds.
        """
        first, by_loss = leaves_of(at)[0], self.options.direction == "loss"

        def evaluate(at: Point) -> tuple[Tensor, Any]:
            losses, outputs = self.losses(at)
            values = losses if by_loss else self._direction(outputs, len(first))
            return self._total(values), (losses, outputs, values)

        (losses, outputs, values), gradient = with_gradient(evaluate, at, create_graph=True)
        if (scaler := self.options.scaler) is not None:
            unit = len(first) / scaler.scale(torch.ones((), device=first.device))
            gradient = mapped(lambda leaf: leaf * unit, gradient)
        return losses, outputs, gradient, 1.0 if by_loss else losses * relative_slope(_wide(values))

    def _losses(self, outputs: Any, examples: int) -> Tensor:
        loss: Any = self.loss
        return _per_example(loss(outputs, self.y), examples, "loss")

    def _direction(self, outputs: Any, examples: int) -> Tensor:
        """Return the function of the outputs whose gradient is the direction of eps, for each example."""
        direction = self.options.direction
        if direction == "loss":
            return self._losses(outputs, examples)
        if callable(direction):
            values = direction(outputs, self.y)
        else:
            values = _ODDS[direction](outputs, self.y, self.options.ignore_index)
        return _per_example(values, examples, "direction")

    def _total(self, values: Tensor) -> Tensor:
        """Return the sum to differentiate; with a scaler the scaled mean, which the scaler is tuned for."""
        scaler = self.options.scaler
        return values.sum() if scaler is None else scaler.scale(values.mean())


def _per_example(values: object, examples: int, name: str) -> Tensor:
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or shape != (examples,):
        advice = "a mean would shrink the penalty with the batch; losses of torch take reduction='none'"
        if shape[:1] == (examples,):
            advice = "take the mean over the further axes"
        raise ValueError(
            f"{name} must return one value per example, of shape ({examples},); got {shape}: {advice}"
        )
    return values


def with_gradient(
    evaluate: Callable[[Point], tuple[Tensor, Any]], at: Point, create_graph: bool = False
) -> tuple[Any, Point]:
    """Return aux and the gradient of total, where evaluate(at) returns (total, aux)."""
    if torch._C._functorch.maybe_current_level() is not None:  # a transform forbids requires_grad_()
        result: Any = torch.func.vjp(evaluate, at, has_aux=True)
        total, vjp, aux = result
        (gradient,) = vjp(torch.ones_like(total))
        return aux, gradient
    at = mapped(lambda leaf: leaf if leaf.requires_grad else leaf.detach().requires_grad_(), at)
    total, aux = evaluate(at)
    return aux, input_gradient(total, at, create_graph)


def input_gradient(total: Tensor, at: Point, create_graph: bool = False) -> Point:
    """Return the gradient of a scalar with respect to an input, or to a tree of inputs."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("inference mode has no gradients: use torch.no_grad instead, for validation too")
    leaves, gradients = leaves_of(at), cast(Sequence[Tensor | None], ())
    if total.requires_grad:
        gradients = torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError("the loss does not depend on what is to be perturbed, or its graph was cut")
    filled = (
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    )
    result: Point = rebuilt(at, filled)
    return result


def _softmax_odds(outputs: object, labels: Tensor, ignore_index: int | None) -> Tensor:
    odds = error_log_odds(_classes_last(outputs), labels, ignore_index=ignore_index)
    return odds if odds.ndim == 1 else joint_odds(odds.flatten(1))


def _binary_odds(outputs: object, labels: Tensor, ignore_index: float | None) -> Tensor:
    return binary_error_log_odds(flat(_wide(logits_of(outputs))), flat(labels), ignore_index=ignore_index)


def flat(values: Tensor) -> Tensor:
    """Return values with one row per example, also where there are no examples."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def logits_of(outputs: object) -> Tensor:
    """Return a model's logits: its outputs, or their attribute `logits`, as of models of Hugging Face."""
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"outputs must be a tensor of logits, or have one as .logits; got {type(outputs).__name__}: "
            f"pass a model that returns one, or as direction a function of (outputs, y), such as "
            f"lambda outputs, y: lpfamily.error_log_odds(outputs[0], y)"
        )
    return logits


def _classes_last(outputs: object) -> Tensor:
    return _wide(logits_of(outputs)).movedim(1, -1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


_CHOICES = {
    "direction_dropout": get_args(DirectionDropout),
    "direction_dtype": get_args(DirectionDtype),
    "batch_norm": get_args(Statistics),
}
_ODDS: dict[object, Callable[..., Tensor]] = {"log-odds": _softmax_odds, "binary-log-odds": _binary_odds}
