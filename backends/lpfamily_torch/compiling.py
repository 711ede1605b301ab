"""A step as one compiled program, on a CUDA device as one graph that is launched at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo


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
    changes: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 2**31)
    with torch._dynamo.config.patch(changes | {"trace_autograd_ops": True}):
        yield


def problem(device: str) -> str:
    """Return why nothing can be compiled for a device, such as a missing C++ compiler, or nothing."""
    try:
        compiled(lambda x: torch.sin(x) + torch.cos(x), device)(torch.ones(8, device=device))
    except Exception as cause:  # whatever compilers and their tool chains raise
        text = str(cause).partition("\n\nSet TORCH")[0]  # what follows is for torch's developers
        return f"torch.compile fails ({' '.join(text.split())})"
    return ""
