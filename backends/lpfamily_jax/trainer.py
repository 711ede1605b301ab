"""Dense networks in JAX: an epoch is one compiled scan over its steps."""

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
from lpfamily.training.networks import Dense, Network, State, parameter_shapes

Arrays = dict[str, Array]


@dataclass(frozen=True)
class JaxBackend:
    """Trains dense networks on any platform of JAX's."""

    layers: frozenset[type] = frozenset({Dense})

    def check_device(self, device: str) -> None:
        """Ask JAX for the device."""
        _device(device)

    def trainer(self, task: Task, state: State) -> JaxTrainer:
        """Return a trainer for `task` that starts from `state`."""
        return JaxTrainer(task, state)


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
    """A dense network in training; `lpfamily.training.backends.Trainer` says what each method does."""

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
        size, whole = self.task.batch_size, len(order) // self.task.batch_size
        schedule = np.stack([rates.lr, rates.momentum, rates.sigma], axis=1).astype(self.task.dtype)
        totals = []
        # the last batch may be smaller, and a scan has one shape
        for first, last, width in ((0, whole, size), (whole, len(schedule), len(order) - whole * size)):
            if first < last:
                batches = order[first * size :][: (last - first) * width].reshape(last - first, width)
                drawn = self._drawn(draws, range(first, last), width)
                steps = (jnp.asarray(batches), jnp.asarray(schedule[first:last]), drawn)
                self._state, total = _epoch(self._settings, self._state, self._x, self._labels, steps)
                totals.append(total)
        loss, error = (np.sum(jax.device_get(totals), axis=0) / len(order)).tolist()
        return {"loss": loss, "error": error}

    @_scoped
    def logits(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(_logits(self.task.network, self._state, jnp.asarray(x)))

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

    def _drawn(self, draws: Draws, steps: range, width: int) -> Array | None:
        objective, shape = self.task.objective, (width, self.task.network.inputs)
        if objective.name == "noise":
            return jnp.asarray(np.stack([draws.noise(step, shape, self.task.dtype) for step in steps]))
        if objective.name == "perturb" and objective.random_start:
            starts = [draws.start(step, shape, objective.p, self.task.dtype) for step in steps]
            return jnp.asarray(np.stack(starts))
        return None

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

    state, totals = jax.lax.scan(step, state, steps)
    return state, totals.sum(axis=0)


def _objective(
    network: Network,
    objective: Any,
    state: Arrays,
    x: Array,
    labels: Array,
    sigma: Array,
    drawn: Any,
) -> tuple[Array, Array]:
    """Return the objective of each example and the logits it saw."""
    if objective.name == "penalty":
        return _penalised(network, objective, state, x, labels, sigma)
    clean = x
    if objective.name == "noise":
        x = x + sigma * drawn
    elif objective.name == "perturb":
        fixed = jax.lax.stop_gradient(state)
        start = sigma * drawn if objective.random_start else None
        gradient = functools.partial(_direction, network, fixed, labels=labels)
        x = x + frank_wolfe(gradient, x, objective.p, sigma, objective.steps, start)
    logits = _logits(network, state, x)
    losses = jax.nn.softplus(error_log_odds(logits, labels))
    if objective.name == "perturb" and (weight := objective.clean_weight):
        losses = weight * _losses(network, state, clean, labels) + (1 - weight) * losses
    return losses, logits


def _penalised(
    network: Network, objective: Any, state: Arrays, x: Array, labels: Array, sigma: Array
) -> tuple[Array, Array]:
    def odds_of(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = _logits(network, state, x)
        odds = error_log_odds(logits, labels)
        return odds.sum(), (odds, logits)

    gradient, (odds, logits) = jax.grad(odds_of, has_aux=True)(x)
    losses = jax.nn.softplus(odds)
    if objective.penalty_by == "difference":
        fixed = jax.lax.stop_gradient(gradient)
        eps = frank_wolfe(lambda _: fixed, x, objective.p, sigma, 1)
        ahead = _losses(network, state, x + DIFFERENCE_STEP * eps, labels)
        return losses + (ahead - losses) / DIFFERENCE_STEP, logits
    return losses + jax.nn.sigmoid(odds) * penalty(gradient, objective.p, sigma), logits


@functools.partial(jax.jit, static_argnums=0)
def _logits(network: Network, state: Arrays, x: Array) -> Array:
    for index, layer in enumerate(network.layers):
        x = x @ state[f"layers.{index}.weight"] + state[f"layers.{index}.bias"]
        if layer.activation == "sigmoid":
            x = jax.nn.sigmoid(x)
    return x


@functools.partial(jax.jit, static_argnums=0)
def _losses(network: Network, state: Arrays, x: Array, labels: Array) -> Array:
    return jax.nn.softplus(error_log_odds(_logits(network, state, x), labels))


@functools.partial(jax.jit, static_argnums=0)
def _direction(network: Network, state: Arrays, x: Array, labels: Array) -> Array:
    """Return the input gradient of the error log-odds; no weight gradient is computed."""
    gradient: Array = jax.grad(lambda at: error_log_odds(_logits(network, state, at), labels).sum())(x)
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
        is_weight = name.endswith("weight")
        if is_weight and weight_decay:
            gradient = gradient + weight_decay * state[name]
        velocity = momentum * state[f"velocity.{name}"] - lr * gradient
        parameter = state[name] + velocity
        limit = network.layers[int(name.split(".")[1])].max_norm
        if is_weight and limit is not None:
            norms = jnp.linalg.norm(parameter, axis=0)
            parameter = parameter * jnp.where(norms > limit, limit / norms, 1.0)
        new[name], new[f"velocity.{name}"] = parameter, velocity
    return new
