"""Networks in JAX: an epoch is compiled scans over its steps, or of convolutions on the CPU, one step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from lpfamily import error_log_odds, penalty
from lpfamily.ascent import frank_wolfe
from lpfamily.training.backends import DIFFERENCE_STEP, Metrics, Rates, Task
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import (
    ConvMaxout,
    Dense,
    Maxout,
    Network,
    State,
    layer_of,
    parameter_shapes,
)
from lpfamily_jax.model import Arrays, JaxModel, forward

SCANNED = 64
"""The most steps of a scan: their random numbers are made before it."""


@dataclass(frozen=True)
class JaxBackend:
    """Trains every network on any platform of JAX's."""

    layers: frozenset[type] = frozenset({Dense, Maxout, ConvMaxout})

    def check_device(self, device: str) -> None:
        """Ask JAX for the device."""
        _device(device)

    def trainer(self, task: Task, state: State) -> JaxTrainer:
        """Return a trainer for `task` that starts from `state`."""
        return JaxTrainer(task, state)

    def model(self, network: Network, parameters: State) -> JaxModel:
        """Return the network as a pytree on the default device; float64 needs JAX's 64-bit mode."""
        arrays = {name: jnp.array(array) for name, array in parameters.items()}
        if any(array.dtype != parameters[name].dtype for name, array in arrays.items()):
            raise BadInput(
                'JAX has no float64 until you call jax.config.update("jax_enable_x64", True); the network is '
                "of float64, so call it first"
            )
        return JaxModel(network, arrays)


backend = JaxBackend()

Method = TypeVar("Method", bound=Callable[..., Any])


