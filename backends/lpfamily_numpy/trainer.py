"""Dense networks in NumPy: a step is the chain rule, written out.

Read `_forward`, `_backward` and `_tangent`; `epoch` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from lpfamily import cross_entropy, error_log_odds, penalty
from lpfamily.ascent import frank_wolfe
from lpfamily.training.backends import DIFFERENCE_STEP, Metrics, Rates, Task
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Dense, State, parameter_shapes

Floats = NDArray[Any]

SMALL_PRODUCT = 40_000_000
"""Multiplications up to which one thread computes a product, in a millisecond: two hardly gain on it, and
where other programs hold the cores they wait for each other, many times as long as they compute."""

# A loss that overflows is for the protocol to notice, once, not for a warning at every step.
_quiet = np.errstate(all="ignore")


@dataclass(frozen=True)
class NumpyBackend:
    """Trains dense networks on the CPU."""

    layers: frozenset[type] = frozenset({Dense})

    def check_device(self, device: str) -> None:
        """Accept the CPU alone."""
        if device != "cpu":
            raise BadInput(f"backend 'numpy' computes on cpu; got --device {device}")

    def trainer(self, task: Task, state: State) -> NumpyTrainer:
        """Return a trainer for `task` that starts from `state`."""
        return NumpyTrainer(task, state)


backend = NumpyBackend()


class NumpyTrainer:
    """A dense network in training; `lpfamily.training.backends.Trainer` says what each method does."""

    def __init__(self, task: Task, state: State) -> None:
        self.task = task
        self._pools = ThreadpoolController()
        self.load(state)

    def state(self) -> State:
        return {name: array.copy() for name, array in self._state.items()}

    def load(self, state: State) -> None:
        self._state = {name: np.array(array, self.task.dtype) for name, array in state.items()}

    @_quiet
    def epoch(self, order: NDArray[Any], rates: Rates, draws: Draws) -> Metrics:
        size, loss, wrong = self.task.batch_size, 0.0, 0
        with self._threads():
            for step, (lr, momentum, sigma) in enumerate(
                zip(rates.lr, rates.momentum, rates.sigma, strict=True)
            ):
                batch = order[step * size : (step + 1) * size]
                x, labels = self.task.x[batch], self.task.labels[batch]
                losses, errors, gradients = self._step(x, labels, float(sigma), step, draws)
                self._update(gradients, float(lr), float(momentum), len(x))
                loss, wrong = loss + float(losses.sum()), wrong + int(errors.sum())
        return {"loss": loss / len(order), "error": wrong / len(order)}

    @_quiet
    def logits(self, x: Floats) -> Floats:
        return self._forward(x)[-1]

    @_quiet
    def losses(self, x: Floats, labels: NDArray[Any]) -> Floats:
        return np.asarray(cross_entropy(self.logits(x), labels))

    @_quiet
    def input_gradients(self, x: Floats, labels: NDArray[Any]) -> Floats:
        activations = self._forward(x)
        return self._backward(activations, _odds_delta(activations[-1], labels))[0]

    @_quiet
    def hessian_products(self, x: Floats, labels: NDArray[Any], v: Floats) -> Floats:
        activations = self._forward(x)
        deltas = self._backward(activations, _loss_delta(activations[-1], labels))
        return self._tangent(activations, deltas, v)[1][0]

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Give a step's products one thread where they are small."""
        largest = max(math.prod(shape) for shape in parameter_shapes(self.task.network).values())
        limit = 1 if self.task.batch_size * largest <= SMALL_PRODUCT else None
        with self._pools.limit(limits=limit, user_api="blas"):
            yield

    def _step(
        self, x: Floats, labels: NDArray[Any], sigma: float, step: int, draws: Draws
    ) -> tuple[Floats, NDArray[Any], list[Floats]]:
        """Return the objective of each example, whether it is misclassified, and the summed gradients."""
        objective = self.task.objective
        if objective.name == "noise":
            return self._at(x + x.dtype.type(sigma) * draws.noise(step, x.shape, self.task.dtype), labels)
        if objective.name == "plain":
            return self._at(x, labels)
        start = None
        if objective.random_start:
            start = x.dtype.type(sigma) * draws.start(step, x.shape, objective.p, self.task.dtype)
        if objective.name == "penalty":
            return self._penalised(x, labels, sigma)
        eps = frank_wolfe(
            lambda at: self.input_gradients(at, labels), x, objective.p, sigma, objective.steps, start
        )
        losses, errors, gradients = self._at(x + eps, labels)
        if weight := objective.clean_weight:
            clean, _, clean_gradients = self._at(x, labels)
            losses = weight * clean + (1 - weight) * losses
            gradients = [
                weight * a + (1 - weight) * b for a, b in zip(clean_gradients, gradients, strict=True)
            ]
        return losses, errors, gradients

    def _at(self, x: Floats, labels: NDArray[Any]) -> tuple[Floats, NDArray[Any], list[Floats]]:
        activations = self._forward(x)
        logits = activations[-1]
        deltas = self._backward(activations, _loss_delta(logits, labels), to_input=False)
        losses = np.asarray(cross_entropy(logits, labels))
        return losses, logits.argmax(axis=1) != labels, _products(activations, deltas)

    def _penalised(
        self, x: Floats, labels: NDArray[Any], sigma: float
    ) -> tuple[Floats, NDArray[Any], list[Floats]]:
        """L + sigma ||grad L||_{p*}, whose second term is <grad L, eps> with eps constant (Hölder)."""
        objective = self.task.objective
        activations = self._forward(x)
        odds = error_log_odds(activations[-1], labels)
        odds_deltas = self._backward(activations, _odds_delta(activations[-1], labels))
        wrong = _wrong(odds)[:, None]
        deltas = [wrong * delta for delta in odds_deltas]
        eps = frank_wolfe(lambda _: odds_deltas[0], x, objective.p, sigma, 1)
        losses, errors = np.logaddexp(odds, 0), activations[-1].argmax(axis=1) != labels
        gradients = _products(activations, deltas)
        if objective.penalty_by == "difference":
            h = x.dtype.type(DIFFERENCE_STEP)
            ahead, _, ahead_gradients = self._at(x + h * eps, labels)
            total = losses + (ahead - losses) / h
            return total, errors, [a + (b - a) / h for a, b in zip(gradients, ahead_gradients, strict=True)]
        tangents, delta_tangents = self._tangent(activations, deltas, eps, to_input=False)
        # the derivative of activation' @ delta along eps has two terms
        for extra in (_products(tangents, deltas, bias=False), _products(activations, delta_tangents)):
            gradients = [a + b for a, b in zip(gradients, extra, strict=True)]
        return losses + wrong[:, 0] * penalty(odds_deltas[0], objective.p, sigma), errors, gradients

    def _forward(self, x: Floats) -> list[Floats]:
        """Return the input, every layer's output, and last the logits."""
        activations = [x]
        for index, layer in enumerate(self.task.network.layers):
            z = activations[-1] @ self._weight(index)
            z += self._state[f"layers.{index}.bias"]
            activations.append(_sigmoid(z) if layer.activation == "sigmoid" else z)
        return activations

    def _backward(self, activations: list[Floats], delta: Floats, *, to_input: bool = True) -> list[Floats]:
        """Return the gradient with respect to the input and to what enters each layer's activation.

        No gradient of a weight is computed here; without `to_input` the first entry is delta's.
        """
        deltas = [delta]
        for index in range(len(self.task.network.layers) - 1, 0, -1):
            below = deltas[0] @ self._weight(index).T
            below *= self._slope(index - 1, activations)
            deltas.insert(0, below)
        return [deltas[0] @ self._weight(0).T if to_input else deltas[0], *deltas]

    def _tangent(
        self, activations: list[Floats], deltas: list[Floats], v: Floats, *, to_input: bool = True
    ) -> tuple[list[Floats], list[Floats]]:
        """Return the derivatives along v of what `_forward` and `_backward` of the loss returned."""
        tangents = [v]
        inner = []  # of what enters each activation
        for index in range(len(self.task.network.layers)):
            inner.append(tangents[-1] @ self._weight(index))
            tangents.append(inner[-1] * self._slope(index, activations))
        probabilities = _softmax(activations[-1])
        mean = (probabilities * inner[-1]).sum(axis=1, keepdims=True)
        delta_tangents = [probabilities * (inner[-1] - mean)]
        for index in range(len(self.task.network.layers) - 1, 0, -1):
            below = delta_tangents[0] @ self._weight(index).T
            below *= self._slope(index - 1, activations)
            below += deltas[index] * self._bend(index - 1, activations) * inner[index - 1]
            delta_tangents.insert(0, below)
        first = delta_tangents[0] @ self._weight(0).T if to_input else delta_tangents[0]
        return tangents, [first, *delta_tangents]

    def _weight(self, index: int) -> Floats:
        return self._state[f"layers.{index}.weight"]

    def _slope(self, index: int, activations: list[Floats]) -> Floats:
        """Return a layer's activation' at what enters it, from its output."""
        a = activations[index + 1]
        return a * (1 - a) if self.task.network.layers[index].activation == "sigmoid" else np.ones_like(a)

    def _bend(self, index: int, activations: list[Floats]) -> Floats:
        """Return activation'' / activation'."""
        a = activations[index + 1]
        return 1 - 2 * a if self.task.network.layers[index].activation == "sigmoid" else np.zeros_like(a)

    def _update(self, gradients: list[Floats], lr: float, momentum: float, examples: int) -> None:
        for name, gradient in zip(parameter_shapes(self.task.network), gradients, strict=True):
            parameter, velocity = self._state[name], self._state[f"velocity.{name}"]
            gradient /= examples
            is_weight = name.endswith("weight")
            if is_weight and self.task.weight_decay:
                gradient += self.task.weight_decay * parameter
            velocity *= momentum
            velocity -= lr * gradient
            parameter += velocity
            limit = self.task.network.layers[int(name.split(".")[1])].max_norm
            if is_weight and limit is not None:
                norms = np.linalg.norm(parameter, axis=0)
                parameter *= np.where(norms > limit, limit / np.where(norms > limit, norms, 1), 1).astype(
                    parameter.dtype
                )


