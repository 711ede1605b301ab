"""Training of networks in torch, on the CPU or a CUDA device; an epoch reads results only at its end."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from lpfamily import penalty
from lpfamily.ascent import LAST_ITERATES, frank_wolfe
from lpfamily.divergences import divergence
from lpfamily.training.backends import OPTIONS, SMALLER, Metrics, launches
from lpfamily.training.draws import Drawn, Draws, Random, by_threads
from lpfamily.training.losses import LOSSES, LossName
from lpfamily.training.networks import (
    AVERAGE,
    Array,
    Floats,
    Ints,
    Network,
    State,
    evaluated,
    layer_of,
    parameter_shapes,
)
from lpfamily.training.progress import Tick, silent
from lpfamily.training.tasks import DIFFERENCE_STEP, Rates, Task
from lpfamily.training.teams import Team, local_slice
from lpfamily_torch.compiling import Recorded, Steps, compiled, problem, tracing_gradients
from lpfamily_torch.model import (
    LAYERS,
    Tap,
    TorchModel,
    by_piece,
    largest_by_piece,
    logits,
    resolved,
    scaled_draws,
)
from lpfamily_torch.team import Gradients, Sums, TorchTeam, join, usable


@dataclass(frozen=True)
class TorchBackend:
    """Trains every network on any device of torch."""

    layers: frozenset[type] = frozenset(LAYERS)
    direction_dtypes: frozenset[str] = frozenset({"same", "bfloat16"})
    losses: frozenset[LossName] = frozenset(LOSSES)
    options: frozenset[str] = OPTIONS

    def check_device(self, device: str) -> None:
        """Try the device with one number."""
        with usable(device):
            torch.zeros(1, device=device).tolist()

    def compile_problem(self, device: str) -> str:
        """Try to compile one small function."""
        return problem(device)

    def join(self, device: str) -> Team:
        """Join the processes that torchrun has started."""
        return join(device)

    def trainer(self, task: Task, state: State) -> TorchTrainer:
        """Return a trainer for `task` that starts from `state`."""
        with _raising_memory_error():
            return TorchTrainer(task, state)

    def model(self, network: Network, parameters: State) -> TorchModel:
        """Return the network as a module on the CPU."""
        return TorchModel(network, parameters)


backend = TorchBackend()


RECORDED = 64
"""The maximal number of steps that a CUDA device launches as one graph."""

Rate = float | Tensor
"""A number; a 0-d tensor where steps are compiled or recorded, as a number would be constant there."""


class TorchTrainer:
    """A network in training; `lpfamily.training.backends.Trainer` says what each method does."""

    tick: Tick = staticmethod(silent)

    def __init__(self, task: Task, state: State) -> None:
        self.task, self._layers = task, resolved(task.network)
        self._loss = _LOSSES[task.network.loss]
        self._x, self._labels = self._tensor(task.x), self._tensor(task.labels)
        self._total = torch.zeros(2, dtype=torch.float64, device=task.device)
        self._zero = torch.zeros((), dtype=self._x.dtype, device=task.device, requires_grad=True)
        self.load(state)

    def state(self) -> State:
        with torch.no_grad():
            return {
                name: by_piece(self.task.network, name, tensor.cpu().numpy(), back=True).copy()
                for name, tensor in self._state.items()
            }

    def load(self, state: State) -> None:
        dtype, objective = getattr(torch, self.task.dtype), self.task.objective
        self._state = {
            name: self._laid_out(by_piece(self.task.network, name, array)).to(dtype)
            for name, array in state.items()
        }
        differentiates_twice = objective.name == "penalty" and objective.penalty_by == "gradient"
        # the other gradients are float32 products, which addmm_ adds to the velocity if the rates are numbers
        all_differentiated = differentiates_twice or self.task.bf16 or self.task.compiled or self._records
        self._differentiated = [
            name
            for name in parameter_shapes(self.task.network)
            if all_differentiated or not LAYERS[type(layer_of(self.task.network, name))].tapped
        ]
        for name in self._differentiated:
            self._state[name].requires_grad_()
        parameters = {name: self._state[name] for name in parameter_shapes(self.task.network)}
        team = self.task.team
        self._sums = Sums(team, parameters) if isinstance(team, TorchTeam) else None
        self._recorded = Recorded(TorchTrainer._take) if self._records else None

    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        team, task = self.task.team, self.task
        total, done = self._total.zero_(), 0
        table = rates.table()
        with (
            self._precision(),
            tracing_gradients() if task.compiled else nullcontext(),
            by_threads() if self._on_cuda else nullcontext(map) as map_draws,
        ):
            for batches in launches(order, task.batch_size, RECORDED if self._recorded else 1, self.tick):
                steps = range(done, done := done + len(batches))
                examples, rows = batches.shape[1], local_slice(team, batches.shape[1])
                local_draws = draws if team.size == 1 else draws.part(examples, rows)
                drawn = local_draws.steps(steps, task, rows.stop - rows.start, map_draws, self._empty)
                pairs = np.repeat(table[steps, :, None], 2, axis=2)
                inputs = Steps(
                    self._tensor(batches[:, rows]), self._tensor(pairs), drawn.map(self._sent), examples
                )
                (self._recorded or TorchTrainer._take)(self, inputs)
        if isinstance(team, TorchTeam):
            team.add(total)
        loss, error = (total / len(order)).tolist()
        return {"loss": loss, "error": error}

    def logits(self, x: Floats) -> Floats:
        with torch.no_grad(), self._precision():
            return self._evaluated._logits(self._tensor(x)).cpu().numpy()

    def losses(self, x: Floats, labels: Array) -> Floats:
        with torch.no_grad(), self._precision():
            return self._evaluated._losses(self._tensor(x), self._tensor(labels)).cpu().numpy()

    def input_gradients(self, x: Floats, labels: Array) -> Floats:
        return self.logits_and_gradients(x, labels)[1]

    def logits_and_gradients(self, x: Floats, labels: Array) -> tuple[Floats, Floats]:
        with self._precision():
            at = self._differentiable(self._tensor(x))
            outputs = self._evaluated._logits(at)
            (gradient,) = torch.autograd.grad(self._loss.inner(outputs, self._tensor(labels)).sum(), at)
            return outputs.detach().cpu().numpy(), gradient.cpu().numpy()

    def hessian_products(self, x: Floats, labels: Array, v: Floats) -> Floats:
        with self._precision():
            at = self._tensor(x).requires_grad_()
            loss = self._loss.value(self._evaluated._logits(at), self._tensor(labels)).sum()
            (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
            # the gradient of convolutions of no examples has no graph, hence materialize_grads
            (product,) = torch.autograd.grad(gradient, at, self._tensor(v), materialize_grads=True)
            return product.cpu().numpy()

    @property
    def _evaluated(self) -> TorchTrainer:
        """The trainer with the averages of the parameters in their place, if it keeps averages."""
        other = copy.copy(self)
        other._state = evaluated(self.task.network, self._state)
        return other

    def _take(self, steps: Steps) -> None:
        """Take the steps, one after the other."""
        find_gradients, update = TorchTrainer._gradients, TorchTrainer._update
        if self.task.compiled:
            find_gradients, update = compiled(find_gradients), compiled(update)
        as_tensors = self.task.compiled or self._records
        for step, (batch, rates) in enumerate(zip(steps.batches, steps.rates, strict=True)):
            lr, momentum, sigma, mixing = rates[:, 0].unbind() if as_tensors else rates[:, 0].tolist()
            drawn = steps.drawn.map(operator.itemgetter(step))
            gradients = find_gradients(self, batch, steps.examples, sigma, drawn)
            update(self, self._sums.of(gradients) if self._sums else gradients, lr, momentum)
            if self.task.optimiser.ema:
                self._average(mixing)

    def _objective(
        self, x: Tensor, labels: Tensor, sigma: Rate, drawn: Drawn, taps: list[Tap] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the objective of each example, and the logits that it was computed from."""
        objective = self.task.objective
        random = self._scaled_draws(drawn.layers)
        if objective.name == "penalty":
            return self._penalised(x, labels, sigma, random, taps)
        shift = None if drawn.shift is None else sigma * drawn.shift
        if objective.name == "noise" and shift is not None:
            x = x + shift
        clean = x
        ascent, arguments = LAST_ITERATES[objective.method], (objective.p, sigma, objective.steps, shift)
        if objective.name == "perturb":
            draws_of_passes = iter(drawn.passes)
            direction = self._direction if objective.direction_dtype == "same" else self._rounded_direction
            x = x + ascent(
                lambda at: direction(at, labels, self._scaled_draws(next(draws_of_passes))), x, *arguments
            )
        if objective.name == "trades":
            draws = [self._scaled_draws(layers) for layers in drawn.passes]
            with torch.no_grad():
                targets = log_softmax(self._logits(x, draws[0]), dim=1)
            draws_of_passes = iter(draws)
            x = x + ascent(
                lambda at: self._direction(at, targets, next(draws_of_passes), divergence), x, *arguments
            )
            logits = self._logits(clean, random, taps)
            divergences = divergence(self._logits(x, random, taps), log_softmax(logits, dim=1))
            return self._trained_losses(logits, labels) + objective.beta * divergences, logits
        logits = self._logits(x, random, taps)
        losses = self._trained_losses(logits, labels)
        if objective.name == "perturb" and (weight := objective.clean_weight):
            clean_losses = self._trained_losses(self._logits(clean, random, taps), labels)
            losses = weight * clean_losses + (1 - weight) * losses
        return losses, logits

    def _trained_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example that trains the weights, with smoothed labels."""
        losses: Tensor = self._loss.outer(self._loss.inner(logits, labels))
        return losses + self._smoothing(logits, labels) if self.task.objective.label_smoothing else losses

    def _smoothing(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the term that smoothed labels add to the loss of each example."""
        right = logits.gather(1, labels[:, None])[:, 0]
        return self.task.objective.label_smoothing * (right - logits.mean(dim=1))

    def _penalised(
        self, x: Tensor, labels: Tensor, sigma: Rate, random: list[Random], taps: list[Tap] | None
    ) -> tuple[Tensor, Tensor]:
        p = self.task.objective.p
        by_difference = self.task.objective.penalty_by == "difference"
        x = self._differentiable(x)
        logits = self._logits(x, random, taps)
        inner = self._loss.inner(logits, labels)
        (gradient,) = torch.autograd.grad(inner.sum(), x, create_graph=not by_difference, retain_graph=True)
        losses = self._loss.outer(inner)
        if by_difference:
            eps = frank_wolfe(lambda _: gradient, x.detach(), p, sigma, 1)
            perturbed = self._losses(x.detach() + DIFFERENCE_STEP * eps, labels, random, taps)
            penalties = (perturbed - losses) / DIFFERENCE_STEP
        else:
            penalties = self._loss.slope(inner) * penalty(gradient, p, sigma)
        if self.task.objective.label_smoothing:
            penalties = penalties + self._smoothing(logits, labels)
        return losses + penalties, logits

    def _direction(
        self,
        x: Tensor,
        targets: Tensor,
        random: list[Random] | None = None,
        function: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the input gradient of the loss's inner function, or of another; weights get no gradient."""
        at, function = self._differentiable(x), function or self._loss.inner
        return torch.autograd.grad(function(self._logits(at, random), targets).sum(), at)[0]

    def _rounded_direction(self, x: Tensor, labels: Tensor, random: list[Random]) -> Tensor:
        """Return the same with bfloat16 products.

        Autocast computes these in place of float32 products only, so everything becomes float32 first.
        """
        at = self._differentiable(x)
        state = {name: self._state[name].detach().float() for name in parameter_shapes(self.task.network)}
        single = [Random(*(each if each is None else each.float() for each in both)) for both in random]
        with self._autocast():
            z = logits(self._layers, state, at.float(), single, None, largest_by_piece)
            return torch.autograd.grad(self._loss.inner(z, labels).sum(), at)[0]

    def _autocast(self) -> torch.autocast:
        # a cached rounded weight would be in the graphs of both passes, which a compiled step refuses
        return torch.autocast(torch.device(self.task.device).type, torch.bfloat16, cache_enabled=False)

    def _differentiable(self, x: Tensor) -> Tensor:
        """Return x without its graph, requiring a gradient."""
        # before torch 2.13, a tensor in a compiled program requires a gradient only if it is computed from a
        # tensor that does, here `_zero`
        return x.detach() + self._zero if self.task.compiled else x.detach().requires_grad_()

    def _losses(
        self, x: Tensor, labels: Tensor, random: list[Random] | None = None, taps: list[Tap] | None = None
    ) -> Tensor:
        losses: Tensor = self._loss.outer(self._loss.inner(self._logits(x, random, taps), labels))
        return losses

    def _logits(self, x: Tensor, random: list[Random] | None = None, taps: list[Tap] | None = None) -> Tensor:
        return logits(self._layers, self._state, x, random, taps, largest_by_piece)

    def _scaled_draws(self, drawn: list[Random]) -> list[Random]:
        dtype = getattr(torch, self.task.dtype)
        return [
            scaled_draws(layer, random, dtype)
            for layer, random in zip(self.task.network.layers, drawn, strict=True)
        ]

    def _gradients(self, batch: Tensor, examples: int, sigma: Rate, drawn: Drawn) -> Gradients:
        """Return the gradients of all parameters; add the losses and the errors to the totals."""
        x, labels = self._x.index_select(0, batch), self._labels.index_select(0, batch)
        taps: list[Tap] = []
        all_differentiated = len(self._differentiated) == len(parameter_shapes(self.task.network))
        with self._autocast() if self.task.bf16 else nullcontext():
            losses, logits = self._objective(x, labels, sigma, drawn, None if all_differentiated else taps)
            leaves = [tap.z for tap in taps] + [self._state[name] for name in self._differentiated]
            leaf_gradients = torch.autograd.grad(losses.sum() / examples, leaves)
        gradients: Gradients = dict(zip(self._differentiated, leaf_gradients[len(taps) :], strict=True))
        for index in {tap.layer for tap in taps}:
            factors = [
                (tap.inputs, delta)
                for tap, delta in zip(taps, leaf_gradients, strict=False)
                if tap.layer == index
            ]
            inputs, delta = (
                torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*factors, strict=True)
            )
            gradients[f"layers.{index}.weight"] = (inputs.T, delta)
            gradients[f"layers.{index}.bias"] = delta.sum(dim=0)
        errors = self._loss.error(logits.detach(), labels)
        self._total.add_(torch.stack([losses.detach().sum(dtype=torch.float64), errors.sum()]))
        return gradients

    @torch.no_grad()
    def _update(self, gradients: Gradients, lr: Rate, momentum: Rate) -> None:
        for name, gradient in gradients.items():
            parameter, velocity = self._state[name], self._state[f"velocity.{name}"]
            layer, is_weight = layer_of(self.task.network, name), name.endswith("weight")
            rate = lr * layer.lr_scale
            if isinstance(gradient, tuple):
                velocity.addmm_(*gradient, beta=momentum, alpha=-rate)  # type: ignore[arg-type]  # then numbers
            else:
                _subtract(velocity.mul_(momentum), gradient, rate)
            if is_weight and self.task.weight_decay:
                _subtract(velocity, parameter, rate * self.task.weight_decay)
            parameter.add_(velocity)
            if is_weight and layer.max_norm is not None:
                norms = torch.linalg.vector_norm(parameter, dim=layer.norm_axes, keepdim=True)
                parameter.mul_(torch.where(norms > layer.max_norm, layer.max_norm / norms, 1.0))

    @torch.no_grad()
    def _average(self, mixing: Rate) -> None:
        # outside of a step's program, as torch 2.13 fails to compile it there for convolutions
        weight = mixing.to(self._x.dtype) if isinstance(mixing, Tensor) else mixing
        for name in parameter_shapes(self.task.network):
            self._state[AVERAGE + name].lerp_(self._state[name], weight)

    @property
    def _on_cuda(self) -> bool:
        return torch.device(self.task.device).type == "cuda"

    @property
    def _records(self) -> bool:
        """Whether CUDA graphs launch many steps; their results may then be neither read nor exchanged."""
        return self._on_cuda and not isinstance(self.task.team, TorchTeam)

    def _laid_out(self, array: NDArray[np.generic]) -> Tensor:
        # column-major matrices: the norm over a unit's weights, then contiguous, takes a third of the time
        tensor = self._tensor(array)
        if tensor.ndim == 2:
            return tensor.T.contiguous().T
        if tensor.ndim < 3 or self._on_cuda:
            return tensor
        # kernels and untied biases with channels last, so that images have them too, and a CPU pools whole
        # vectors; a copy has these strides even for one channel, and convolutions go by them
        laid_out = tensor.new_empty(tensor.movedim(-3, -1).shape).movedim(-1, -3)
        return laid_out.copy_(tensor)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.tensor(array)
        return self._sent(tensor.pin_memory() if self._on_cuda else tensor)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return an empty tensor in this computer's memory, pinned for CUDA."""
        like = torch.from_numpy(np.empty(0, dtype))
        return like.new_empty(shape, pin_memory=self._on_cuda)

    def _sent(self, tensor: Tensor) -> Tensor:
        # copies from pinned memory alone do not wait for the device
        return tensor.to(self.task.device, non_blocking=True)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Set the task's policy on TF32, and restore that of the process at the end."""
        policies: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn  # products, convolutions
        before = [policy.allow_tf32 for policy in policies]
        try:
            for policy in policies:
                policy.allow_tf32 = self.task.tf32
            with _raising_memory_error():
                yield
        finally:
            for policy, allowed in zip(policies, before, strict=True):
                policy.allow_tf32 = allowed


