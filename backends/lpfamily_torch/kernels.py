"""What torch tells the core: derivatives, and that plain CPU tensors are NumPy arrays too."""

from __future__ import annotations

from typing import Any

import torch

from lpfamily.kernels import Library, Primitive, library_of


class TorchLibrary(Library):
    """torch: eager, compiled, and under its function transforms."""

    def apply(self, primitive: Primitive, p: float, *operands: torch.Tensor) -> Any:
        """Evaluate as an autograd function whose derivatives are the primitive's own."""
        if not torch.compiler.is_compiling():
            return _Function.apply(primitive, p, *operands)  # type: ignore[no-untyped-call]
        # torch.compile refuses a function with a jvp, and fails on one whose operands need no gradient
        if any(operand.requires_grad for operand in operands):
            return _ReverseOnly.apply(primitive, p, *operands)  # type: ignore[no-untyped-call]
        return primitive.value(p, *operands)

    def constant(self, x: torch.Tensor) -> torch.Tensor:
        """Detach."""
        return x.detach()

    def normal_tail(self, x: torch.Tensor) -> torch.Tensor:
        """Halve torch's own erfc."""
        result: torch.Tensor = 0.5 * torch.special.erfc(x * 0.5**0.5)
        return result


library = TorchLibrary()


class _ReverseOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(primitive: Primitive, p: float, *operands: torch.Tensor) -> torch.Tensor:
        if all(map(_is_plain, operands)):
            return _through_numpy(primitive, p, *operands)
        result: torch.Tensor = primitive.value(p, *operands)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.primitive, ctx.p, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # a compiled graph is differentiated once
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


def _is_plain(x: torch.Tensor) -> bool:
    """Whether x is nothing but values in this computer's memory."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _through_numpy(primitive: Primitive, p: float, *operands: torch.Tensor) -> torch.Tensor:
    arrays = [operand.detach().numpy() for operand in operands]
    return torch.from_numpy(library_of(arrays[0]).apply(primitive, p, *arrays))
