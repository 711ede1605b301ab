"""Steps as compiled programs, and on a CUDA device many steps as one graph."""

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
    """Return the function, compiled at its first call with every combination of tensor shapes.

    Call it inside of `tracing_gradients`.
    """
    return torch.compile(function, fullgraph=True, dynamic=False)


class Steps(NamedTuple):
    """The inputs of several steps, one row of every tensor per step."""

    batches: Tensor
    rates: Tensor
    """Learning rate, momentum, sigma and mixing, each twice: a program needs its inputs 16 bytes apart."""
    drawn: Drawn
    examples: int
    """The number of examples of a step, over the whole team."""

    def arrays(self) -> list[Tensor]:
        """Return all tensors."""
        return [self.batches, self.rates, *self.drawn.arrays()]

    def map(self, function: Callable[[Tensor], Tensor]) -> Steps:
        """Return these steps with `function` applied to each tensor."""
        drawn = self.drawn.map(function)
        return Steps(function(self.batches), function(self.rates), drawn, self.examples)


Owner = TypeVar("Owner")


class Recorded(Generic[Owner]):
    """A method that takes steps on a CUDA device, recorded as a CUDA graph and launched as one.

    The tensors that the method changes must keep their memory. The first call with new shapes runs the method
    itself, as everything must be compiled and loaded before it is recorded. The second call records it; this
    one and all later calls replay the graph.
    """

    def __init__(self, method: Callable[[Owner, Steps], None]) -> None:
        self._method = method
        self._graphs: dict[tuple[torch.Size, ...], tuple[Steps, torch.cuda.CUDAGraph] | None] = {}

    def __call__(self, owner: Owner, steps: Steps) -> None:
        """Call the method, or record and replay it; no reference to the owner is kept, so it can be freed."""
        shapes = tuple(tensor.shape for tensor in steps.arrays())
        if shapes not in self._graphs:
            self._graphs[shapes] = None
            self._method(owner, steps)
            return
        inputs, graph = self._graphs[shapes] = self._graphs[shapes] or self._record(owner, steps)
        for graph_input, value in zip(inputs.arrays(), steps.arrays(), strict=True):
            graph_input.copy_(value)
        graph.replay()

    def _record(self, owner: Owner, steps: Steps) -> tuple[Steps, torch.cuda.CUDAGraph]:
        inputs, graph = steps.map(torch.clone), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._method(owner, inputs)
        return inputs, graph


@contextmanager
def tracing_gradients() -> Iterator[None]:
    """Allow `torch.autograd.grad` in compiled programs, and any number of programs per function.

    Each trainer has its own program.
    """
    import torch._dynamo  # imported only when needed, as it takes a second

    changes: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 2**31)
    with torch._dynamo.config.patch(changes | {"trace_autograd_ops": True}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # --tf32 decides
        yield


def problem(device: str) -> str:
    """Return why steps cannot be compiled for a device, or an empty string.

    A C++ compiler or Triton may be missing, or torch may be too old for gradients in a program.
    """
    try:
        with tracing_gradients():
            compiled(_slope)(torch.ones(8, device=device, requires_grad=True))
    except Exception as cause:  # compilers and their tool chains raise anything
        text = str(cause).partition("\n\nSet TORCH")[0]  # the rest is for torch's developers
        return f"torch.compile fails ({' '.join(text.split())})"
    return ""


def _slope(x: Tensor) -> Tensor:
    return torch.autograd.grad(torch.sin(x).sum(), x)[0]