@contextmanager
def _raising_memory_error() -> Iterator[None]:
    """Raise MemoryError where memory runs out: torch raises RuntimeError, as it does for much else."""
    try:
        yield
    except RuntimeError as cause:
        if not isinstance(cause, torch.OutOfMemoryError) and "allocate memory" not in str(cause):
            raise
        reason = str(cause).splitlines()[0]
        raise MemoryError(f"the device has too little memory ({reason}); {SMALLER}") from cause


def _subtract(velocity: Tensor, gradient: Tensor, rate: Rate) -> None:
    if isinstance(rate, Tensor):
        velocity.sub_(rate * gradient)
    else:
        velocity.sub_(gradient, alpha=rate)  # without memory for the product


def _softplus(odds: Tensor) -> Tensor:
    """Return log(1 + exp(odds)) in one operation, which is differentiated at most once.

    torch's softplus leaves out the 1 for large odds.
    """
    return -logsigmoid(-odds)


def _error_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `lpfamily.error_log_odds` for labels that are known to be classes, in a third of its steps."""
    right = labels[:, None]
    wrong = logits.scatter(1, right, -math.inf)
    return torch.logsumexp(wrong, dim=1) - logits.gather(1, right)[:, 0]


_LOSSES = LOSSES | {
    "cross-entropy": LOSSES["cross-entropy"]._replace(
        inner=_error_log_odds, outer=_softplus, slope=torch.sigmoid
    )
}
