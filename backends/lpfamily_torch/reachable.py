"""The modules and the random generators, other than the global ones, that a call of a model uses."""

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
"""How many levels of references are followed; the objects that a function names are the first."""

GENERATORS = frozenset(get_args(Generator))

_COMMON_ATTRIBUTES = frozenset(vars(nn.Module()))

Model = Callable[..., Any]
"""A module or any other callable, with any inputs, and any outputs that its loss takes."""

Reach = tuple[dict[nn.Module, bool], list[Generator]]
"""The modules, mapped to whether a call of them runs only torch's own code, and the generators."""


def reachable(model: Model) -> Reach:
    """Return the modules and the generators that a call of the model uses, as far as its code shows them.

    A module shows its submodules and its plain attributes. A function shows the globals and cells that its
    code names, and its defaults. A partial, a bound method and any other callable show their attributes.
    """
    modules: dict[nn.Module, bool] = {}
    generators: list[Generator] = []
    seen: set[int] = set()
    level: Iterable[Any] = (model,)
    for levels_left in range(LEVELS, -1, -1):
        next_level: list[Any] = []
        for value in level:
            if isinstance(value, nn.Module):
                _add_modules(value, modules, generators)
            elif type(value) in GENERATORS:
                generators.append(value)
            elif levels_left and id(value) not in seen:
                seen.add(id(value))
                next_level += _unpacked(_references(value))
        level = next_level
    return modules, generators


def _add_modules(root: nn.Module, modules: dict[nn.Module, bool], generators: list[Generator]) -> None:
    """Add the modules in `root`, and the generators that their attributes hold."""
    pending = [root]
    while pending:
        module = pending.pop()
        if module in modules:
            continue
        kind: Any = type(module)
        attributes = vars(module)
        if _is_opaque(kind):
            _refuse(module)
        is_hooked = (
            attributes["_forward_pre_hooks"] or attributes["_forward_hooks"] or "forward" in attributes
        )
        modules[module] = is_torch_code = not is_hooked and _is_torch_code(kind.forward)
        if attributes["_modules"]:
            pending += [child for child in attributes["_modules"].values() if child is not None]
        if is_torch_code:
            continue
        custom = (value for name, value in attributes.items() if name not in _COMMON_ATTRIBUTES)
        for value in _unpacked(custom):
            if isinstance(value, nn.Module):
                pending.append(value)
            elif type(value) in GENERATORS:
                generators.append(value)


@functools.lru_cache(maxsize=1024)
def _is_torch_code(forward: object) -> bool:
    """Whether a forward is torch.nn's, which writes no parameter.

    nn.Module.forward does not count: containers have it, and other modules use their parameters.
    """
    module = getattr(forward, "__module__", None) or ""
    return module.startswith("torch.nn.") and forward is not nn.Module.forward


@functools.lru_cache(maxsize=1024)
def _is_opaque(kind: type) -> bool:
    return issubclass(kind, torch.jit.ScriptModule | LazyModuleMixin)


def _refuse(module: Any) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            "modules of torch.jit hide their modes and buffers, so these cannot be restored: pass the "
            "model before scripting or tracing; torch.compile may compile it"
        )
    if module.has_uninitialized_params():
        raise TypeError(
            f"{type(module).__name__} gets its parameters in its first pass, which therefore changes the "
            "model: call the model once before"
        )


def _unpacked(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values, with lists, tuples and dicts of modules replaced by their entries."""
    for value in values:
        if type(value) in (list, tuple, dict) and value:
            entries = list(value.values()) if isinstance(value, dict) else value
            if isinstance(entries[0], nn.Module):
                yield from entries
        else:
            yield value


def _references(value: object) -> Iterator[Any]:
    """Yield the objects that a call of `value`, which is not a module of torch, may use."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        names = dict.fromkeys(_names(value.__code__))  # in a fixed order, in which generators are seeded
        for name in names:
            referenced = value.__globals__.get(name)
            yield referenced
            if isinstance(referenced, ModuleType):
                yield from (vars(referenced).get(inner) for inner in names)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # it is not filled yet
                continue
        yield from (value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).values()
        yield from vars(value).values()
    elif not isinstance(value, type | ModuleType):
        yield from getattr(value, "__dict__", {}).values()
        if callable(value):
            yield type(value).__call__


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in a code object and in the functions that it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
