"""All that a trainer computes, straight from the definitions: slow, by complex steps and central differences.

The forward passes are those of `lpfamily_reference.networks`. `lpfamily.training.testing` compares backends
with this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpfamily.balls import project
from lpfamily.norms import norm
from lpfamily.steepest import dual_exponent
from lpfamily.step import epsilon
from lpfamily.training.draws import Draws, Random
from lpfamily.training.networks import (
    ConvMaxout,
    Dense,
    Floats,
    Ints,
    Layer,
    Maxout,
    Network,
    Rectifier,
    State,
    layer_of,
    parameter_shapes,
    shapes,
)
from lpfamily.training.tasks import DIFFERENCE_STEP, Task
from lpfamily_reference.definitions import central_difference
from lpfamily_reference.networks import convolution, dense, max_pooling, maxout, rectifier, sigmoid

Array = NDArray[np.inexact]
"""Real, or complex for derivatives by complex steps."""

Targets = NDArray[Any]
"""Labels or, for squared errors, targets."""

Function = Callable[[Array, Targets], Array]
"""A function of outputs and targets, with one value per example."""


def _dense(layer: Dense, x: Array, weight: Array, bias: Array) -> Array:
    z = dense(x, weight, bias)
    return sigmoid(z) if layer.activation == "sigmoid" else z


def _conv_maxout(layer: ConvMaxout, x: Array, weight: Array, bias: Array) -> Array:
    z = maxout(convolution(x, weight, bias, layer.padding), layer.pieces)
    return max_pooling(z, layer.pool, layer.stride)


LAYERS: dict[type[Layer], Callable[..., Array]] = {
    Dense: _dense,
    Rectifier: lambda layer, x, weight, bias: rectifier(dense(x, weight, bias)),
    Maxout: lambda layer, x, weight, bias: maxout(dense(x, weight, bias), layer.pieces),
    ConvMaxout: _conv_maxout,
}
"""For each layer type, its outputs as a function of the layer, its inputs, weight and bias."""


def logits(network: Network, state: State, x: Array, random: list[Random] | None = None) -> Array:
    """Return the network's logits for real or complex x, with the random arrays of each layer."""
    for index, (layer, entering) in enumerate(zip(network.layers, shapes(network), strict=False)):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        x = x.reshape(len(x), *entering)
        mask, noise = random[index] if random else Random()
        if mask is not None and layer.dropout:
            x = x * mask * layer.dropout.scale
        if noise is not None:  # like a bias that differs between examples
            bias = bias.reshape(*bias.shape, *[1] * (noise.ndim - 1 - bias.ndim)) + noise
        x = LAYERS[type(layer)](layer, x, weight, bias)
    return x


def cross_entropy(logits: Array, labels: Targets) -> Array:
    """Return logsumexp(z) - z_y."""
    return np.asarray(_logsumexp(logits) - logits[np.arange(len(labels)), labels])


def error_log_odds(logits: Array, labels: Targets) -> Array:
    """Return logsumexp(z over the wrong classes) - z_y."""
    wrong = np.arange(logits.shape[1]) != labels[:, None]
    rest = logits[wrong].reshape(len(labels), -1)
    return np.asarray(_logsumexp(rest) - logits[~wrong])


def distance(outputs: Array, targets: Targets) -> Array:
    """Return the root mean square of outputs - targets."""
    return np.asarray(np.sqrt(np.mean((outputs - targets) ** 2, axis=1)))


def divergence(logits: Array, log_probabilities: Targets) -> Array:
    """Return KL(f || g) for log f and the logits of g."""
    terms = np.exp(log_probabilities) * (log_probabilities - _log_softmax(logits))
    return np.asarray(terms.sum(axis=1))


def _slope(logits: Array, log_probabilities: Targets) -> Array:
    """Return the gradient of the divergence with respect to the logits.

    The entry of the likeliest class is minus the sum of the others: its two probabilities, both near 1, would
    cancel.
    """
    slope, rows = np.exp(_log_softmax(logits)) - np.exp(log_probabilities), np.arange(len(logits))
    likely = log_probabilities.argmax(axis=1)
    slope[rows, likely] = 0
    slope[rows, likely] = -slope.sum(axis=1)
    return np.asarray(slope)


def _along(logits: Array, slope: Targets) -> Array:
    return np.asarray((logits * slope).sum(axis=1))


def _log_softmax(logits: Array) -> Array:
    """Return log-probabilities; that of the likely class is log1p(-the sum of the other probabilities)."""
    result, rows = np.asarray(logits - _logsumexp(logits)[:, None]), np.arange(len(logits))
    likely = logits.real.argmax(axis=1)
    others = np.exp(result)
    others[rows, likely] = 0
    result[rows, likely] = np.log1p(-others.sum(axis=1))
    return result


class Loss(NamedTuple):
    """A loss, the function whose gradient is the direction of perturbations, and the error."""

    value: Function
    inner: Function
    error: Function


LOSSES = {
    "cross-entropy": Loss(cross_entropy, error_log_odds, lambda z, labels: z.argmax(axis=1) != labels),
    "squared-error": Loss(lambda y, targets: distance(y, targets) ** 2 / 2, distance, distance),
}


def _logsumexp(z: Array) -> Array:
    top = z.real.max(axis=1)
    return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))


def input_gradient(
    function: Function,
    network: Network,
    state: State,
    x: Array,
    labels: Targets,
    random: list[Random] | None = None,
) -> Floats:
    """Return the gradient of a function of each example in its input, by a complex step: Im f(x + ih) / h."""
    h, inputs = 1e-30, x.shape[1]
    at = (x + 1j * h * np.eye(inputs)[:, None, :]).reshape(-1, inputs)
    many = random and [
        Random(*(each if each is None else np.tile(each, (inputs, *[1] * (each.ndim - 1))) for each in both))
        for both in random
    ]
    values = function(logits(network, state, at, many), np.concatenate([labels] * inputs))
    return values.imag.reshape(inputs, -1).T / h


