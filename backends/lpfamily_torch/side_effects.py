"""Passes through a module that leave nothing behind in it, for the direction of a perturbation."""

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
    """Return what DistributedDataParallel wraps, whose passes exchange nothing."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def is_compiled(model: Model) -> bool:
    """Whether torch.compile has made the model, or any module in it."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    compiled = hasattr(model, "_torchdynamo_orig_callable") and not getattr(
        model, "_torchdynamo_disable", False
    )
    return compiled or any(
        isinstance(each, dynamo.OptimizedModule) or each._compiled_call_impl is not None
        for each in reachable(model)[0]
    )


def takes_gradients_per_example(model: Model) -> bool:
    """Whether hooks such as Opacus' take the gradient of each example."""
    return any(_per_example(each) for each in reachable(model)[0])


@contextmanager
def without_side_effects(
    model: Model, device: torch.device, dropout: DirectionDropout, batch_norm: Statistics
) -> Iterator[None]:
    """Keep what passes change: modes, tensors, random states; parameters need no gradient meanwhile."""
    modules, generators = reachable(model)
    with ExitStack() as kept:
        kept.enter_context(restoring_random_state(device, generators))
        if dropout == "independent":
            reseed(device, generators)
        kept.enter_context(restoring_tensors(modules))
        kept.enter_context(_modes(modules, dropout != "none", batch_norm))
        kept.enter_context(_parametrizations())
        yield


@contextmanager
def restoring_state(model: Model, device: torch.device) -> Iterator[None]:
    """Let a pass have the state of now: put back what it changes and draws."""
    modules, generators = reachable(model)
    with restoring_random_state(device, generators), restoring_tensors(modules):
        yield


def from_current_state(model: Model, device: torch.device) -> AbstractContextManager[None]:
    """Return a scope for later, in which a pass has the random state, buffers and frozen parameters of now.

    What it changes there is put back; parameters do get gradients. The graph of the pass keeps the copies.
    """
    modules, generators = reachable(model)
    state, begun = random_state(device, generators), TensorSnapshot(modules, norms=True)

    @contextmanager
    def again() -> Iterator[None]:
        with restoring_random_state(device, generators), restoring_tensors(modules):
            set_random_state(state)
            begun.restore(buffers=False)
            begun.substitute()
            yield

    return again()


@contextmanager
def _modes(modules: Iterable[nn.Module], dropout: bool, batch_norm: Statistics) -> Iterator[None]:
    """Let what is in training mode drop nothing, and normalise as `batch_norm` says, tracking nothing.

    Parameters need no gradient: compiled modules would compute it although nobody asks.
    """
    changed: list[tuple[object, str, object]] = []

    def switch_off(each: object, name: str) -> None:
        changed.append((each, name, getattr(each, name)))
        # nn.Module's own looks for tensors, for ten times as long
        object.__setattr__(each, name, 0.0 if name == "dropout" else False)

    try:
        for each in modules:
            for parameter in each._parameters.values():
                if parameter is not None and parameter.requires_grad and parameter.is_leaf:
                    switch_off(parameter, "requires_grad")
            if each._forward_hooks:
                for owner in _per_example(each):
                    switch_off(owner, "hooks_enabled")
            if "require_backward_grad_sync" in vars(each):  # DistributedDataParallel inside of the model
                switch_off(each, "require_backward_grad_sync")
                switch_off(each, "require_forward_param_sync")
            if not each.training:
                continue
            if (normalises := isinstance(each, _NormBase)) and batch_norm == "batch":
                if type(each).forward in BATCH_NORM_FORWARDS and each.track_running_stats:
                    switch_off(each, "track_running_stats")
            elif normalises or not dropout:
                # cuDNN's recurrent layers have no gradient in evaluation mode
                switch_off(each, "dropout" if isinstance(each, nn.RNNBase) else "training")
        yield
    finally:
        for owner, name, value in changed:
            object.__setattr__(owner, name, value)


def _per_example(module: nn.Module) -> list[object]:
    """Return whose hooks take gradients per example of the module, as Opacus' do, and are at work."""
    owners = (getattr(hook, "__self__", None) for hook in module._forward_hooks.values())
    return [owner for owner in owners if getattr(owner, "hooks_enabled", False)]


@contextmanager
def _parametrizations() -> Iterator[None]:
    """Compute what torch's parametrizations make: under `cached` it would be kept, without its gradient."""
    from torch.nn.utils import parametrize

    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept
