"""Passes through a model without side effects on it, for the direction of a perturbation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lpfamily_torch.randomness import random_state, reseed, restoring_random_state, set_random_state
from lpfamily_torch.reachable import Model, reachable
from lpfamily_torch.tensors import BATCH_NORM_FORWARDS, TensorSnapshot, restoring_tensors

DirectionDropout = Literal["none", "same", "independent"]
Statistics = Literal["batch", "running"]


def without_team(model: Model) -> Model:
    """Return the model inside DistributedDataParallel, whose passes exchange nothing between processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def is_compiled(model: Model) -> bool:
    """Whether the model, or a module in it, was compiled by torch.compile."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    compiled = hasattr(model, "_torchdynamo_orig_callable") and not getattr(
        model, "_torchdynamo_disable", False
    )
    return compiled or any(
        isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in reachable(model)[0]
    )


def takes_gradients_per_example(model: Model) -> bool:
    """Whether hooks such as Opacus' take the gradient of each example."""
    return any(_per_example_hooks(module) for module in reachable(model)[0])


@contextmanager
def without_side_effects(
    model: Model, device: torch.device, dropout: DirectionDropout, batch_norm: Statistics
) -> Iterator[None]:
    """Restore modes, tensors and random states after the passes inside; parameters require no gradient there.

    `dropout` and `batch_norm` are `direction_dropout` and `batch_norm` of `regularized_loss`.
    """
    modules, generators = reachable(model)
    with ExitStack() as scopes:
        scopes.enter_context(restoring_random_state(device, generators))
        if dropout == "independent":
            reseed(device, generators)
        scopes.enter_context(restoring_tensors(modules))
        scopes.enter_context(_modes_for_eps(modules, dropout != "none", batch_norm))
        scopes.enter_context(_uncached_parametrizations())
        yield


@contextmanager
def restoring_state(model: Model, device: torch.device) -> Iterator[None]:
    """Restore tensors and random states after the passes inside, so that the next pass sees the same."""
    modules, generators = reachable(model)
    with restoring_random_state(device, generators), restoring_tensors(modules):
        yield


def from_current_state(model: Model, device: torch.device) -> AbstractContextManager[None]:
    """Return a scope in which a later pass has the present random state, buffers and frozen parameters.

    Changes inside the scope are undone after it, but parameters do get gradients. The graph of the pass keeps
    the copies of buffers and frozen parameters.
    """
    modules, generators = reachable(model)
    state, snapshot = random_state(device, generators), TensorSnapshot(modules, norms=True)

    @contextmanager
    def same_state() -> Iterator[None]:
        with restoring_random_state(device, generators), restoring_tensors(modules):
            set_random_state(state)
            snapshot.restore(buffers=False)
            snapshot.substitute()
            yield

    return same_state()


@contextmanager
def _modes_for_eps(modules: Iterable[nn.Module], dropout: bool, batch_norm: Statistics) -> Iterator[None]:
    """Switch off dropout, unless `dropout`, and the tracking of statistics in modules in training mode.

    `batch_norm` selects the statistics that norms use. Parameters require no gradient, as compiled modules
    would compute it although it is not used.
    """
    changes: list[tuple[object, str, object]] = []

    def switch_off(owner: object, name: str) -> None:
        changes.append((owner, name, getattr(owner, name)))
        # nn.Module.__setattr__ checks for tensors, which takes ten times as long
        object.__setattr__(owner, name, 0.0 if name == "dropout" else False)

    try:
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad and parameter.is_leaf:
                    switch_off(parameter, "requires_grad")
            if module._forward_hooks:
                for owner in _per_example_hooks(module):
                    switch_off(owner, "hooks_enabled")
            if "require_backward_grad_sync" in vars(module):  # DistributedDataParallel inside of the model
                switch_off(module, "require_backward_grad_sync")
                switch_off(module, "require_forward_param_sync")
            if not module.training:
                continue
            if (is_norm := isinstance(module, _NormBase)) and batch_norm == "batch":
                if type(module).forward in BATCH_NORM_FORWARDS and module.track_running_stats:
                    switch_off(module, "track_running_stats")
            elif is_norm or not dropout:
                # cuDNN's recurrent layers have no gradient in evaluation mode
                switch_off(module, "dropout" if isinstance(module, nn.RNNBase) else "training")
        yield
    finally:
        for owner, name, value in changes:
            object.__setattr__(owner, name, value)


def _per_example_hooks(module: nn.Module) -> list[object]:
    """Return the owners of the module's enabled hooks that take gradients per example, as Opacus' do."""
    owners = (getattr(hook, "__self__", None) for hook in module._forward_hooks.values())
    return [owner for owner in owners if getattr(owner, "hooks_enabled", False)]


@contextmanager
def _uncached_parametrizations() -> Iterator[None]:
    """Use an empty cache for torch's parametrizations.

    Under `parametrize.cached`, parameters computed here would stay in the cache, without their gradient.
    """
    from torch.nn.utils import parametrize

    cache, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = cache
