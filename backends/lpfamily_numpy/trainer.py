"""Training of dense networks in NumPy: a step is the chain rule, written out.

Read model.py first, for the chain rule of one layer, then `_backward` and `_tangent`; `epoch` uses both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from lpfamily import epsilon, penalty
from lpfamily.ascent import LAST_ITERATES, frank_wolfe
from lpfamily.classification import odds_gradient
from lpfamily.divergences import divergence, divergence_slope, log_softmax
from lpfamily.training.backends import OPTIONS, Metrics, check_inputs, launches
from lpfamily.training.draws import Draws, Random
from lpfamily.training.errors import BadInput
from lpfamily.training.losses import LOSSES, Loss, LossName
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
from lpfamily.training.teams import ALONE, Team
from lpfamily_numpy.model import LAYERS, LayerPass, forward, resolved

SMALL_PRODUCT = 40_000_000
"""Multiplications up to which one thread computes a product, in a millisecond. Two threads hardly gain on it,
and where other programs occupy the cores they wait for each other many times as long as they compute."""

BLOCK = 1 << 18
"""Bytes of a weight that are updated at once; with gradient and velocity they fit into the caches."""

Factors = tuple[list[Floats], list[Floats]]
"""The inputs of each layer, and the gradients of each layer's z; a weight's gradient is their product."""

# The protocol reports a loss that overflows, once; NumPy would warn at every step.
_without_warnings = np.errstate(all="ignore")


@dataclass(frozen=True)
class NumpyBackend:
    """Trains dense networks on the CPU."""

    layers: frozenset[type] = frozenset(LAYERS)
    direction_dtypes: frozenset[str] = frozenset({"same"})
    losses: frozenset[LossName] = frozenset(LOSSES)
    options: frozenset[str] = OPTIONS - {"bf16"}

    def check_device(self, device: str) -> None:
        """Accept the CPU alone."""
        if device != "cpu":
            raise BadInput(f"backend 'numpy' computes on cpu; got --device {device}")

    def compile_problem(self, device: str) -> str:
        """Return that there is no compiler."""
        return "NumPy has no compiler; --backend jax compiles every step, --backend torch with --compile"

    def join(self, device: str) -> Team:
        """Return `ALONE`: this backend trains in one process."""
        return ALONE

    def trainer(self, task: Task, state: State) -> NumpyTrainer:
        """Return a trainer for `task` that starts from `state`."""
        return NumpyTrainer(task, state)

    def model(self, network: Network, parameters: State) -> Callable[[Floats], Floats]:
        """Return the network as a function."""
        state, layers = {name: array.copy() for name, array in parameters.items()}, resolved(network)

        def model(x: Floats) -> Floats:
            """Return the logits, (n, classes), of inputs (n, inputs)."""
            check_inputs(network, x.shape)
            return forward(layers, state, x)[-1].outputs

        return model


backend = NumpyBackend()


class NumpyTrainer:
    """A dense network in training; `lpfamily.training.backends.Trainer` says what each method does."""

    tick: Tick = staticmethod(silent)

    def __init__(self, task: Task, state: State) -> None:
        self.task = task
        self._layers = resolved(task.network)
        self._loss, self._deltas = _LOSSES[task.network.loss]
        self._pools = ThreadpoolController()
        self.load(state)

    def state(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def load(self, state: State) -> None:
        self._state = {name: np.array(array, self.task.dtype) for name, array in state.items()}

    @_without_warnings
    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        loss, error = 0.0, 0.0
        with self._threads():
            batches = launches(order, self.task.batch_size, 1, self.tick)
            table = rates.table().tolist()
            for step, ((batch,), (lr, momentum, sigma, mixing)) in enumerate(
                zip(batches, table, strict=True)
            ):
                x, labels = self.task.x[batch], self.task.labels[batch]
                losses, errors, gradients = self._step(x, labels, sigma, step, draws)
                self._update(gradients, lr, momentum, len(x))
                if self.task.optimiser.ema:
                    self._average(mixing)
                loss, error = loss + float(losses.sum()), error + float(errors.sum())
        return {"loss": loss / len(order), "error": error / len(order)}

    @_without_warnings
    def logits(self, x: Floats) -> Floats:
        with self._threads():
            return self._evaluated._forward(x)[-1].outputs

    @_without_warnings
    def losses(self, x: Floats, labels: Array) -> Floats:
        return np.asarray(self._loss.value(self.logits(x), labels))

    @_without_warnings
    def input_gradients(self, x: Floats, labels: Array) -> Floats:
        return self.logits_and_gradients(x, labels)[1]

    @_without_warnings
    def logits_and_gradients(self, x: Floats, labels: Array) -> tuple[Floats, Floats]:
        with self._threads():
            tape = self._evaluated._forward(x)
            outputs = tape[-1].outputs
            return outputs, tape[0].to_inputs(_backward(tape, self._deltas.inner(outputs, labels))[0])

    @_without_warnings
    def hessian_products(self, x: Floats, labels: Array, v: Floats) -> Floats:
        tape = self._evaluated._forward(x)
        deltas = _backward(tape, self._loss_delta(tape[-1].outputs, labels))
        return tape[0].to_inputs(self._tangent(tape, deltas, labels, v)[1][0])

    @property
    def _evaluated(self) -> NumpyTrainer:
        """The trainer with the averages of the parameters in their place, if it keeps averages."""
        other = copy.copy(self)
        other._state = evaluated(self.task.network, self._state)
        return other

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Limit BLAS to one thread where the products of a step are small."""
        largest = max(math.prod(shape) for shape in parameter_shapes(self.task.network).values())
        limit = 1 if self.task.batch_size * largest <= SMALL_PRODUCT else None
        with self._pools.limit(limits=limit, user_api="blas"):
            yield

    def _step(
        self, x: Floats, labels: Array, sigma: float, step: int, draws: Draws
    ) -> tuple[Floats, Array, list[Floats]]:
        """Return the objective and the error of each example, and the summed gradients."""
        objective = self.task.objective
        random, random_of_passes, shift = draws.step(step, self.task, len(x))
        if objective.name == "penalty":
            return self._penalised(x, labels, sigma, random)
        shift = None if shift is None else x.dtype.type(sigma) * shift
        if objective.name == "noise" and shift is not None:
            x = x + shift
        clean_x, draws_of_passes = x, iter(random_of_passes)
        ascent, arguments = LAST_ITERATES[objective.method], (objective.p, sigma, objective.steps, shift)
        if objective.name == "trades":
            targets = log_softmax(self._forward(x, random_of_passes[0])[-1].outputs)
            eps = ascent(
                lambda at: self._direction(at, targets, next(draws_of_passes), divergence_slope),
                x,
                *arguments,
            )
            return self._trades(x, x + eps, labels, random)
        if objective.name == "perturb":
            x = x + ascent(lambda at: self._direction(at, labels, next(draws_of_passes)), x, *arguments)
        losses, errors, factors = self._losses_at(x, labels, random, objective.label_smoothing)
        if objective.name != "perturb" or not (weight := objective.clean_weight):
            return losses, errors, _gradients((1.0, factors))
        clean, _, clean_factors = self._losses_at(clean_x, labels, random, objective.label_smoothing)
        losses = weight * clean + (1 - weight) * losses
        return losses, errors, _gradients((weight, clean_factors), (1 - weight, factors))

    def _losses_at(
        self, x: Floats, labels: Array, random: list[Random] | None = None, smoothing: float = 0.0
    ) -> tuple[Floats, Array, Factors]:
        """Return the loss and the error of each example, and the factors of the weights' gradients."""
        tape = self._forward(x, random)
        logits = tape[-1].outputs
        losses, delta = self._loss_and_delta(logits, labels, smoothing)
        return losses, self._loss.error(logits, labels), _factors(tape, delta)

    def _loss_and_delta(self, logits: Floats, labels: Array, smoothing: float) -> tuple[Floats, Floats]:
        """Return the loss of each example, with smoothed labels, and its gradient in the logits."""
        losses, delta = np.asarray(self._loss.value(logits, labels)), self._loss_delta(logits, labels)
        if smoothing:
            terms, slope = _smoothing(smoothing, logits, labels)
            losses, delta = losses + terms, delta + slope
        return losses, delta

    def _trades(
        self, x: Floats, perturbed_x: Floats, labels: Array, random: list[Random]
    ) -> tuple[Floats, Array, list[Floats]]:
        """Return the result of `_step` for L(x) + beta KL(f(x) || f(x + eps)); the error is that of x."""
        objective = self.task.objective
        clean, perturbed = self._forward(x, random), self._forward(perturbed_x, random)
        logits, log_p = clean[-1].outputs, log_softmax(clean[-1].outputs)
        losses, delta = self._loss_and_delta(logits, labels, objective.label_smoothing)
        perturbed_logits, beta = perturbed[-1].outputs, x.dtype.type(objective.beta)
        kl = divergence(perturbed_logits, log_p)
        delta = delta + beta * np.exp(log_p) * (log_p - log_softmax(perturbed_logits) - kl[:, None])
        perturbed_delta = beta * divergence_slope(perturbed_logits, log_p)
        gradients = _gradients((1.0, _factors(clean, delta)), (1.0, _factors(perturbed, perturbed_delta)))
        return losses + beta * kl, self._loss.error(logits, labels), gradients

    def _direction(
        self,
        x: Floats,
        targets: Array,
        random: list[Random] | None,
        gradient: Callable[[Floats, Any], Floats] | None = None,
    ) -> Floats:
        """Return the input gradient of the loss's inner function, or of the function with this `gradient`."""
        tape = self._forward(x, random)
        delta = (gradient or self._deltas.inner)(tape[-1].outputs, targets)
        return tape[0].to_inputs(_backward(tape, delta)[0])

    def _loss_delta(self, outputs: Floats, labels: Array) -> Floats:
        """Return the gradient of the loss with respect to the outputs, by the chain rule."""
        slope: Floats = self._loss.slope(self._loss.inner(outputs, labels))
        return slope[:, None] * self._deltas.inner(outputs, labels)

    def _penalised(
        self, x: Floats, labels: Array, sigma: float, random: list[Random]
    ) -> tuple[Floats, Array, list[Floats]]:
        """Return the result of `_step` for L + sigma ||grad L||_{p*}.

        By Hölder's equality the second term is <grad L, eps>, with eps constant.
        """
        objective = self.task.objective
        tape = self._forward(x, random)
        inputs, logits = [layer.inputs for layer in tape], tape[-1].outputs
        inner = self._loss.inner(logits, labels)
        inner_deltas = _backward(tape, self._deltas.inner(logits, labels))
        direction, slope = tape[0].to_inputs(inner_deltas[0]), self._loss.slope(inner)[:, None]
        deltas: list[Floats] = [slope * delta for delta in inner_deltas]
        eps = frank_wolfe(lambda _: direction, x, objective.p, sigma, 1)
        losses, errors = self._loss.outer(inner), self._loss.error(logits, labels)
        if objective.penalty_by == "difference":
            h = DIFFERENCE_STEP
            perturbed, _, factors = self._losses_at(x + x.dtype.type(h) * eps, labels, random)
            terms = [(1 - 1 / h, (inputs, deltas)), (1 / h, factors)]
            penalties = (perturbed - losses) / x.dtype.type(h)
        else:
            tangents, delta_tangents = self._tangent(tape, deltas, labels, eps)
            # the derivative of inputs.T @ delta along eps has two terms; the inputs of biases are constant
            perturbed_inputs: list[Floats] = [x + v for x, v in zip(inputs, tangents, strict=True)]
            terms = [(1.0, (perturbed_inputs, deltas)), (1.0, (inputs, delta_tangents))]
            penalties = slope[:, 0] * penalty(direction, objective.p, sigma)
        if objective.label_smoothing:
            smoothing, delta = _smoothing(objective.label_smoothing, logits, labels)
            terms.append((1.0, (inputs, _backward(tape, delta))))
            penalties = penalties + smoothing
        return losses + penalties, errors, _gradients(*terms)

    def _forward(self, x: Floats, random: list[Random] | None = None) -> list[LayerPass]:
        return forward(self._layers, self._state, x, random)

    def _tangent(
        self, tape: list[LayerPass], deltas: list[Floats], labels: Array, v: Floats
    ) -> tuple[list[Floats], list[Floats]]:
        """Return the derivatives along v of the layers' inputs, and of `_backward`'s result for the loss."""
        tangents, z_tangents = [], []
        for layer in tape:
            tangents.append(v if layer.factor is None else v * layer.factor)
            z_tangents.append(tangents[-1] @ layer.weight)
            v = layer.activation.from_z(z_tangents[-1], layer.saved)
        delta_tangents = [self._deltas.loss_tangent(deltas[-1], labels, v)]
        for index in range(len(tape) - 2, -1, -1):
            below = tape[index]
            delta = below.to_z(tape[index + 1].to_inputs(delta_tangents[0]))
            delta_tangents.insert(0, below.add_curvature(delta, deltas[index], z_tangents[index]))
        return tangents, delta_tangents

    def _update(self, gradients: list[Floats], lr: float, momentum: float, examples: int) -> None:
        for name, gradient in zip(parameter_shapes(self.task.network), gradients, strict=True):
            parameter, velocity = self._state[name], self._state[f"velocity.{name}"]
            layer, is_weight = layer_of(self.task.network, name), name.endswith("weight")
            rate, decay = lr * layer.lr_scale, self.task.weight_decay if is_weight else 0.0
            squares = np.zeros(parameter.shape[-1], parameter.dtype)
            # block by block, so that a block stays in the caches for all operations
            for rows in _blocks(parameter):
                g, v, w = gradient[rows], velocity[rows], parameter[rows]
                g *= rate / examples
                if decay:
                    g += rate * decay * w
                v *= momentum
                v -= g
                w += v
                if is_weight and layer.max_norm is not None:
                    squares += np.einsum("ij,ij->j", w, w)
            norms = np.sqrt(squares)
            if layer.max_norm is not None and (long := norms > layer.max_norm).any():
                parameter *= np.where(long, layer.max_norm / np.where(long, norms, 1), 1).astype(
                    parameter.dtype
                )

    def _average(self, mixing: float) -> None:
        for name in parameter_shapes(self.task.network):
            parameter, average = self._state[name], self._state[AVERAGE + name]
            for rows in _blocks(parameter):
                difference = parameter[rows] - average[rows]
                difference *= mixing
                average[rows] += difference