def perturbation(
    task: Task,
    state: State,
    x: Floats,
    labels: Targets,
    sigma: float,
    start: Floats,
    passes: list[list[Random]] | None = None,
) -> Floats:
    """Return eps after the steps of the objective's method from x + start; gradient k uses `passes[k]`."""
    p, steps, eps, inner = task.objective.p, task.objective.steps, start, LOSSES[task.network.loss].inner
    for k in range(steps):
        random = passes[k] if passes else None
        if task.objective.name == "trades":
            fixed = _log_softmax(logits(task.network, state, x, passes[0] if passes else None))
            inner, labels = _along, _slope(logits(task.network, state, x + eps, random), fixed)
        gradient = input_gradient(inner, task.network, state, x + eps, labels, random)
        if task.objective.method == "projected":
            eps = project(eps + epsilon(gradient, p, (2.5 / steps if steps > 1 else 1) * sigma), p, sigma)
        else:
            eps = eps + 2 / (k + 2) * (epsilon(gradient, p, sigma) - eps)
    return eps


def objective_and_gradient(
    task: Task, state: State, batch: Ints, sigma: float, step: int, draws: Draws
) -> tuple[float, State]:
    """Return the mean objective of a batch and its gradient by central differences, with eps constant."""
    mean = objective(task, state, batch, sigma, step, draws)
    return mean(state), central_differences(mean, state, list(parameter_shapes(task.network)))


def objective(
    task: Task, state: State, batch: Ints, sigma: float, step: int, draws: Draws
) -> Callable[[State], float]:
    """Return the mean objective of a batch as a function of the parameters, with the eps of `state`."""
    kind, network, x, labels = task.objective, task.network, task.x[batch], task.labels[batch]
    masks, noises = (
        draws.masks(step, network, len(x)),
        draws.layer_noise(step, network, len(x), task.dtype),
    )
    random, value = list(map(Random, masks, noises)), LOSSES[network.loss].value
    if kind.name == "noise":
        x = x + sigma * draws.noise(step, x.shape, task.dtype)
    eps = np.zeros_like(x)
    if kind.name in ("perturb", "penalty", "trades"):
        passes, start = [random], np.zeros_like(x)
        if kind.name != "penalty":
            of_passes = kind.direction_dropout, kind.steps
            each = zip(
                draws.direction_masks(step, network, len(x), *of_passes, same=masks),
                draws.direction_noise(step, network, len(x), task.dtype, *of_passes, same=noises),
                strict=True,
            )
            passes = [list(map(Random, *both)) for both in each]
        if kind.random_start or kind.name == "trades":
            start = sigma * draws.start(step, x.shape, kind.p, task.dtype)
        eps = perturbation(task, state, x, labels, sigma, start, passes)

    def loss(parameters: State, at: Array, smoothing: float = 0.0) -> Array:
        outputs = logits(network, parameters, at, random)
        return value(outputs, labels) + (smoothing and smoothing * _smoothing(outputs, labels))

    def mean(parameters: State) -> float:
        values = loss(parameters, x, kind.label_smoothing)
        if kind.name == "perturb":
            ahead, weight = loss(parameters, x + eps, kind.label_smoothing), kind.clean_weight
            values = weight * values + (1 - weight) * ahead
        elif kind.name == "trades":
            clean, ahead = (logits(network, parameters, at, random) for at in (x, x + eps))
            values = values + kind.beta * divergence(ahead, _log_softmax(clean))
        elif kind.name == "penalty" and kind.penalty_by == "gradient":
            gradient = input_gradient(value, network, parameters, x, labels, random)
            values = values + sigma * norm(gradient, dual_exponent(kind.p))
        elif kind.name == "penalty":
            h = DIFFERENCE_STEP
            values = values + (loss(parameters, x + h * eps) - loss(parameters, x)) / h
        return float(values.mean())

    return mean


def _smoothing(z: Array, labels: Targets) -> Array:
    """Return the mean cross-entropy over all classes minus that of the label."""
    classes = range(z.shape[1])
    of_each = [cross_entropy(z, np.full(len(z), label)) for label in classes]
    return np.asarray(np.mean(of_each, axis=0) - cross_entropy(z, labels))


def central_differences(mean: Callable[[State], float], state: State, names: list[str]) -> State:
    """Return the gradient of `mean` with respect to the named arrays."""

    def along(name: str) -> Floats:
        def at(entries: Floats) -> float:
            return mean(state | {name: entries.reshape(state[name].shape)})

        entries = np.asarray(state[name], np.float64).ravel()
        return central_difference(at, entries, 1e-5).reshape(state[name].shape)

    return {name: along(name) for name in names}


def updated(
    task: Task, state: State, gradients: State, lr: float, momentum: float, mixing: float = 1.0
) -> State:
    """Return the state after one step."""
    new = dict(state)
    for name, gradient in gradients.items():
        layer, is_weight = layer_of(task.network, name), name.endswith("weight")
        total = gradient + task.weight_decay * state[name] if is_weight else gradient
        velocity = momentum * state[f"velocity.{name}"] - lr * layer.lr_scale * total
        parameter = state[name] + velocity
        if is_weight and layer.max_norm is not None:
            norms = np.sqrt(np.sum(parameter**2, axis=layer.norm_axes, keepdims=True))
            parameter = parameter * np.minimum(1, layer.max_norm / norms)
        new[name], new[f"velocity.{name}"] = parameter, velocity
        if task.optimiser.ema:
            new[f"average.{name}"] = (1 - mixing) * state[f"average.{name}"] + mixing * parameter
    return new
