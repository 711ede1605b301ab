"""What a call of a model uses: its modules, and the random generators that are not global."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lpfamily_torch.randomness import Generator

LEVELS = 3
"""How far names are followed: what a function names is at the first."""

GENERATORS = frozenset(get_args(Generator))

_OF_ALL = frozenset(vars(nn.Module()))

Model = Callable[..., Any]
"""A module or any other callable: what it takes and returns is between it and its loss."""

Reach = tuple[dict[nn.Module, bool], list[Generator]]
"""Modules, with whether a call of the module itself runs torch's code alone; and generators."""


def reachable(model: Model) -> Reach:
    """Return the modules and the generators that a call of the model uses, as far as its code shows them.

    A module shows all that are in it, and in its plain attributes. A function shows the globals and cells
    that its code names and its defaults; a partial, a bound method and any other callable what they carry.
    """
    modules: dict[nn.Module, bool] = {}
    generators: list[Generator] = []
    seen: set[int] = set()
    level: Iterable[Any] = (model,)
    for left in range(LEVELS, -1, -1):
        following: list[Any] = []
        for each in level:
            if isinstance(each, nn.Module):
                _add_modules(each, modules, generators)
            elif type(each) in GENERATORS:
                generators.append(each)
            elif left and id(each) not in seen:
                seen.add(id(each))
                following += _unpacked(_named(each))
        level = following
    return modules, generators


def _add_modules(root: nn.Module, modules: dict[nn.Module, bool], generators: list[Generator]) -> None:
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if each in modules:
            continue
        kind: Any = type(each)
        state = vars(each)
        if _is_unseen(kind):
            _refuse(each)
        hooked = state["_forward_pre_hooks"] or state["_forward_hooks"] or "forward" in state
        modules[each] = of_torch = not hooked and _is_of_torch(kind.forward)
        if state["_modules"]:
            waiting += [child for child in state["_modules"].values() if child is not None]
        if of_torch:
            continue
        for value in _unpacked(value for name, value in state.items() if name not in _OF_ALL):
            if isinstance(value, nn.Module):
                waiting.append(value)
            elif type(value) in GENERATORS:
                generators.append(value)


@functools.lru_cache(maxsize=1024)
def _is_of_torch(forward: object) -> bool:
    """Whether it is of torch.nn, which writes no parameter; containers' parameters are used by others."""
    module = getattr(forward, "__module__", None) or ""
    return module.startswith("torch.nn.") and forward is not nn.Module.forward


@functools.lru_cache(maxsize=1024)
def _is_unseen(kind: type) -> bool:
    return issubclass(kind, torch.jit.ScriptModule | LazyModuleMixin)


def _refuse(module: Any) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            "modules of torch.jit do not show their modes and buffers, so they cannot be kept: pass the "
            "model as it is before it is scripted or traced, or compiled by torch.compile"
        )
    if module.has_uninitialized_params():
        raise TypeError(
            f"{type(module).__name__} gets its parameters in its first pass, which cannot leave the model "
            "as it is: call the model once before"
        )


def _unpacked(values: Iterable[Any]) -> Iterator[Any]:
    """Give what sequences and dicts of modules hold in their place."""
    for each in values:
        if type(each) in (list, tuple, dict) and each:
            inner = list(each.values()) if isinstance(each, dict) else each
            if isinstance(inner[0], nn.Module):
                yield from inner
        else:
            yield each


def _named(each: object) -> Iterator[Any]:
    """Give what a call of something that is no module uses."""
    if isinstance(each, functools.partial):
        yield from (each.func, *each.args, *each.keywords.values())
    elif isinstance(each, MethodType):
        yield from (each.__self__, each.__func__)
    elif isinstance(each, FunctionType):
        names = dict.fromkeys(_names(each.__code__))  # in an order, as generators are seeded in theirs
        for name in names:
            value = each.__globals__.get(name)
            yield value
            if isinstance(value, ModuleType):
                yield from (vars(value).get(inner) for inner in names)
        for cell in each.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # it is not filled yet
                continue
        yield from (each.__defaults__ or ())
        yield from (each.__kwdefaults__ or {}).values()
        yield from vars(each).values()
    elif not isinstance(each, type | ModuleType):
        yield from getattr(each, "__dict__", {}).values()
        if callable(each):
            yield type(each).__call__


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
