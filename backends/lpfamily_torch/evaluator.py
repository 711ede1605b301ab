"""Evaluator through a model of one's own: what is called, what is followed, and what is differentiated."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from lpfamily import binary_error_log_odds, error_log_odds
from lpfamily.classification import joint_odds, relative_slope
from lpfamily.divergences import divergence_between, divergence_of_moved, is_off
from lpfamily.trees import mapped, named_leaves, rebuilt
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
    """How the passes that find eps are made, and what they differentiate."""

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
                "direction='outputs' follows a difference of outputs, which rounds away in "
                "direction_dtype='bfloat16'"
            )

    @property
    def by_outputs(self) -> bool:
        """Whether the divergence from the clean outputs is followed."""
        return self.direction == "outputs"


@dataclass(frozen=True)
class Evaluator:
    """A model with all that its passes need but the tensor that is perturbed."""

    model: Model
    loss: Loss | None
    call: Callable[..., Any]
    y: Any
    options: EpsOptions
    clean: Any = None
    """x and the logits there, from which a divergence is."""

    def __post_init__(self) -> None:
        if self.loss is None and not self.options.by_outputs:
            raise TypeError("loss must be a function of (outputs, y); None is for direction='outputs'")

    def of(self, rows: Tensor, examples: int) -> Evaluator:
        """Return the passes of some of the examples: these rows of every tensor that has one per example."""
        call = partial(self.call, rows=rows)
        y, clean = (_taken(each, rows, examples) for each in (self.y, self.clean))
        return replace(self, call=call, y=y, clean=clean)

    def from_outputs(self, at: Any) -> Evaluator:
        """Return these passes, for a divergence with the outputs of the clean input."""
        if not self.options.by_outputs:
            return self
        with self._direction_scope(at), torch.no_grad():
            return replace(self, clean=(at, self.call(without_team(self.model), at)))

    def without_side_effects(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the scope in which `value_and_grad` leaves nothing behind."""
        dropout, batch_norm = self.options.direction_dropout, self.options.batch_norm
        return without_side_effects(without_team(self.model), device, dropout, batch_norm)

    def value_and_grad(self, at: Point) -> tuple[Tensor, Point]:
        """Return what eps raises, of each example, and its input gradient or a multiple of that."""
        options, model, examples = self.options, without_team(self.model), len(leaves_of(at)[0])

        def evaluate(at: Point) -> tuple[Tensor, Any]:
            outputs = self.call(model, at)
            values = self._followed(outputs, examples) if self.clean is None else self._apart(at, outputs)
            spoilt = torch.zeros_like(values, dtype=torch.bool)
            if options.scaler is not None and options.direction in _ODDS:
                # NaN where the outputs are finite comes from a label
                spoilt = values.isnan() & flat(logits_of(outputs)).isfinite().all(dim=1)
            return self._total(values), (values, spoilt)

        with self._direction_scope(at), torch.enable_grad():
            (values, spoilt), gradient = with_gradient(evaluate, mapped(Tensor.detach, at))
            if options.scaler is not None:  # what overflows to NaN must not reach the ordinary pass

                def settled(leaf: Tensor) -> Tensor:
                    numbers = leaf.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
                    return numbers.masked_fill_(spoilt.reshape(-1, *[1] * (leaf.ndim - 1)), math.nan)

                gradient = mapped(settled, gradient)
            return values.detach(), gradient

    @contextmanager
    def _direction_scope(self, at: Any) -> Iterator[None]:
        """Draw in each pass what the others draw, where they must agree, in the dtype that is asked for."""
        options, leaves = self.options, leaves_of(at)
        device = leaves[0].device
        with ExitStack() as scopes:
            if options.direction_dropout == "same" or options.by_outputs:
                scopes.enter_context(restoring_state(without_team(self.model), device))
            if options.direction_dtype == "bfloat16":
                scopes.enter_context(torch.autocast(device.type, torch.bfloat16))
            elif options.by_outputs and all(leaf.dtype.itemsize > 2 for leaf in leaves):
                # which would round differences away
                scopes.enter_context(torch.autocast(device.type, enabled=False))
            yield

    def _apart(self, at: Any, outputs: Any) -> Tensor:
        """Return the divergence from the clean outputs, to follow."""
        x, clean = self.clean
        moved, logits = is_off(x, at, 1), _classes_last(outputs)
        rounding = torch.finfo(logits_of(outputs).dtype).eps
        values: Tensor = divergence_of_moved(_classes_last(clean), logits, moved, 1, rounding)
        return values

    def losses_and_divergence(self, at: Any, ahead: Any, beta: float) -> tuple[Tensor, Any]:
        """Return L(x) + beta KL(f(x) || f(x + eps)), by an ordinary pass at x, and the outputs there.

        Without a loss the outputs at x are targets, held constant.
        """
        first = leaves_of(at)[0]
        same_state, examples = from_current_state(without_team(self.model), first.device), len(first)
        with torch.no_grad() if self.loss is None else nullcontext():
            outputs = self.call(self.model, at)
        with same_state:
            moved = self.call(self.model, ahead)
        apart = divergence_between(_classes_last(outputs), _classes_last(moved), 1)
        losses = beta * _per_example(apart, examples, "the divergence")
        return (losses if self.loss is None else losses + self._losses(outputs, examples)), outputs

    def losses(self, at: Any) -> tuple[Tensor, Any]:
        """Return the loss of each example, by an ordinary pass, and its outputs."""
        outputs = self.call(self.model, at)
        return self._losses(outputs, len(leaves_of(at)[0])), outputs

    def losses_of_both(self, first: Any, second: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the losses of two inputs in the same state of all else, and the outputs of the first.

        The second pass leaves nothing.
        """
        same_state = from_current_state(without_team(self.model), leaves_of(first)[0].device)
        losses, outputs = self.losses(first)
        with same_state:
            return losses, self.losses(second)[0], outputs

    def losses_and_gradient(self, at: Point) -> tuple[Tensor, Any, Point, Tensor | float]:
        """Return the loss of each example, by an ordinary pass, its outputs and two factors of its gradient.

        As the loss L is a multiple of softplus(odds), grad L is L sigmoid(odds) / softplus(odds) grad odds.
        """
        first, of_loss = leaves_of(at)[0], self.options.direction == "loss"

        def evaluate(at: Point) -> tuple[Tensor, Any]:
            losses, outputs = self.losses(at)
            values = losses if of_loss else self._followed(outputs, len(first))
            return self._total(values), (losses, outputs, values)

        (losses, outputs, values), gradient = with_gradient(evaluate, at, create_graph=True)
        if (scaler := self.options.scaler) is not None:
            unit = len(first) / scaler.scale(torch.ones((), device=first.device))
            gradient = mapped(lambda leaf: leaf * unit, gradient)
        return losses, outputs, gradient, 1.0 if of_loss else losses * relative_slope(_wide(values))

    def _losses(self, outputs: Any, examples: int) -> Tensor:
        loss: Any = self.loss
        return _per_example(loss(outputs, self.y), examples, "loss")

    def _followed(self, outputs: Any, examples: int) -> Tensor:
        direction = self.options.direction
        if direction == "loss":
            return self._losses(outputs, examples)
        if callable(direction):
            values = direction(outputs, self.y)
        else:
            values = _ODDS[direction](outputs, self.y, self.options.ignore_index)
        return _per_example(values, examples, "direction")

    def _total(self, values: Tensor) -> Tensor:
        scaler = self.options.scaler
        # a scaler is made for the mean
        return values.sum() if scaler is None else scaler.scale(values.mean())


def _taken(values: Any, rows: Tensor | None, examples: int) -> Any:
    """Return values with these rows of every tensor whose first axis is as long as there are examples."""
    if rows is None:
        return values

    def take(value: Any) -> Any:
        is_aligned = isinstance(value, Tensor) and value.ndim and len(value) == examples
        return value[rows.to(value.device)] if is_aligned else value

    return tree_map(take, values)


def leaves_of(at: object) -> list[Tensor]:
    """Return the tensors that are perturbed."""
    return [leaf for _, leaf in named_leaves(at, "")]


def inputs_of(x: Any, leaf: Hashable | list[Hashable] | None) -> tuple[Any, Callable[..., Any]]:
    """Return what is perturbed, a tensor or a tree, and how the model is called with another in its place.

    That is `call(model, at)`, or `call(model, at, rows=rows)` where `at` holds some of the examples.
    """
    if isinstance(x, Tensor | PackedSequence):
        if leaf is not None:
            raise ValueError(f"leaf names an argument of a tuple or dict; x is one tensor, got leaf={leaf!r}")
        return _floating(x, "x"), lambda model, at, rows=None: model(at)
    if not isinstance(x, tuple | Mapping):
        raise TypeError(
            f"x must be a tensor, a tuple of arguments or a dict of keyword arguments; got {type(x).__name__}"
        )
    fields = getattr(x, "_fields", range(len(x)))
    arguments = dict(x) if isinstance(x, Mapping) else dict(zip(fields, x, strict=True))
    if leaf is None:
        tensors = {name: at for name, at in arguments.items() if isinstance(at, Tensor | PackedSequence)}
        floating = [name for name, at in tensors.items() if isinstance(at, Tensor) and at.is_floating_point()]
        fitting = floating or tensors  # where none is floating, what is wrong with the only tensor
        if len(fitting) != 1:
            raise ValueError(
                f"leaf must say which argument to perturb, or which ones; floating tensors are {floating}"
            )
        (leaf,) = fitting
    several = isinstance(leaf, list) or (isinstance(leaf, tuple) and leaf not in arguments)
    names = list(cast(Sequence[Hashable], leaf)) if several else [leaf]
    if isinstance(x, tuple):
        names = [fields[n] if isinstance(n, int) and n in range(len(x)) else n for n in names]
    if not names or not all(name in arguments for name in names):
        raise ValueError(f"leaf must be one of {list(arguments)}; got {leaf!r}: several go into a tuple")
    chosen, leaves = {name: arguments[name] for name in names}, list[Tensor]()
    for name, perturbed in chosen.items():
        parts = [(f"x[{name!r}]", perturbed)]
        if not isinstance(perturbed, PackedSequence):
            parts = list(named_leaves(perturbed, parts[0][0]))
        if not parts:
            raise ValueError(f"x[{name!r}] must hold at least one tensor; got {perturbed!r}")
        leaves += [_floating(tensor, path) for path, tensor in parts]

    def call(model: Model, at: Any, rows: Tensor | None = None) -> Any:
        moved = [at] if not several else at.values() if isinstance(at, dict) else at
        changed = _taken(arguments, rows, len(leaves[0])) | dict(zip(names, moved, strict=True))
        return model(**changed) if isinstance(x, Mapping) else model(*changed.values())

    at = chosen if isinstance(x, Mapping) else tuple(chosen.values())
    return (at if several else chosen[names[0]]), call


def _floating(x: object, name: str) -> Tensor:
    if isinstance(x, Tensor) and x.is_floating_point() and x.ndim:
        return x
    given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    remedy = "perturb the embedding of what is discrete"
    if isinstance(x, PackedSequence):
        remedy = "pass the padded tensor and its lengths, and pack inside the model"
    elif isinstance(x, Tensor) and x.is_complex():
        remedy = "pass torch.view_as_real(x), and let the model begin with torch.view_as_complex"
    elif isinstance(x, Tensor) and x.is_floating_point():
        remedy = "put one example alone into a batch with x[None]"
    elif isinstance(x, Tensor) and x.dtype == torch.uint8:
        remedy = "pass pixels as the model takes them, x.float() / 255 for example, with sigma in these units"
    raise TypeError(f"{name} must be a floating tensor, examples along its first axis; got {given}: {remedy}")


def _per_example(values: object, examples: int, name: str) -> Tensor:
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or shape != (examples,):
        raise ValueError(
            f"{name} must return one value per example, of shape ({examples},); got {shape}: with their mean "
            f"the penalty would shrink with the batch; losses of torch take reduction='none'"
        )
    return values


def with_gradient(
    evaluate: Callable[[Point], tuple[Tensor, Any]], at: Point, create_graph: bool = False
) -> tuple[Any, Point]:
    """Return what evaluate(at) makes beside a total, and the gradient of that total."""
    if torch._C._functorch.maybe_current_level() is not None:  # where no tensor may begin to need gradients
        found: Any = torch.func.vjp(evaluate, at, has_aux=True)
        total, back, made = found
        (gradient,) = back(torch.ones_like(total))
        return made, gradient
    at = mapped(lambda leaf: leaf if leaf.requires_grad else leaf.detach().requires_grad_(), at)
    total, made = evaluate(at)
    return made, input_gradient(total, at, create_graph)


def input_gradient(total: Tensor, at: Point, create_graph: bool = False) -> Point:
    """Return the gradient of a sum of values with respect to an input, or a tree of them."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("inference mode has no gradients: use torch.no_grad, or validate in its scope")
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
    """Return values as a row an example, also where there is no example."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def logits_of(outputs: object) -> Tensor:
    """Return a model's logits: its outputs, or what they have as `logits`, as Hugging Face's do."""
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
