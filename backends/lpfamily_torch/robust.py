"""The robustness of any torch classifier in Lp balls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lpfamily import ensemble, error_log_odds
from lpfamily._arrays import Bounds, Numbers
from lpfamily._docstrings import documented_by
from lpfamily.measured import Robustness
from lpfamily.trees import mapped, named_leaves
from lpfamily_torch.evaluator import input_gradient, logits_of
from lpfamily_torch.reachable import Model
from lpfamily_torch.side_effects import without_side_effects, without_team


@documented_by(ensemble.robustness)
def robustness(
    model: Model,
    x: Any,
    y: Tensor | None = None,
    *,
    p: float | Sequence[float] = (1, 2, math.inf),
    sigma: ensemble.Sigmas,
    bounds: Bounds | None = None,
    scale: Numbers | None = None,
    effort: ensemble.Effort = "standard",
    batch_size: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Robustness:
    """Return the errors of a torch classifier in Lp balls, and the smallest radii that cause an error.

    The attacks and the meaning of the numbers are those of `lpfamily.robustness`. The model is evaluated as
    in `model.eval()`. Afterwards its modes, buffers, `param.grad` and the random states are as before.

    Parameters
    ----------
    model
        A module or a function that maps inputs to logits, of shape (n, classes), or to an object that has
        them as `.logits`. A tuple or a list of inputs gives the positional arguments of the model, a dict its
        keyword arguments.
    x, y
        The inputs, a floating tensor whose first axis indexes examples, or a tree of them as in
        `lpfamily.epsilon`, and their classes, integers of shape (n,). Without y, x is an iterable of such
        pairs, such as a `DataLoader`. Each batch is moved to the device of the model's parameters. Where
        torch.distributed is initialised, give all processes the same data: each attacks a share of the
        batches, and all return the whole result.
    p, sigma, bounds, scale, effort, batch_size, seed, progress
        As in `robustness`.

    Returns
    -------
    Robustness
        Errors by p and sigma, the attack that fooled each example, the smallest radii, and findings.

    Raises
    ------
    TypeError, ValueError
        As in `lpfamily.robustness`.
    RuntimeError
        In inference mode; if the model changes in place a parameter that is not copied: one above 1 MiB, or
        in a module of torch's own.

    References
    ----------
    Croce and Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020; Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015,
    eq. 1 and 3.
    """
    inner = without_team(model)
    states = [*inner.parameters(), *inner.buffers()] if isinstance(inner, nn.Module) else []
    devices = (leaf.device for _, leaf in named_leaves(x, "x") if isinstance(leaf, Tensor))
    device = states[0].device if states else next(devices, torch.device("cpu"))

    def call(x: Any) -> Any:
        if isinstance(x, dict):
            return logits_of(inner(**x))
        return logits_of(inner(*x) if isinstance(x, tuple | list) else inner(x))

    def evaluate(x: Any, y: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        with torch.enable_grad():
            x = mapped(lambda leaf: leaf.detach().requires_grad_(), x)
            logits = call(x)
            if targets is None:
                values = error_log_odds(logits, y)
            else:
                values = (logits.gather(1, targets[:, None]) - logits.gather(1, y[:, None]))[:, 0]
            return logits.detach(), values.detach(), input_gradient(values.sum(), x)

    def admit(given: Any) -> Tensor:
        tensor: Tensor = torch.as_tensor(given).detach().to(device)
        return tensor if tensor.is_floating_point() else tensor.to(torch.int64)

    processes: dict[str, Any] = {}

    def gather(result: Any) -> list[Any]:
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, result)
        return results

    if dist.is_available() and dist.is_initialized():
        processes = {"rank": dist.get_rank(), "size": dist.get_world_size(), "gather": gather}
    classifier = ensemble.Classifier(
        evaluate,
        call,
        host=lambda tensor: tensor.detach().cpu().numpy(),
        admit=admit,
        **processes,
    )
    with without_side_effects(inner, device, "none", "running"), torch.no_grad():
        data = ensemble.batches(x, y, batch_size)
        return ensemble.measure(classifier, data, p, sigma, bounds, scale, effort, seed, progress)