def _backward(tape: list[LayerPass], delta: Floats) -> list[Floats]:
    """Return the gradients with respect to z of each layer, from that of the last layer.

    It computes no gradient of a weight. The gradient of the input is `tape[0].to_inputs` of the first one.
    """
    deltas = [delta]
    for below, layer in zip(tape[-2::-1], tape[:0:-1], strict=True):
        deltas.insert(0, below.to_z(layer.to_inputs(deltas[0])))
    return deltas


def _factors(tape: list[LayerPass], delta: Floats) -> Factors:
    return [layer.inputs for layer in tape], _backward(tape, delta)


def _blocks(array: Floats) -> Iterator[slice]:
    """Yield slices along the first axis, of about `BLOCK` bytes each."""
    rows = max(1, BLOCK * len(array) // array.nbytes)
    for begin in range(0, len(array), rows):
        yield slice(begin, begin + rows)


def _gradients(*terms: tuple[float, Factors]) -> list[Floats]:
    """Return the gradients of weights and biases: sums over examples, and weighted sums over terms.

    They are in the order of the parameters' names. The examples of all terms enter one matrix product.
    """
    gradients = []
    for layer in range(len(terms[0][1][0])):
        x = _stacked([inputs[layer] for _, (inputs, _) in terms])
        delta = _stacked([deltas[layer] * deltas[layer].dtype.type(w) for w, (_, deltas) in terms])
        gradients += [x.T @ delta, delta.sum(axis=0)]
    return gradients


def _stacked(arrays: list[Floats]) -> Floats:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _cross_entropy_tangent(delta: Floats, labels: Ints, v: Floats) -> Floats:
    """Return the derivative of the cross-entropy's gradient along v: y * (v - <y, v>), y the probabilities.

    With v_label subtracted from v, <y, v> = <delta, v>, and no terms cancel where y_label rounds to 1.
    """
    rows = np.arange(len(labels))
    v = v - v[rows, labels, None]
    mean = (delta * v).sum(axis=1)
    tangent: Floats = delta * (v - mean[:, None])
    tangent[rows, labels] -= mean
    return tangent


def _smoothing(amount: float, logits: Floats, labels: Array) -> tuple[Floats, Floats]:
    """Return the terms that smoothed labels add to the loss of each example, and to its logits' gradient."""
    rows, factor = np.arange(len(labels)), logits.dtype.type(amount)
    slope = np.full_like(logits, -factor / logits.shape[1])
    slope[rows, labels] += factor
    return factor * (logits[rows, labels] - logits.mean(axis=1)), slope


def _wrong(odds: Floats) -> Floats:
    """Return 1 - p_y = sigmoid(error log-odds), to full relative accuracy where it is tiny."""
    return np.exp(-np.logaddexp(0, -odds))


def _distance_delta(outputs: Floats, targets: Floats) -> Floats:
    """Return the gradient of the distance, a unit vector; 0 where the outputs are the targets."""
    return epsilon(outputs - targets, 2, outputs.shape[1] ** -0.5)


class _Deltas(NamedTuple):
    """The derivatives of a loss with respect to the outputs."""

    inner: Callable[[Floats, Any], Floats]
    """inner(outputs, targets) is the gradient of the loss's inner function."""
    loss_tangent: Callable[[Floats, Any, Floats], Floats]
    """loss_tangent(delta, targets, v) is the derivative along v of the loss's gradient, which is delta."""


_LOSSES: dict[LossName, tuple[Loss, _Deltas]] = {
    "cross-entropy": (
        LOSSES["cross-entropy"]._replace(outer=lambda odds: np.logaddexp(odds, 0), slope=_wrong),
        _Deltas(odds_gradient, _cross_entropy_tangent),
    ),
    "squared-error": (
        LOSSES["squared-error"],
        _Deltas(_distance_delta, lambda delta, targets, v: v / v.shape[1]),
    ),
}
