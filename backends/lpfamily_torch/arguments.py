"""The arguments of a model: which are perturbed, and how to call the model with these replaced."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from lpfamily.trees import named_leaves
from lpfamily_torch.reachable import Model


def inputs_of(x: Any, leaf: Hashable | list[Hashable] | None) -> tuple[Any, Callable[..., Any]]:
    """Return the perturbed argument, a tensor or a tree of tensors, and a function `call`.

    `call(model, at)` calls the model with `at` in place of that argument. If `at` has only some of the
    examples, `call(model, at, rows=rows)` takes these rows of the other arguments.
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
        leaf = _only_tensor(arguments)
    several = isinstance(leaf, list) or (isinstance(leaf, tuple) and leaf not in arguments)
    names = list(cast(Sequence[Hashable], leaf)) if several else [leaf]
    if isinstance(x, tuple):
        names = [fields[n] if isinstance(n, int) and n in range(len(x)) else n for n in names]
    if not names or not all(name in arguments for name in names):
        raise ValueError(f"leaf must be one of {list(arguments)}; got {leaf!r}: several go into a tuple")
    chosen, leaves = {name: arguments[name] for name in names}, list[Tensor]()
    for name, argument in chosen.items():
        path = f"x[{name!r}]"
        is_packed = isinstance(argument, PackedSequence)
        tensors = [(path, argument)] if is_packed else list(named_leaves(argument, path))
        if not tensors:
            raise ValueError(f"{path} must hold at least one tensor; got {argument!r}")
        leaves += [_floating(tensor, path) for path, tensor in tensors]

    def call(model: Model, at: Any, rows: Tensor | None = None) -> Any:
        values = [at] if not several else at.values() if isinstance(at, dict) else at
        replaced = rows_of(arguments, rows, len(leaves[0])) | dict(zip(names, values, strict=True))
        return model(**replaced) if isinstance(x, Mapping) else model(*replaced.values())

    at = chosen if isinstance(x, Mapping) else tuple(chosen.values())
    return (at if several else chosen[names[0]]), call


def leaves_of(at: object) -> list[Tensor]:
    """Return the tensors of a tree."""
    return [leaf for _, leaf in named_leaves(at, "")]


def rows_of(values: Any, rows: Tensor | None, examples: int) -> Any:
    """Return values with only these rows of every tensor that has one row per example; None keeps all."""
    if rows is None:
        return values

    def take(value: Any) -> Any:
        is_aligned = isinstance(value, Tensor) and value.ndim and len(value) == examples
        return value[rows.to(value.device)] if is_aligned else value

    return tree_map(take, values)


def _only_tensor(arguments: Mapping[Any, Any]) -> Hashable:
    """Return the name of the only floating tensor.

    If none is floating, return that of the only tensor, for which `_floating` raises the fitting error.
    """
    tensors = {name: at for name, at in arguments.items() if isinstance(at, Tensor | PackedSequence)}
    floating = [name for name, at in tensors.items() if isinstance(at, Tensor) and at.is_floating_point()]
    candidates = floating or list(tensors)
    if len(candidates) != 1:
        raise ValueError(
            f"leaf must say which argument to perturb, or which ones; floating tensors are {floating}"
        )
    name: Hashable = candidates[0]
    return name


def _floating(x: object, name: str) -> Tensor:
    """Return x if it is a floating tensor with an axis of examples, else raise TypeError."""
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
