"""Passes through a module that leave nothing behind in it, for the direction of a perturbation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase

DirectionDropout = Literal["none", "same", "independent"]
Statistics = Literal["batch", "running"]

_KNOWN = (_BatchNorm.forward, SyncBatchNorm.forward)
"""What changes no buffer of its module unless `track_running_stats` says so."""

RandomState = list[Tensor]
Buffers = dict[str, Tensor | None]


def _modules(model: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules in one that a model is, or is a method of; none of any other function."""
    while isinstance(model, functools.partial):
        model = model.func
    owner = getattr(model, "__self__", model)
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    if any(isinstance(each, torch.jit.ScriptModule) for each in modules):
        raise TypeError(
            "modules of torch.jit do not show their modes and buffers, so they cannot be kept: pass the "
            "model as it is before it is scripted or traced, or compiled by torch.compile"
        )
    return modules


def without_team(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return what DistributedDataParallel wraps, whose passes exchange nothing."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def is_compiled(model: Callable[..., Any]) -> bool:
    """Whether torch.compile has made the model, or any module in it."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    compiled = hasattr(model, "_torchdynamo_orig_callable") and not getattr(
        model, "_torchdynamo_disable", False
    )
    return compiled or any(
        isinstance(each, dynamo.OptimizedModule) or each._compiled_call_impl is not None
        for each in _modules(model)
    )


@contextmanager
def quiet(
    model: Callable[..., Any], device: torch.device, dropout: DirectionDropout, batch_norm: Statistics
) -> Iterator[None]:
    """Keep what passes change: modes, buffers, the random state; parameters need no gradient meanwhile."""
    with ExitStack() as kept:
        kept.enter_context(keeping_random_state(device))
        if dropout == "independent":
            _reseed(device)
        modules = _modules(model)
        kept.enter_context(_frozen(modules))
        kept.enter_context(_modes(modules, dropout != "none", batch_norm))
        kept.enter_context(_buffers(modules))
        kept.enter_context(_parametrizations())
        yield


def replay(model: Callable[..., Any], device: torch.device) -> AbstractContextManager[None]:
    """Return a scope for later, in which a pass has the random state and the buffers of now.

    What it changes there is put back; parameters do get gradients. The graph of the pass keeps the copies.
    """
    state = random_state(device)
    begun = [(each._buffers, _copies(each._buffers)) for each in _modules(model)]

    @contextmanager
    def again() -> Iterator[None]:
        ended = [dict(buffers) for buffers, _ in begun]
        with keeping_random_state(device):
            _restore(device, state)
            try:
                for buffers, copies in begun:
                    _replace(buffers, copies)
                yield
            finally:
                for (buffers, _), were in zip(begun, ended, strict=True):
                    _replace(buffers, were)

    return again()


def _copies(buffers: Buffers) -> Buffers:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}


def _replace(buffers: Buffers, others: Buffers) -> None:
    buffers.clear()
    buffers.update(others)


def random_state(device: torch.device) -> RandomState:
    """Return the states of the generators that a pass on this device draws from."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _restore(device: torch.device, state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], device)


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Put the random state back at the end."""
    before = random_state(device)
    try:
        yield
    finally:
        _restore(device, before)


def _reseed(device: torch.device) -> None:
    """Draw a seed, so that what follows is independent of what follows without it."""
    seed = int(torch.randint(2**62, ()))
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        with getattr(module, "device", nullcontext)(device):  # some have one device alone
            module.manual_seed(seed)


@contextmanager
def _frozen(modules: list[nn.Module]) -> Iterator[None]:
    """Let parameters need no gradient: compiled modules would compute it although nobody asks."""
    parameters = (parameter for each in modules for parameter in each._parameters.values())
    trained = [p for p in parameters if p is not None and p.requires_grad and p.is_leaf]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _modes(modules: list[nn.Module], dropout: bool, batch_norm: Statistics) -> Iterator[None]:
    """Let what is in training mode drop nothing, and normalise as `batch_norm` says, tracking nothing."""
    changed: list[tuple[nn.Module, str, Any]] = []

    def switch_off(each: nn.Module, name: str) -> None:
        changed.append((each, name, getattr(each, name)))
        object.__setattr__(
            each, name, 0.0 if name == "dropout" else False
        )  # nn.Module's own looks for tensors, for ten times as long

    try:
        for each in modules:
            if not each.training:
                continue
            if isinstance(each, nn.RNNBase):
                if not dropout:
                    switch_off(each, "dropout")  # cuDNN's have no gradient in evaluation mode
            elif not isinstance(each, _NormBase):
                if not dropout:
                    switch_off(each, "training")
            elif batch_norm == "running":
                switch_off(each, "training")
            elif type(each).forward in _KNOWN and each.track_running_stats:
                switch_off(each, "track_running_stats")
        yield
    finally:
        for each, name, value in changed:
            object.__setattr__(each, name, value)


@contextmanager
def _buffers(modules: list[nn.Module]) -> Iterator[None]:
    """Put buffers back that a pass has changed or replaced, and drop what it has made."""
    held = [each._buffers for each in modules if type(each).forward not in _KNOWN]
    before = [(buffers, dict(buffers)) for buffers in held]
    copies = [(b, b._version, b.clone()) for _, were in before for b in were.values() if b is not None]
    try:
        yield
    finally:
        for buffers, were in before:
            _replace(buffers, were)
        with torch.no_grad():
            for buffer, version, copy in copies:
                if buffer._version != version:
                    buffer.copy_(copy)


@contextmanager
def _parametrizations() -> Iterator[None]:
    """Compute what torch's parametrizations make: under `cached` it would be kept, without its gradient."""
    from torch.nn.utils import parametrize

    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept
