"""torch's `Library`: autograd gets the derivatives of primitives, and NumPy computes plain CPU tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

from lpfamily.libraries import Library, Primitive, library_of, primitives
from lpfamily.libraries.rows import THREADS_FROM, threads_by_default


class TorchLibrary(Library):
    """torch: eager, compiled, and under its function transforms."""

    def apply(self, primitive: Primitive, p: float, *operands: torch.Tensor) -> Any:
        """Evaluate as an autograd function with the primitive's derivatives."""
        if not torch.compiler.is_compiling():
            return _Function.apply(primitive, p, *operands)  # type: ignore[no-untyped-call]
        # torch.compile refuses a function with a jvp, and fails on a function whose operands need no gradient
        if any(operand.requires_grad for operand in operands):
            return _ReverseOnly.apply(primitive, p, *operands)  # type: ignore[no-untyped-call]
        return _value(primitive, p, *operands)

    def detour(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Compute with NumPy if tensors are plain and need no derivative, without autograd's bookkeeping."""
        if _is_recording() or forward_ad._current_level >= 0:  # tensors may carry tangents
            return function(*arguments)
        arrays, size = [], 0
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                if not _is_shared(argument):
                    return function(*arguments)
                argument = argument.numpy()
                size += argument.nbytes
            arrays.append(argument)
        return _in_numpy(size, function, *arrays)

    def unwarned(self) -> AbstractContextManager[None]:
        """Leave NumPy's error state alone: torch never warns, and torch.compile cannot trace the state."""
        return nullcontext()

    def places(self, mask: torch.Tensor) -> torch.Tensor | None:
        """Return indices if values can be seen. This waits for the device; evaluating a model costs more."""
        return torch.nonzero(mask)[:, 0] if _has_values(mask) else None

    def settled(self, old: tuple[torch.Tensor, ...], new: tuple[torch.Tensor, ...]) -> bool:
        """Compare if values can be seen. This waits for the device; hundreds of further steps cost more."""
        return all(map(_has_values, new)) and all(map(torch.equal, old, new))

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw from a `torch.Generator`, on its device."""
        if not isinstance(rng, torch.Generator):
            return super().variates(rng, shape, concentration, dtype)
        if dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=dtype)
        gammas = torch._standard_gamma(torch.full_like(uniform, concentration), rng)
        ones = torch.ones((*shape[:-1], 1), device=rng.device, dtype=uniform.dtype)
        return 2 * uniform - 1, gammas, torch._standard_gamma(ones, rng)

    def visible(self, x: torch.Tensor) -> bool:
        """Return True for eager plain tensors on the CPU."""
        return _is_plain(x)

    def constant(self, x: torch.Tensor) -> torch.Tensor:
        """Detach."""
        return x.detach()

    def normal_tail(self, x: torch.Tensor) -> torch.Tensor:
        """Halve torch's own erfc."""
        result: torch.Tensor = 0.5 * torch.special.erfc(x * 0.5**0.5)
        return result


library = TorchLibrary()

_SHARED_DTYPES = (torch.float32, torch.float64, torch.bool)


def _value(primitive: Primitive, p: float, *operands: torch.Tensor) -> torch.Tensor:
    if primitive.whole and torch.compiler.is_compiling():
        result: torch.Tensor = _whole(primitive.name, p, list(operands))
    else:
        result = primitive.value(p, *operands)
    return result


@torch.library.custom_op("lpfamily::evaluate", mutates_args=())
def _whole(name: str, p: float, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Evaluate as one operation a primitive whose steps torch.compile would unroll."""
    result: torch.Tensor = primitives[name](p, *operands)
    return result


@_whole.register_fake
def _(name: str, p: float, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    x = operands[0]
    return x.new_empty(x.shape[:-1] if primitives[name].reduces else x.shape)


class _ReverseOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(primitive: Primitive, p: float, *operands: torch.Tensor) -> torch.Tensor:
        if all(map(_is_plain, operands)):
            arrays = [operand.detach().numpy() for operand in operands]
            evaluate = functools.partial(library_of(arrays[0]).apply, primitive, p)
            shared: torch.Tensor = _in_numpy(arrays[0].nbytes, evaluate, *arrays)
            return shared
        result = _value(primitive, p, *operands)
        # the value of an empty operand may be that operand; autograd needs another tensor
        return result.view_as(result) if any(result is operand for operand in operands) else result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.primitive, ctx.p, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # a compiled graph is differentiated only once, so the operands need no graph
        operands = tuple(operand.detach() for operand in ctx.saved_tensors)
        return None, None, *ctx.primitive.vjp(ctx.p, operands, cotangent)


class _Function(_ReverseOnly):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _ReverseOnly.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.primitive.vjp(ctx.p, ctx.saved_tensors, cotangent)

    @staticmethod
    def jvp(ctx: Any, _primitive: None, _p: None, *tangents: torch.Tensor | None) -> torch.Tensor:
        operands = ctx.saved_tensors
        filled = [torch.zeros_like(o) if t is None else t for o, t in zip(operands, tangents, strict=True)]
        result: torch.Tensor = ctx.primitive.jvp(ctx.p, operands, tuple(filled))
        return result


def _is_recording() -> bool:
    """Whether operations are traced, by a compiler, make_fx or jit.trace, to be computed for other values."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def _has_values(x: torch.Tensor) -> bool:
    return not (_is_recording() or x.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(x))


def _is_plain(x: torch.Tensor) -> bool:
    """Whether x is an ordinary tensor in this computer's memory, without wrappers or lazy views."""
    return (
        not _is_recording()
        and type(x) is torch.Tensor
        and x.is_cpu
        and not x.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        # under a transform, tensors that are not wrapped have no memory to share either
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _is_shared(x: torch.Tensor) -> bool:
    """Whether NumPy can compute with x's memory, and x needs no derivative."""
    dense = x.layout is torch.strided and not x.is_nested  # `admit` refuses others
    return dense and x.dtype in _SHARED_DTYPES and not x.requires_grad and _is_plain(x)


def _in_numpy(size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments) as tensors; for arrays of many bytes use torch's number of threads."""
    if size < THREADS_FROM // 4:
        result = function(*arguments)
    else:
        with threads_by_default(torch.get_num_threads()):
            result = function(*arguments)
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)