def _products(activations: list[Floats], deltas: list[Floats], *, bias: bool = True) -> list[Floats]:
    """Return the gradients of weights and biases, summed over the examples, in the order of the names."""
    gradients = []
    for a, delta in zip(activations[:-1], deltas[1:], strict=True):
        gradients.append(a.T @ delta)
        gradients.append(delta.sum(axis=0) if bias else np.zeros(delta.shape[1], delta.dtype))
    return gradients


def _sigmoid(z: Floats) -> Floats:
    # tanh saturates where exp would overflow
    result: Floats = 0.5 * np.tanh(0.5 * z) + 0.5
    return result


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = e / e.sum(axis=1, keepdims=True)
    return result


def _odds_delta(logits: Floats, labels: NDArray[Any]) -> Floats:
    """Return the gradient of the error log-odds: softmax over the wrong classes, -1 at the right one."""
    rows = np.arange(len(labels))
    wrong = logits.copy()
    wrong[rows, labels] = -np.inf
    delta = _softmax(wrong)
    delta[rows, labels] = -1
    return delta


def _loss_delta(logits: Floats, labels: NDArray[Any]) -> Floats:
    """Return the gradient of the cross-entropy: (1 - p_y) times that of the error log-odds."""
    return _wrong(error_log_odds(logits, labels))[:, None] * _odds_delta(logits, labels)


def _wrong(odds: Floats) -> Floats:
    """Return 1 - p_y = sigmoid(error log-odds), to full relative accuracy where it is tiny."""
    return np.exp(-np.logaddexp(0, -odds))
