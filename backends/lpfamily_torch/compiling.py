"""A step as compiled programs, on a CUDA device as graphs that are launched at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@functools.cache
def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return the function, compiled when it is called first, and for every shape of its tensors.

    It is called inside of `tracing_gradients`.
    """
    mode = "reduce-overhead" if torch.device(device).type == "cuda" else "default"
    result: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    return result


@contextmanager
def tracing_gradients() -> Iterator[None]:
    """Let a program hold `torch.autograd.grad`, and functions have programs for any number of trainers."""
    import torch._dynamo  # not before it is needed, as it takes a second

    changes: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 2**31)
    with torch._dynamo.config.patch(changes | {"trace_autograd_ops": True}):
        yield


def stays_in_place(*tensors: Tensor) -> None:
    """Say that a CUDA graph may read and write these where they are: it would take copies of others."""
    import torch._dynamo

    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)


def problem(device: str) -> str:
    """Return why steps cannot be compiled for a device, or nothing.

    A C++ compiler or Triton may be missing, or torch too old to have gradients in a program.
    """
    try:
        with tracing_gradients():
            compiled(_slope, device)(torch.ones(8, device=device, requires_grad=True))
    except Exception as cause:  # whatever compilers and their tool chains raise
        text = str(cause).partition("\n\nSet TORCH")[0]  # what follows is for torch's developers
        return f"torch.compile fails ({' '.join(text.split())})"
    return ""


def _slope(x: Tensor) -> Tensor:
    return torch.autograd.grad(torch.sin(x).sum(), x)[0]
