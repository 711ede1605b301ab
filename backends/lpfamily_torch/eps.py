"""The perturbation eps: its ball, where its steps start, and the steps of Frank-Wolfe."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from lpfamily._arrays import Bounds
from lpfamily.divergences import differs
from lpfamily.libraries import library_of
from lpfamily.loops import Ball
from lpfamily.trees import mapped
from lpfamily_torch.arguments import leaves_of
from lpfamily_torch.evaluator import Evaluator


def ball_of(
    p: float, sigma: Any, bounds: Bounds | None, mask: Any, batch_ndim: int, scale: Any, joint: bool
) -> Ball:
    """Return the ball of each example; the first axis indexes examples."""
    if batch_ndim < 1:
        raise ValueError(
            f"batch_ndim must be at least 1, as examples are along the first axis; got {batch_ndim}"
        )
    return Ball(p, sigma, bounds, mask, batch_ndim, scale, joint)


def frank_wolfe(evaluator: Evaluator, at: Any, ball: Ball, steps: int, start: Any) -> Any:
    """Return eps after some Frank-Wolfe steps in a ball around `at`."""
    at = mapped(Tensor.detach, at)
    start = start_of(evaluator, at, start)
    with torch.no_grad():
        if start is not None:
            start = ball.begin(at, start)
        with evaluator.without_side_effects(leaves_of(at)[0].device):
            evaluator = evaluator.with_clean_outputs(at)
            eps = ball.ascended(lambda x: evaluator.value_and_grad(x)[1], at, steps, start)
        if evaluator.options.by_outputs:
            _warn_of_unmoved(start, eps)
    return eps


def start_of(evaluator: Evaluator, at: Any, start: Any) -> Any:
    """Return the given start; for a divergence, whose gradient at x is zero, None becomes a generator.

    Raise ValueError if eps raises a divergence and the start is 0.
    """
    if not evaluator.options.by_outputs:
        return start
    if start is None:
        generator = torch.Generator(leaves_of(at)[0].device)
        return generator.manual_seed(int(torch.randint(2**63 - 1, ())))
    tensors = [leaf for leaf in leaves_of(start) if isinstance(leaf, Tensor)]
    if tensors and all(library_of(leaf).visible(leaf) and not leaf.any() for leaf in tensors):
        raise ValueError("a divergence has no gradient at x: start must not be 0; None draws one")
    return start


def _warn_of_unmoved(start: Any, eps: Any) -> None:
    """Warn of examples that do not move, where their values are visible without waiting for a device."""
    unmoved = _is_nonzero(start) & ~_is_nonzero(eps)
    if library_of(unmoved).visible(unmoved) and (count := int(unmoved.sum())):
        warnings.warn(
            f"direction='outputs': {count} of {len(unmoved)} examples stay where they are: their outputs at "
            "the start differ from the clean ones by no more than rounding; compute in a wider dtype, or "
            "give a larger sigma",
            stacklevel=4,
        )


def _is_nonzero(eps: Any) -> Tensor:
    """Return for each example whether its eps has an entry other than zero."""
    nonzero: Tensor = differs(mapped(torch.zeros_like, eps), eps, 1)
    return nonzero
