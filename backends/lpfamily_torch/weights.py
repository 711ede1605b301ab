"""The steepest step of all weights of a model in one Lp ball, for the passes inside of a block."""

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
    """Move the weights of a model, inside the block, to where the linearised loss is largest in an Lp ball.

    All weights together are one point w, and g is their gradient. Inside the block they are w + eps, where
    eps is eq. 3 at g. At p = 2 this is sharpness-aware minimisation (Foret et al., 2021)::

        loss(model(x), y).backward()
        with perturbed_weights(model, p=2, sigma=0.05):
            optimizer.zero_grad()
            loss(model(x), y).backward()
        optimizer.step()

    With a loss at perturbed inputs this is adversarial weight perturbation (Wu et al., 2020), of all layers
    together. p = inf moves all weights by sigma, p = 1 only the weight with the largest gradient.

    After the block, or an exception in it, the weights and buffers of the model have the same bits as before
    it. So the statistics of a batch norm come only from the passes outside of the block, at the weights that
    are kept. An optimiser that steps inside raises an error before its step. Call backward on the same side
    of the block as the forward pass: both inside, or both outside. Blocks may be nested.

    A weight without a gradient does not move; a weight that several modules share counts once. g may have any
    scale, so a `GradScaler` needs no `unscale_`: where g is NaN the weights are NaN inside, and the scaler
    skips the step. Where the gradients of several batches add up, g is their sum. `DistributedDataParallel`
    gives all processes the same g; with `model.no_sync()` around the first pass each process has its own.

    Parameters
    ----------
    model
        The module whose weights move, or a submodule; it may be compiled, or wrapped in
        `DistributedDataParallel`.
    grads
        g: for each parameter that requires a gradient, in the order of `model.parameters()`, a tensor, or
        None if the parameter does not move. Pass it if `param.grad` adds up the gradients of several blocks.
        The default takes `param.grad`.
    p, sigma
        As in `lpfamily.epsilon`: an exponent in [1, inf], and the radius, in units of the weights.
    scale
        "weights" measures eps relative to the weights: ||eps / w||_p is at most sigma. Sharpness then does
        not depend on how layers share their scale (adaptive sharpness-aware minimisation, Kwon et al.,
        2021). A weight of zero does not move.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.epsilon`; without a gradient, or with `grads` that do not fit; for FSDP, where no
        process has all weights.
    RuntimeError
        Where an optimiser of these weights steps inside the block.

    Notes
    -----
    Weights in half precision lose a step that is smaller than their rounding: train under autocast.

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
    gradients = _gradients(weights, grads)
    with torch.no_grad():
        scales = {name: weights[name].abs() for name in gradients} if scale else None
        steps = epsilon(gradients, p, sigma, batch_ndim=0, scale=scales)
    snapshot = _Snapshot(model, [*weights.values(), *model.buffers()])
    hook = register_optimizer_step_pre_hook(_forbid_steps({*map(id, weights.values())}))
    try:
        with torch.no_grad():
            torch._foreach_add_([weights[name] for name in steps], [*steps.values()])
        del gradients, scales, steps  # their memory is free inside the block
        yield
    finally:
        hook.remove()
        snapshot.restore()


def _forbid_steps(weights: set[int]) -> Callable[..., None]:
    """Return a hook that raises an error before an optimiser of these weights, given by id, steps."""

    def check(optimizer: Optimizer, *_: Any) -> None:
        if any(id(each) in weights for group in optimizer.param_groups for each in group["params"]):
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() was called inside of perturbed_weights, which puts the "
                "weights back at its end: call it after the block"
            )

    return check


def _gradients(weights: Named, grads: Iterable[Tensor | None] | None) -> Named:
    """Return the gradients by the names of their weights, for the weights that have one."""
    given = [weight.grad for weight in weights.values()] if grads is None else list(grads)
    if len(given) != len(weights):
        raise ValueError(
            "grads must be one for each parameter that requires a gradient, in the order of "
            f"model.parameters(), {len(weights)}; got {len(given)}"
        )
    gradients = {name: grad.detach() for name, grad in zip(weights, given, strict=True) if grad is not None}
    if not gradients:
        raise ValueError("no parameter has a gradient: call backward() before, or give grads")
    for name, grad in gradients.items():
        if grad.shape != weights[name].shape:
            raise ValueError(
                f"the gradient of {name} must have its shape, {tuple(weights[name].shape)}; got "
                f"{tuple(grad.shape)}"
            )
    return gradients


class _Snapshot:
    """Which tensors are the parameters and buffers of a model, and copies of some tensors."""

    def __init__(self, model: nn.Module, tensors: list[Tensor]) -> None:
        tables: list[dict[str, Any]] = [
            table for each in model.modules() for table in (each._parameters, each._buffers) if table
        ]
        self._tables = [(table, dict(table)) for table in tables]
        groups: dict[Any, list[Tensor]] = defaultdict(list)  # one call copies a group on its device
        for tensor in tensors:
            groups[tensor.device, tensor.dtype].append(tensor)
        self._groups = [(group, [torch.empty_like(each) for each in group]) for group in groups.values()]
        with torch.no_grad():
            for group, copies in self._groups:
                torch._foreach_copy_(copies, group)

    def restore(self) -> None:
        """Restore the tensors of the model, and the values of the copied ones."""
        for table, entries in self._tables:
            table.clear()
            table.update(entries)
        with torch.no_grad():
            for group, copies in self._groups:
                torch._foreach_copy_(group, copies)