def _scoped(method: Method) -> Method:
    """Run a method of the trainer with its device, width and precision, whatever the process has set."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any) -> Any:
        with self._scope():
            return method(self, *args)

    return wrapper  # type: ignore[return-value]


class JaxTrainer:
    """A network in training; `lpfamily.training.backends.Trainer` says what each method does."""

    def __init__(self, task: Task, state: State) -> None:
        self.task = task
        with self._scope():
            self._x, self._labels = jnp.asarray(task.x), jnp.asarray(task.labels)
        self.load(state)

    @_scoped
    def state(self) -> State:
        return {name: np.array(array) for name, array in self._state.items()}

    @_scoped
    def load(self, state: State) -> None:
        self._state = {name: jnp.array(array, self.task.dtype) for name, array in state.items()}

    @_scoped
    def epoch(self, order: NDArray[Any], rates: Rates, draws: Draws) -> Metrics:
        schedule = np.stack([rates.lr, rates.momentum, rates.sigma], axis=1).astype(self.task.dtype)
        totals, done = [], 0
        for batches in self._scans(order):
            part = range(done, done := done + len(batches))
            drawn = [self._drawn(draws, step, batches.shape[1]) for step in part]
            stacked = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *drawn)
            steps = (jnp.asarray(batches), jnp.asarray(schedule[part.start : part.stop]), stacked)
            self._state, total = _epoch(self._settings, self._state, self._x, self._labels, steps)
            totals.append(total)
        loss, error = (np.sum(jax.device_get(totals), axis=0) / len(order)).tolist()
        return {"loss": loss, "error": error}

    @_scoped
    def logits(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(forward(self.task.network, self._state, jnp.asarray(x)))

    @_scoped
    def losses(self, x: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(_losses(self.task.network, self._state, jnp.asarray(x), jnp.asarray(labels)))

    @_scoped
    def input_gradients(self, x: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(_direction(self.task.network, self._state, jnp.asarray(x), jnp.asarray(labels)))

    @_scoped
    def hessian_products(self, x: NDArray[Any], labels: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        arrays = (jnp.asarray(x), jnp.asarray(labels), jnp.asarray(v))
        return np.asarray(_hessian_products(self.task.network, self._state, *arrays))

    @property
    def _settings(self) -> tuple[Any, ...]:
        return (self.task.network, self.task.objective, self.task.weight_decay)

    def _scans(self, order: NDArray[Any]) -> list[NDArray[Any]]:
        """Return each scan's batches, (steps, examples), of two lengths at most, and a smaller last one."""
        network, size = self.task.network, self.task.batch_size
        whole = order[: len(order) // size * size].reshape(-1, size)
        convolves = any(isinstance(layer, ConvMaxout) for layer in network.layers)
        # inside of a scan, convolutions take 12 times as long on a CPU
        most = 1 if convolves and _device(self.task.device).platform == "cpu" else SCANNED
        parts = np.array_split(whole, -(-len(whole) // most)) if len(whole) else []
        return [*parts, order[None, whole.size :]] if whole.size < len(order) else parts

    def _drawn(self, draws: Draws, step: int, width: int) -> dict[str, Any]:
        """Return the random numbers of a step, as arrays of NumPy."""
        objective, network = self.task.objective, self.task.network
        shape, masks = (width, network.inputs), draws.masks(step, network, width)
        drawn: dict[str, Any] = {"masks": masks}
        if objective.name == "noise":
            drawn["noise"] = draws.noise(step, shape, self.task.dtype)
        if objective.name == "perturb":
            drawn["direction"] = draws.direction_masks(
                step, network, width, objective.direction_dropout, objective.steps, same=masks
            )
            if objective.random_start:
                drawn["start"] = draws.start(step, shape, objective.p, self.task.dtype)
        return drawn

    @contextmanager
    def _scope(self) -> Iterator[None]:
        precision = "tensorfloat32" if self.task.tf32 else "highest"
        with (
            jax.default_device(_device(self.task.device)),
            jax.enable_x64(self.task.dtype == "float64"),
            jax.default_matmul_precision(precision),
        ):
            yield


def _device(name: str) -> Any:
    platform, _, index = name.partition(":")
    try:
        if not platform or not (index or "0").isdecimal():
            raise ValueError("its form is cpu, gpu or gpu:1")
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as cause:
        reason = str(cause).splitlines()[0]
        raise BadInput(f"--device {name}: JAX cannot use it ({reason}); cpu always works") from cause


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(
    settings: tuple[Any, ...], state: Arrays, x: Array, labels: Array, steps: Any
) -> tuple[Arrays, Array]:
    """Take the steps in order; return the state and the sums of the objective and of the errors."""
    network, objective, weight_decay = settings

    def step(state: Arrays, inputs: Any) -> tuple[Arrays, Array]:
        batch, (lr, momentum, sigma), drawn = inputs
        parameters = {name: state[name] for name in parameter_shapes(network)}
        at, right = x[batch], labels[batch]

        def mean(parameters: Arrays) -> tuple[Array, tuple[Array, Array]]:
            losses, logits = _objective(network, objective, parameters, at, right, sigma, drawn)
            return losses.mean(), (losses.sum(), (logits.argmax(axis=1) != right).sum())

        gradients, (loss, wrong) = jax.grad(mean, has_aux=True)(parameters)
        new = _updated(network, state, gradients, lr, momentum, weight_decay)
        return new, jnp.stack([loss, wrong.astype(loss.dtype)])

    if len(steps[0]) == 1:
        return step(state, jax.tree.map(lambda array: array[0], steps))
    state, totals = jax.lax.scan(step, state, steps)
    return state, totals.sum(axis=0)


def _objective(
    network: Network,
    objective: Any,
    state: Arrays,
    x: Array,
    labels: Array,
    sigma: Array,
    drawn: dict[str, Any],
) -> tuple[Array, Array]:
    """Return the objective of each example and the logits it saw."""
    masks = drawn["masks"]
    if objective.name == "penalty":
        return _penalised(network, objective, state, x, labels, sigma, masks)
    clean = x
    if objective.name == "noise":
        x = x + sigma * drawn["noise"]
    elif objective.name == "perturb":
        fixed, passes = jax.lax.stop_gradient(state), iter(drawn["direction"])
        start = sigma * drawn["start"] if objective.random_start else None
        x = x + frank_wolfe(
            lambda at: _direction(network, fixed, at, labels, next(passes)),
            x,
            objective.p,
            sigma,
            objective.steps,
            start,
        )
    logits = forward(network, state, x, masks)
    losses = jax.nn.softplus(error_log_odds(logits, labels))
    if objective.name == "perturb" and (weight := objective.clean_weight):
        losses = weight * _losses(network, state, clean, labels, masks) + (1 - weight) * losses
    return losses, logits


def _penalised(
    network: Network, objective: Any, state: Arrays, x: Array, labels: Array, sigma: Array, masks: Any
) -> tuple[Array, Array]:
    def odds_of(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = forward(network, state, x, masks)
        odds = error_log_odds(logits, labels)
        return odds.sum(), (odds, logits)

    gradient, (odds, logits) = jax.grad(odds_of, has_aux=True)(x)
    losses = jax.nn.softplus(odds)
    if objective.penalty_by == "difference":
        fixed = jax.lax.stop_gradient(gradient)
        eps = frank_wolfe(lambda _: fixed, x, objective.p, sigma, 1)
        ahead = _losses(network, state, x + DIFFERENCE_STEP * eps, labels, masks)
        return losses + (ahead - losses) / DIFFERENCE_STEP, logits
    return losses + jax.nn.sigmoid(odds) * penalty(gradient, objective.p, sigma), logits


@functools.partial(jax.jit, static_argnums=0)
def _losses(network: Network, state: Arrays, x: Array, labels: Array, masks: Any = None) -> Array:
    return jax.nn.softplus(error_log_odds(forward(network, state, x, masks), labels))


@functools.partial(jax.jit, static_argnums=0)
def _direction(network: Network, state: Arrays, x: Array, labels: Array, masks: Any = None) -> Array:
    """Return the input gradient of the error log-odds; no weight gradient is computed."""
    gradient: Array = jax.grad(lambda at: error_log_odds(forward(network, state, at, masks), labels).sum())(x)
    return gradient


@functools.partial(jax.jit, static_argnums=0)
def _hessian_products(network: Network, state: Arrays, x: Array, labels: Array, v: Array) -> Array:
    gradient = jax.grad(lambda at: _losses(network, state, at, labels).sum())
    product: Array = jax.jvp(gradient, (x,), (v,))[1]
    return product


def _updated(
    network: Network, state: Arrays, gradients: Arrays, lr: Array, momentum: Array, weight_decay: float
) -> Arrays:
    new = {}
    for name, gradient in gradients.items():
        layer, is_weight = layer_of(network, name), name.endswith("weight")
        if is_weight and weight_decay:
            gradient = gradient + weight_decay * state[name]
        velocity = momentum * state[f"velocity.{name}"] - lr * layer.lr_scale * gradient
        parameter = state[name] + velocity
        if is_weight and layer.max_norm is not None:
            norms = jnp.sqrt(jnp.sum(parameter**2, axis=layer.norm_axes, keepdims=True))
            parameter = parameter * jnp.where(norms > layer.max_norm, layer.max_norm / norms, 1.0)
        new[name], new[f"velocity.{name}"] = parameter, velocity
    return new
