"""A step as compiled programs, on a CUDA device many of them as one graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from lpfamily.training.draws import Drawn

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, compiled when it is called first, and for every shape of its tensors.

    It is called inside of `tracing_gradients`.
    """
    return torch.compile(function, fullgraph=True, dynamic=False)


class Steps(NamedTuple):
    """What steps take, each a row of every tensor."""

    batches: Tensor
    rates: Tensor
    """Learning rate, momentum and sigma, each twice: a program wants all that it is given 16 bytes apart."""
    drawn: Drawn
    examples: int
    """Of a step, those of the whole team."""

    def arrays(self) -> list[Tensor]:
        """Return all tensors."""
        return [self.batches, self.rates, *self.drawn.arrays()]

    def map(self, function: Callable[[Tensor], Tensor]) -> Steps:
        """Return the function of each tensor."""
        drawn = self.drawn.map(function)
        return Steps(function(self.batches), function(self.rates), drawn, self.examples)


Owner = TypeVar("Owner")


class Recorded(Generic[Owner]):
    """A method that takes steps on a CUDA device, launched as one once it has run.

    What it changes must stay where it is. For new shapes it is called as it is, since what is compiled or
    loaded must be so before it is recorded; then recorded, as a CUDA graph, and from there on replayed.
    """

    def __init__(self, method: Callable[[Owner, Steps], None]) -> None:
        self._method = method
        self._graphs: dict[tuple[torch.Size, ...], tuple[Steps, torch.cuda.CUDAGraph] | None] = {}

    def __call__(self, owner: Owner, steps: Steps) -> None:
        """Call, or record and replay; the owner is not kept, so that it can go, and its memory."""
        shapes = tuple(tensor.shape for tensor in steps.arrays())
        if shapes not in self._graphs:
            self._graphs[shapes] = None
            self._method(owner, steps)
            return
        kept, graph = self._graphs[shapes] = self._graphs[shapes] or self._record(owner, steps)
        for own, given in zip(kept.arrays(), steps.arrays(), strict=True):
            own.copy_(given)
        graph.replay()

    def _record(self, owner: Owner, steps: Steps) -> tuple[Steps, torch.cuda.CUDAGraph]:
        kept, graph = steps.map(torch.clone), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._method(owner, kept)
        return kept, graph


@contextmanager
def tracing_gradients() -> Iterator[None]:
    """Let a program hold `torch.autograd.grad`, and functions have programs for any number of trainers."""
    import torch._dynamo  # not before it is needed, as it takes a second

    changes: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 2**31)
    with torch._dynamo.config.patch(changes | {"trace_autograd_ops": True}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # --tf32 is who decides
        yield


def problem(device: str) -> str:
    """Return why steps cannot be compiled for a device, or nothing.

    A C++ compiler or Triton may be missing, or torch too old to have gradients in a program.
    """
    try:
        with tracing_gradients():
            compiled(_slope)(torch.ones(8, device=device, requires_grad=True))
    except Exception as cause:  # whatever compilers and their tool chains raise
        text = str(cause).partition("\n\nSet TORCH")[0]  # what follows is for torch's developers
        return f"torch.compile fails ({' '.join(text.split())})"
    return ""


def _slope(x: Tensor) -> Tensor:
    return torch.autograd.grad(torch.sin(x).sum(), x)[0]
