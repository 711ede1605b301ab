"""All weights of a model as one point of one Lp ball: its steepest step, for the passes of a block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lpfamily import epsilon
from lpfamily._arrays import Numbers
from lpfamily_torch.tensors import are_sharded

Named = dict[str, Tensor]


@contextmanager
def perturbed_weights(
    model: nn.Module,
    grads: Iterable[Tensor | None] | None = None,
    *,
    p: float = 2.0,
    sigma: Numbers = 0.05,
    scale: Literal["weights"] | None = None,
) -> Iterator[None]:
    """Move the weights of a model, inside the block, to where their linearised loss is largest in an Lp ball.

    All weights are one point w, g is the gradient that they have, and inside of the block they are w + eps,
    eps of eq. 3 at g. At p = 2 this is sharpness-aware minimisation (Foret et al., 2021)::

        loss(model(x), y).backward()
        with perturbed_weights(model, p=2, sigma=0.05):
            optimizer.zero_grad()
            loss(model(x), y).backward()
        optimizer.step()

    With a loss at perturbed inputs it is adversarial weight perturbation (Wu et al., 2020), of all layers
    together. p = inf moves all weights by sigma, p = 1 the one of the largest gradient.

    After the block, and after an exception in it, the model's weights and buffers have the bits that they had
    before, so that the statistics of a batch norm are of passes outside, at the weights that stay. An
    optimiser that steps inside is an error, before it does. A graph is differentiated where it was made,
    inside or outside. Blocks may be nested.

    What has no gradient does not move; a weight that several modules share is one. g may be of any scale, as
    that of a `GradScaler`, which needs no `unscale_`: where g is NaN the weights are NaN inside, so that the
    scaler skips the step. Of several batches whose gradients add up, g is the sum.
    `DistributedDataParallel` gives all processes the same g, and with `model.no_sync()` around the first pass
    each one of its own.

    Parameters
    ----------
    model
        The module, or a part of it, that moves; compiled, or wrapped in `DistributedDataParallel`.
    grads
        g, one for each parameter that requires a gradient, in the order of `model.parameters()`, or None for
        one that stays: for loops in which `param.grad` collects the gradients of several blocks. None takes
        `param.grad`.
    p, sigma
        As in `lpfamily.epsilon`: an exponent in [1, inf], and the radius, in units of the weights.
    scale
        "weights" measures eps relative to the weights, so that ||eps / w||_p is at most sigma, and that
        sharpness does not depend on how layers share their scale (adaptive sharpness-aware minimisation, Kwon
        et al., 2021). A weight of zero does not move.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; where there is no gradient, or `grads` do not fit; for FSDP, where no
        process has all weights.
    RuntimeError
        Where an optimiser of these weights steps inside.

    Notes
    -----
    Weights in half precision lose a step that is smaller than their rounding: train in autocast.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 3.
    """
    if scale not in (None, "weights"):
        raise ValueError(f"scale must be None or 'weights'; got {scale!r}")
    if are_sharded(model.modules()):
        raise ValueError(
            "all weights have one ball, and under FSDP no process has them all: use DistributedDataParallel"
        )
    weights: Named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = _gradients(weights, grads)
    with torch.no_grad():
        sizes = {name: weights[name].abs() for name in found} if scale else None
        steps = epsilon(found, p, sigma, batch_ndim=0, scale=sizes)
    kept = _Snapshot(model, [*weights.values(), *model.buffers()])
    guard = register_optimizer_step_pre_hook(_refusing({*map(id, weights.values())}))
    try:
        with torch.no_grad():
            torch._foreach_add_([weights[name] for name in steps], [*steps.values()])
        del found, sizes, steps
        yield
    finally:
        guard.remove()
        kept.restore()


def _refusing(weights: set[int]) -> Callable[..., None]:
    """Return what an optimiser of these weights calls before it steps."""

    def check(optimizer: Optimizer, *_: Any) -> None:
        if any(id(each) in weights for group in optimizer.param_groups for each in group["params"]):
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() was called inside of perturbed_weights, which puts the "
                "weights back at its end: call it after the block"
            )

    return check


def _gradients(weights: Named, grads: Iterable[Tensor | None] | None) -> Named:
    """Return what moves weights, by their names."""
    given = [weight.grad for weight in weights.values()] if grads is None else list(grads)
    if len(given) != len(weights):
        raise ValueError(
            "grads must be one for each parameter that requires a gradient, in the order of "
            f"model.parameters(), {len(weights)}; got {len(given)}"
        )
    found = {name: grad.detach() for name, grad in zip(weights, given, strict=True) if grad is not None}
    if not found:
        raise ValueError("no parameter has a gradient: call backward() before, or give grads")
    for name, grad in found.items():
        if grad.shape != weights[name].shape:
            raise ValueError(
                f"the gradient of {name} must have its shape, {tuple(weights[name].shape)}; got "
                f"{tuple(grad.shape)}"
            )
    return found


class _Snapshot:
    """Which parameters and buffers a model has, and what is in some tensors."""

    def __init__(self, model: nn.Module, tensors: list[Tensor]) -> None:
        tables: list[dict[str, Any]] = [
            table for each in model.modules() for table in (each._parameters, each._buffers) if table
        ]
        self._tables = [(table, dict(table)) for table in tables]
        groups: dict[Any, list[Tensor]] = defaultdict(list)  # each of which is one call on a device
        for tensor in tensors:
            groups[tensor.device, tensor.dtype].append(tensor)
        self._groups = [(group, [torch.empty_like(each) for each in group]) for group in groups.values()]
        with torch.no_grad():
            for group, copies in self._groups:
                torch._foreach_copy_(copies, group)

    def restore(self) -> None:
        """Put back all of it."""
        for table, entries in self._tables:
            table.clear()
            table.update(entries)
        with torch.no_grad():
            for group, copies in self._groups:
                torch._foreach_copy_(group, copies)
